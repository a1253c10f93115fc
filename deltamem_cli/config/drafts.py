"""The configuration as its user edits it: a draft beside the file, which takes the file's place once it is sound."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from deltamem_cli import config, files
from deltamem_cli.config import file
from deltamem_cli.config.errors import ConfigError
from deltamem_cli.config.keys import KEYS, Key


def location() -> Path:
    """The path of the draft, beside the configuration file."""
    return file.location().with_name("config.edit.toml")


def current() -> str:
    """The file's text; where there is no file, one that explains every setting and sets none. Raises ConfigError."""
    path = file.location()
    return file.read_text(path) if path.exists() else sample()


def begin(text: str) -> bool:
    """Writes the draft, unless an unfinished one is there: True then. Raises ConfigError."""
    draft = location()
    if draft.exists():
        return True
    try:
        files.make_folder(draft.parent)
        files.write(draft, text.encode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{draft} could not be written ({error.strerror}): make its folder writable.") from error
    return False


def finish(before: str) -> bool:
    """Puts the draft in the file's place; False when it says what the file said `before`. The draft is gone then.

    Raises ConfigError when it is not sound or the file has changed meanwhile; a draft that says something new stays.
    """
    draft = location()
    text = file.read_text(draft)
    if text == before:
        discard()
        config.check(file.parse(text, file.location()), file.location())
        return False
    config.check(file.parse(text, draft), draft)

    def unless_changed() -> str:
        if current() != before:
            raise ConfigError(f"{file.location()} was changed by another program in the meantime.")
        return text

    file.write(unless_changed)
    discard()
    return True


def discard() -> None:
    """Deletes the draft, if there is one."""
    with suppress(OSError):
        location().unlink()


def sample() -> str:
    """A configuration file in which every setting is explained and none is set."""
    lines = ["# Configuration of dmem. Lines starting with # are not set; dmem config list shows what applies.", ""]
    section = ""
    for key in KEYS.values():
        part, _, name = key.name.rpartition(".")
        if part != section:
            section = part
            lines += [f"[{part}]", ""]
        lines += [f"# {key.help}", f"# {name} = {_preset(key)}", ""]
    return "\n".join(lines)


def _preset(key: Key) -> str:
    return f"   # unless set: {key.otherwise}" if key.default is None else json.dumps(key.default)
