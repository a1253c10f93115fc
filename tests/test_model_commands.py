"""`dmem model` and `dmem adapter list, rm, default`: what they print, keep and refuse. Nothing here asks a network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeAdapter, MakeModel

from deltamem_cli import cli, config, models, paths

Run = Callable[..., tuple[int, str, str]]
ONLINE = ("huggingface_hub", "httpx2", "requests")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("DMEM_MODEL", "DMEM_ADAPTER", "DMEM_CTX_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def dmem(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def pair(tiny_model: MakeModel, tiny_adapter: MakeAdapter, tmp_path: Path) -> tuple[Path, Path]:
    """A model and an adapter for it that do not lie beside each other."""
    model, adapter = tmp_path / "m.gguf", tmp_path / "a.gguf"
    model.write_bytes(tiny_model("qwen3").read_bytes())
    adapter.write_bytes(tiny_adapter(tiny_model("qwen3")).read_bytes())
    return model, adapter


def listed(dmem: Run, what: str = "model") -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(dmem(what, "list", "--json")[1])}


def test_list_shows_what_is_here_what_could_be_and_what_fits(dmem: Run, pair: tuple[Path, Path]) -> None:
    assert dmem("model", "import", pair[0], "--name", "mine")[0] == 0
    dmem("model", "default", "mine")
    code, out, _ = dmem("model", "list")
    assert code == 0
    lines = {line[2:].split()[0]: line for line in out.splitlines()}
    assert lines["NAME"].split() == ["NAME", "SIZE", "FITS", "MEMORY", "WHERE"]
    assert lines["starter"].split()[1:3] == ["98.4", "MB"] and lines["starter"].endswith("packaged")
    assert "get it with: dmem model pull qwen3-4b" in lines["qwen3-4b"] and "2.5 GB" in lines["qwen3-4b"]
    assert lines["mine"].startswith("* mine") and lines["mine"].endswith(str(pair[0]))
    assert lines["mine"].split()[4:6] == ["yes", "no"]
    assert (
        lines["qwen2.5-coder-0.5b"].split()[1:3] == ["491.4", "MB"] and "dmem model pull" in lines["qwen2.5-coder-0.5b"]
    )
    facts = listed(dmem)
    assert facts["qwen2.5-coder-0.5b"]["adapter"] is None and facts["qwen2.5-coder-0.5b"]["license"] == "apache-2.0"
    assert len(facts["qwen2.5-coder-0.5b"]["sha256"]) == 64 and facts["qwen2.5-coder-1.5b"]["size"] == 1_117_320_768
    assert facts["qwen3-4b"]["path"] is None and facts["qwen3-4b"]["memory_needed"] > facts["qwen3-4b"]["size"]
    assert [name for name, one in facts.items() if one["default"]] == ["mine"]


def test_one_model_is_recommended_and_it_remembers(dmem: Run) -> None:
    (best,) = [one for one in listed(dmem).values() if one["recommended"]]
    assert best["adapter"] and best["name"] != "starter"
    (line,) = [line for line in dmem("model", "list")[1].splitlines() if "(recommended)" in line]
    assert line.endswith(f"get it with: dmem model pull {best['name']} (recommended)")
    config.set_entry("models", best["name"], {"repo": "somebody/else"})
    assert not any(one["recommended"] for one in listed(dmem).values()), "another file under its name"


def test_list_reads_no_hub_library_and_no_weights(home: Path, pair: tuple[Path, Path]) -> None:
    models.pulling.register(pair[0], "mine")
    code = "import sys; from deltamem_cli import cli; cli.main(['model', 'list']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mine" in result.stdout
    assert not {*ONLINE, "numpy", "gguf", "llama_cpp", "rich", "sqlite_utils"} & set(result.stderr.split())


def test_a_chat_with_a_name_imports_no_hub_library(home: Path, pair: tuple[Path, Path]) -> None:
    models.pulling.register(pair[0], "mine")
    code = "import sys; from deltamem_cli import models; models.resolve('mine'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*ONLINE, "numpy", "gguf"} & set(result.stdout.split())


def test_show_says_what_a_file_is_and_which_adapters_fit(dmem: Run, pair: tuple[Path, Path]) -> None:
    model, adapter = pair
    config.set_entry("adapters", "other", {"path": str(adapter)})
    shown = json.loads(dmem("model", "show", model, "--json")[1])
    assert (shown["architecture"], shown["layers"], shown["adapter"]) == ("qwen3", 2, None)
    assert shown["adapters_that_fit"] == [str(adapter)]
    assert shown["parameters"] > 1000 and len(shown["fingerprint"]) == 64 and shown["size"] == model.stat().st_size
    out = dmem("model", "show", model)[1]
    assert "also fits      a.gguf" in out and "adapter        none, so it has no memory" in out
    assert "SmolLM2" not in out, "the starter's adapter does not fit"
    out = dmem("model", "show", "qwen3-4b")[1]
    assert "not here; get it with: dmem model pull qwen3-4b" in out and "license        apache-2.0" in out


def test_show_prints_a_template_for_a_file_of_one_s_own(dmem: Run) -> None:
    code, out, _ = dmem("model", "show", "starter", "--template")
    assert code == 0 and out.startswith("{% for message in messages %}")


def test_nothing_in_a_file_controls_the_terminal(dmem: Run, tiny_model: MakeModel, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "evil.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a\x1b[2Jb")
    writer.add_license("x\x1b]0;y\x07")
    writer.add_chat_template("{{ '\x1b[31m' }}")
    writer.add_block_count(1)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        step()
    for arguments in (["show", path], ["show", path, "--template"], ["import", path, "--name", "evil"], ["list"]):
        code, out, err = dmem("model", *arguments)
        assert code == 0 and "\x1b" not in out + err and "\x07" not in out + err, arguments


def test_default_is_checked_kept_and_shown(dmem: Run, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert dmem("model", "default")[1] == "starter (default)\n"
    code, _, err = dmem("model", "default", "qwen3-4b")
    assert code == 1 and "dmem model pull qwen3-4b" in err
    dmem("model", "import", pair[0], "--name", "mine")
    assert dmem("model", "default", "mine")[0] == 0
    assert dmem("model", "default")[1] == "mine (file)\n"
    monkeypatch.setenv("DMEM_MODEL", "starter")
    assert "DMEM_MODEL is set" in dmem("model", "default", "mine")[2]


def test_the_default_model_is_the_one_that_talks(dmem: Run, pair: tuple[Path, Path]) -> None:
    dmem("model", "import", pair[0], "--name", "mine")
    dmem("adapter", "default", "mine", pair[1])
    dmem("model", "default", "mine")
    code, _, err = dmem("memory", "remember", "I like tea.", "--threads", "1")
    assert code == 0, err
    assert (
        "without mine, 1 conversation with a memory that it wrote can't continue"
        in dmem("model", "rm", "mine", "--dry-run")[2]
    )
    copy = pair[0].with_name("copy.gguf")
    copy.write_bytes(pair[0].read_bytes())
    dmem("model", "import", copy, "--name", "copy")
    assert dmem("model", "rm", "mine", "--dry-run")[2] == "would forget mine\n", "the copy can continue"


def test_a_name_is_not_pointed_at_another_file_unasked(dmem: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = pair
    other = tmp_path / "other" / model.name
    other.parent.mkdir()
    other.write_bytes(model.read_bytes())
    for _ in range(2):  # the same file again is fine
        assert dmem("model", "import", model)[0] == 0
    code, _, err = dmem("model", "import", other)
    assert code == 1 and "There is already a model m" in err
    assert dmem("model", "import", other, "--name", "n")[0] == 0
    model.unlink()
    assert dmem("model", "import", other)[0] == 0, "moved"


def test_rm_forgets_an_import_and_leaves_its_file(dmem: Run, pair: tuple[Path, Path], home: Path) -> None:
    model, adapter = pair
    dmem("model", "import", model, "--name", "mine")
    dmem("adapter", "default", "mine", adapter)
    assert "would forget mine" in dmem("model", "rm", "mine", "--dry-run")[2]
    assert "mine" in listed(dmem)
    code, _, err = dmem("model", "rm", "mine")
    assert code == 0 and f"its file stays: {model}" in err
    assert model.is_file() and "mine" not in listed(dmem)
    config.set_entry("models", "own", {"path": str(model)})
    assert dmem("model", "rm", "own")[0] == 0
    assert model.is_file() and "own" not in listed(dmem)
    assert "comes with the package" in dmem("model", "rm", "starter")[2]
    assert "nothing to remove" in dmem("model", "rm", "qwen3-4b")[2]
    assert dmem("model", "rm", "nonsense")[0] == 1


def test_adapters_are_listed_with_where_they_come_from(dmem: Run, pair: tuple[Path, Path], home: Path) -> None:
    model, adapter = pair
    dmem("model", "import", model, "--name", "mine")
    config.set_entry("adapters", "named", {"path": str(adapter)})
    beside = model.with_suffix(".deltamem.gguf")
    beside.write_bytes(adapter.read_bytes())
    made = home / "adapters" / "made.deltamem.gguf"
    made.parent.mkdir()
    made.write_bytes(adapter.read_bytes())
    broken = home / "adapters" / "broken.deltamem.gguf"
    broken.write_text("nonsense")
    found = listed(dmem, "adapter")
    assert {name: one["origin"] for name, one in found.items()} == {
        "starter": "packaged",
        "named": "registered",
        "made": "converted",
        "broken": "converted",
        str(beside): "beside mine",
    }
    assert found[str(beside)]["models"] == ["mine"] and found["starter"]["models"] == ["starter"]
    assert found["made"]["rank"] == 8 and found["made"]["architecture"] == "qwen3"
    assert "a damaged or missing file" in dmem("adapter", "list")[1]
    for name, kept in {"made": False, "named": True}.items():
        path = Path(found[name]["file"])
        assert dmem("adapter", "rm", name, "-y")[0] == 0
        assert name not in listed(dmem, "adapter") and path.is_file() is kept
    assert "comes with the package" in dmem("adapter", "rm", "starter", "-y")[2]
    assert f"delete {beside}" in dmem("adapter", "rm", beside, "-y")[2] and beside.is_file()
    assert dmem("adapter", "rm", "nonsense", "-y")[0] == 1


def test_a_default_adapter_must_fit_and_can_be_taken_back(dmem: Run, pair: tuple[Path, Path]) -> None:
    model, adapter = pair
    dmem("model", "import", model, "--name", "mine")
    assert dmem("adapter", "default", "mine") == (0, "none\n", "")
    assert dmem("adapter", "default", "mine", adapter)[1] == f"{adapter}\n"
    assert models.resolve("mine").adapter == adapter
    code, _, err = dmem("adapter", "default", "mine", paths.starter_adapter())
    assert code == 1 and "is not made for mine" in err
    assert dmem("adapter", "default", "mine", "--unset")[1] == "none\n"
    assert dmem("adapter", "default", "starter")[1] == f"{paths.starter_adapter()}\n"
    assert dmem("adapter", "default", "nonsense", adapter)[0] == 1
    published = "declare-lab/delta-mem_qwen3_4b-instruct"
    assert dmem("adapter", "default", "qwen3-4b") == (0, f"{published}\n", ""), "what a pull would bring"
    assert dmem("adapter", "default", "qwen3-4b", adapter)[1] == f"{adapter}\n"
    assert dmem("adapter", "default", "qwen3-4b", "--unset")[1] == f"{published}\n"


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_what_can_t_be_removed_is_refused_before_anything_is_said_of_it(dmem: Run, kind: str) -> None:
    code, _, said = dmem(kind, "rm", "starter", "--dry-run")
    assert code == 1 and said == "starter comes with the package and can't be removed alone.\n"
