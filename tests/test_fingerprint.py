from __future__ import annotations

import importlib
import os
import time
from pathlib import Path

import pytest

from deltamem_cli.engine import EngineError
from deltamem_cli.engine.fingerprint import fingerprint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


def large(path: Path, *, change_at: int | None = None) -> Path:
    """A file of 6 GB that takes no room."""
    with path.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(6 << 30)
        if change_at is not None:
            file.seek(change_at)
            file.write(b"x" * (1 << 20))
    return path


def test_it_tells_contents_apart_and_not_names(file: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.gguf", tmp_path / "other.gguf"
    copy.write_bytes(file.read_bytes())
    other.write_bytes(file.read_bytes()[:-1] + b"x")
    assert fingerprint(copy) == fingerprint(file) != fingerprint(other)
    assert len(fingerprint(file)) == 64


def test_a_file_changed_in_place_is_seen(file: Path) -> None:
    before = fingerprint(file)
    status = file.stat()
    file.write_bytes(b"GGUF" + bytes(999) + b"x")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert fingerprint(file) != before


def split(folder: Path, *contents: bytes) -> Path:
    """Returns the first part."""
    folder.mkdir()
    files = [folder / f"m-{n:05}-of-{len(contents):05}.gguf" for n in range(1, len(contents) + 1)]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files[0]


def test_a_split_model_is_told_by_all_of_its_parts_and_from_any_of_them(tmp_path: Path) -> None:
    first, same = split(tmp_path / "a", b"x", b"y", b"z"), split(tmp_path / "b", b"x", b"y", b"z")
    assert fingerprint(first) == fingerprint(same)
    assert fingerprint(first) == fingerprint(first.with_name("m-00002-of-00003.gguf"))
    for name, contents in {"c": (b"x", b"z", b"y"), "d": (b"x", b"y", b"w"), "e": (b"x", b"y")}.items():
        assert fingerprint(split(tmp_path / name, *contents)) != fingerprint(first)


def test_a_part_that_changes_is_seen_whatever_is_remembered_of_the_others(tmp_path: Path) -> None:
    first = split(tmp_path / "a", b"x", b"y")
    before = fingerprint(first)
    second = first.with_name("m-00002-of-00002.gguf")
    second.write_bytes(b"other")
    assert fingerprint(first) != before


def test_a_file_that_is_only_named_like_a_part_is_told_by_itself(file: Path) -> None:
    alone = file.with_name("model-00001-of-00002.gguf")
    alone.write_bytes(file.read_bytes())
    assert fingerprint(alone) == fingerprint(file)


def test_a_second_time_reads_nothing_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(file)
    module = importlib.import_module("deltamem_cli.engine.fingerprint")  # the package has a function of that name
    monkeypatch.setattr(module, "_digest", lambda *_: pytest.fail("the file was read again"))
    assert fingerprint(file) == first


def test_without_remembering_nothing_is_written(file: Path, home: Path) -> None:
    assert fingerprint(file, remember=False) == fingerprint(file, remember=False)
    assert not home.exists()


def test_a_file_of_six_gigabytes_takes_no_full_read_and_changes_in_it_are_seen(tmp_path: Path) -> None:
    start = time.monotonic()
    plain = fingerprint(large(tmp_path / "a.gguf"))
    assert time.monotonic() - start < 10
    for at in (100, 3 << 30, (6 << 30) - (1 << 20)):
        # a change of a few MB, as every other training or quantization makes everywhere, hits samples 12 MB apart
        changed = large(tmp_path / "b.gguf", change_at=at)
        with changed.open("r+b") as file:
            for step in range(1, 13):
                file.seek(max(0, at - step * (1 << 20)))
                file.write(b"x" * (1 << 20))
        assert fingerprint(changed) != plain
        changed.unlink()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1, 2]", b'{"x": 5}', b"\xff\xfe"])
def test_a_damaged_cache_is_made_anew(file: Path, home: Path, damage: bytes) -> None:
    first = fingerprint(file)
    cache = home / "cache" / "fingerprints.json"
    assert first in cache.read_text()
    cache.write_bytes(damage)
    assert fingerprint(file) == first
    assert first in cache.read_text()


def test_a_number_in_the_place_of_a_digest_is_not_believed(file: Path, home: Path) -> None:
    first = fingerprint(file)
    cache = home / "cache" / "fingerprints.json"
    cache.write_text(cache.read_text().replace(f'"{first}"', "5"))
    assert fingerprint(file) == first


def test_a_cache_that_cannot_be_written_is_done_without(file: Path, home: Path) -> None:
    home.write_text("a file where a folder should be")
    assert fingerprint(file) == fingerprint(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(EngineError, match="can't be read"):
            fingerprint(path)
