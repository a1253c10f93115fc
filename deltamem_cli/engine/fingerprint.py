"""Which model or adapter a file is, by its contents; fast for files of any size."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deltamem_cli import reading
from deltamem_cli.adapter.parts import parts
from deltamem_cli.engine import remembered
from deltamem_cli.engine.errors import EngineError

_WHOLE = 64 << 20  # up to this size the whole file is read
_BLOCK = 64 << 10
_BLOCKS = 512  # of larger files: evenly spread, besides both ends
_RECORD = "fingerprints"
_END = 16 << 20  # the header with settings and vocabulary lies at the beginning


def fingerprint(path: Path, *, remember: bool = True) -> str:
    """Hex digest of what `path` holds: whole for small files, of its header and 512 samples for large ones.

    Of a model in several parts, that of the digests of all of them, whichever `path` is. Remembered by path, size and time of change, so that a second start reads nothing; without `remember` nothing is
    written to disk. Raises EngineError.
    """
    known = remembered.read(_RECORD)
    before = len(known)
    # a file that is only named like a part is loaded alone
    wanted = [part for part in parts(path) if part == path or part.is_file()]
    digests = [_of_file(file, known) for file in wanted]
    if remember and len(known) != before:
        remembered.write(_RECORD, known)
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _of_file(path: Path, known: dict[str, str]) -> str:
    """From `known`, or added to it."""
    try:
        reading.check_regular(path)
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in known:
            known[key] = _digest(path, status.st_size)
        return known[key]
    except OSError as error:
        raise EngineError(f"{path} can't be read ({error.strerror or error}): check the path.") from error


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        digest.update(file.read(_END))
        for i in range(_BLOCKS):
            file.seek(_END + (size - _END - _BLOCK) * i // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
