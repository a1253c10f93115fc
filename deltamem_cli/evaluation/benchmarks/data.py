"""Where the data of a benchmark is: a path of the user's, or what was downloaded, checked by its checksum."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable
from pathlib import Path

from deltamem_cli import files, paths
from deltamem_cli.evaluation.benchmarks.shape import Benchmark, Source
from deltamem_cli.evaluation.errors import EvaluationError
from deltamem_cli.models import hub, hub_settings
from deltamem_cli.reading import why_no_file

_TIMEOUT = 30  # seconds of silence


def find(benchmark: Benchmark, given: Path | None, tell: Callable[[str], None]) -> list[Path]:
    """The files; `given` is one, or the folder that they are in. tell: what is downloaded, and under which licence.

    Raises DeltamemError.
    """
    source = benchmark.source
    if given is not None:
        given = paths.expanded(given)
        if given.is_dir():
            found = [p for name in source.files for p in sorted(given.rglob(Path(name).name))]
            if not found:
                names = ", ".join(Path(name).name for name in source.files)
                raise EvaluationError(f"{given} has no data of {benchmark.title}: it would be {names}.")
            return found
        if why := why_no_file(given):
            raise EvaluationError(f"{given} {why}: give --data the file of {benchmark.title} or the folder it is in.")
        return [given]
    if source.repository is None:
        return [_fetched(benchmark, tell)]
    repository = hub.look(source.repository, kind="dataset")
    size = sum(repository.files[name].size for name in source.files if name in repository.files)
    tell(
        f"{benchmark.title}: {size / 1e6:,.1f} MB of {source.repository}, license: {repository.license or source.license}"
    )
    missing = next((name for name in source.files if name not in repository.files), None)
    if missing is not None:
        raise EvaluationError(
            f"{source.repository} no longer has {missing}: download the data yourself and give --data."
        )
    return hub.download(repository, source.files)


def _fetched(benchmark: Benchmark, tell: Callable[[str], None]) -> Path:
    """The one file of a benchmark that is not on the hub."""
    source = benchmark.source
    path = paths.cache_dir() / "benchmarks" / source.files[0]
    if path.exists() and _digest(path.read_bytes()) == source.sha256:
        return path
    hub_settings.check(source.url)
    tell(f"{benchmark.title}: {source.size / 1e6:,.1f} MB from {source.url}, license: {source.license}")
    content = _download(source)
    if _digest(content) != source.sha256:
        raise EvaluationError(
            f"{source.url} has another checksum than the benchmark's data: give the file with --data."
        )
    files.make_folder(path.parent)
    with files.replacing(path) as draft:
        draft.write_bytes(content)
    return path


def _download(source: Source) -> bytes:
    try:
        with urllib.request.urlopen(source.url, timeout=_TIMEOUT) as answer:
            content: bytes = answer.read(2 * source.size)
            return content
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise EvaluationError(
            f"{source.url} can't be downloaded ({reason}): download it elsewhere and give the file with --data."
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
