"""What a request may say of how a reply is drawn, in OpenAI's words and in llama.cpp's. Plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from deltamem_cli.engine import Sampling
from deltamem_cli.engine.grammar import ANY_JSON, of_json_schema
from deltamem_cli.server.problems import invalid

_NUMBERS = tuple(field.name for field in fields(Sampling)) + ("max_tokens",)
_LONGEST_STOP, _MOST_STOPS = 1000, 16

# What would change the answer and is not done here, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({}, []),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "xtc_probability": (0,),
    "dry_multiplier": (0,),
    "ignore_eos": (False,),
}


def sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The options of replies that a body states, by dmem's names. Raises Problem for one that can't be followed."""
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and not any(value == fine for fine in neutral):
            raise invalid(f"{name} is not supported here: leave it out.", name)
    found = {}
    for name in _NUMBERS:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise invalid(f"{name} must be a number.", name)
        found[name] = value
    for name in ("max_completion_tokens", "max_output_tokens"):
        if body.get(name) is not None:
            found |= sampling({"max_tokens": body[name]})
    if isinstance(found.get("seed"), int):
        found["seed"] %= 2**32
    return found


def flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A field that is true or false. Raises Problem."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false.", name)
    return value


def usage_wanted(body: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with how many tokens it took. Raises Problem."""
    wanted = body.get("stream_options") or {}
    if not isinstance(wanted, Mapping):
        raise invalid("stream_options must be an object.", "stream_options")
    return flag(wanted, "include_usage")


def thinking(body: Mapping[str, Any]) -> bool | None:
    """Whether the model is to think, in any interface's words; None: as its template has it. Raises Problem."""
    template = body.get("chat_template_kwargs") or {}
    if not isinstance(template, Mapping) or set(template) - {"enable_thinking"}:
        raise invalid("Of chat_template_kwargs only enable_thinking is supported.", "chat_template_kwargs")
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, Mapping) else body.get("reasoning_effort")
    said = body.get("think", template.get("enable_thinking"))
    if said is None:
        return False if effort == "none" else None
    if isinstance(said, bool):
        return said
    if said in ("low", "medium", "high"):
        return True
    raise invalid("think must be true or false.", "think")


def stop_words(value: object) -> tuple[str, ...]:
    """`stop`, a text or a list of them. Raises Problem."""
    words = [value] if isinstance(value, str) else value or []
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise invalid("stop must be a text or a list of texts.", "stop")
    if len(words) > _MOST_STOPS or any(len(word) > _LONGEST_STOP for word in words):
        raise invalid(f"stop takes up to {_MOST_STOPS} texts of up to {_LONGEST_STOP} characters.", "stop")
    return tuple(words)


def grammar(response_format: object, where: str = "response_format") -> str | None:
    """The grammar that a response format asks for. Raises Problem."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if not isinstance(response_format, Mapping) or kind not in ("text", "json_object", "json_schema"):
        raise invalid(f"{where}.type must be text, json_object or json_schema.", where)
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_JSON
    inner = response_format.get("json_schema", response_format)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise invalid(f"{where} needs a schema.", where)
    return schema_grammar(schema, where)


def schema_grammar(schema: Mapping[str, Any], where: str) -> str:
    """The grammar of a JSON schema. Raises Problem for one that can't be followed."""
    try:
        return of_json_schema(json.dumps(schema))
    except ValueError as error:
        raise invalid(f"The schema can't be followed ({str(error)[:200]}).", where) from None
