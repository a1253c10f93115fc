"""Opens the conversation that a request means, with its model loaded and its state in a seat."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from deltamem_cli.engine import ChatTemplate
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.loading import Loaded, last_state, load
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.request import Request, chosen_template, engine_options, find_profile, replies, settle
from deltamem_cli.session.settings import Settings
from deltamem_cli.store import bundle, conversations, locks, profiles
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import Holder
from deltamem_cli.store.records import Conversation, Profile

Waiting = Callable[[Holder], None]


def pick(store: Store, profile: Profile, request: Request, *, waiting: Waiting = lambda holder: None) -> Conversation:
    """The conversation that is meant; a new one exists in memory until its first turn. Holds it, unless read-only.

    waiting: called once when it has to wait.
    """
    if request.cid is not None:
        conversation = conversations.get(store, request.cid)
    else:
        found = None if request.new else conversations.latest(store, profile)
        conversation = found or conversations.new(profile)
    if not request.read_only:
        locks.hold(store, conversation.id, brief=request.brief, waiting=waiting)
    return conversation


def open_chat(
    stack: ExitStack,
    store: Store,
    request: Request,
    *,
    start: bool = True,
    waiting: Waiting = lambda holder: None,
) -> tuple[ChatSession, Loaded]:
    """A session as asked for; `stack` closes what it opens. Raises DeltamemError.

    The conversation is found and held before the model is loaded: refusals come at once. start: see begin(). waiting:
    called when a brief request has to wait for another one.
    """
    if request.brief and not request.read_only and request.cid is None:
        # of several first questions one begins the conversation, and the others go on with it
        locks.hold(store, f"profile-{profiles.check_name(request.profile)}", brief=True, waiting=waiting)
    profile = find_profile(store, request)
    conversation = pick(store, profile, request, waiting=waiting)
    ChatTemplate.prepare()
    settled = settle(request, profile)
    replies(settled.options)
    engine_options(settled)
    chosen_template(settled)
    loaded = load(stack, request, profile)
    return begin(store, request, loaded, profile, conversation, start=start), loaded


def begin(
    store: Store,
    request: Request,
    loaded: Loaded,
    profile: Profile,
    conversation: Conversation,
    *,
    start: bool = True,
) -> ChatSession:
    """A session of `conversation`, which is held, with a model that is loaded. Raises DeltamemError.

    Without `start` the seat is left as it is, and the caller calls the session's own start(), which may take a while.
    """
    request = settle(request, profile)
    snapshot = last_state(store, conversation, loaded)
    session = ChatSession(
        store,
        loaded.seat,
        profile,
        conversation,
        model=loaded.model,
        adapter=loaded.adapter,
        prompt=Prompt(loaded.engine.model, request.system or None, chosen_template(request), request.think),
        settings=Settings(
            **replies({**loaded.options, **request.options}),
            replay_tokens=request.replay_tokens,
            read_only=request.read_only,
            write=request.write or loaded.write,
            log=request.log,
            remember_thinking=bool(request.remember_thinking),
        ),
        state=snapshot.state if snapshot else None,
    )
    if start:
        session.start()
    return session


def copy_for_temporary(disk: Store, request: Request) -> tuple[Store, Request]:
    """A store in this process's memory that holds profile and conversation as `request` means them, and the request
    for it. Nothing of it ever reaches the disk.
    """
    profile = find_profile(disk, request)
    found = None
    if request.cid is not None:
        found = conversations.get(disk, request.cid)
    elif not request.new:
        found = conversations.latest(disk, profile)
    store = Store.memory()
    settings = {name: getattr(profile, name) for name in profiles.SETTINGS}
    made = profiles.create(store, profile.name, **settings, options=profile.options)
    if found is not None:
        taken = bundle.read(disk, found)
        if taken.turns or taken.initial:
            bundle.write(store, made, taken)
    return store, replace(request, profile=profile.name, cid=None, new=False, temporary=True)
