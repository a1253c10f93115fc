"""Grammars (GBNF) that replies can be held to."""

from __future__ import annotations

import importlib
import json
from typing import Any

from deltamem_cli.bindings import native

# Compact, as models write it where nobody reads it: white space without end would be allowed otherwise.
ANY_JSON = r"""
root   ::= object
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( pair ("," ws pair)* )? ws "}"
pair   ::= string ":" ws value
array  ::= "[" ws ( value ("," ws value)* )? ws "]"
string ::= "\"" ( [^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}) )* "\""
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
ws     ::= [ \n]{0,2}
"""


_LARGEST_SCHEMA = 100_000  # characters
_MOST_REPEATED = 2000


def of_json_schema(schema: str) -> str:
    """The grammar of the JSON that `schema`, itself JSON, describes. Raises ValueError for one that can't be followed."""
    if len(schema) > _LARGEST_SCHEMA:
        raise ValueError(f"it is longer than {_LARGEST_SCHEMA} characters")
    try:
        _check(json.loads(schema))
        native()  # brings the binding
        return str(importlib.import_module("llama_cpp.llama_grammar").json_schema_to_gbnf(schema))
    except Exception as error:  # noqa: BLE001 (llama-cpp-python's converter fails in any way at what is no schema)
        raise ValueError(str(error) or type(error).__name__) from None


def _check(schema: Any) -> None:
    """Raises ValueError for what the converter would fetch from the network, or write out for ever."""
    if isinstance(schema, list):
        for each in schema:
            _check(each)
    elif isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise ValueError(f"{reference[:60]} is elsewhere, and only what the schema itself defines is used")
        for name in ("minLength", "maxLength", "minItems", "maxItems"):
            if isinstance(schema.get(name), (int, float)) and schema[name] > _MOST_REPEATED:
                raise ValueError(f"{name} is {schema[name]}, and at most {_MOST_REPEATED} are followed")
        for each in schema.values():
            _check(each)
