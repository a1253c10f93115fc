"""What a request to the memory's interface says: named fields of known kinds, checked, and described for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request

from deltamem_cli.server.problems import invalid
from deltamem_cli.server.requests.body import read_json

_LARGEST = 2**31 - 1
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")
_KINDS: Mapping[str, tuple[type, str]] = {
    "string": (str, "a text"),
    "integer": (int, "a whole number"),
    "boolean": (bool, "true or false"),
    "array": (list, "a list of whole numbers"),
    "texts": (list, "a list of texts"),
    "object": (dict, "an object"),
}


@dataclass(frozen=True)
class Field:
    """default: what it is where the request does not say. least: of a number, or of each in a list (array)."""

    name: str
    kind: Literal["string", "integer", "boolean", "array", "texts", "object"]
    help: str
    default: Any = None
    required: bool = False
    least: int = 0

    def schema(self) -> dict[str, Any]:
        """As JSON Schema."""
        number = {"type": "integer", "minimum": self.least, "maximum": _LARGEST}
        if self.kind == "integer":
            schema: dict[str, Any] = dict(number)
        elif self.kind == "array":
            schema = {"type": "array", "items": number, "minItems": 1}
        elif self.kind == "texts":
            schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        else:
            schema = {"type": self.kind}
        return schema if self.default is None else {**schema, "default": self.default}

    def checked(self, value: Any) -> Any:
        """The value, if it is of the kind. Raises Problem."""
        kind, words = _KINDS[self.kind]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid(f"{self.name} must be {words}.", self.name)
        each: list[Any] = value if isinstance(value, list) else [value]
        if not each:
            raise invalid(f"{self.name} is an empty list.", self.name)
        if self.kind == "texts" and not all(isinstance(text, str) for text in each):
            raise invalid(f"{self.name} must be {words}.", self.name)
        numbers = each if self.kind in ("integer", "array") else []
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int) or not self.least <= number <= _LARGEST:
                raise invalid(f"{self.name}: {str(number)[:20]} is not a whole number from {self.least} on.", self.name)
        return value

    def of_query(self, text: str) -> Any:
        """The value that a text of the query means. Raises Problem."""
        if self.kind == "boolean":
            return True if text.lower() in _YES else False if text.lower() in _NO else self.checked(text)
        return self.checked(int(text[:20]) if self.kind == "integer" and text.isascii() and text.isdigit() else text)


async def read(request: Request, fields: Sequence[Field], *, in_query: bool) -> dict[str, Any]:
    """All fields, from the query or from the body, an object. Raises Problem, also for a name that is not known:

    a mistyped dry_run would else delete.
    """
    known = {field.name: field for field in fields}
    if in_query:
        told: dict[str, Any] = dict(request.query_params)
    else:
        if request.query_params:
            raise invalid(f"{next(iter(request.query_params))[:40]} must stand in the body.")
        told = {name: value for name, value in (await read_json(request)).items() if value is not None}
    for name in told:
        if name not in known:
            usable = f"use {', '.join(known)}" if known else "leave it out"
            raise invalid(f"There is no field {name[:40]} here: {usable}.", name[:40])
    for field in fields:
        if field.required and field.name not in told:
            raise invalid(f"{field.name} is missing: {field.help[:1].lower()}{field.help[1:]}", field.name)
    values = {
        name: known[name].of_query(value) if in_query else known[name].checked(value) for name, value in told.items()
    }
    return {field.name: values.get(field.name, field.default) for field in fields}
