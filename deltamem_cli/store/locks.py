"""Who may change a conversation; knows nothing of what a conversation contains.

One small file per conversation beside the database, locked by the kernel (see files.py). It drops the lock when its
process ends, kill -9 and crash included, so there is no stale lock, no time limit and no process id to poll (ids are
reused). SQLite's own locks cannot do this: they last for one transaction and cover the
whole file, and conversations must not wait for each other. What stands *in* the file only tells people who it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import ConversationBusy, Holder
from deltamem_cli.store.lock_file import ConversationLock

_BETWEEN_LOOKS = 0.05  # seconds
_LOOKS = 5


def lock_path(store: Store, conversation: str) -> Path:
    """Where the lock of a conversation is, in a folder beside the database."""
    assert store.path is not None
    return store.path.with_name(store.path.name + ".locks") / f"{conversation}.lock"


def hold(
    store: Store,
    conversation: str,
    *,
    brief: bool = False,
    waiting: Callable[[Holder], None] = lambda holder: None,
) -> None:
    """Hold a conversation until the store closes, or raise ConversationBusy at once.

    brief: this process ends by itself soon; it waits for another such one, and calls `waiting` once when that takes
    longer than a moment.
    """
    if store.path is None or conversation in store.locks:
        return
    looks_for_long = looks_for_brief = 0
    while True:
        try:
            store.locks[conversation] = ConversationLock(lock_path(store, conversation), conversation, brief=brief)
            return
        except ConversationBusy as busy:
            # one that has just arrived has not written yet who it is
            looks_for_long += not busy.holder.brief
            looks_for_brief += busy.holder.brief
            if not brief or looks_for_long > _LOOKS:
                raise
            if looks_for_brief == _LOOKS:
                waiting(busy.holder)
            time.sleep(_BETWEEN_LOOKS)


def let_go(store: Store, conversation: str) -> None:
    """Releases a conversation's lock if this store holds it."""
    lock = store.locks.pop(conversation, None)
    if lock:
        lock.release()


@contextmanager
def holding(store: Store, *conversations: str) -> Iterator[None]:
    """Hold the conversations for the length of a block; those already held stay held."""
    taken = []
    try:
        for conversation in conversations:
            if conversation not in store.locks:
                hold(store, conversation)
                taken.append(conversation)
        yield
    finally:
        for conversation in taken:
            let_go(store, conversation)
