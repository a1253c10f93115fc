"""Where the database is; opens nothing."""

from __future__ import annotations

from pathlib import Path

from deltamem_cli import config, paths

FILE_NAME = "memory.db"


def default_path() -> Path:
    """Raises ConfigError."""
    return config.value("database") or paths.data_dir() / FILE_NAME
