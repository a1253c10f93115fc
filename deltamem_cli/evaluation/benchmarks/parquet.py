"""Rows of a parquet file, one after the other. Raises EvaluationError where it is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltamem_cli.evaluation.benchmarks.shape import no_data
from deltamem_cli.evaluation.errors import EvaluationError


def rows(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """name: of the benchmark whose data it is."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EvaluationError(
            f"The data of {name} is parquet, which needs pyarrow: pip install 'deltamem-cli[eval]'"
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except OSError as error:
        raise no_data(path, name, error.strerror or "it is no parquet") from None
    except pyarrow.ArrowException:
        raise no_data(path, name, "it is no parquet") from None
