"""Every command of the tree: it says what it does, ends with examples that its own parser accepts, and is in the README."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from deltamem_cli import cli

README = Path(__file__).parent.parent / "README.md"


def tree(command: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """(line, command, context) of the command and all below it."""
    yield context.command_path, command, context
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    for name in names:
        child = command.get_command(context, name)
        yield from tree(child, child.context_class(child, info_name=name, parent=context))


def every_command() -> list[tuple[str, Any, Any]]:
    root = get_command(cli.app)
    cli.examples_last(root)
    return list(tree(root, root.context_class(root, info_name="dmem", **root.context_settings)))


ALL = every_command()
each_command = pytest.mark.parametrize("line, command, context", ALL, ids=[line for line, _, _ in ALL])


def examples(help_text: str) -> list[str]:
    """The lines of the last section, without what explains them (after two spaces or more)."""
    _, found, block = help_text.rpartition("\nExamples:\n")
    return [re.sub(r"\s{2,}.*", "", line.strip()) for line in block.splitlines()] if found else []


@each_command
def test_command_says_what_it_does(line: str, command: Any, context: Any) -> None:
    assert command.help and command.help[0].isupper()
    for param in command.params:
        assert getattr(param, "help", None) or param.param_type_name == "argument" and param.metavar, param.name
    assert "\b" not in context.get_help()


@each_command
def test_every_command_fits_a_line_in_the_list_of_its_group(
    line: str, command: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = context.get_help().partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    assert [row.split()[0] for row in listed] == names, "each command has one line"
    assert not [row for row in listed if "..." in row or "…" in row]


@each_command
def test_values_of_options_have_names_for_people(line: str, command: Any, context: Any) -> None:
    assert not re.findall(r"<(?:int|float|text|path|file)\b[^>|]*>", context.get_help())


@each_command
def test_help_ends_with_examples_that_begin_with_the_command(line: str, command: Any, context: Any) -> None:
    shown = examples(context.get_help())
    assert shown, f"{line} --help shows no examples"
    if line == "dmem":
        return
    assert any(line in example for example in shown)
    assert shown[0].startswith(line) or hasattr(command, "commands")
    assert all(len(example) <= 100 for example in shown)


@each_command
def test_examples_are_accepted_by_the_parser_of_the_command_that_they_name(
    line: str, command: Any, context: Any
) -> None:
    for example in examples(context.get_help()):
        inner = re.search(r"sh -c '(.*)'", example)
        found = re.findall(r"(?:^|\| |\$\()(dmem [^|)<>]*)", inner[1] if inner else example)
        assert found, f"{example} runs no dmem"
        for one in found:
            parse(one)


def parse(line: str) -> None:
    """Raises what the command line's parser raises at `line`; runs nothing."""
    _, *words = shlex.split(line)
    root = get_command(cli.app)
    context = root.make_context("dmem", words)
    while hasattr(context.command, "resolve_command"):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@each_command
def test_command_stands_in_the_readme(line: str, command: Any, context: Any) -> None:
    text = README.read_text(encoding="utf-8")
    *parents, name = line.split(" ")
    # as `dmem log search`, or behind a sibling: dmem memory history | diff 3 7
    behind = rf"\b{' '.join(parents)} [^\n]*\| *(?:{' '.join(parents)} )?{name}\b"
    assert re.search(rf"\b{line}\b", text) or parents and re.search(behind, text), f"README.md does not show {line}"
