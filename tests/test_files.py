"""Files as a whole: replaced at once and privately, locked by the kernel."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from deltamem_cli import files

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and modes are a POSIX matter")


def test_a_replacement_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    with pytest.raises(OSError, match="full"), files.replacing(file) as draft:
        draft.write_text("half")
        raise OSError(errno.ENOSPC, "full")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@posix
def test_a_new_file_is_for_its_owner_alone_whatever_the_umask_and_the_old_file_say(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.touch(0o666)
    before = os.umask(0)
    try:
        files.write(file, b"private")
        files.make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert file.read_bytes() == b"private" and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")} == {0o700}


@posix
def test_no_link_is_followed_and_no_strangers_draft_touched(tmp_path: Path) -> None:
    victim, file, part = tmp_path / "victim", tmp_path / "x", tmp_path / "x.part"
    victim.write_text("mine")
    file.symlink_to(victim)
    part.symlink_to(victim)
    files.write(file, b"new")
    assert (victim.read_text(), file.read_text()) == ("mine", "new")
    assert part.is_symlink() and not file.is_symlink()


@posix
def test_a_pipe_is_written_into_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    files.write(pipe, b"words")
    reader.join()
    assert read == [b"words"] and pipe.is_fifo()


def test_the_longest_of_names_can_be_replaced(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)
    files.write(file, b"words")
    assert file.read_bytes() == b"words"


def test_a_lock_is_one_holders_and_its_file_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = files.take_lock(lock)
    assert held is not None and files.take_lock(lock) is None
    files.drop_lock(lock, held)
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_lock", refuse)
    with pytest.raises(files.NoLocks, match="file system has no locks"):
        files.take_lock(tmp_path / "lock")
