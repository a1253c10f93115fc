"""`dmem doctor`: everything that can be broken is broken here for real, and found; and looking changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_support import dmem, environment
from conftest import MakeAdapter, MakeModel

from deltamem_cli import cli, config, diagnosis
from deltamem_cli.diagnosis import network
from deltamem_cli.store import migrations, profiles
from deltamem_cli.store.database import Store

CHECKS = [
    *("install", "configuration", "native library", "data folder", "permissions", "disk", "database"),
    *("model", "memory", "hardware", "adapter", "remembered", "network"),
]
posix = pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel, tiny_adapter: MakeAdapter) -> Path:
    home = tmp_path_factory.mktemp("sound") / "home"
    model = tiny_model("qwen3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMEM_HOME", str(home))
        for key, value in (("model", model), ("adapter", tiny_adapter(model)), ("threads", 1), ("ctx_size", 256)):
            config.set_value(key, str(value))
        assert cli.main(["memory", "remember", "I like tea."]) == 0
    return home


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sound: Path) -> Path:
    """A sound installation: a tiny model with its adapter, and a turn that they remember."""
    home = tmp_path / "home"
    monkeypatch.setenv("DMEM_HOME", str(home))
    shutil.copytree(sound, home)
    return home


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """doctor(*words, code=0): each check's facts by its name, after `dmem doctor --json *words` exited with `code`."""

    def look(*words: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main(["doctor", "--json", *words]) == code
        out, err = capsys.readouterr()
        assert err == ""
        said = json.loads(out)
        assert (said["verdict"] == "broken") == bool(code)
        for check in said["checks"]:
            assert check["found"] and bool(check["advice"]) or check["verdict"] != "broken", check
        return {check["check"]: check for check in said["checks"]}

    return look


def broken(found: dict[str, Any]) -> list[str]:
    return [name for name, check in found.items() if check["verdict"] == "broken"]


def test_a_sound_installation_is_found_sound_and_left_as_it_was(home: Path, doctor: Doctor) -> None:
    def everything() -> dict[str, tuple[int, int, bytes]]:
        files = [path for path in home.rglob("*") if path.is_file()]
        return {str(f): (f.stat().st_mode, f.stat().st_mtime_ns, f.read_bytes()) for f in files}

    before = everything()
    found = doctor()
    assert list(found) == CHECKS
    assert {name: check["verdict"] for name, check in found.items()} == dict.fromkeys(CHECKS, "ok")
    assert everything() == before
    assert (
        "1 profile, 1 conversation, 1 turn" in found["database"]["found"]
        and "context 256" in found["hardware"]["found"]
        and "computed fused, 1 graph split;" in found["adapter"]["found"]
    )


def test_on_a_new_machine_it_makes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: MakeModel, tiny_adapter: MakeAdapter, doctor: Doctor
) -> None:
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "new"))
    model = tiny_model("qwen3")
    found = doctor("--model", str(model), "--adapter", str(tiny_adapter(model)))
    assert not broken(found) and "created by the first chat" in found["database"]["found"]
    assert not (tmp_path / "new").exists()


def test_people_get_a_line_per_check_what_to_do_and_the_sum(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(f"ok      {name} " in out for name in CHECKS) and out.endswith("Everything is in order.\n")
    assert cli.main(["doctor", "--adapter", "nowhere.gguf"]) == 1
    out = capsys.readouterr().out
    assert "broken  adapter " in out and "→ " in out and out.endswith("1 thing broken.\n")


# the database


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(16384))


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def orphan(path: Path) -> None:
    with sqlite3.connect(path) as connection:  # foreign keys are off here
        connection.execute("DELETE FROM turns")
    connection.close()


def from_the_future(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {migrations.LATEST + 1}")
    connection.close()


def anothers(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    path.chmod(0o600)


@pytest.mark.parametrize(
    "damage, said",
    [
        (overwrite, "damaged"),
        (cut, "damaged"),
        (orphan, "row without its parent in messages"),
        (from_the_future, "newer dmem"),
        (anothers, "is not a dmem database"),
        (lambda path: path.write_bytes(b"nothing of the kind" * 100), "is not a dmem database"),
    ],
    ids=["overwritten", "cut", "orphaned", "from the future", "another's", "no database"],
)
def test_a_broken_database_is_named_and_the_rest_still_looked_at(
    home: Path, doctor: Doctor, damage: Callable[[Path], None], said: str
) -> None:
    damage(home / "memory.db")
    found = doctor(code=1)
    assert broken(found) == ["database"]
    assert said in found["database"]["found"] and str(home / "memory.db") in found["database"]["found"]
    assert found["adapter"]["verdict"] == "ok"


def test_an_older_layout_is_left_to_the_next_command(home: Path, doctor: Doctor, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with Store.open(old, migrate_to=1) as store, store.transaction():
        store.insert("profiles", name="default", created="2026-01-01T00:00:00.000Z")
    found = doctor("--database", str(old))
    assert "has layout 1" in found["database"]["found"] and found["adapter"]["verdict"] == "ok"
    with Store.look(old) as store:
        assert store.layout == 1


def test_a_database_in_use_is_looked_at_beside_its_user(home: Path, doctor: Doctor) -> None:
    with Store.open(home / "memory.db") as store:
        profiles.ensure(store, "second")
        assert "2 profiles" in doctor()["database"]["found"]


# folders, permissions, room


@posix
@pytest.mark.parametrize("name", ["memory.db", "config.toml", "history"])
def test_files_that_others_may_read_are_broken(home: Path, doctor: Doctor, name: str) -> None:
    (home / name).touch()
    (home / name).chmod(0o640)
    found = doctor(code=1)
    assert broken(found) == ["permissions"] and str(home / name) in found["permissions"]["found"]
    assert subprocess.run(found["permissions"]["advice"], shell=True, check=True).returncode == 0
    assert doctor()["permissions"]["verdict"] == "ok"


@posix
def test_a_folder_that_others_may_list_is_a_warning(home: Path, doctor: Doctor) -> None:
    home.chmod(0o755)
    assert doctor()["permissions"] == {
        "check": "permissions",
        "verdict": "warning",
        "found": f"others can read {home}",
        "advice": f"chmod 700 {home}",
    }


@posix
def test_a_read_only_folder_and_a_read_only_database_are_broken() -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from deltamem_cli.diagnosis import storage\n"
        "storage.database(Path(sys.argv[1]))\n"  # imports everything while it may still read the interpreter's files
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for check in (storage.folder(), storage.database(Path(sys.argv[1]))):\n"
        "    print(check.verdict, check.found, check.advice, sep='|')\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # not in pytest's, which lets nobody through
        path = Path(folder) / "memory.db"
        Store.open(path).close()
        path.chmod(0o444)
        os.chmod(folder, 0o555)
        command = [sys.executable, "-c", code, str(path)]
        env = environment(Path(folder))
        child = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        os.chmod(folder, 0o755)
    place, database = (line.split("|") for line in child.stdout.splitlines())
    assert place[0] == "broken" and f"{folder} can't be written to" in place[1] and "DMEM_HOME" in place[2]
    assert database[0] == "broken" and "can't be written to" in database[1] and "chown" in database[2]


def test_a_file_in_place_of_the_folder_is_broken(
    monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DMEM_HOME", str(tmp_path / "file"))
    found = doctor(code=1)
    assert found["data folder"]["verdict"] == "broken" and "is a file" in found["data folder"]["found"]


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor) -> None:
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5_000_000))
    assert doctor()["disk"]["verdict"] == "warning"


# configuration and installation


def test_a_broken_configuration_is_named_and_hides_no_other_fault(home: Path, doctor: Doctor) -> None:
    (home / "config.toml").write_text("threads =\n")
    found = doctor(code=1)
    assert broken(found) == ["configuration"] and "config.toml is not valid TOML" in found["configuration"]["found"]
    assert "configuration is broken" in found["model"]["found"]
    assert found["native library"]["verdict"] == found["data folder"]["verdict"] == "ok"


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor) -> None:
    monkeypatch.setenv("DMEM_THREADS", "many")
    found = doctor(code=1)
    assert "DMEM_THREADS is 'many'" in found["configuration"]["found"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor) -> None:
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "gguf":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = doctor(code=1)
    assert broken(found) == ["install"] and found["install"]["advice"] == "pip install gguf"


def test_a_build_that_does_not_say_what_it_is_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor
) -> None:
    from deltamem_cli import build

    monkeypatch.setattr(build, "info", dict)
    assert doctor()["native library"]["verdict"] == "warning"


def test_a_native_library_that_is_none_is_broken_and_nothing_is_loaded(home: Path, tmp_path: Path) -> None:
    (tmp_path / "native" / "lib").mkdir(parents=True)
    env = environment(home, DELTAMEM_NATIVE_DIR=str(tmp_path / "native"))
    child = subprocess.run(dmem("doctor", "--json"), env=env, capture_output=True, text=True, check=False)
    found = {check["check"]: check for check in json.loads(child.stdout)["checks"]}
    assert child.returncode == 1 and broken(found) == ["native library"]
    assert "native library is broken" in found["model"]["found"] and "adapter" not in found


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor) -> None:
    def fail(path: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    found = doctor(code=1)
    assert "Input/output error" in found["database"]["found"] and found["adapter"]["verdict"] == "ok"


# model and adapter


def test_a_missing_model_is_broken(home: Path, doctor: Doctor) -> None:
    found = doctor("--model", "nowhere.gguf", code=1)
    assert broken(found) == ["model"] and "nowhere.gguf" in found["model"]["found"]


def test_half_a_model_is_broken(home: Path, doctor: Doctor, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    whole = Path(config.value("model")).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    found = doctor("--model", str(half), code=1)
    assert broken(found) == ["model"] and "half.gguf" in found["model"]["found"]


def test_a_missing_adapter_is_broken(home: Path, doctor: Doctor) -> None:
    config.set_value("adapter", "gone.gguf")
    found = doctor(code=1)
    assert broken(found) == ["adapter"] and "gone.gguf" in found["adapter"]["found"]


def test_an_adapter_of_another_model_is_broken(
    home: Path, doctor: Doctor, tiny_model: MakeModel, tiny_adapter: MakeAdapter
) -> None:
    other = tiny_adapter(tiny_model("llama"))
    found = doctor("--adapter", str(other), code=1)
    assert broken(found) == ["adapter"] and "llama" in found["adapter"]["found"]


@pytest.mark.parametrize(
    "byte, said",
    [(0xFF, "finite"), (0x7F, "its results are not finite"), (0, "writes nothing")],
    ids=["no numbers", "too large", "zeros"],
)
def test_an_adapter_that_cannot_work_is_broken(
    home: Path, doctor: Doctor, tmp_path: Path, byte: int, said: str
) -> None:
    from gguf import GGUFReader

    sick = tmp_path / "sick.gguf"
    shutil.copy(config.value("adapter"), sick)
    reader = GGUFReader(sick, "r+")
    for tensor in reader.tensors:
        if tensor.name.endswith("deltamem_v.weight"):
            tensor.data.view("uint8")[...] = byte  # 0xFF: a NaN in every float format
    reader.data.flush()
    found = doctor("--adapter", str(sick), code=1)
    assert broken(found) == ["adapter"] and said in found["adapter"]["found"]


def test_a_model_without_an_adapter_is_a_warning(home: Path, doctor: Doctor, tiny_model: MakeModel) -> None:
    found = doctor("--model", str(tiny_model("llama")))
    assert found["adapter"]["verdict"] == "warning" and "nothing is remembered" in found["adapter"]["found"]


def test_a_memory_of_another_adapter_is_a_warning(home: Path, doctor: Doctor, tiny_adapter: MakeAdapter) -> None:
    other = tiny_adapter(Path(config.value("model")), scale=0.5)
    found = doctor("--adapter", str(other))
    assert found["remembered"]["verdict"] == "warning"
    assert "This memory was written by" in found["remembered"]["found"]


def test_a_memory_of_numbers_that_are_none_is_broken(home: Path, doctor: Doctor) -> None:
    with sqlite3.connect(home / "memory.db") as connection:
        connection.execute("UPDATE states SET state = CAST(? || substr(state, 5) AS BLOB)", [b"\0\0\xc0\x7f"])
    connection.close()
    found = doctor(code=1)
    assert broken(found) == ["remembered"] and "not finite" in found["remembered"]["found"]


# the machine


@pytest.mark.parametrize("total, verdict", [(2_000_000_000, "ok"), (600_000_000, "warning"), (1_000_000, "broken")])
def test_a_model_is_held_against_the_machine_s_memory_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor, total: int, verdict: str
) -> None:
    from deltamem_cli.models import ram

    available = 100_000_000 if verdict == "warning" else total
    monkeypatch.setattr(ram, "of_machine", lambda: ram.Memory(total, available))
    found = doctor(code=int(verdict == "broken"))
    assert found["memory"]["verdict"] == verdict
    assert ("adapter" in found) == (verdict != "broken")


def test_more_threads_than_cores_and_layers_on_no_gpu_are_warnings(
    monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor
) -> None:
    from deltamem_cli.engine import threads

    monkeypatch.setattr(threads, "physical_cores", lambda: 1)
    monkeypatch.setenv("DMEM_THREADS", "2")
    found = doctor()
    assert found["hardware"]["verdict"] == "warning" and "2 of 1 cores (" in found["hardware"]["found"]
    if "uses CPUs only" in found["hardware"]["found"]:
        monkeypatch.setenv("DMEM_GPU_LAYERS", "3")
        assert "gpu_layers" in doctor()["hardware"]["advice"]


def test_a_try_to_reach_the_network_is_heard() -> None:
    listener = network.Listener()
    assert listener.check().verdict == "ok"
    with socket.socket() as probe:
        probe.settimeout(0.1)
        probe.connect_ex(("127.0.0.1", 9))
    assert listener.check().verdict == "broken" and "127.0.0.1" in listener.check().found


def test_reaching_the_rpc_servers_that_are_set_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setenv("DMEM_RPC", f"localhost:{port}")
        listener = network.Listener()
        socket.create_connection(("localhost", port)).close()
        assert listener.check().verdict == "ok" and f"localhost:{port}" in listener.check().found
        monkeypatch.setenv("DMEM_RPC", f"localhost:{port - 1}")
        assert listener.check().verdict == "broken"


def test_offline_is_told(monkeypatch: pytest.MonkeyPatch, home: Path, doctor: Doctor) -> None:
    monkeypatch.setenv("DMEM_OFFLINE", "1")
    assert "DMEM_OFFLINE" in doctor()["network"]["found"]


def test_the_worst_verdict_counts() -> None:
    ok, warning, broken = (diagnosis.Check("x", verdict, "y") for verdict in ("ok", "warning", "broken"))  # type: ignore[arg-type]
    assert diagnosis.worst([ok, warning, broken]) == "broken"
    assert diagnosis.worst([ok, warning]) == "warning" and diagnosis.worst([]) == "ok"
