"""A backup put in the place of the database: nothing of the old one is applied to it, and nothing of the old one lost."""

from __future__ import annotations

from pathlib import Path

from deltamem_cli import files
from deltamem_cli.reading import why_no_file
from deltamem_cli.store import beside
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError, as_sentences


def restore(backup: Path, path: Path) -> Path | None:
    """Put a copy of `backup` in the place of the database `path`. Returns where the old one is kept, if there was one.

    Raises StoreError when the backup is not sound or the database is in use; nothing is changed then.
    """
    path = path.resolve()
    if why := why_no_file(backup):
        raise StoreError(f"{backup} {why}, so it was not restored; check the path")
    with as_sentences(path):
        if path.exists() and backup.samefile(path):
            raise StoreError(f"{backup} is the database itself; give a backup written by: dmem log backup")
    with Store.look(backup) as store, as_sentences(path):
        if store.check():
            raise StoreError(f"{backup} is damaged, so it was not restored; give another backup")
        files.make_folder(path.parent)
        beside.put_strange_wal_aside(path)
        with beside.alone(path):
            with files.replacing(path) as draft:
                store.copy_to(draft)
                # Killed after the old files have their second names: what is still beside the new one is known as
                # strange, because a copy has no WAL.
                old = beside.keep(path) if path.exists() else None
            beside.forget(path)
    return old
