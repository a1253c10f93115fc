"""Which options of replies a model's file or its entry in the catalogue recommends, for those who want to see that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from deltamem_cli.errors import DeltamemError
from deltamem_cli.models.entries import STARTER
from deltamem_cli.models.resolving import resolve


@cache
def recommended_for(model: str | None) -> Mapping[str, tuple[Any, str]]:
    """Value and origin of each, by name; nothing for a model that is not here. None: the packaged one."""
    from deltamem_cli.engine.sampling import recommended
    from deltamem_cli.formats.gguf_header import read_header

    try:
        found = resolve(model or STARTER)
        file = recommended(read_header(found.path).get)
    except DeltamemError:
        return {}
    ours = {name: (value, f"recommended for {found.name}") for name, value in found.options.items()}
    return ours | {name: (value, f"file of {found.name}") for name, value in file.items()}
