"""`dmem ask`: one question, one reply. Nothing is remembered or read unless a memory is named."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated, Any

import typer

from deltamem_cli.commands import one_question
from deltamem_cli.commands.finding import open_store, profile_name, read_store
from deltamem_cli.commands.options import completion
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    DEFAULT_THINKING,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    StreamOption,
    SystemOption,
    TemplateOption,
    Thinking,
    WriteOption,
    grouped,
    key_values,
)
from deltamem_cli.commands.options.stored import (
    CidOption,
    DatabaseOption,
    JsonOption,
    KeyValueCommand,
    NoLogOption,
    OptionOption,
    ReadOnlyOption,
)
from deltamem_cli.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_EXAMPLE = 'dmem ask "What is a monad?"'


@app.command(cls=KeyValueCommand)
@grouped
def ask(
    question: Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]", help="What to ask.")] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--profile",
            metavar="NAME",
            help="Use this profile's memory.",
            autocompletion=completion.profiles,
        ),
    ] = None,
    continue_: Annotated[
        bool, typer.Option("-c", "--continue", help="Use the memory of the last conversation.  [config: profile]")
    ] = False,
    cid: CidOption = None,
    read_only: ReadOnlyOption = False,
    no_log: NoLogOption = False,
    write: WriteOption = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    option: OptionOption = None,
    template: TemplateOption = None,
    thinking: Thinking = DEFAULT_THINKING,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: JsonOption = False,
    no_stream: StreamOption = False,
    database: DatabaseOption = None,
) -> None:
    """Ask one question. Piped input goes before it.

    No memory is read or written unless you name one with --profile, --continue or --cid; the question is then the next
    turn of that conversation. Questions to the same memory wait for each other, except with --read-only.

    The reply goes to stdout, everything else to stderr. Exit codes: 1 failure, 2 wrong usage, 130 interrupted.

    \b
    Examples:
      dmem ask "What is a monad?"
      git diff --staged | dmem ask -s "Write a commit message." -o temperature 0.2
      dmem ask -p work "What is my sister called?"
      ls *.txt | xargs -P 2 -I{} sh -c 'dmem ask "Summarise." < {} > {}.summary'
      dmem ask --json "Name three rivers." | jq -r .text
    """
    named = profile is not None or continue_ or cid is not None
    if (read_only or no_log) and not named:
        raise UsageError(
            f"{'--read-only' if read_only else '--no-log'} is about a memory: name one with --profile or --continue"
        )
    asked: dict[str, Any] = dict(
        profile=profile_name(profile),
        cid=cid,
        model=model,
        adapter=adapter,
        memory=named or adapter is not None,
        read_only=read_only,
        temporary=not named,
        note_model=True,
        brief=True,
        log=not no_log,
        write=write,
        system=system,
        options=key_values(option),
        template=template,
        ctx_size=ctx_size,
        **asdict(thinking),
        **asdict(hardware),
    )
    text = one_question.question(question, example=_EXAMPLE)
    if text is None:
        raise one_question.no_question(_EXAMPLE)
    if one_question.answer_from_server(database, asked, text, stream=not no_stream, as_json=as_json):
        return
    from deltamem_cli.session.request import Request
    from deltamem_cli.store.database import Store

    request = Request(**asked)
    with ExitStack() as stack:
        if not named:
            store = stack.enter_context(Store.memory())
        else:
            store = stack.enter_context(read_store(database) if read_only else open_store(database, create=True))
        one_question.answer(stack, store, request, text, stream=not no_stream, as_json=as_json)
