"""The `dmem` command: global options, the table of commands, and the one place where errors become exit codes.

Imports nothing heavy: a command's module is imported when that command runs.
"""

from __future__ import annotations

import codecs
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import cleandoc
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from deltamem_cli import reading, standard_streams
from deltamem_cli.errors import DeltamemError, refused_by_system
from deltamem_cli.text import sentence

# (name, module, help). The module has an `app`, a typer.Typer: with a callback it is a group, without one its
# single command answers to the name.
COMMANDS: list[tuple[str, str, str]] = [
    ("ask", "deltamem_cli.commands.ask", "Ask one question."),
    ("chat", "deltamem_cli.commands.chat.app", "Talk to a model that remembers."),
    ("serve", "deltamem_cli.commands.serve", "Serve the memory to other programs."),
    ("rpc-server", "deltamem_cli.commands.rpc_server", "Compute layers for models on other machines."),
    ("memory", "deltamem_cli.commands.memory.app", "Inspect and manage a conversation's memory."),
    ("profile", "deltamem_cli.commands.profile", "Manage profiles: each has its own memory and settings."),
    ("log", "deltamem_cli.commands.log", "List, show, search and export transcripts."),
    ("model", "deltamem_cli.commands.model.app", "Download, register and inspect models."),
    ("adapter", "deltamem_cli.commands.adapter.app", "Create, inspect and verify adapters."),
    ("config", "deltamem_cli.commands.config", "Show and change settings."),
    ("doctor", "deltamem_cli.commands.doctor", "Check that everything works, and suggest fixes."),
    ("eval", "deltamem_cli.commands.eval.app", "Measure how much the memory recalls."),
    ("bench", "deltamem_cli.commands.bench", "Measure what the memory costs in speed and RAM."),
]


@dataclass
class Session:
    """What the global options say; every command finds it as `ctx.obj`."""

    debug: bool = False


class LazyGroup(TyperGroup):
    """Knows names and help texts from the table, and imports a command's module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the table, which is that of the help."""
        return [name for name, _, _ in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now; None when the table lacks it."""
        for name, module, _ in COMMANDS:
            if name == cmd_name:
                command = get_command(importlib.import_module(module).app)
                command.name = name
                examples_last(command)
                return command
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Click, which suggests near names for a mistyped one."""
        # only the names count here: a mistyped one is compared with them
        self.commands = {name: TyperCommand(name) for name in self.list_commands(ctx)}
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **more: Any) -> Any:
        """As Click, whose errors quote what was typed."""
        with _quoting_little():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """The same for the command's own words."""
        with _quoting_little():
            return super().invoke(ctx)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """What a shell's Tab offers for the first word."""
        # the default imports every command for its help too
        named: dict[str, Any] = {name: TyperCommand(name, help=text) for name, _, text in COMMANDS}
        ctx.command = TyperGroup(name=self.name, params=self.params, commands=named)
        return ctx.command.shell_complete(ctx, incomplete)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands from the table."""
        # the default asks every command for its help, which would import them all
        if COMMANDS:
            with formatter.section("Commands"):
                formatter.write_dl([(name, text) for name, _, text in COMMANDS])


@contextmanager
def _quoting_little() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Click's, which may be Typer's copy of it
        if isinstance(getattr(error, "message", None), str):
            error.message = sentence(error.message)  # type: ignore[attr-defined]
        raise


def examples_last(command: Any) -> None:
    """Moves the examples that end a docstring behind the options, where manual pages have them; of subcommands too.

    They are written as a paragraph of `\\b` and `Examples:` with one indented line per example.
    """
    for each in (command, *getattr(command, "commands", {}).values()):
        text, found, lines = (each.help or "").partition("\b\nExamples:\n")
        if found:
            each.help = text.rstrip()
            each.format_epilog = partial(_format_examples, cleandoc(lines).splitlines())


def _format_examples(examples: list[str], ctx: Any, formatter: Any) -> None:
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import deltamem_cli
        from deltamem_cli import build

        typer.echo(f"dmem {deltamem_cli.__version__}\n{build.upstream()}")
        raise typer.Exit


@app.callback()
def dmem(
    ctx: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show llama.cpp's log, and a traceback on errors."),
    version: bool = typer.Option(
        False,
        "--version",
        help="Show the versions of dmem and llama.cpp, and exit.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    """Talk to a local language model that keeps a δ-mem memory between sessions.

    Options marked [config: KEY] can also be set with the environment variable DMEM_KEY or in the configuration file;
    a flag wins over both. To see every setting: dmem config list

    \b
    Examples:
      dmem chat                        talk; the memory is kept for next time
      git diff | dmem ask "Explain this change"
      dmem memory inspect              what the memory looks like
      dmem model pull qwen3-4b         a bigger model, with its memory
      dmem doctor                      when something doesn't work
    """
    if debug:
        ctx.ensure_object(Session).debug = True


def _complete_at_the_first_tab() -> None:
    """zsh loads an installed script at the first Tab; Typer's only defines its function then. As Click's, call it too."""
    with suppress(ImportError, AttributeError, KeyError):  # a Typer that keeps its scripts elsewhere
        from typer._completion_shared import _completion_scripts as scripts

        scripts["zsh"] += 'if [[ $zsh_eval_context[-1] == loadautofunc ]]; then %(complete_func)s "$@"; fi\n'


def _take_debug(args: list[str]) -> tuple[list[str], bool]:
    """Takes `--debug` out from wherever it stands before `--`, so that it may follow the command's name."""
    end = args.index("--") if "--" in args else len(args)
    kept = [arg for arg in args[:end] if arg != "--debug"] + args[end:]
    return kept, len(kept) != len(args)


def _spelled_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """For what a stream's encoding lacks: a file name's bytes as they are, else the character's number."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in part):
        return part.encode("ascii", "surrogateescape"), error.end
    return codecs.backslashreplace_errors(error)


def main(argv: list[str] | None = None) -> int:
    """Runs one command line; returns the exit code: 0, 1 (failure), 2 (usage), 130 (Ctrl-C)."""
    args, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    session = Session(debug=debug)
    standard_streams.prepare()
    reading.tell = _say
    codecs.register_error("dmem", _spelled_out)
    for stream in (sys.stdout, sys.stderr):  # a pipe of Windows has no δ, and output must neither fail nor lose it
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="dmem")
    if debug:
        from deltamem_cli.bindings import Native

        Native.log_to_stderr = True
    code = _run(args, session)
    try:
        standard_streams.finish()
    except DeltamemError as error:
        if not code:
            _report(str(error), session)
        return code or error.exit_code
    except BrokenPipeError:
        return code or 1
    return code


def _run(args: list[str], session: Session) -> int:
    try:
        command = get_command(app)
        examples_last(command)
        if {"--install-completion", "--show-completion"} & set(args):
            _complete_at_the_first_tab()
        command.main(args, prog_name="dmem", obj=session)
    except SystemExit as stop:  # typer's end of every command; it has made 130 of Ctrl-C and 2 of wrong usage
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except DeltamemError as error:
        _report(str(error), session)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the last line of defence; --debug shows the traceback)
        odd = f"Unexpected error ({type(error).__name__}: {error}). This should not happen; run again with --debug to see why."
        _report(refused_by_system(error) or sentence(odd), session)
        return 1
    return 0


def _report(text: str, session: Session) -> None:
    if "_DMEM_COMPLETE" in os.environ:
        return  # a shell that completes would print it into the line that is typed
    from deltamem_cli.terminal.output import printable, printable_lines

    if session.debug:
        import traceback

        print(printable_lines(traceback.format_exc()), file=sys.stderr)
    print(printable(text), file=sys.stderr)


def _say(text: str) -> None:
    from deltamem_cli.terminal.output import note

    note(text)
