"""Which model, which adapter, which conversation: opens them, and finds what the conversation remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deltamem_cli import config, models, paths
from deltamem_cli.adapter.format import trained_writes
from deltamem_cli.engine import ChatTemplate, Engine, EngineError, EngineOptions, Model, Sampling, fingerprint, try_out
from deltamem_cli.engine.options import LARGEST
from deltamem_cli.engine.sampling import recommended
from deltamem_cli.errors import UsageError
from deltamem_cli.session.chat import ChatSession
from deltamem_cli.session.prompt import Prompt
from deltamem_cli.session.records import Settings
from deltamem_cli.session.replay import put_state
from deltamem_cli.store import bundle, conversations, locks, profiles, states
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import Holder
from deltamem_cli.store.fingerprints import check_fingerprints
from deltamem_cli.store.records import Conversation, Identity, Profile, Snapshot
from deltamem_cli.text import whole

Waiting = Callable[[Holder], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; None: what settle() finds."""

    profile: str = profiles.DEFAULT
    cid: str | None = None
    new: bool = False
    model: str | Path | None = None  # a name or a path, as models.resolve() takes it
    adapter: str | Path | None = None
    memory: bool = True
    read_only: bool = False
    temporary: bool = False
    note_model: bool = False  # that a model can be loaded is written down even so; else each time would try it first
    brief: bool = False  # it ends by itself soon, so it waits for others that do, and they for it
    log: bool = True
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of Sampling, and max_tokens
    replay_tokens: int | None = None
    ctx_size: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attention: str | None = None
    template: Path | None = None
    think: bool | None = None  # what to tell a template that can switch thinking; None: nothing
    show_thinking: bool | None = None
    remember_thinking: bool | None = None
    write: str | None = None  # what of a turn is written: "all" or "user"; None: as the adapter was trained


@dataclass
class Loaded:
    """A model with its adapter, in memory."""

    engine: Engine
    model: Identity
    adapter: Identity | None
    why_no_memory: str | None  # a sentence, when there is no adapter
    why_no_gpu: str | None = None  # a sentence, when one was asked for and there is none
    write: str = "all"  # what of a turn the adapter was trained to write
    options: Mapping[str, Any] = field(default_factory=dict)  # of replies, that the model's file or we recommend


def settle(request: Request, profile: Profile | None) -> Request:
    """The request with what it leaves open: what the profile is set to, else the configuration. Raises DeltamemError.

    Settling twice changes nothing.
    """
    own = profile or Profile(id=0, name=request.profile)
    model, adapter, template = request.model, request.adapter, request.template
    if model is None:  # adapter and template belong to the model beside which they are set
        model, adapter, template = own.model or None, adapter or own.adapter, template or _path(own.template)
    if model is None:
        model, adapter = config.value("model"), adapter or _configured_adapter()
        template = template or config.value("template")
    system = own.system if request.system is None else whole(request.system)
    return replace(
        request,
        model=model,
        adapter=adapter,
        system=config.value("system") if system is None else system,
        options={**config.options(), **own.options, **request.options},
        replay_tokens=_first(request.replay_tokens, "replay"),
        ctx_size=_first(request.ctx_size, "ctx_size"),
        gpu_layers=_first(request.gpu_layers, "gpu_layers"),
        threads=_first(request.threads, "threads"),
        cache_type_k=_first(request.cache_type_k, "cache_type_k"),
        cache_type_v=_first(request.cache_type_v, "cache_type_v"),
        flash_attention=_first(request.flash_attention, "flash_attention"),
        template=template,
        remember_thinking=_first(request.remember_thinking, "remember_thinking"),
        write=_first(request.write or own.write, "write"),
    )


def replies(options: Mapping[str, Any]) -> dict[str, Any]:
    """sampling, max_tokens and loop_guard of Settings from named options. Raises UsageError for a name or a value that
    makes no sense."""
    types: dict[str, Any] = {f.name: type(f.default) for f in fields(Sampling)}
    types |= {"max_tokens": int, "loop_guard": int}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in types:
            from difflib import get_close_matches

            near = get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]}" if near else f"choose one of {', '.join(types)}"
            raise UsageError(f"There is no option {name}: {hint}.")
        try:
            values[name] = types[name](value)
        except (TypeError, ValueError):
            raise UsageError(f"The option {name} takes a number, not {value!r}.") from None
    others: dict[str, int] = {n: values.pop(n) for n in ("max_tokens", "loop_guard") if n in values}
    for name, least in (("max_tokens", 1), ("loop_guard", 0)):
        if not least <= others.get(name, least) <= LARGEST:
            raise UsageError(f"The option {name} is {others[name]}: it must be {least} to {LARGEST}.")
    try:
        return {"sampling": Sampling(**values), **others}
    except EngineError as error:
        raise UsageError(str(error)) from None


def engine_options(request: Request) -> EngineOptions:
    """How a settled request wants the model run. Raises EngineError for what can't be."""
    names = ("ctx_size", "threads", "cache_type_k", "cache_type_v", "flash_attention")
    said = {name: getattr(request, name) for name in names}
    return EngineOptions(**{name: value for name, value in said.items() if value is not None})


def load(stack: ExitStack, request: Request, profile: Profile | None = None) -> Loaded:
    """Loads model and adapter; `stack` closes them. Raises DeltamemError."""
    request = settle(request, profile)
    found, adapter, why = models.resolve(request.model or models.STARTER), None, None
    path = found.path
    if not request.memory:
        why = "Memory is off."
    else:
        adapter = models.adapter_file(request.adapter) if request.adapter else found.adapter
        if adapter is None:
            why = (
                f"{path.name} has no adapter, so it chats and nothing is remembered: name one with --adapter, "
                f"or use {models.remembering()}, which have one."
            )
    keep = not request.temporary  # nothing at all is written to disk then, not even a cache
    try_out(path, remember=keep or request.note_model)
    model = stack.enter_context(Model(path, gpu_layers=request.gpu_layers or 0))
    model.check_speaks()
    why_no_gpu = None
    if request.gpu_layers and not model.gpu_layers:
        why_no_gpu = "This build can't use any GPU here, so --gpu-layers has no effect."
    options = engine_options(request)
    if request.ctx_size is None and model.n_ctx_train:
        options = replace(options, ctx_size=min(options.ctx_size, model.n_ctx_train))
    engine = stack.enter_context(Engine(model, adapter, options))
    identity = Identity(adapter.name, fingerprint(adapter, remember=keep)) if adapter else None
    recommends = {**found.options, **recommended(model.metadata)}
    model_identity = Identity(path.stem, fingerprint(path, remember=keep))
    write = trained_writes(adapter) if adapter else "all"
    return Loaded(engine, model_identity, identity, why, why_no_gpu, write, recommends)


def last_state(store: Store, conversation: Conversation, loaded: Loaded) -> Snapshot | None:
    """What the conversation remembers; None: nothing. Raises FingerprintMismatch when it belongs to others."""
    snapshot = states.latest(store, conversation.id)
    if loaded.adapter is None:
        return None
    check_fingerprints(snapshot, loaded.model, loaded.adapter)
    return snapshot


def restore(store: Store, conversation: Conversation, loaded: Loaded) -> None:
    """Puts the conversation's last state into the engine. Raises FingerprintMismatch when it belongs to others."""
    put_state(loaded.engine, last_state(store, conversation, loaded))


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
    _template(settled)
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

    Without `start` the engine is left as it is, and the caller calls the session's own start(), which may take a while.
    """
    request = settle(request, profile)
    snapshot = last_state(store, conversation, loaded)
    session = ChatSession(
        store,
        loaded.engine,
        profile,
        conversation,
        model=loaded.model,
        adapter=loaded.adapter,
        prompt=Prompt(loaded.engine.model, request.system or None, _template(request), request.think),
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


def find_profile(store: Store, request: Request) -> Profile:
    """The profile that is meant; one that is not stored yet comes with its first turn."""
    if request.cid is not None:
        return profiles.get(store, conversations.get(store, request.cid).profile)
    found = profiles.find(store, request.profile)
    return found or Profile(id=0, name=profiles.check_name(request.profile))


def _template(request: Request) -> ChatTemplate | None:
    """The one that is used in place of the model's own. Raises EngineError."""
    return ChatTemplate.from_file(paths.expanded(request.template)) if request.template else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _first(asked: Any, setting: str) -> Any:
    return config.value(setting) if asked is None else asked


def _configured_adapter() -> str | None:
    """That of the file is for the file's model, not for one that the environment names."""
    if config.source("model").startswith("environment") and config.source("adapter") == "file":
        return None
    adapter: str | None = config.value("adapter")
    return adapter
