"""Mutated files of every kind that dmem is given: each is taken or refused in a sentence. `--many N`: so many of each."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import mutation
import pytest
import stored
from conftest import MakeAdapter, MakeModel
from published_files import published_tensors, safetensors_bytes, torch_bytes
from trial import trial

from deltamem_cli.store import bundle, portable
from deltamem_cli.store.database import Store


@pytest.fixture
def many(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--many"))


def test_adapters(tiny_model: MakeModel, tiny_adapter: MakeAdapter, tmp_path: Path, many: int) -> None:
    model = tiny_model("qwen3")
    data = tiny_adapter(model, write_granularity="sentence_mean", couple_lambda=False, rank=4).read_bytes()
    spots = mutation.gguf_spots(data)
    (tmp_path / "sound.gguf").write_bytes(data)
    came = trial(lambda rng: mutation.of_gguf(rng, data, spots), tmp_path, many, "{}.gguf", "adapter", model)
    assert came["refused"] > many / 2


def test_headers_of_models(tiny_model: MakeModel, tmp_path: Path, many: int) -> None:
    data = tiny_model("llama").read_bytes()
    spots = mutation.gguf_spots(data)
    (tmp_path / "sound.gguf").write_bytes(data)
    came = trial(lambda rng: mutation.of_gguf(rng, data, spots), tmp_path, many, "{}.gguf", "header")
    assert came["refused"] > many / 4


TENSORS = published_tensors({"rank": 2}, (0, 1), 8, {"q": 8, "k": 4, "v": 4, "o": 8})


def zipped(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_files_of_pytorch(tmp_path: Path, many: int) -> None:
    data = torch_bytes(TENSORS)
    (tmp_path / "sound.pt").write_bytes(data)
    inside = unzipped(data)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.25:
            return mutation.of_bytes(rng, data)
        changed = dict(inside)
        name = next(name for name in inside if name.endswith("data.pkl") or rng.random() < 0.05)
        changed[name] = mutation.of_bytes(rng, inside[name])
        if rng.random() < 0.1:  # nested, which hashing and freeing follow without a limit
            at = rng.randrange(len(changed[name]))
            changed[name] = changed[name][:at] + rng.choice([b")\x85", b"\x85", b"("]) * 100_000 + changed[name][at:]
        return zipped(changed)

    assert trial(make, tmp_path, many, "{}.pt", "torch")["refused"] > many / 2


def test_files_of_safetensors(tmp_path: Path, many: int) -> None:
    data = safetensors_bytes(TENSORS, {"format": "pt"})
    (tmp_path / "sound.safetensors").write_bytes(data)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return mutation.of_bytes(rng, data, 8 + length)
        changed = json.dumps(mutation.of_tree(rng, header)).encode()
        return len(changed).to_bytes(8, "little") + changed + rest

    assert trial(make, tmp_path, many, "{}.safetensors", "safetensors")["refused"] > many / 2


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "memory.db"
    with Store.open(path) as store:
        stored.conversation(store, 3)
    return path


def test_memory_files(database: Path, tmp_path: Path, many: int) -> None:
    with Store.open(tmp_path / "source.db") as store:
        portable.save(tmp_path / "sound.zip", bundle.read(store, stored.conversation(store, 3)))
    data = (tmp_path / "sound.zip").read_bytes()
    inside = unzipped(data)
    manifest = json.loads(inside[portable.MANIFEST])

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutation.of_bytes(rng, data)
        changed = dict(inside)
        if rng.random() < 0.1:
            name = rng.choice(list(inside))
            changed[name] = mutation.of_bytes(rng, inside[name])
        else:
            changed[portable.MANIFEST] = json.dumps(mutation.of_tree(rng, manifest)).encode()
        return zipped(changed, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))

    assert trial(make, tmp_path, many, "{}.zip", "bundle", database)["refused"] > many / 3


CONFIG = """\
# what is mine
model = "starter"
ctx_size = 4096
threads = 2  # few
system = \"\"\"Be
brief.\"\"\"
gpu_layers = -1
history = true

[options]
temperature = 0.5
top_k = 40

[models.work]
path = "/models/work.gguf"
options = { temperature = 1 }

[adapters.mine]
path = "mine.gguf"
"""
OF_TOML = ["[", "]", "[[", "=", '"', "'", '""', "'''", "{", "}", ",", ".", "#", "\n", "0x", "1e999", "inf", "nan"]
OF_TOML += [
    "true",
    "1979-05-27",
    "\\u0000",
    "\0",
    "\r",
    "\ufeff",
    "[a]\n",
    "a.b.c = 1\n",
    "9" * 5000,
    "[" * 3000,
    "x=" * 9,
]


def test_configurations(tmp_path: Path, many: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "sound.toml").write_text(CONFIG)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutation.of_bytes(rng, CONFIG.encode())
        return mutation.of_text(rng, CONFIG, OF_TOML).encode("utf-8", "surrogatepass")

    came = trial(make, tmp_path, many, "{}.toml", "config", home)
    assert came["refused"] > many / 3 and came["taken"] > many / 20


def test_databases(database: Path, tmp_path: Path, many: int) -> None:
    data = database.read_bytes()
    (tmp_path / "sound.db").write_bytes(data)
    pages = len(data) // 4096

    def make(rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.4:
            return mutation.of_bytes(rng, data, 100)  # SQLite's own header
        changed = bytearray(data)
        page = rng.randrange(pages) * 4096
        if kind < 0.8:  # the head of a page, and what it says of its cells
            changed[page : page + 4096] = mutation.of_bytes(rng, data[page : page + 4096], rng.choice([12, 60, 4096]))[
                :4096
            ]
        else:
            other = rng.randrange(pages) * 4096
            changed[page : page + 4096] = rng.choice([data[other : other + 4096], bytes(4096), rng.randbytes(4096)])
        return bytes(changed)

    came = trial(make, tmp_path, many, "{}.db", "database")
    assert came["refused"] > many / 20
