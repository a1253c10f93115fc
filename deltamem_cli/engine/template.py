"""A chat template: jinja of a model or of a file, compiled in a sandbox. Turns messages into text; knows no tokens.

The environment is the one that templates are written for, that of transformers: trimmed blocks, `break` and
`continue`, `{% generation %}`, `tojson` that keeps letters, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from deltamem_cli.engine.errors import EngineError


class ChatTemplate:
    """Compiled when it is first rendered."""

    def __init__(self, source: str, name: str) -> None:
        """name: how errors call it, such as: the chat template of qwen3.gguf"""
        self.source = source
        self.name = name
        self._compiled: Any = None

    @classmethod
    def from_file(cls, path: Path) -> ChatTemplate:
        """Raises EngineError for a file that can't be read, and for what is no template."""
        try:
            source = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise EngineError(
                f"The chat template {path} can't be read ({error.strerror or error}): check the path."
            ) from None
        except UnicodeDecodeError:
            raise EngineError(f"The chat template {path} is no text: name a file of jinja.") from None
        if not source.strip():
            raise EngineError(f"The chat template {path} is empty: name another file.")
        template = cls(source, f"the chat template {path}")
        template._compile()
        return template

    @property
    def title(self) -> str:
        """Its name at the beginning of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def can_switch_thinking(self) -> bool:
        """Whether it asks for `enable_thinking`, as Qwen3's does."""
        return "enable_thinking" in self.source

    def render(self, messages: Sequence[Mapping[str, str]], *, reply: bool, **variables: object) -> str:
        """The text that stands for `messages` ({role, content} each). reply: end with the start of a reply.

        Raises EngineError when it is not valid or refuses the messages.
        """
        compiled = self._compile()
        try:
            text: str = compiled.render(
                messages=[dict(message) for message in messages], add_generation_prompt=reply, **variables
            )
        except Exception as error:  # whatever the template itself raises
            raise EngineError(
                f"{self.title} refuses these messages ({_line(error)}): change them or use another template."
            ) from error
        return text

    def _compile(self) -> Any:
        if self._compiled is None:
            try:
                self._compiled = _environment().from_string(self.source)
            except Exception as error:
                line = getattr(error, "lineno", None)
                where = f"in line {line}: " if line else ""
                raise EngineError(
                    f"{self.title} is not valid jinja ({where}{_line(error)}): correct it or use another one."
                ) from error
        return self._compiled


@cache
def _environment() -> Any:
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What a reply's text is, for training; rendered as if the tag were not there."""

        tags = {"generation"}  # noqa: RUF012 (the base class wants it so)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    def tojson(value: Any, indent: int | None = None, sort_keys: bool = False, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
