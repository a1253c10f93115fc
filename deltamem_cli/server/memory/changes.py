"""What the memory's interface changes, and what it asks a memory. Each change holds the conversation, here and against
other programs, and lets go of what was warm of it, so that the model goes on from what is stored.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request

from deltamem_cli.engine import Cancelled
from deltamem_cli.server.conversations.places import Place, Places
from deltamem_cli.server.memory import stored
from deltamem_cli.server.problems import Problem, invalid
from deltamem_cli.server.requests import options
from deltamem_cli.server.requests.answers import stop_when_left
from deltamem_cli.server.requests.service import service
from deltamem_cli.session import documents, forgetting, typed_lines
from deltamem_cli.session.forgetting import Forgotten
from deltamem_cli.session.request import replies
from deltamem_cli.session.thinking import parted
from deltamem_cli.session.wiping import wipe
from deltamem_cli.store import bundle, conversations, locks, portable, profiles, states, turns, wiping
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError
from deltamem_cli.store.records import Conversation, Profile
from deltamem_cli.store.reset import extent
from deltamem_cli.store.reset import reset as reset_store

Said = Mapping[str, Any]
Document = dict[str, Any]

LARGEST_FILE = 256_000_000  # bytes, of one to import
_FILE_SECONDS = 300.0


class _MoreWasSaid(Exception):
    """While a change waited for the conversation, turns came that it has to replay."""


async def undo(request: Request, said: Said) -> Document:
    """Undo the last turns and delete their text; the memory is exactly what it was before them."""
    found, count, dry_run = await _meant(request, said), said["turns"], said["dry_run"]

    def work(store: Store) -> Document:
        numbers = [turn.number for turn in turns.all_of(store, found.id, messages=False)]
        _check_seen(store, found.id, numbers[-count:], said["expect"])
        if count > len(numbers):
            raise invalid(f"Can't undo {count} turns: conversation {found.id} has {len(numbers)}.", "turns")
        if not dry_run:
            turns.undo(store, found.id, count)
        return {"conversation": found.id, "undone": numbers[-count:], "dry_run": dry_run}

    return await _alone(request, [found], work, dry_run=dry_run)


async def reset(request: Request, said: Said) -> Document:
    """Clear the memory for good; the transcript stays, unless it is to go too."""
    dry_run, transcript, chosen = said["dry_run"], said["transcript"], []
    if said["all"]:
        if said["conversation"]:
            raise invalid("all and conversation can't be used together: leave out one of them.", "all")
        name = stored.profile_name(request, said)
        chosen = await stored.look(request, lambda store: conversations.all_of(store, profiles.get(store, name)))
    else:
        chosen = [await _meant(request, said)]

    def work(store: Store) -> Document:
        gone = (extent if dry_run else reset_store)(store, chosen, transcript=transcript)
        ids = [one.id for one in chosen]
        return {"dry_run": dry_run, "transcript": transcript, "ids": ids, **asdict(gone)}

    return await _alone(request, chosen, work, dry_run=dry_run)


async def delete(request: Request, said: Said) -> Document:
    """Delete a conversation with its turns, its text and its memory."""
    found, dry_run = await _meant(request, said), said["dry_run"]

    def work(store: Store) -> Document:
        gone = extent(store, [found], transcript=True)
        if not dry_run:
            conversations.delete(store, found.id)
        return {"conversation": found.id, "dry_run": dry_run, **asdict(gone)}

    return await _alone(request, [found], work, dry_run=dry_run)


async def rename(request: Request, said: Said) -> Document:
    """Give a conversation a title; an empty one: its first message is its heading again."""
    found = await _meant(request, said)
    title = " ".join(said["title"].split()) or None

    def work(store: Store) -> Document:
        conversations.rename(store, found.id, title)
        return documents.facts(conversations.get(store, found.id))

    return await _alone(request, [found], work)


async def forget(request: Request, said: Said) -> Document:
    """Forget turns as if they had never been said: their text goes, and the later turns are replayed without them."""
    numbers, dry_run = sorted(set(said["turns"])), said["dry_run"]

    def plan(store: Store, id_: str) -> forgetting.Plan:
        _check_seen(store, id_, said["turns"], said["expect"])
        return forgetting.plan(store, id_, numbers)

    found, profile, planned = await stored.read(
        request,
        said,
        lambda store, found: (found, profiles.get(store, found.profile), plan(store, found.id)),
    )

    def describe(result: Forgotten) -> Document:
        return documents.forgotten(found.id, result, dry_run=dry_run)

    def without_model(store: Store) -> Document:
        if plan(store, found.id).later:
            raise _MoreWasSaid
        return describe(forgetting.forget(store, found.id, None, numbers, dry_run=dry_run))

    if not planned.later:
        with suppress(_MoreWasSaid):
            return await _alone(request, [found], without_model, dry_run=dry_run)
    places = service(request).places
    _check_memory(places, "The later turns can't be replayed")
    async with _seated(request, places, found, profile) as (place, unwanted):
        session = place.session

        def work() -> Document:
            plan(place.store, found.id)  # while this waited, a turn may have come to be another one
            document = describe(
                forgetting.forget(
                    place.store,
                    found.id,
                    place.seat,
                    numbers,
                    model=session.model,
                    adapter=session.adapter,
                    stopped=unwanted,
                    dry_run=dry_run,
                )
            )
            return document if dry_run else _wiped(place.store, document)

        return await places.run(work)


async def probe(request: Request, said: Said) -> Document:
    """Ask the memory alone, and store nothing: the model sees no earlier message."""
    question = said["question"]
    if not question.strip():
        raise invalid("The question is empty.", "question")
    places = service(request).places
    chosen = options.sampling(said["options"] or {})
    replies(chosen)
    found, profile, is_empty = await stored.read(
        request,
        said,
        lambda store, found: (found, profiles.get(store, found.profile), states.latest(store, found.id) is None),
    )
    if is_empty:
        raise Problem(
            409,
            f"The memory of conversation {found.id} is empty, so there is nothing to ask: say something in it first.",
            code="memory_empty",
        )
    adapter = _check_memory(places, "The memory can't answer")
    async with _seated(request, places, found, profile) as (place, unwanted):
        session = place.session

        def work() -> str:
            session.settings = replace(place.settings, **replies({**place.options, **chosen}), read_only=True)
            session.show([])
            if unwanted():
                raise Cancelled(0)
            return parted(session.ask(question))[1]

        reply = await places.run(work)
    return {
        "profile": found.profile,
        "conversation": found.id,
        "turns": found.n_turns,
        "model": places.loaded.model.name,
        "adapter": adapter,
        "question": question,
        "reply": reply,
        "interrupted": session.stats.interrupted,
    }


async def remember(request: Request, said: Said) -> Document:
    """Write a text into the memory, as a message that nobody answers."""
    text = said["text"].strip()
    if not text:
        raise invalid("The text is empty, so there is nothing to remember.", "text")
    if said["new"] and said["conversation"]:
        raise invalid("new and conversation can't be used together: leave out one of them.", "new")
    places = service(request).places
    _check_memory(places, "Nothing can be remembered")
    found, profile = await places.run(lambda: stored.begun(request, said, places))
    async with _seated(request, places, found, profile) as (place, unwanted):
        session = place.session

        def work() -> Document:
            session.settings = replace(place.settings, log=said["log"] and place.settings.log)
            if not session.writes:
                raise Problem(409, "Nothing can be remembered: this server writes nothing.", code="no_memory")
            session.show([])  # it stands for itself, as the command writes it
            if unwanted():
                raise Cancelled(0)
            session.remember(text)
            return {
                "profile": session.profile.name,
                "conversation": found.id,
                "turn": session.n_turns,
                "tokens_written": session.stats.written_tokens,
                "change": session.stats.changed,
            }

        return await places.run(work)


async def copy(request: Request, said: Said) -> Document:
    """Branch a conversation: copy it up to a turn; the copy and the original then go separate ways."""
    source, dry_run = await _meant(request, said), said["dry_run"]
    to_new = said["to"] == profiles.NEW
    name = source.profile if to_new else stored.allowed(request, said["to"], "to")
    places = service(request).places

    def work(store: Store) -> Document:
        taken = bundle.read(store, source, at=said["at"])
        if said["state_only"]:
            taken = bundle.state_only(taken)
        try:
            bundle.check_holds(taken)  # before the profile is made
        except StoreError as error:
            raise invalid(f"{error}.", "conversation") from None
        made = None if dry_run else bundle.write(store, profiles.ensure(store, name), taken).id
        return {
            "from": source.id,
            "turns": len(taken.turns),
            "profile": name,
            "conversation": made,
            "dry_run": dry_run,
        }

    if dry_run:
        return await stored.look(request, work)

    def copying() -> Document:
        with Store.open(places.database) as store:
            return work(store)

    return await places.run(copying)


async def scrub(request: Request, said: Said) -> Document:
    """Wipe what deleted turns left in the database files, which undo, reset and forget also do themselves."""
    places = service(request).places

    def work() -> Document:
        with Store.open(places.database) as store:
            try:
                wiping.wipe(store, typed_lines.erase)
            except StoreError as error:
                raise Problem(409, f"{error}.", code="not_wiped") from None
        return {"wiped": True}

    return await places.run(work)


async def import_(request: Request, said: Said) -> Document:
    """Import a memory as a new conversation: the body is a file that export wrote. All of it is checked first."""
    name, dry_run = stored.profile_name(request, said), said["dry_run"]
    places = service(request).places
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.dmem"
        await _save_body(request, path)

        def work() -> Document:
            try:
                taken = portable.load(path)
            except StoreError as error:
                raise invalid(f"{error}.".replace(str(path), "The file")) from None
            made = None
            if not dry_run:
                with Store.open(places.database) as store:
                    made = bundle.write(store, profiles.ensure(store, name), taken).id
            return {"conversation": made, "profile": name, "dry_run": dry_run, **documents.contents(taken)}

        return await places.run(work)


async def _save_body(request: Request, path: Path) -> None:
    async def saved() -> None:
        size = 0
        with path.open("wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > LARGEST_FILE:
                    most = LARGEST_FILE // 1_000_000
                    raise Problem(413, f"The file is larger than {most} MB: import it with dmem memory import.")
                file.write(chunk)

    try:
        await asyncio.wait_for(saved(), _FILE_SECONDS)
    except asyncio.TimeoutError:
        raise Problem(408, f"The file did not come within {_FILE_SECONDS:.0f} seconds: send it at once.") from None
    except ClientDisconnect:
        raise Problem(499, "The client left.") from None


def _check_seen(store: Store, conversation: str, numbers: Sequence[int], expect: Sequence[str] | None) -> None:
    """Raises Problem where the turns of these numbers are not those that the request expects, by when they were made."""
    if expect is None:
        return
    created = {turn.number: turn.created for turn in turns.all_of(store, conversation, messages=False)}
    if [created.get(number) for number in numbers] != list(expect):
        raise Problem(
            409,
            f"Conversation {conversation} has gone on meanwhile, and its turns are not the expected ones, so nothing was "
            "changed: look at its history again.",
            code="turns_changed",
            param="expect",
        )


async def _meant(request: Request, said: Said) -> Conversation:
    return await stored.read(request, said, lambda store, found: found)


async def _alone(
    request: Request, chosen: Sequence[Conversation], work: Callable[[Store], Document], *, dry_run: bool = False
) -> Document:
    """Does `work` in a thread, which needs no model, on conversations that nobody else holds, and wipes what it deleted."""
    places = service(request).places

    def reading() -> Document:
        with Store.read(places.database) as store:
            return work(store)

    def changing() -> Document:
        with Store.open(places.database) as store:
            for one in chosen:
                locks.hold(store, one.id)
                conversations.get(store, one.id)  # raises when it was deleted meanwhile
            return _wiped(store, work(store))

    if dry_run:
        return await places.run(reading)
    async with AsyncExitStack() as stack:
        for id_ in sorted(one.id for one in chosen):  # in one order, so that no two wait for each other
            await stack.enter_async_context(places.alone(id_))
        return await places.run(changing)


def _wiped(store: Store, document: Document) -> Document:
    """With a sentence where bytes of what was deleted have to wait."""
    warnings: list[str] = []
    wipe(store, warnings.append)
    return {**document, "warning": warnings[0]} if warnings else document


def _check_memory(places: Places, what: str) -> str:
    """The adapter's name. Raises Problem when there is none."""
    loaded = places.loaded
    if loaded.adapter is None:
        raise Problem(409, f"{what}: {loaded.why_no_memory}", code="no_memory")
    return loaded.adapter.name


@asynccontextmanager
async def _seated(
    request: Request, places: Places, found: Conversation, profile: Profile
) -> AsyncIterator[tuple[Place, Callable[[], bool]]]:
    """Its place, of which nothing stays warm, and whether the client or the server has gone, which ends what runs."""
    async with places.conversation(found, profile) as place:
        place.stale = True
        leaving = asyncio.create_task(stop_when_left(request, place.session))
        try:
            yield place, lambda: places.ending or leaving.done()
        finally:
            leaving.cancel()
