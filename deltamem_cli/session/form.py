"""In which form a chat template takes messages: some want contents in parts, some take no system message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from deltamem_cli.engine.template import TemplateRefusal

Said = tuple[str, str]  # role and content

_SYSTEM, _USER = "\u2402s\u2403", "\u2402u\u2403"


class Render(Protocol):
    """A chat template as a function from messages to text; reply: ends where the next reply begins."""

    def __call__(self, messages: Sequence[dict[str, Any]], *, reply: bool) -> str:
        """Raises EngineError when the template fails, TemplateRefusal when it refuses these messages."""


@dataclass(frozen=True)
class Form:
    """parts: contents are lists of parts, as for models that see images too. system: what becomes of a system message;
    where the template has no place for it, it is put before the first user message.
    """

    parts: bool
    system: Literal["shown", "refused", "ignored"]

    def messages(self, said: Sequence[Said], system: str | None) -> list[dict[str, Any]]:
        """What the template gets for these (role, text), in the form that it takes."""
        messages = list(said)
        if system is not None and self.system == "shown":
            messages.insert(0, ("system", system))
        elif system is not None:
            first = next(i for i, (role, _) in enumerate(messages) if role == "user")
            messages[first] = ("user", f"{system}\n\n{messages[first][1]}")
        return [
            {"role": role, "content": [{"type": "text", "text": content}] if self.parts else content}
            for role, content in messages
        ]


def form_of(render: Render, *, system: bool) -> Form:
    """The form that the template takes. system: whether there will be a system prompt.

    Raises EngineError for a template that fails otherwise than by refusing messages.
    """
    parts = not _shows(render, Form(False, "shown")) and _shows(render, Form(True, "shown"))
    if not system:
        return Form(parts, "shown")
    try:
        text = render(Form(parts, "shown").messages([("user", _USER)], _SYSTEM), reply=True)
    except TemplateRefusal:
        return Form(parts, "refused")
    return Form(parts, "shown" if _SYSTEM in text else "ignored")


def _shows(render: Render, form: Form) -> bool:
    try:
        return _USER in render(form.messages([("user", _USER)], None), reply=True)
    except TemplateRefusal:
        return False
