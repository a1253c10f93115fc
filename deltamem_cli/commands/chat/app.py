"""`dmem chat`: a conversation that is remembered, in a terminal or as one turn of a pipe."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_cli.commands import one_question
from deltamem_cli.commands.finding import open_store, profile_name, read_store
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
    KeyValueCommand,
    NewOption,
    NoLogOption,
    OptionOption,
    ProfileOption,
    ReadOnlyOption,
    check_new,
)

if TYPE_CHECKING:
    from deltamem_cli.session.request import Request
    from deltamem_cli.store.database import Store

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=KeyValueCommand)
@grouped
def chat(
    question: Annotated[list[str] | None, typer.Argument(metavar="[QUESTION]", help="Ask this, then exit.")] = None,
    profile: ProfileOption = None,
    new: NewOption = False,
    cid: CidOption = None,
    temporary: Annotated[bool, typer.Option("--temporary", help="Save nothing to disk.")] = False,
    read_only: ReadOnlyOption = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Use the plain model.")] = False,
    replay: Annotated[
        int | None,
        typer.Option(
            "--replay",
            metavar="N",
            min=0,
            help="Show the model up to N tokens of the last messages; 0: memory only.  [config: replay]",
        ),
    ] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    system: SystemOption = None,
    option: OptionOption = None,
    no_log: NoLogOption = False,
    write: WriteOption = None,
    template: TemplateOption = None,
    thinking: Thinking = DEFAULT_THINKING,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    no_stream: StreamOption = False,
    database: DatabaseOption = None,
) -> None:
    """Talk to a model that remembers. Continues the profile's last conversation.

    With a QUESTION or piped input, answers once and exits.

    \b
    Examples:
      dmem chat --profile work
      git diff | dmem chat "Explain this change"
    """
    check_new(new, cid)
    wanted: dict[str, Any] = dict(
        profile=profile_name(profile),
        cid=cid,
        new=new,
        model=model,
        adapter=adapter,
        memory=not no_memory,
        read_only=read_only,
        temporary=temporary,
        log=not no_log,
        write=write,
        system=system,
        options=key_values(option),
        replay_tokens=replay,
        template=template,
        ctx_size=ctx_size,
        **asdict(thinking),
        **asdict(hardware),
    )
    asked = one_question.question(question, example='dmem chat "What is my name?"')
    if asked is not None:
        wanted["brief"] = True
        if one_question.answer_from_server(database, wanted, asked, stream=not no_stream, as_json=False):
            return
    from deltamem_cli.session.request import Request

    with ExitStack() as stack:
        store, request = _open_for(stack, Request(**wanted), database)
        if asked is None:
            _in_terminal(store, request, stream=not no_stream)
        else:
            one_question.answer(stack, store, request, asked, stream=not no_stream)


def _open_for(stack: ExitStack, request: Request, database: Path | None) -> tuple[Store, Request]:
    """The store that `request` needs, and the request for it."""
    from deltamem_cli.session.opening import copy_for_temporary

    if not request.temporary:
        store = read_store(database) if request.read_only else open_store(database, create=True)
        return stack.enter_context(store), request
    with read_store(database) as disk:
        store, request = copy_for_temporary(disk, request)
    return stack.enter_context(store), request


def _in_terminal(store: Store, request: Request, *, stream: bool) -> None:
    from threading import Thread

    from deltamem_cli.commands.chat.open_chat import Talk
    from deltamem_cli.terminal import pastes
    from deltamem_cli.terminal.interrupts import ending_in_order, keys_wait

    # What the prompt needs is imported while the model loads.
    imports = Thread(target=_import_prompt, daemon=True)
    imports.start()
    with ending_in_order(), keys_wait(), pastes.marked(), Talk(store, request, stream=stream) as talk:
        from deltamem_cli.commands.chat import prompt, slash_reports
        from deltamem_cli.terminal.reply_view import tell

        for line in slash_reports.greeting(talk):
            tell(line)
        prompt.hold(talk)


def _import_prompt() -> None:
    import deltamem_cli.commands.chat.prompt  # noqa: F401
