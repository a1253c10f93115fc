"""Model and adapter at work: loads them as a chat would, lets them read a word, and looks at what comes of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from deltamem_cli import config, models
from deltamem_cli.diagnosis.checks import Check, Flags
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models import facts, ram
from deltamem_cli.session import opening
from deltamem_cli.session.loading import Loaded
from deltamem_cli.session.request import Request
from deltamem_cli.store import conversations, states
from deltamem_cli.store.database import Store
from deltamem_cli.store.fingerprints import check_fingerprints
from deltamem_cli.store.records import Identity, Profile

_WORD = "Hello"


def checks(subject: Flags, store: Store | None) -> Iterator[Check]:
    """Model, memory of the machine, hardware, adapter, and whether what is remembered is theirs.

    store: of what is remembered; None when nothing is, or when it can't be read.
    """
    name = subject.profile or str(config.value("profile"))
    request = Request(name, model=subject.model, adapter=subject.adapter, temporary=True)  # not even a cache is written
    try:
        profile = opening.find_profile(store, request) if store else None
        settled = opening.settle(request, profile)
        found = models.resolve(settled.model or models.STARTER)
        files = facts.parts(found.path)
        size, said = sum(file.stat().st_size for file in files), facts.read_facts(files)
    except (DeltamemError, OSError) as error:
        yield Check("model", "broken", str(error), "choose another: dmem model list")
        return
    try:
        with ExitStack() as stack:
            room = _room(size, said)
            if room.verdict == "broken":
                yield Check("model", "warning", f"{found.name} was not loaded, because it does not fit", room.advice)
                yield room
                return
            started = time.perf_counter()
            plain = opening.load(stack, replace(request, memory=False), profile)
            seconds = time.perf_counter() - started
            yield Check(
                "model",
                "ok",
                f"{found.name}: {said.architecture}, {said.parameters / 1e6:,.0f}M parameters, {said.quantization}, "
                f"{size / 1e6:,.0f} MB, loaded in {seconds:.1f} s",
            )
            yield room
            yield _hardware(plain, settled)
    except DeltamemError as error:
        yield Check("model", "broken", str(error), "choose another: dmem model list")
        return
    yield from _adapter(request, profile, store)


def _room(size: int, said: facts.Facts) -> Check:
    machine, needed = ram.of_machine(), ram.needed(size, said)
    if machine is None:
        return Check("memory", "ok", f"{needed / 1e9:.1f} GB needed; the available memory is unknown here")
    found = f"{needed / 1e9:.1f} GB needed, {machine.available / 1e9:.1f} of {machine.total / 1e9:.1f} GB free"
    verdict = machine.verdict(needed)
    if verdict == "yes":
        return Check("memory", "ok", found)
    advice = "choose a smaller model (dmem model list) or a smaller context (dmem config set ctx_size 2048)"
    if verdict == "tight":
        return Check("memory", "warning", found, f"close other programs, or {advice}")
    return Check("memory", "broken", found, advice)


def _hardware(loaded: Loaded, settled: Request) -> Check:
    from deltamem_cli.engine.threads import physical_cores

    chosen, cores = loaded.engine.chosen(), physical_cores()
    layers = "all" if chosen["gpu_layers"] == -1 else chosen["gpu_layers"]
    offload = loaded.engine.native.has_gpu or bool(settled.rpc)
    found = (
        f"{chosen['threads']} of {cores} cores ({_instruction_sets(loaded)}), context {chosen['ctx_size']}, KV cache "
        f"{chosen['cache_type_k']} and {chosen['cache_type_v']}, flash attention {chosen['flash_attention']}, "
        f"{layers} layers on a GPU"
        + (f" or on {settled.rpc}" if settled.rpc else "")
        + ("" if offload else " (this build uses CPUs only)")
    )
    if loaded.why_no_gpu:
        advice = "build with a GPU's backend (README, Building), or: dmem config unset gpu_layers"
        return Check("hardware", "warning", found, advice)
    if settled.threads and settled.threads > cores:
        return Check("hardware", "warning", found, "more threads than cores are slower: dmem config unset threads")
    return Check("hardware", "ok", found)


def _instruction_sets(loaded: Loaded) -> str:
    """The wide ones that the loaded library uses, as llama.cpp names them: NAME = 1 | …"""
    said = loaded.engine.native.llama.llama_print_system_info().decode("utf-8", "replace")
    wide = ("AVX", "AMX", "NEON", "SVE", "SME", "RISCV_V", "VSX")
    return ", ".join(re.findall(rf"\b((?:{'|'.join(wide)})\w*) = 1", said)) or "no wide instructions"


def _adapter(request: Request, profile: Profile | None, store: Store | None) -> Iterator[Check]:
    try:
        with ExitStack() as stack:
            loaded = opening.load(stack, request, profile)
            if loaded.adapter is None:
                advice = "name one with --adapter, or get a model that has one: dmem model list"
                yield Check("adapter", "warning", loaded.why_no_memory or "none", advice)
                return
            yield _work(loaded, loaded.adapter)
            if store and profile:
                yield _remembered(store, profile, loaded.model, loaded.adapter)
    except DeltamemError as error:
        yield Check("adapter", "broken", str(error), "choose another with --adapter: dmem adapter list")


def _work(loaded: Loaded, adapter: Identity) -> Check:
    """What comes of it when the model reads a word and writes it into an empty memory."""
    import numpy as np

    seat = loaded.seat
    seat.clear_state()
    logits, state = seat.feed(seat.model.tokenize(_WORD)), seat.state()
    again = "convert or train it again, or choose another: dmem adapter list"
    if not (np.isfinite(state).all() and np.isfinite(logits).all()):
        return Check("adapter", "broken", f"{adapter.name}: its results are not finite", again)
    if not state.any():
        return Check("adapter", "broken", f"{adapter.name} writes nothing into the memory", again)
    layers, heads, rank, _ = state.shape
    splits = seat.engine.graph_splits
    found = (
        f"{adapter.name}: {layers} layers, {heads} × {rank} × {rank}, computed {seat.engine.compute}, "
        f"{splits} graph split{'s' if splits > 1 else ''}; read one word and wrote it into the memory"
    )
    return Check("adapter", "ok", found)


def _remembered(store: Store, profile: Profile, model: Identity, adapter: Identity) -> Check:
    """Whether the last conversation of the profile goes on with this pair."""
    try:
        last = conversations.latest(store, profile) if profile.id else None
        snapshot = states.latest(store, last.id) if last else None
    except DeltamemError as error:
        return Check("remembered", "broken", str(error), "take turns back: dmem memory undo")
    if last is None or snapshot is None:
        return Check("remembered", "ok", f"nothing yet in profile {profile.name}")
    what = f"conversation {last.id} of profile {profile.name}"
    try:
        check_fingerprints(snapshot, model, adapter)
    except DeltamemError as error:
        return Check("remembered", "warning", f"{what}: {error}", "see the models: dmem model list")
    return Check("remembered", "ok", f"{what} can continue with this model and adapter")
