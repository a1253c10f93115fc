"""The JSON files of a Hugging Face directory, as others made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltamem_cli import reading
from deltamem_cli.errors import DeltamemError
from deltamem_cli.text import decoded


def settings_of(path: Path) -> dict[str, Any]:
    """What the file says by name. Raises DeltamemError for one that can't be read, or says something else."""
    try:
        found = json.loads(decoded(reading.whole_file(path), "strict"))
    except OSError as error:
        raise DeltamemError(
            f"{path} cannot be read ({error.strerror or error}); give the folder of a Hugging Face model"
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DeltamemError(f"{path} is not the settings of a model; download the model again")
    return found
