"""The names of the files of a model that was split into several; reads none of them."""

from __future__ import annotations

import re
from pathlib import Path

PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)


def parts(path: Path) -> list[Path]:
    """All of them in order, from any one; `path` alone when it is not named as a part. They may be missing."""
    match = PART.search(path.name)
    if match is None:
        return [path]
    count = int(match[2])
    return [path.with_name(f"{path.name[: match.start()]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
