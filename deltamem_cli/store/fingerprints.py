"""Whether a state belongs to the loaded model and adapter; compares, and knows nothing of how they are made."""

from __future__ import annotations

from deltamem_cli.store.errors import FingerprintMismatch
from deltamem_cli.store.records import Identity, Snapshot


def check_fingerprints(snapshot: Snapshot | None, model: Identity, adapter: Identity) -> None:
    """Raise FingerprintMismatch, naming both sides and the ways out, unless `snapshot` may be loaded into them."""
    if snapshot is None or (
        snapshot.model.fingerprint == model.fingerprint and snapshot.adapter.fingerprint == adapter.fingerprint
    ):
        return
    raise FingerprintMismatch(
        f"This memory was written by {_pair(snapshot.model, snapshot.adapter)}, but what is loaded is "
        f"{_pair(model, adapter)}; load the ones that wrote it with --model and --adapter, start a new conversation with --new, "
        "or clear this memory with: dmem memory reset"
    )


def _pair(model: Identity, adapter: Identity) -> str:
    return f"{_one(model)} with adapter {_one(adapter)}"


def _one(identity: Identity) -> str:
    return f"{identity.name} ({identity.fingerprint[:12]})"
