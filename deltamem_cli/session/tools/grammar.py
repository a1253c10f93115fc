"""Grammars of calls in a template's form, with arguments that keep to the tools' schemas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltamem_cli.engine import LazyGrammar, Model
from deltamem_cli.engine.grammar import of_json_schema
from deltamem_cli.session.tools.calls import as_json
from deltamem_cli.session.tools.form import ID, ToolForm

_ID = "[a-zA-Z0-9]{9}"
# Texts, sets of characters and names of rules in GBNF
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|(?P<name>[A-Za-z][\w-]*)')


def of_calls(form: ToolForm, tools: Sequence[Mapping[str, Any]], *, several: bool = False, opened: str = "") -> str:
    """GBNF of a call of one of the tools. several: others may follow. opened: the form's beginning, if not all of it.

    Raises ValueError for a schema that can't be followed.
    """
    functions = [tool["function"] for tool in tools]
    further = f" ({_literal(form.between)} call)*" if several and form.between else ""
    rules = [
        f"root ::= {_literal(opened or form.open)} call{further} {_literal(form.close)}",
        f"call ::= {' | '.join(f'f{i}' for i in range(len(functions)))}",
    ]
    for i, function in enumerate(functions):
        name = as_json(function["name"])[1:-1] if form.is_object else function["name"]
        rules.append(f"f{i} ::= {_literal(name)} {_literal(form.middle)} f{i}-root")
        rules.append(_renamed(of_json_schema(as_json(function["parameters"])), f"f{i}-"))
    return "\n".join(rules)


def once_begun(
    form: ToolForm, tools: Sequence[Mapping[str, Any]], model: Model, *, several: bool
) -> LazyGrammar | None:
    """What holds calls once the model has begun one. None where no single token tells that, or a schema can't be followed.

    Only a token tells it safely: a mark of several ends inside one that may be no part of the grammar.
    """
    opened = form.open.lstrip()
    first = model.tokenize(opened, special=True)[:1] if form.mark else []
    piece = model.piece(first[0]).decode(errors="replace") if first else ""
    text = piece or (model.text(first, special=True) if first else "")
    # llama.cpp ends the process where the token does not fit the grammar: its whole text must begin that
    if not (text and opened.startswith(text) and (text == form.mark or not piece)):
        return None
    try:
        return LazyGrammar(of_calls(form, tools, several=several, opened=opened), first[0])
    except ValueError:
        return None


def _literal(text: str) -> str:
    parts = [as_json(part) if part else "" for part in text.split(ID)]
    return f" {_ID} ".join(parts) if any(parts) else '""'


def _renamed(grammar: str, prefix: str) -> str:
    """With the names of all rules longer, so that it can stand beside others."""
    return _TOKEN.sub(lambda found: prefix + found[0] if found["name"] else found[0], grammar)
