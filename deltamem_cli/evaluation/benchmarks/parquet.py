"""Rows of a parquet file, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltamem_cli.evaluation.errors import EvaluationError


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Raises OSError, ValueError for what is no parquet, and EvaluationError without the extra `eval`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise EvaluationError("This data is parquet, which needs pyarrow: pip install 'deltamem-cli[eval]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError("it is no parquet") from error
