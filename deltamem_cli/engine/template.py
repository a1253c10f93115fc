"""A chat template: jinja of a model or of a file, rendered in a process of its own. Turns messages into text; knows no
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltamem_cli import reading
from deltamem_cli.engine.errors import EngineError
from deltamem_cli.engine.renderer import RENDERER, Stopped
from deltamem_cli.text import decoded, short

_PIPED: dict[Path, bytes] = {}  # what pipes said: each says it once, and every conversation begins with its template


class TemplateRefusal(EngineError):
    """What a template says of messages that it does not take."""


class ChatTemplate:
    """Checked when it is first rendered."""

    def __init__(self, source: str, name: str) -> None:
        """name: how errors call it, such as: the chat template of qwen3.gguf"""
        self.source = source
        self.name = name

    @classmethod
    def from_file(cls, path: Path) -> ChatTemplate:
        """Raises EngineError for a file that can't be read, and for what is no template."""
        try:
            data = _PIPED.get(path)
            if data is None:
                data = reading.whole_file(path)
                if not path.is_file():
                    _PIPED[path] = data
            source = decoded(data, "strict").replace("\r\n", "\n")
        except OSError as error:
            raise EngineError(
                f"The chat template {path} can't be read ({error.strerror or error}): check the path."
            ) from None
        except UnicodeDecodeError:
            raise EngineError(f"The chat template {path} is not text: give a jinja file.") from None
        if not source.strip():
            raise EngineError(f"The chat template {path} is empty: give another file.")
        template = cls(source, f"the chat template {path}")
        template._compile()
        return template

    @staticmethod
    def prepare() -> None:
        """Lets what renders templates get ready beside what the caller does next, such as loading a model."""
        with suppress(OSError):  # said when it is needed
            RENDERER.start()

    @property
    def title(self) -> str:
        """Its name at the beginning of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def can_switch_thinking(self) -> bool:
        """Whether it asks for `enable_thinking`, as Qwen3's does."""
        return "enable_thinking" in self.source

    def render(self, messages: Sequence[Mapping[str, Any]], *, reply: bool, **variables: object) -> str:
        """The text that stands for `messages` ({role, content} each). reply: end with the start of a reply.

        Raises EngineError when it is not valid, refuses the messages, or takes too much time or memory.
        """
        told = {"messages": [dict(message) for message in messages], "add_generation_prompt": reply, **variables}
        return self._asked(variables=told)

    def _compile(self) -> None:
        self._asked()

    def _asked(self, **more: object) -> str:
        try:
            answer = RENDERER.ask({"source": self.source, **more})
        except Stopped:
            answer = {"limit": "time"}
        except OSError as error:
            raise EngineError(
                f"{self.title} can't be rendered, as no process can be started ({error.strerror or error}): "
                "close other programs and try again."
            ) from None
        if "invalid" in answer:
            raise EngineError(
                f"{self.title} is not valid jinja ({short(answer['invalid'], 200)}): correct it or use another one."
            )
        if "refused" in answer:
            raise TemplateRefusal(
                f"{self.title} refuses these messages ({short(answer['refused'], 200)}): change them or use another template."
            )
        if "limit" in answer:
            raise EngineError(f"{self.title} takes too much time or memory: use another with --template.")
        return answer["text"]
