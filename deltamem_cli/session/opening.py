"""Which model, which adapter, which conversation: opens them and puts the stored state into the engine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from deltamem_cli import paths
from deltamem_cli.engine import Engine, EngineOptions, Model, Sampling, fingerprint
from deltamem_cli.errors import DeltamemError, UsageError
from deltamem_cli.session.chat import ChatSession, Settings
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.store import conversations, locks, profiles, states
from deltamem_cli.store.database import Store
from deltamem_cli.store.fingerprints import check_fingerprints
from deltamem_cli.store.records import Conversation, Identity, Profile


@dataclass(frozen=True)
class Request:
    """What the user asked for; None: what the profile says, else the default."""

    profile: str = profiles.DEFAULT
    cid: str | None = None
    new: bool = False
    model: Path | None = None
    adapter: Path | None = None
    memory: bool = True
    read_only: bool = False
    temporary: bool = False
    log: bool = True
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of Sampling, and max_tokens
    replay_tokens: int | None = None
    ctx_size: int | None = None
    gpu_layers: int = 0
    threads: int | None = None
    template: str | None = None


@dataclass
class Loaded:
    """A model with its adapter, in memory."""

    engine: Engine
    model: Identity
    adapter: Identity | None
    why_no_memory: str | None  # a sentence, when there is no adapter


def sampling(options: Mapping[str, Any]) -> tuple[Sampling, int | None]:
    """Sampling and max_tokens from named options. Raises UsageError for a name or a value that makes no sense."""
    types: dict[str, Any] = {f.name: type(f.default) for f in fields(Sampling)} | {"max_tokens": int}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in types:
            from difflib import get_close_matches

            near = get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]}" if near else f"there are {', '.join(types)}"
            raise UsageError(f"There is no option {name}: {hint}.")
        try:
            values[name] = types[name](value)
        except (TypeError, ValueError):
            raise UsageError(f"The option {name} takes a number, not {value!r}.") from None
    max_tokens = values.pop("max_tokens", None)
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"The option max_tokens is {max_tokens}: it must be 1 or more.")
    return Sampling(**values), max_tokens


def find_adapter(model: Path) -> Path | None:
    """The adapter that belongs to `model` by itself: the packaged one for the starter, else MODEL.deltamem.gguf beside it."""
    beside = model.with_suffix(".deltamem.gguf")
    if beside.is_file():
        return beside
    packaged = paths.starter_adapter()
    if packaged and model.name == paths.STARTER_MODEL:
        return packaged
    return None


def load(stack: ExitStack, request: Request, profile: Profile | None = None) -> Loaded:
    """Loads model and adapter; `stack` closes them. Raises DeltamemError."""
    path = request.model or (Path(profile.model) if profile and profile.model else paths.starter_model())
    adapter = request.adapter or (Path(profile.adapter) if profile and profile.adapter and not request.model else None)
    why = None
    if not request.memory:
        adapter, why = None, "Memory is off."
    elif adapter is None:
        adapter = find_adapter(path)
        if adapter is None:
            why = f"{path.name} has no adapter, so nothing is remembered: name one with --adapter."
    if adapter is not None and not adapter.is_file():
        raise DeltamemError(f"The adapter file {adapter} does not exist: check the path, or see: dmem adapter --help")
    model = stack.enter_context(Model(path, gpu_layers=request.gpu_layers))
    size = request.ctx_size if request.ctx_size is not None else min(4096, model.n_ctx_train)
    options = EngineOptions(ctx_size=size, threads=request.threads)
    engine = stack.enter_context(Engine(model, adapter, options))
    identity = Identity(adapter.name, fingerprint(adapter)) if adapter else None
    return Loaded(engine, Identity(model.name, fingerprint(path)), identity, why)


def restore(store: Store, conversation: Conversation, loaded: Loaded) -> None:
    """Puts the conversation's last state into the engine. Raises FingerprintMismatch when it belongs to others."""
    snapshot = states.latest(store, conversation.id)
    if loaded.adapter is None:
        return
    check_fingerprints(snapshot, loaded.model, loaded.adapter)
    if snapshot is None:
        loaded.engine.clear_state()
    else:
        loaded.engine.set_state(snapshot.state)


def pick(store: Store, profile: Profile, request: Request) -> Conversation:
    """The conversation that is meant; a new one exists in memory until its first turn. Holds it, unless read-only."""
    if request.cid is not None:
        conversation = conversations.get(store, request.cid)
    else:
        found = None if request.new else conversations.latest(store, profile)
        conversation = found or conversations.new(profile)
    if not request.read_only:
        locks.hold(store, conversation.id)
    return conversation


def open_chat(stack: ExitStack, store: Store, request: Request) -> tuple[ChatSession, Loaded]:
    """A session as asked for; `stack` closes what it opens. Raises DeltamemError.

    The conversation is found and held before the model is loaded: refusals come at once.
    """
    profile = _profile(store, request)
    conversation = pick(store, profile, request)
    drawn, max_tokens = sampling({**profile.options, **request.options})
    loaded = load(stack, request, profile)
    restore(store, conversation, loaded)
    session = ChatSession(
        store,
        loaded.engine,
        profile,
        conversation,
        model=loaded.model,
        adapter=loaded.adapter,
        prompt=Prompt(loaded.engine.model, request.system or profile.system, request.template),
        settings=Settings(drawn, max_tokens, request.replay_tokens, write=not request.read_only, log=request.log),
    )
    return session, loaded


def _profile(store: Store, request: Request) -> Profile:
    if request.cid is not None:
        return profiles.get(store, conversations.get(store, request.cid).profile)
    found = profiles.find(store, request.profile)
    return found or Profile(id=0, name=profiles.check_name(request.profile))
