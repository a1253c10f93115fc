"""One portable file for a conversation: written from a Bundle, read back with nothing taken on trust; no SQL.

A zip with two members: `manifest.json` (who, when, fingerprints, turns and, if wanted, texts with their tokens) and
`states.f32` (the states one after the other, float32 little-endian). A zip because every system can look into it
without us, it has a checksum per member, and reading it executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltamem_cli import files, reading
from deltamem_cli.store import states
from deltamem_cli.store.bundle import Bundle
from deltamem_cli.store.errors import StoreError, as_sentences
from deltamem_cli.store.ids import now
from deltamem_cli.store.manifest import FORMAT, VERSION, Malformed, parse
from deltamem_cli.store.records import Snapshot, Turn

MANIFEST, STATES = "manifest.json", "states.f32"

# Bytes that a member may unpack to: a small file may hold this much in any case, and beyond it so many times its size.
# Read as JSON a manifest takes some twenty times its length, and what is packed a thousand times over is no transcript.
_ANYHOW = 4 << 20
_TIMES = 8

# What zipfile, zlib and json say of bytes that were never a zip, or once were.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


def save(path: Path, bundle: Bundle) -> None:
    """Write the file whole or not at all, readable by its owner alone."""
    snapshots = ([bundle.initial] if bundle.initial else []) + [bundle.states[n] for n in sorted(bundle.states)]
    blobs = [states.to_blob(snapshot)[3] for snapshot in snapshots]
    source = bundle.conversation
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "exported": now(),
        "conversation": {"id": source.id, "profile": source.profile, "title": source.title, "created": source.created},
        "states": [_describe(snapshot) for snapshot in snapshots],
        "states_sha256": hashlib.sha256(b"".join(blobs)).hexdigest(),
        "turns": [_plain(turn) for turn in bundle.turns],
    }
    described = json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
    # a long one is not packed, so that load() never finds it packed too well
    kind = zipfile.ZIP_DEFLATED if len(described) <= _ANYHOW else zipfile.ZIP_STORED
    with as_sentences(path), files.replacing(path) as draft, zipfile.ZipFile(draft, "w") as archive:
        archive.writestr(MANIFEST, described, kind)
        archive.writestr(STATES, b"".join(blobs))


def load(path: Path) -> Bundle:
    """Read and check a file that save() wrote; StoreError says in one sentence what is wrong with it."""
    try:
        if why := reading.why_no_file(path):
            raise StoreError(f"{path} {why}, so it was not imported; check the path")
        with as_sentences(path), zipfile.ZipFile(path) as archive:
            _check_members(archive)
            most = _ANYHOW + _TIMES * path.stat().st_size
            described = parse(json.loads(_member(archive, MANIFEST, most)))
            if described.n_bytes > most:
                raise Malformed("its states would be far larger than the file")
            blob = _member(archive, STATES, described.n_bytes)
        if len(blob) < described.n_bytes or hashlib.sha256(blob).hexdigest() != described.sha256:
            raise Malformed("its states are not the exported ones")
        return described.bundle(blob)
    except _ZIP_ERRORS as error:
        raise _refusal(path, f"it is damaged or not a dmem memory file ({error})") from error
    except Malformed as error:
        raise _refusal(path, str(error)) from error


def _refusal(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} cannot be imported because {why}; export it again with: dmem memory export")


def _check_members(archive: zipfile.ZipFile) -> None:
    kinds = {member.compress_type for member in archive.infolist()}
    if sorted(archive.namelist()) != [MANIFEST, STATES] or not kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise Malformed("it is another kind of zip file")


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    # The size that the zip declares is not believed: reading stops past the limit.
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Malformed(f"its {name} unpacks to more than it should")
    return data


def _describe(snapshot: Snapshot) -> dict[str, Any]:
    _, heads, rank, _ = states.to_blob(snapshot)
    return {
        "turn": snapshot.turn,
        "model": asdict(snapshot.model),
        "adapter": asdict(snapshot.adapter),
        "layers": list(snapshot.layers),
        "heads": heads,
        "rank": rank,
    }


def _plain(turn: Turn) -> dict[str, Any]:
    plain = asdict(turn)
    for local in ("id", "conversation", "has_state"):  # true in that database only
        del plain[local]
    return plain
