"""Names of models and adapters: which file of a repository, which file on this machine, what it says of itself."""

from __future__ import annotations

import errno
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MakeAdapter, MakeModel

from deltamem_cli import config, models, paths
from deltamem_cli.adapter.base_model import read_base_model
from deltamem_cli.errors import DeltamemError
from deltamem_cli.models import ModelError, choosing, entries, hub, ram, registry
from deltamem_cli.models.entries import Entry, Packaged, packaged_for
from deltamem_cli.models.facts import Facts, chat_template, parts, read_facts
from deltamem_cli.models.pulling import register

QUANTS = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-UD-Q4_K_M.gguf", "imatrix_m.gguf", "mmproj-m-F16.gguf", "README.md"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DMEM_MODEL", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize(
    "spec, found",
    [
        ("owner/repo", ("owner/repo", None)),
        ("owner/repo:Q8_0", ("owner/repo", "Q8_0")),
        ("owner/repo:sub/m.gguf", ("owner/repo", "sub/m.gguf")),
        ("hf.co/owner/repo:Q8_0", ("owner/repo", "Q8_0")),
        ("https://huggingface.co/owner/repo", ("owner/repo", None)),
        ("name", None),
        ("/a/b", None),
        ("a/b/c", None),
    ],
)
def test_a_repository_is_told_from_other_words(spec: str, found: tuple[str, str | None] | None) -> None:
    assert choosing.parse(spec) == found


@pytest.mark.parametrize(
    "names, wanted, chosen",
    [
        (["only-Q2_K.gguf", "README.md"], None, ["only-Q2_K.gguf"]),
        (QUANTS, None, ["m-Q4_K_M.gguf"]),
        (QUANTS, "q8_0", ["m-Q8_0.gguf"]),
        (QUANTS, "m-UD-Q4_K_M.gguf", ["m-UD-Q4_K_M.gguf"]),
        (QUANTS, "UD-Q4_K_M", ["m-UD-Q4_K_M.gguf"]),
        (["BF16/m-00002-of-00002.gguf", "BF16/m-00001-of-00002.gguf", "m-Q8_0.gguf"], "BF16/m",
         ["BF16/m-00001-of-00002.gguf", "BF16/m-00002-of-00002.gguf"]),
        (["Q8_0/m.gguf", "Q4_K_M/m-00001-of-00001.gguf"], None, ["Q4_K_M/m-00001-of-00001.gguf"]),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m-00002-of-00002.gguf",
         ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]),
    ],
)  # fmt: skip
def test_the_file_that_is_meant_is_chosen(names: list[str], wanted: str | None, chosen: list[str]) -> None:
    assert choosing.choose("o/r", names, wanted)[0] == chosen


@pytest.mark.parametrize(
    "names, wanted, part",
    [
        (["README.md"], None, "has no GGUF model"),
        (["m-Q8_0.gguf", "m-Q6_K.gguf"], None, "2 models, none of them Q4_K_M: choose one of m-Q6_K, m-Q8_0"),
        (QUANTS, "Q2_K", "has no Q2_K"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "Q4_K_M", "2 models that are Q4_K_M"),
        (QUANTS, "4_K_M", "has no 4_K_M"),
    ],
)
def test_what_can_t_be_chosen_is_listed(names: list[str], wanted: str | None, part: str) -> None:
    with pytest.raises(ModelError, match=part):
        choosing.choose("o/r", names, wanted)


def test_a_name_a_path_and_the_starter_resolve(tiny_model: MakeModel, tmp_path: Path) -> None:
    path = tiny_model("llama")
    assert models.resolve("starter").path == paths.starter_model()
    assert models.resolve(path) == models.ModelFile(path, None, str(path))
    register(path, "mine")
    assert models.resolve("mine") == models.resolve(str(path)) == models.ModelFile(path, None, "mine")


def test_what_is_not_here_names_the_next_step(tmp_path: Path) -> None:
    for said, part in {
        "qwen3-4b": "dmem model pull qwen3-4b",
        "owner/repo:Q4_0": "dmem model pull owner/repo:Q4_0",
        "qwen-4b": "did you mean qwen3-4b",
        "./none.gguf": "./none.gguf does not exist",
        "mistral": "There is no model mistral, and no file of that name",
    }.items():
        with pytest.raises(ModelError, match=part):
            models.resolve(said)


def test_an_adapter_that_is_neither_a_name_nor_a_file_is_told_so() -> None:
    with pytest.raises(ModelError, match="There is no adapter mine, and no file of that name"):
        models.adapter_file("mine")


def test_an_imported_file_that_is_gone_says_so(tiny_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_model("llama").read_bytes())
    register(path, None)
    path.unlink()
    with pytest.raises(ModelError, match="gone from .*m.gguf: put it back, or forget it with: dmem model rm m"):
        models.resolve("m")


def test_the_adapter_of_the_configuration_goes_before_the_one_beside_the_model(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_model("llama").read_bytes())
    beside = path.with_suffix(".deltamem.gguf")
    beside.write_bytes(tiny_adapter(path).read_bytes())
    assert models.resolve(path).adapter == beside
    register(path, "mine")
    other = tmp_path / "other.gguf"
    other.write_bytes(beside.read_bytes())
    config.set_entry("adapters", "named", {"path": str(other)})
    config.set_entry("models", "mine", {"adapter": "named"})
    assert models.resolve("mine").adapter == models.resolve(path).adapter == other
    other.unlink()
    with pytest.raises(ModelError, match="other.gguf does not exist"):
        models.resolve("mine")


def test_an_entry_of_the_configuration_is_a_model(tiny_model: MakeModel, home: Path) -> None:
    config.set_entry("models", "own", {"path": str(tiny_model("qwen3"))})
    assert models.resolve("own").path == tiny_model("qwen3")
    config.set_entry("models", "qwen3-4b", {"file": "Q8_0"})
    entry = models.catalogue()["qwen3-4b"]
    assert (entry.repo, entry.file, entry.adapter, entry.size) == (
        "unsloth/Qwen3-4B-Instruct-2507-GGUF", "Q8_0", "declare-lab/delta-mem_qwen3_4b-instruct", None,
    )  # fmt: skip


def test_a_pulled_model_whose_adapter_was_removed_talks_without(tiny_model: MakeModel, tmp_path: Path) -> None:
    record = replace(register(tiny_model("qwen3"), "mine"), repo="o/r", adapter=tmp_path / "gone.gguf")
    registry.write(record)
    assert models.resolve("mine").adapter is None
    assert models.resolve("o/r").name == models.resolve("o/r:n_layer=2").name == "mine"


def test_what_was_pulled_is_not_the_model_once_the_configuration_names_another_repository(
    tiny_model: MakeModel,
) -> None:
    registry.write(replace(register(tiny_model("qwen3"), "mine"), repo="o/r"))
    config.set_entry("models", "mine", {"repo": "o/other"})
    with pytest.raises(ModelError, match="dmem model pull mine"):
        models.resolve("mine")


def test_a_wrong_key_in_the_configuration_is_named(home: Path) -> None:
    config.set_entry("models", "own", {"url": "x"})
    with pytest.raises(ModelError, match=r"models\.own\.url; it can have repo, file, adapter, path"):
        models.catalogue()


def test_a_name_is_taken_once(tiny_model: MakeModel) -> None:
    register(tiny_model("llama"), "mine")
    register(tiny_model("llama"), "mine")
    with pytest.raises(ModelError, match="There is already a model mine"):
        register(tiny_model("qwen3"), "mine")
    for name in ("starter", "qwen3-4b"):
        with pytest.raises(ModelError, match=f"There is already a model {name}"):
            register(tiny_model("qwen3"), name)
    for name in ("a/b", "", "x.gguf", "../x"):
        with pytest.raises(ModelError, match="can't be a model's name"):
            register(tiny_model("qwen3"), name)


def test_an_adapter_or_half_a_split_model_is_no_model(
    tiny_model: MakeModel, tiny_adapter: MakeAdapter, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="of the kind adapter, not a model"):
        register(tiny_adapter(tiny_model("llama")), None)
    half = tmp_path / "m-00001-of-00002.gguf"
    half.write_bytes(tiny_model("llama").read_bytes())
    with pytest.raises(ModelError, match="m-00002-of-00002.gguf is missing"):
        register(half, None)


def test_facts_are_those_of_the_starter() -> None:
    file = paths.starter_model()
    facts = read_facts([file])
    assert facts.license == "apache-2.0"
    known = models.catalogue()["starter"].facts
    assert known is not None
    for name in ("architecture", "parameters", "quantization", "context_length", "embedding_length", "layers",
                 "cache_bytes"):  # fmt: skip
        assert getattr(facts, name) == getattr(known, name), name
    assert "im_start" in (chat_template(file) or "")
    assert parts(file) == [file]


def test_memory_is_weights_and_the_context_that_is_configured() -> None:
    facts = Facts(context_length=8192, cache_bytes=1000)
    small = ram.needed(10**9, facts)
    config.set_value("ctx_size", "9000")
    assert ram.needed(10**9, facts) - small == 4096 * 1000
    config.set_value("ctx_size", "0")
    assert ram.needed(10**9, facts) - small == 4096 * 1000
    machine = ram.Memory(total=16 * 10**9, available=4 * 10**9)
    assert [machine.verdict(n * 10**9) for n in (3, 8, 15)] == ["yes", "tight", "no"]
    measured = ram.of_machine()
    assert measured and 0 < measured.available <= measured.total


def test_a_record_that_can_t_be_read_counts_as_absent(tiny_model: MakeModel, home: Path) -> None:
    register(tiny_model("llama"), "mine")
    (file,) = (home / "models").iterdir()
    document = json.loads(file.read_text())
    for broken in ("{", "[]", json.dumps(document | {"files": []}), json.dumps(document | {"facts": 3})):
        file.write_text(broken)
        assert "mine" not in models.catalogue()


def test_a_full_disk_is_said_before_and_when_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1.incomplete").write_bytes(bytes(1_000_000))
    files = [hub.RemoteFile(f"m{n}.gguf", 2_500_000, None, str(n)) for n in (1, 2)]
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(ModelError, match=r"m1.gguf needs 4.0 MB more and .* has 1.0 MB free"):
        hub._check_room(tmp_path, files)
    with pytest.raises(ModelError, match="The disk is full"), hub._in_one_sentence("o/r"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_two_pulls_of_one_file_do_not_mix(tmp_path: Path) -> None:
    file, blob = hub.RemoteFile("m.gguf", 5, None, "0"), tmp_path / "models--o--r" / "blobs" / "0"
    with (
        hub._alone(file, blob),
        pytest.raises(ModelError, match="m.gguf is being downloaded by another process"),
        hub._alone(file, blob),
    ):
        pass


def test_a_header_that_claims_billions_of_layers_is_read_at_once(tiny_model: MakeModel, tmp_path: Path) -> None:
    data = bytearray(tiny_model("qwen3").read_bytes())
    at = data.index(b"qwen3.block_count") + len("qwen3.block_count") + 4
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(data)
    tracemalloc.start()
    try:
        assert read_facts([tmp_path / "m.gguf"]).layers == 2**31 - 1
        with pytest.raises(DeltamemError, match="claims to have 2147483647 layers"):
            read_base_model(tmp_path / "m.gguf")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"name": "Smollm2 135M 8k Lc100K Mix1 Ep2", "quantization": "Q8_0", "parameters": 1}, True),
        ({"name": "SmolLM2 135M"}, False),  # the base model thinks in other ways
        ({"name": None}, False),
        ({"embedding_length": 960}, False),
        ({"layers": 32}, False),
        ({"architecture": "qwen2"}, False),
    ],
)
def test_a_packaged_adapter_goes_with_its_model_in_any_quantisation(changes: dict[str, object], found: bool) -> None:
    facts = Facts("SmolLM2-135M-Instruct", "llama", 134_515_008, "Q4_1", 8192, 576, 30, 23_040)
    expected = paths.starter_adapter() if found else None
    assert packaged_for(replace(facts, **changes)) == expected  # type: ignore[arg-type]


def test_the_starter_under_another_name_finds_its_adapter(tmp_path: Path) -> None:
    renamed = tmp_path / "mine.gguf"
    renamed.symlink_to(paths.starter_model())
    assert paths.starter_adapter() is not None
    assert models.resolve(renamed).adapter == paths.starter_adapter()


def test_a_file_of_the_users_finds_the_packaged_adapter_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    model = tmp_path / "renamed.gguf"
    model.write_bytes(tiny_model("qwen2").read_bytes())
    adapter, facts = tiny_adapter(model), read_facts([model])
    assert facts.name
    own = Entry("ours", "catalogue", packaged=Packaged("ours.deltamem.gguf", (facts.name,)), facts=facts)
    monkeypatch.setattr(entries, "_KNOWN", (own,))
    monkeypatch.setattr(paths, "packaged_adapter", lambda file: adapter if file == "ours.deltamem.gguf" else None)
    assert models.resolve(model).adapter == adapter
    assert models.adapter_file("ours") == adapter
    assert models.remembering() == "starter and ours"
    beside = tmp_path / "renamed.deltamem.gguf"
    beside.write_bytes(adapter.read_bytes())
    assert models.resolve(model).adapter == beside
