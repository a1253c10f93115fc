"""The configuration: environment, else the one TOML file, else the default. Knows nothing of who asks.

Reading costs a look at the file system while there is no file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deltamem_cli import paths
from deltamem_cli.config import file
from deltamem_cli.config.errors import ConfigError, UnknownKey, WrongValue
from deltamem_cli.config.keys import KEYS, TABLES, Key
from deltamem_cli.text import short

__all__ = ["KEYS", "check", "checked", "find", "options", "set_entry", "set_value", "source", "table", "unset", "value"]


def value(name: str) -> Any:
    """What the setting is. Raises ConfigError when the environment or the file says what cannot be."""
    key = KEYS[name]
    if given := os.environ.get(key.variable):
        return _from_environment(key, given)
    return checked().get(name, key.default)


def source(name: str) -> str:
    """Where `value` comes from: `environment DMEM_…`, `file` or `default`."""
    key = KEYS[name]
    if os.environ.get(key.variable):
        return f"environment {key.variable}"
    return "file" if name in checked() else "default"


def options() -> dict[str, Any]:
    """The options of replies that are set: others are the model's to choose. Raises ConfigError."""
    chosen = [name for name in KEYS if name.startswith("options.") and source(name) != "default"]
    return {name.removeprefix("options."): value(name) for name in chosen}


def checked() -> dict[str, Any]:
    """The file's settings by their full names. Raises ConfigError."""
    return check(file.read(), file.location())


def check(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings in `document`, which was read from `path`, by their full names. Raises ConfigError."""
    settings: dict[str, Any] = {}
    for name, said in _flat(document, path):
        key = KEYS.get(name)
        if key is None:
            raise ConfigError(f"{path} sets {short(name)}, which is not a setting; {_hint(name)}")
        try:
            settings[name] = key.kind.from_toml(said, path.parent)
        except ValueError:
            raise ConfigError(f"{path} sets {name} to {_as_toml(said)}; it must be {key.kind.expects}.") from None
    return settings


def find(name: str) -> Key:
    """The setting that a command line names. Raises UnknownKey."""
    key = KEYS.get(name.replace("-", "_"))
    if key is None:
        raise UnknownKey(f"There is no setting {short(name)}; {_hint(name)}")
    return key


def set_value(name: str, text: str) -> None:
    """Writes the setting into the file, whose comments stay. Raises UnknownKey, WrongValue, ConfigError."""
    key = find(name)
    try:
        new = key.kind.from_text(text)
    except ValueError:
        raise WrongValue(f"{key.name} can't be {_as_toml(text)}; it must be {key.kind.expects}.") from None
    if isinstance(new, Path):
        new = str(new)
    elif key.name in ("model", "adapter") and new.endswith(".gguf") and paths.expanded(new).is_file():
        new = str(paths.expanded(new).absolute())  # seen from another folder it would be another file
    part, _, last = key.name.rpartition(".")
    _change(lambda document: _put(document, part, last, new))


def unset(name: str) -> bool:
    """Takes the setting out of the file; False when it did not stand there. Raises UnknownKey, ConfigError."""
    key = find(name)
    if key.name not in checked():
        return False
    part, _, last = key.name.rpartition(".")
    _change(lambda document: _take(document, part, last))
    return True


def table(name: str) -> dict[str, dict[str, Any]]:
    """The entries of `[models.NAME]` or `[adapters.NAME]`, by NAME. What they mean is their reader's business."""
    checked()
    return dict(file.read().get(name, {}))


def set_entry(name: str, entry: str, values: Mapping[str, Any] | None) -> None:
    """Writes one entry of a table into the file; None takes it out."""
    if values is None:
        _change(lambda document: _take(document, name, entry))
    else:
        _change(lambda document: _put(document, name, entry, dict(values)))


def _from_environment(key: Key, given: str) -> Any:
    if key.variable == "DMEM_NOHISTORY":  # any text turns it off, as with other programs' NO… variables
        return False
    try:
        return key.kind.from_text(given)
    except ValueError:
        raise ConfigError(f"{key.variable} is {_as_toml(given)}; it must be {key.kind.expects}.") from None


def _as_toml(said: Any) -> str:
    if isinstance(said, bool):
        return str(said).lower()
    try:
        text = repr(said)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number that is too large"
    return short(text)


def _flat(document: Mapping[str, Any], path: Path) -> list[tuple[str, Any]]:
    """(full name, value) of what the document sets, the users' own tables left out."""
    found: list[tuple[str, Any]] = []
    for name, said in document.items():
        if name in TABLES:
            if not (isinstance(said, dict) and all(isinstance(entry, dict) for entry in said.values())):
                raise ConfigError(f"{path} sets {name} to no table; it must hold tables, such as [{name}.NAME].")
        elif name == "options":
            if not isinstance(said, dict):
                raise ConfigError(f"{path} sets options to {_as_toml(said)}; it must be a table: [options]")
            found += [(f"options.{option}", one) for option, one in said.items()]
        else:
            found.append((name, said))
    return found


def _hint(name: str) -> str:
    from difflib import get_close_matches

    name = name.replace("-", "_")
    near = [f"options.{name}"] if f"options.{name}" in KEYS else get_close_matches(name, [*KEYS, *TABLES], n=1)
    return f"did you mean {near[0]}? See: dmem config list" if near else "see: dmem config list"


def _change(edit: Callable[[Any], None]) -> None:
    """Lets `edit` change the file as tomlkit has it. What is broken is not built upon, and is not made. Raises ConfigError."""

    def changed() -> str:
        import tomlkit

        checked()
        path = file.location()
        document = tomlkit.parse(file.read_text(path)) if path.exists() else tomlkit.document()
        edit(document)
        text = tomlkit.dumps(document)
        check(file.parse(text, path), path)
        return text

    file.write(changed)


def _take(document: Any, part: str, name: str) -> None:
    if name in (document.get(part, {}) if part else document):
        del (document[part] if part else document)[name]


def _put(document: Any, part: str, name: str, new: Any) -> None:
    """document[part][name] = new, or document[name] when there is no part."""
    import tomlkit

    if part and part not in document:
        document[part] = tomlkit.table(is_super_table=part in TABLES)
    (document[part] if part else document)[name] = new
