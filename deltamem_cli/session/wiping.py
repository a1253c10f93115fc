"""Wiping what deletions left: after each of them, and again by the next command. That it fails is told, no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deltamem_cli.errors import DeltamemError
from deltamem_cli.session import typed_lines

if TYPE_CHECKING:
    from deltamem_cli.store.database import Store
    from deltamem_cli.store.wiping import Erase

AFTERWARDS = 5.0  # seconds that a deletion waits for others that read
BEFOREHAND = 0.2  # and a command that did not delete


def wipe(
    store: Store, tell: Callable[[str], None], erase: Erase = typed_lines.erase, *, patience: float = AFTERWARDS
) -> None:
    """What is marked goes, if something is. tell: gets the sentence that says what could not be wiped yet."""
    from deltamem_cli.store import wiping

    try:
        if wiping.pending(store):
            wiping.wipe(store, erase, patience=patience)
    except DeltamemError as error:
        tell(str(error))


def wipe_typed(store: Store, tell: Callable[[str], None], erase: Erase = typed_lines.erase) -> None:
    """The typed lines alone, which takes no time."""
    from deltamem_cli.store import wiping

    try:
        wiping.wipe_typed(store, erase)
    except DeltamemError as error:
        tell(str(error))
