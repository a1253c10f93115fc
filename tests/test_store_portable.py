"""The portable file: carries a memory whole, and is believed in nothing."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stored

from deltamem_cli.store import bundle, conversations, portable, profiles, states, turns
from deltamem_cli.store.database import Store
from deltamem_cli.store.errors import StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "memory.db") as store:
        yield store


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    talk = stored.conversation(store, 3, word="pangolin")
    portable.save(tmp_path / "work.dmem", bundle.read(store, talk))
    return tmp_path / "work.dmem"


def rewrite(file: Path, change: Callable[[dict[str, Any], np.ndarray], np.ndarray | None], honest: bool = True) -> None:
    """Change the manifest and the states inside the file; `honest` puts the hash right again."""
    with zipfile.ZipFile(file) as archive:
        manifest = json.loads(archive.read(portable.MANIFEST))
        numbers = np.frombuffer(archive.read(portable.STATES), dtype="<f4").copy()
    changed = change(manifest, numbers)
    numbers = numbers if changed is None else changed
    if honest:
        manifest["states_sha256"] = hashlib.sha256(numbers.tobytes()).hexdigest()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(portable.MANIFEST, json.dumps(manifest))
        archive.writestr(portable.STATES, numbers.tobytes())


def test_file_carries_states_fingerprints_and_transcript_to_another_database(file: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "other.db") as other:
        made = bundle.write(other, profiles.ensure(other, "there"), portable.load(file))
        every = turns.all_of(other, made.id)
        assert [turn.messages[0].text for turn in every] == [f"pangolin {n}" for n in (1, 2, 3)]
        assert every[0].messages[0].tokens == [1, 2, 1] and every[0].messages[0].spans == [0, 0, -1]
        assert every[1].context == {"run": "r1", "window_first": 1, "replayed": [1]}
        for number in (1, 2, 3):
            found = states.after(other, made.id, number)
            assert found and found.state.tobytes() == stored.snapshot(number).state.tobytes()
            assert (found.model, found.adapter, found.layers) == (stored.MODEL, stored.ADAPTER, stored.LAYERS)


def test_file_without_transcript_contains_no_word_of_it(store: Store, tmp_path: Path) -> None:
    talk = stored.conversation(store, 2, word="pangolin")
    turns.commit(store, talk, stored.exchange(3, user="pangolin 3", context={"system": "You answer about pangolins."}))
    conversations.rename(store, talk.id, "On pangolins")
    file = tmp_path / "bare.dmem"
    portable.save(file, bundle.read(store, conversations.get(store, talk.id), transcript=False))
    with zipfile.ZipFile(file) as archive:
        inside = b"".join(archive.read(name) for name in archive.namelist())
    assert b"pangolin" not in inside and b"answer" not in inside
    loaded = portable.load(file)
    assert len(loaded.states) == 3 and [len(turn.messages) for turn in loaded.turns] == [0, 0, 0]


def test_initial_state_survives_the_journey(store: Store, tmp_path: Path) -> None:
    talk = stored.conversation(store, 2)
    portable.save(tmp_path / "x.dmem", bundle.state_only(bundle.read(store, talk)))
    loaded = portable.load(tmp_path / "x.dmem")
    assert loaded.initial and loaded.initial.state.tobytes() == stored.snapshot(2).state.tobytes()
    assert loaded.turns == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
def test_file_is_for_its_owner_alone_and_whole_or_absent(
    file: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(StoreError, match="the disk is full"):
        portable.save(file, portable.load(file))
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*.part"))


def put(*keys: str | int, to: Any) -> Callable[[dict[str, Any], np.ndarray], None]:
    def change(manifest: dict[str, Any], _: np.ndarray) -> None:
        target: Any = manifest
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = to

    return change


def nan(_: dict[str, Any], numbers: np.ndarray) -> None:
    numbers[77] = np.nan


def shorter(_: dict[str, Any], numbers: np.ndarray) -> np.ndarray:
    return numbers[:-1]


def longer(_: dict[str, Any], numbers: np.ndarray) -> np.ndarray:
    return np.concatenate([numbers, numbers[:1]])


BAD = {
    "nan": nan,
    "states too short": shorter,
    "states too long": longer,
    "newer": put("version", to=2),
    "version is text": put("version", to="1"),
    "other format": put("format", to="something"),
    "rank huge": put("states", 0, "rank", to=10**6),
    "rank 0": put("states", 0, "rank", to=0),
    "rank true": put("states", 0, "rank", to=True),
    "rank wrong": put("states", 0, "rank", to=4),
    "heads negative": put("states", 0, "heads", to=-1),
    "layers unordered": put("states", 0, "layers", to=[5, 3, 2]),
    "layers empty": put("states", 0, "layers", to=[]),
    "layers too many": put("states", 0, "layers", to=list(range(1025))),
    "state of no turn": put("states", 0, "turn", to=99),
    "two states of a turn": put("states", 0, "turn", to=2),
    "no fingerprint": put("states", 0, "model", to={"name": "x"}),
    "fingerprint is a number": put("states", 0, "adapter", to={"name": "x", "fingerprint": 5}),
    "turns unordered": put("turns", 0, "number", to=3),
    "turn 0": put("turns", 0, "number", to=0),
    "created is nonsense": put("turns", 0, "created", to="\x1b[2J"),
    "text is a number": put("turns", 0, "messages", 0, "text", to=5),
    "text is half a character": put("turns", 0, "messages", 0, "text", to="\ud800"),
    "token negative": put("turns", 0, "messages", 0, "tokens", to=[-1]),
    "token huge": put("turns", 0, "messages", 0, "tokens", to=[2**31]),
    "spans of other length": put("turns", 0, "messages", 0, "spans", to=[0]),
    "messages missing": put("turns", 0, "messages", to=None),
    "turns missing": put("turns", to={}),
    "context is a list": put("turns", 0, "context", to=[]),
    "replayed is nothing": put("turns", 1, "context", "replayed", to=None),
    "replayed are texts": put("turns", 1, "context", "replayed", to=["1"]),
    "window_first is a list": put("turns", 1, "context", "window_first", to=[]),
    "run is a dict": put("turns", 1, "context", "run", to={}),
    "head holds no tokens": put("turns", 1, "context", "head", to=[2**31]),
    "system is a number": put("turns", 1, "context", "system", to=5),
    "a setting is a list": put("turns", 0, "settings", to={"temperature": []}),
    "a setting is infinite": put("turns", 0, "settings", to={"temperature": float("inf")}),
    "a time is not a number": put("turns", 0, "timings", to={"reply": float("nan")}),
    "counts negative": put("turns", 0, "written_tokens", to=-5),
    "timings are texts": put("turns", 0, "timings", to={"a": "b"}),
    "conversation missing": put("conversation", to=None),
}


@pytest.mark.parametrize("name", BAD)
def test_file_with_a_wrong_value_is_refused_in_one_sentence(file: Path, name: str) -> None:
    rewrite(file, BAD[name])
    with pytest.raises(StoreError) as error:
        portable.load(file)
    text = str(error.value)
    assert text.startswith(f"{file} cannot be imported because") and "\n" not in text and "\x1b" not in text


def test_states_that_do_not_match_their_hash_are_refused(file: Path) -> None:
    def flip(_: dict[str, Any], numbers: np.ndarray) -> None:
        numbers[5] += 1

    rewrite(file, flip, honest=False)
    with pytest.raises(StoreError, match="not the exported ones"):
        portable.load(file)


def test_file_that_unpacks_to_far_more_than_it_declares_does_not_fill_the_memory(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        manifest = archive.read(portable.MANIFEST)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(portable.MANIFEST, manifest)
        archive.writestr(portable.STATES, bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(StoreError, match="more than it should"):
        portable.load(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_small_file_is_not_read_as_a_manifest_of_gigabytes(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(portable.MANIFEST, '{"junk":[' + "[]," * 10_000_000 + "0]}")
        archive.writestr(portable.STATES, b"")
    tracemalloc.start()
    with pytest.raises(StoreError, match="more than it should"):
        portable.load(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_states_that_are_far_larger_than_the_file_are_refused(file: Path) -> None:
    def many(manifest: dict[str, Any], _: np.ndarray) -> None:
        for state in manifest["states"]:
            state.update(layers=list(range(100)), heads=64, rank=64)

    rewrite(file, many)
    with pytest.raises(StoreError, match="larger than the file"):
        portable.load(file)


def test_a_long_and_repetitive_transcript_is_exported_so_that_it_can_be_imported(store: Store, tmp_path: Path) -> None:
    talk = stored.conversation(store, 1)
    turns.commit(store, talk, stored.exchange(2, user="again " * 1_000_000))
    taken = bundle.read(store, talk)
    portable.save(tmp_path / "long.dmem", taken)
    assert portable.load(tmp_path / "long.dmem").turns[1].messages == taken.turns[1].messages


@pytest.mark.parametrize("what", ["text", "empty", "missing", "folder", "other zip"])
def test_what_is_no_memory_file_at_all_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what in ("text", "empty"):
        path.write_bytes(b"hello" * (what == "text"))
    elif what == "folder":
        path.mkdir()
    elif what == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../../etc/passwd", "x")
    with pytest.raises(StoreError) as error:
        portable.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_file_is_refused_or_read_as_it_was(file: Path) -> None:
    data = file.read_bytes()
    random = np.random.default_rng(3)
    whole = portable.load(file)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data[: random.integers(1, len(data))] if random.random() < 0.2 else data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            read = portable.load(file)
        except StoreError:
            refused += 1
            continue
        for number, snapshot in whole.states.items():
            assert np.array_equal(read.states[number].state, snapshot.state)
        assert read.turns == whole.turns
    assert refused > 200
