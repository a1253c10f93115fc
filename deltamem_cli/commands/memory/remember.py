"""`dmem memory remember`: writes a text into a memory outside a chat."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deltamem_cli.commands.finding import open_store, profile_name
from deltamem_cli.commands.options.model import (
    DEFAULT_HARDWARE,
    AdapterOption,
    ContextOption,
    Hardware,
    ModelOption,
    TemplateOption,
    grouped,
)
from deltamem_cli.commands.options.stored import (
    CidOption,
    DatabaseOption,
    JsonOption,
    NewOption,
    NoLogOption,
    ProfileOption,
    check_new,
)
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.terminal.output import count, note, print_json
from deltamem_cli.text import decoded, whole


@grouped
def remember(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to remember.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="Remember a file's text.")] = None,
    profile: ProfileOption = None,
    cid: CidOption = None,
    new: NewOption = False,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    no_log: NoLogOption = False,
    template: TemplateOption = None,
    ctx_size: ContextOption = None,
    hardware: Hardware = DEFAULT_HARDWARE,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Write text into the memory.

    Without TEXT and FILE, reads standard input.

    \b
    Examples:
      dmem memory remember "My sister is called Ana." --profile work
      dmem memory remember -f notes.txt
    """
    from deltamem_cli.commands import one_question
    from deltamem_cli.engine import Cancelled
    from deltamem_cli.session.opening import open_chat
    from deltamem_cli.session.request import Request
    from deltamem_cli.terminal import one_reply

    check_new(new, cid)
    wanted = _text(text, file)
    with ExitStack() as stack:
        store = stack.enter_context(open_store(database, create=True))
        request = Request(
            profile=profile_name(profile),
            cid=cid,
            new=new,
            model=model,
            adapter=adapter,
            log=not no_log,
            brief=True,
            replay_tokens=0,
            template=template,
            ctx_size=ctx_size,
            **asdict(hardware),
        )
        session, loaded = open_chat(stack, store, request, waiting=one_question.tell_of_waiting)
        if not session.writes:
            raise DeltamemError(f"Nothing can be remembered: {loaded.why_no_memory}")
        try:
            one_reply.remember(session, wanted)
        except Cancelled:
            note("Stopped; the memory is unchanged.")
            raise typer.Exit(130) from None
        number, stats = session.n_turns, session.stats
    if as_json:
        print_json(
            {
                "profile": session.profile.name,
                "conversation": session.conversation.id,
                "turn": number,
                "tokens_written": stats.written_tokens,
                "change": stats.changed,
            }
        )
    else:
        note(
            f"remembered as turn {number} of conversation {session.conversation.id}: "
            f"{count(stats.written_tokens, 'token')} written, the memory changed by {stats.changed:.4g}"
        )


def _text(text: str | None, file: Path | None) -> str:
    """What is to be remembered: the argument, a file, or standard input."""
    from deltamem_cli.commands import one_question
    from deltamem_cli.commands.text_file import file_text

    if text is not None and file is not None:
        raise UsageError("TEXT and --file can't be used together; drop one of them")
    if file is not None and str(file) != "-":
        return file_text(file)
    if text is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError('There is nothing to remember: give a text, such as: dmem memory remember "I like tea."')
        text = decoded(one_question.standard_input())
    if not text.strip():
        raise UsageError("The text is empty, so there is nothing to remember: give some text.")
    return whole(text).strip()
