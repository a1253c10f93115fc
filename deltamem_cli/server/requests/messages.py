"""A client's messages as a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltamem_cli.server.conversations.history import History
from deltamem_cli.server.problems import invalid
from deltamem_cli.session.tools import calls as tools
from deltamem_cli.session.tools.calls import Call


def text_of(content: object, where: str) -> str:
    """A message's content, a text or parts of which each is one. Raises Problem for pictures and sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise invalid(f"{where} must be a text or a list of parts.", where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "refusal":
            texts.append(str(part.get("refusal", "")))
        else:
            raise invalid(f"{where} has a part of the type {str(kind)[:40]}, and this model reads text alone.", where)
    return "".join(texts)


def history_of(messages: object) -> History:
    """What `messages` say, [{role, content, tool_calls}, …]. Raises Problem."""
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list of at least one message.", "messages")
    system: list[str] = []
    said: list[tuple[str, str]] = []  # neighbours of one role joined
    roles: list[object] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise invalid(f"{where} must be an object.", where)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise invalid(
                f"{where} has the role {str(role)[:40]}: use system, user, assistant or tool.", f"{where}.role"
            )
        text, between = text_of(message.get("content"), f"{where}.content"), "\n\n"
        if role == "tool":
            between = "\n" if roles[-1:] == ["tool"] else between
            role, text = "user", tools.results([text])
        elif role == "assistant" and message.get("tool_calls"):
            text = tools.reply(text.rstrip(), _calls(message["tool_calls"], f"{where}.tool_calls"))
        roles.append(message["role"])
        if role in ("system", "developer"):
            system.append(text)
        elif said and said[-1][0] == role:
            said[-1] = (role, f"{said[-1][1]}{between}{text}")
        else:
            said.append((role, text))
    if not said or said[-1][0] != "user":
        raise invalid("The last message must be the user's.", "messages")
    if not said[-1][1].strip():
        raise invalid("The last message is empty.", "messages")
    if said[0][0] == "assistant":
        said.insert(0, ("user", ""))
    texts = [text for _, text in said]
    pairs = tuple(zip(texts[:-1:2], texts[1:-1:2], strict=True))
    has_calls = "tool" in roles or any(message.get("tool_calls") for message in messages)
    return History(texts[-1], pairs, "\n\n".join(system) if system else None, has_calls)


def _calls(calls: object, where: str) -> list[Call]:
    try:
        functions = [each["function"] for each in calls]  # type: ignore[attr-defined]
        return [tools.call(str(each["name"]), each.get("arguments")) for each in functions]
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError):
        raise invalid(f"{where} must be calls of functions, with their arguments as JSON.", where) from None
