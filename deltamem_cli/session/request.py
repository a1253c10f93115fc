"""What a command asks a model, an adapter and a conversation to be, and what fills it in: flags, profile, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deltamem_cli import config, paths
from deltamem_cli.engine import ChatTemplate, EngineError, EngineOptions, Sampling
from deltamem_cli.engine.options import LARGEST
from deltamem_cli.errors import UsageError
from deltamem_cli.store import conversations, profiles
from deltamem_cli.store.database import Store
from deltamem_cli.store.records import Profile
from deltamem_cli.text import short, whole


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
    rpc: str | None = None  # other machines that compute layers: HOST:PORT,…
    tensor_split: str | None = None
    threads: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attention: str | None = None
    template: Path | None = None
    think: bool | None = None  # what to tell a template that can switch thinking; None: nothing
    show_thinking: bool | None = None
    remember_thinking: bool | None = None
    write: str | None = None  # what of a turn is written: "all" or "user"; None: as the adapter was trained


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
    rpc, gpu_layers = _first(request.rpc, "rpc"), _first(request.gpu_layers, "gpu_layers")
    if rpc and request.gpu_layers is None and config.source("gpu_layers") == "default":
        gpu_layers = -1  # other machines are named to compute layers
    return replace(
        request,
        model=model,
        adapter=adapter,
        system=config.value("system") if system is None else system,
        options={**config.options(), **own.options, **request.options},
        replay_tokens=_first(request.replay_tokens, "replay"),
        ctx_size=_first(request.ctx_size, "ctx_size"),
        gpu_layers=gpu_layers,
        rpc=rpc,
        tensor_split=_first(request.tensor_split, "tensor_split"),
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
            raise UsageError(f"There is no option {short(name)}: {hint}.")
        try:
            values[name] = types[name](value)
        except (TypeError, ValueError):
            raise UsageError(f"The option {name} takes a number, not {short(value)!r}.") from None
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


def find_profile(store: Store, request: Request) -> Profile:
    """The profile that is meant; one that is not stored yet comes with its first turn."""
    if request.cid is not None:
        return profiles.get(store, conversations.get(store, request.cid).profile)
    found = profiles.find(store, request.profile)
    return found or Profile(id=0, name=profiles.check_name(request.profile))


def chosen_template(request: Request) -> ChatTemplate | None:
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
