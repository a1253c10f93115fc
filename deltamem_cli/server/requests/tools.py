"""What a request says of tools: those that are offered, and which must be called. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltamem_cli.server.problems import invalid

_MOST = 128


@dataclass(frozen=True)
class Offer:
    """tools: as OpenAI's chat completions have them. forced: those of which one must be called, if one must."""

    tools: Sequence[Mapping[str, Any]] = ()
    forced: Sequence[Mapping[str, Any]] = ()
    one_call: bool = False


def offered(body: Mapping[str, Any]) -> Offer:
    """What `tools`, `tool_choice` and `parallel_tool_calls` come to, in the words of any interface. Raises Problem."""
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(_list(body.get("tools")))]
    choice = body.get("tool_choice")
    wanted = _wanted(choice, {tool["function"]["name"] for tool in tools})
    if choice == "none" or not tools:
        return Offer()
    forced = [tool for tool in tools if wanted is None or tool["function"]["name"] == wanted]
    must = wanted is not None or choice == "required"
    return Offer(tools, forced if must else (), body.get("parallel_tool_calls") is False)


def _list(tools: object) -> Sequence[Any]:
    if tools is None:
        return []
    if not isinstance(tools, list) or len(tools) > _MOST:
        raise invalid(f"tools must be a list of up to {_MOST} tools.", "tools")
    return tools


def _tool(tool: object, where: str) -> dict[str, Any]:
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or kind != "function":
        raise invalid(f"{where} is of the type {str(kind)[:40]}: only function tools are supported.", where)
    function = tool.get("function", tool)  # the Responses interface has no object around it
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise invalid(f"{where} has no name.", where)
    parameters = function.get("parameters")
    if not isinstance(parameters or {}, Mapping):
        raise invalid(f"The parameters of {name[:60]} must be a JSON schema.", where)
    kept = {key: function[key] for key in ("name", "description") if function.get(key) is not None}
    return {"type": "function", "function": {**kept, "parameters": parameters or {"type": "object", "properties": {}}}}


def _wanted(choice: object, names: set[str]) -> str | None:
    """The name of the one tool that must be called, if one is named."""
    if choice in (None, "auto", "none") or (choice == "required" and names):
        return None
    inner = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or name not in names:
        raise invalid("tool_choice must be auto, none, required or one of the tools.", "tool_choice")
    return name
