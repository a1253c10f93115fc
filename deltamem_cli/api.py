"""For Python programs: a conversation that is held as `dmem chat` holds it. Prints nothing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_cli import config
from deltamem_cli.session.opening import open_chat
from deltamem_cli.session.request import Request
from deltamem_cli.session.thinking import parted
from deltamem_cli.store.database import Store
from deltamem_cli.store.location import default_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self


class Chat:
    """The last conversation of a profile, going on; every turn is stored with the memory that it leaves."""

    def __init__(
        self,
        *,
        profile: str | None = None,
        model: str | Path | None = None,
        adapter: str | Path | None = None,
        database: Path | None = None,
    ) -> None:
        """Loads the model. None: as the profile or the configuration has it. Raises DeltamemError."""
        request = Request(profile=profile or str(config.value("profile")), model=model, adapter=adapter)
        with ExitStack() as stack:
            store = stack.enter_context(Store.open(database or default_path()))
            self._session, _ = open_chat(stack, store, request)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees model and database; what was said is stored already."""
        self._stack.close()

    def ask(self, text: str) -> str:
        """The reply, without what was thought. Raises DeltamemError; then the turn never was."""
        return parted(self._session.ask(text))[1]

    def remember(self, text: str) -> None:
        """Writes `text` into the memory; nobody answers. Raises DeltamemError; then it never was."""
        self._session.remember(text)

    @property
    def state(self) -> NDArray[np.float32] | None:
        """Copy of the memory, [layers, heads, rank, rank] float32; None when the model has no adapter."""
        return self._session.seat.state() if self._session.engine.has_memory else None
