"""Loads the model and the adapter that a request means, and puts a stored state into a seat."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deltamem_cli import models
from deltamem_cli.adapter.format import trained_writes
from deltamem_cli.engine import Engine, Model, Seat, fingerprint, try_out
from deltamem_cli.engine.sampling import recommended
from deltamem_cli.session.replay import put_state
from deltamem_cli.session.request import Request, engine_options, settle
from deltamem_cli.store import states
from deltamem_cli.store.database import Store
from deltamem_cli.store.fingerprints import check_fingerprints
from deltamem_cli.store.records import Conversation, Identity, Profile, Snapshot


@dataclass
class Loaded:
    """A model with its adapter, in memory, and the seat for the conversation to be held."""

    seat: Seat
    model: Identity
    adapter: Identity | None
    why_no_memory: str | None  # a sentence, when there is no adapter
    why_no_gpu: str | None = None  # a sentence, when one was asked for and there is none
    write: str = "all"  # what of a turn the adapter was trained to write
    adapter_path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of replies, that the model's file or we recommend

    @property
    def engine(self) -> Engine:
        """The seat's."""
        return self.seat.engine


def load(stack: ExitStack, request: Request, profile: Profile | None = None, *, seats: int = 1) -> Loaded:
    """Loads model and adapter; `stack` closes them. seats: conversations that may go on at once. Raises DeltamemError."""
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
    layers: dict[str, Any] = {"gpu_layers": request.gpu_layers or 0, "rpc": request.rpc or ""}
    model = stack.enter_context(Model(path, **layers, tensor_split=request.tensor_split or ""))
    model.check_speaks()
    why_no_gpu = None
    if request.gpu_layers and not model.gpu_layers:
        why_no_gpu = "This build can't use any GPU here, so --gpu-layers has no effect."
    options = replace(engine_options(request), seats=seats)
    if request.ctx_size is None and model.n_ctx_train:
        options = replace(options, ctx_size=min(options.ctx_size, model.n_ctx_train))
    engine = stack.enter_context(Engine(model, adapter, options))
    identity = Identity(adapter.name, fingerprint(adapter, remember=keep)) if adapter else None
    recommends = {**found.options, **recommended(model.metadata)}
    model_identity = Identity(path.stem, fingerprint(path, remember=keep))
    write = trained_writes(adapter) if adapter else "all"
    return Loaded(Seat(engine), model_identity, identity, why, why_no_gpu, write, adapter, recommends)


def last_state(store: Store, conversation: Conversation, loaded: Loaded) -> Snapshot | None:
    """What the conversation remembers; None: nothing. Raises FingerprintMismatch when it belongs to others."""
    snapshot = states.latest(store, conversation.id)
    if loaded.adapter is None:
        return None
    check_fingerprints(snapshot, loaded.model, loaded.adapter)
    return snapshot


def restore(store: Store, conversation: Conversation, loaded: Loaded) -> None:
    """Puts the conversation's last state into the seat. Raises FingerprintMismatch when it belongs to others."""
    put_state(loaded.seat, last_state(store, conversation, loaded))
