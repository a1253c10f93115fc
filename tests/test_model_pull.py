"""`dmem model pull` against a hub on this machine: the real program, huggingface_hub's own cache, no other network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from hub_server import Hub, HubFile, Repo, serving
from huggingface_hub.constants import DOWNLOAD_CHUNK_SIZE as PIECE
from published_files import GOLDEN

from deltamem_cli.adapter.format import read_adapter

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the program is forked for each pull")

CASE = GOLDEN / "qwen3_tsw_qo"
MODEL = (CASE / "model.gguf").read_bytes()
PUBLISHED = {file.name: file.read_bytes() for file in (CASE / "adapter").iterdir()}
CARD = b"---\nlicense: cc-by-4.0\nbase_model: Qwen/Qwen3-4B-Instruct-2507\n---\n"
QWEN, QWEN_FILE = "unsloth/Qwen3-4B-Instruct-2507-GGUF", "Qwen3-4B-Instruct-2507-Q4_K_M.gguf"


@dataclass
class Program:
    """dmem with a home and a hub cache of its own."""

    hub: Hub
    home: Path
    forked: Forked

    def environment(self, **variables: str) -> dict[str, str]:
        taken = ("HF_", "HUGGING", "DMEM_", "TRANSFORMERS_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(taken)}
        env = kept | {"DMEM_HOME": str(self.home), "HF_HOME": str(self.home / "hf"), "HF_ENDPOINT": self.hub.url}
        return env | {"NO_PROXY": "*"} | variables

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.forked.run(arguments, self.environment(**variables))

    def refused(self, *arguments: str, **variables: str) -> str:
        """The one sentence on stderr of a command that fails."""
        result = self(*arguments, **variables)
        assert (result.returncode, result.stdout) == (1, ""), result.stderr
        *_, sentence = result.stderr.splitlines()
        return sentence

    def models(self) -> dict[str, Any]:
        return {one["name"]: one for one in json.loads(self("model", "list", "--json").stdout)}

    def parts(self) -> list[Path]:
        return list(self.home.rglob("*.incomplete"))


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    running = Forked(tmp_path_factory.mktemp("shown"))
    yield running
    running.close()


@pytest.fixture
def dmem(tmp_path: Path, forked: Forked) -> Iterator[Program]:
    with serving() as hub:
        yield Program(hub, tmp_path, forked)


def long(hub: Hub) -> HubFile:
    """A model of more than two of the pieces in which downloads reach the disk, whose first answer ends in the second."""
    file = hub.add("org/long", {"long.gguf": MODEL + bytes(2 * PIECE)}).files["long.gguf"]
    file.stop_after = PIECE + 5000
    return file


def tiny(hub: Hub, **settings: Any) -> Repo:
    return hub.add("org/tiny-GGUF", {"tiny-Q8_0.gguf": MODEL, "README.md": b"# tiny"}, **settings)


def test_pull_brings_a_file_into_the_hub_s_cache_under_a_name(dmem: Program) -> None:
    tiny(dmem.hub)
    result = dmem("model", "pull", "org/tiny-GGUF", "--json")
    pulled = json.loads(result.stdout)
    file = Path(pulled["files"][0])
    assert file.read_bytes() == MODEL
    assert file.is_relative_to(dmem.home / "hf" / "hub" / "models--org--tiny-GGUF" / "snapshots")
    assert (pulled["name"], pulled["license"], pulled["facts"]["architecture"]) == ("tiny-Q8_0", "apache-2.0", "qwen3")
    assert "license: apache-2.0" in result.stderr
    assert dmem.models()["tiny-Q8_0"]["path"] == str(file)
    assert not dmem.parts()
    ours = ("/api/models/org/tiny-GGUF", "/org/tiny-GGUF/resolve/", "/storage/org/tiny-GGUF/")
    assert all(path.startswith(ours) for _, path, _ in dmem.hub.asked), "nothing is told of this machine"
    asked = len(dmem.hub.ranges())
    assert dmem("model", "pull", "org/tiny-GGUF").returncode == 0
    assert len(dmem.hub.ranges()) == asked, "what is here is not downloaded again"


def test_pull_of_qwen3_brings_its_adapter_converted_and_names_its_license(dmem: Program) -> None:
    dmem.hub.add(QWEN, {QWEN_FILE: MODEL, "Qwen3-4B-Instruct-2507-Q8_0.gguf": b"x" * 5000})
    dmem.hub.add("declare-lab/delta-mem_qwen3_4b-instruct", PUBLISHED | {"README.md": CARD}, license="cc-by-4.0")
    result = dmem("model", "pull", "qwen3-4b")
    assert result.returncode == 0, result.stderr
    assert "declare-lab/delta-mem_qwen3_4b-instruct, license: cc-by-4.0" in result.stderr
    adapter = Path(dmem.models()["qwen3-4b"]["adapter"])
    provenance = read_adapter(adapter).provenance
    assert (provenance.source, provenance.license) == ("declare-lab/delta-mem_qwen3_4b-instruct", "cc-by-4.0")
    assert dmem("adapter", "default", "qwen3-4b").stdout == f"{adapter}\n"
    # the same weights by the repository's name: the file that is here, and its adapter
    assert f"{adapter}" in dmem("model", "show", f"{QWEN}:Q4_K_M").stdout


def test_pull_makes_a_model_without_adapter_the_default_when_asked_and_says_that_it_remembers_nothing(
    dmem: Program,
) -> None:
    repo, file = "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    dmem.hub.add(repo, {file: MODEL})
    assert dmem.models()["starter"]["default"]
    err = dmem("model", "pull", "qwen2.5-coder-0.5b", "--default").stderr
    assert "license: apache-2.0" in err
    assert f"its sha256 is {sha256(MODEL).hexdigest()}, and not 1d9614638d18" in err, (
        "another file than the one we know"
    )
    assert "chats without memory, because it has no adapter: starter and qwen3-4b have one" in err
    assert "the default model is qwen2.5-coder-0.5b now" in err
    found = dmem.models()["qwen2.5-coder-0.5b"]
    assert found["default"] and found["adapter"] is None


def test_a_model_whose_adapter_fails_stays_and_the_next_pull_adds_it(dmem: Program) -> None:
    dmem.hub.add(QWEN, {QWEN_FILE: MODEL})
    assert "has no repository declare-lab/" in dmem.refused("model", "pull", "qwen3-4b")
    assert dmem.models()["qwen3-4b"]["path"]
    dmem.hub.add("declare-lab/delta-mem_qwen3_4b-instruct", PUBLISHED)
    result = dmem("model", "pull", "qwen3-4b")
    assert "license: apache-2.0" in result.stderr
    assert dmem.models()["qwen3-4b"]["adapter"].endswith("qwen3-4b.deltamem.gguf")


def test_ctrl_c_keeps_what_came_and_the_next_pull_goes_on_from_there(dmem: Program) -> None:
    file = long(dmem.hub)
    file.stop = "stall"
    with subprocess.Popen(
        [sys.executable, "-m", "deltamem_cli", "model", "pull", "org/long"],
        env=dmem.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not any(part.stat().st_size for part in dmem.parts()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command to resume" in err.splitlines()[-1] and "Traceback" not in err
    assert [part.stat().st_size for part in dmem.parts()] == [PIECE]
    assert "long" not in dmem.models()
    result = dmem("model", "pull", "org/long", "--json")
    assert dmem.hub.ranges() == [None, f"bytes={PIECE}-"]
    assert Path(json.loads(result.stdout)["files"][0]).read_bytes() == file.content


def test_a_connection_that_breaks_is_taken_up_again_by_the_same_pull(dmem: Program) -> None:
    long(dmem.hub)
    assert dmem("model", "pull", "org/long").returncode == 0
    assert dmem.hub.ranges() == [None, f"bytes={PIECE}-"]


def test_a_hub_that_fails_midway_leaves_what_came_for_the_next_pull(dmem: Program) -> None:
    file = long(dmem.hub)
    file.status_after_stop = 503
    assert "answered 503" in dmem.refused("model", "pull", "org/long")
    file.status = None
    assert dmem("model", "pull", "org/long").returncode == 0
    assert dmem.hub.ranges()[-1] == f"bytes={PIECE}-"


def test_a_wrong_checksum_is_reported_and_its_file_deleted(dmem: Program) -> None:
    file = tiny(dmem.hub).files["tiny-Q8_0.gguf"]
    file.served = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF")
    assert "tiny-Q8_0.gguf from org/tiny-GGUF had the wrong checksum" in sentence
    assert not dmem.parts() and not list(dmem.home.rglob("*.gguf"))
    assert "tiny-Q8_0" not in dmem.models()
    file.served = None
    assert dmem("model", "pull", "org/tiny-GGUF").returncode == 0


def test_small_files_are_checked_by_git_s_hash(dmem: Program) -> None:
    dmem.hub.add(QWEN, {QWEN_FILE: MODEL})
    repo = dmem.hub.add("declare-lab/delta-mem_qwen3_4b-instruct", PUBLISHED)
    repo.files["delta_mem_config.json"].served = b" " + PUBLISHED["delta_mem_config.json"][1:]
    assert "delta_mem_config.json from declare-lab/" in dmem.refused("model", "pull", "qwen3-4b")


def test_a_gated_repository_names_its_page_and_opens_with_the_token(dmem: Program) -> None:
    tiny(dmem.hub, gated=True, token="hf_secret")
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF")
    assert f"{dmem.hub.url}/org/tiny-GGUF" in sentence and "HF_TOKEN" in sentence
    assert dmem("model", "pull", "org/tiny-GGUF", HF_TOKEN="hf_secret").returncode == 0


def test_an_absent_repository_or_quantisation_is_one_sentence(dmem: Program) -> None:
    assert "has no repository org/nothing" in dmem.refused("model", "pull", "org/nothing")
    tiny(dmem.hub)
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF:Q2_K")
    assert "has no Q2_K" in sentence and "org/tiny-GGUF:tiny-Q8_0" in sentence


@pytest.mark.parametrize("variable", ["DMEM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_said_at_once_and_asks_nobody(dmem: Program, variable: str) -> None:
    tiny(dmem.hub)
    assert f"{variable} is set" in dmem.refused("model", "pull", "org/tiny-GGUF", **{variable: "1"})
    assert not dmem.hub.asked


def test_no_network_is_said_at_once(dmem: Program) -> None:
    started = time.monotonic()
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF", HF_ENDPOINT="http://127.0.0.1:1")
    assert "127.0.0.1:1 can't be reached" in sentence
    assert time.monotonic() - started < 8


def test_a_server_that_is_no_hub_is_named(dmem: Program) -> None:
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF", HF_ENDPOINT=f"{dmem.hub.url}/page")
    assert "does not answer like a hub" in sentence and "HF_ENDPOINT" in sentence


def outside(dmem: Program) -> list[Path]:
    """Files in the home that do not lie where a pull may write."""
    ours = (dmem.home / "hf", dmem.home / "models.toml", dmem.home / "models")
    files = [path for path in dmem.home.rglob("*") if path.is_file()]
    return [path for path in files if not any(path.is_relative_to(place) for place in ours)]


@pytest.mark.parametrize("of", ["digest", "git's digest", "climbing digest", "commit", "size", "name"])
def test_what_a_server_calls_digest_commit_size_or_name_makes_no_path(dmem: Program, of: str) -> None:
    repo = tiny(dmem.hub)
    file, target = repo.files["tiny-Q8_0.gguf"], str(dmem.home / "evil")
    if of == "commit":
        repo.commit = "../../../../evil"
    elif of == "size":
        file.listed = {"size": "many"}
    elif of == "name":
        file.listed = {"rfilename": "../../../../../evil.gguf"}
    elif of == "git's digest":
        file.listed = {"lfs": None, "blobId": target}
    else:
        digest = target if of == "digest" else "../../../../evil"
        file.listed = {"lfs": {"sha256": digest, "size": len(MODEL), "pointerSize": 1}}
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF")
    assert "does not answer like a hub" in sentence and "HF_ENDPOINT" in sentence
    assert not outside(dmem) and not dmem.parts()


def test_what_a_server_says_beside_the_content_makes_no_path(dmem: Program) -> None:
    target = str(dmem.home / "evil")
    headers = {"ETag": f'"{target}"', "X-Linked-ETag": f'"{target}"', "X-Repo-Commit": "../../../../../evil"}
    tiny(dmem.hub).files["tiny-Q8_0.gguf"].headers = headers
    result = dmem("model", "pull", "org/tiny-GGUF", "--json")
    assert Path(json.loads(result.stdout)["files"][0]).read_bytes() == MODEL
    assert not outside(dmem)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "SOCKS proxy"),
        ("HTTPS_PROXY", "http://[::1", "not a proxy's address"),
        ("ALL_PROXY", "ftp://127.0.0.1:1", "not a proxy's address"),
        ("SSL_CERT_FILE", "/nowhere", "does not exist"),
        ("SSL_CERT_FILE", __file__, "no readable certificate"),
        ("HF_TOKEN", "hf_\u00e9", "put a valid token"),
        ("HF_ENDPOINT", "http://[bad", "not a hub's address"),
        ("HTTP_PROXY", "user:secret@127.0.0.1:1", "through the proxy 127.0.0.1:1"),
    ],
)
def test_a_setting_with_which_no_hub_can_be_asked_is_named(
    dmem: Program, variable: str, value: str, reason: str
) -> None:
    tiny(dmem.hub)
    if find_spec("socksio") and "socks" in value:
        pytest.skip("socksio is here, so SOCKS proxies work")
    sentence = dmem.refused("model", "pull", "org/tiny-GGUF", **{"NO_PROXY": "", variable: value})
    assert reason in sentence and "secret" not in sentence
    if variable != "HTTP_PROXY":
        assert variable in sentence


def test_a_certificate_that_is_not_trusted_is_named(dmem: Program, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("key", "certificate")}
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        + ["-keyout", files["key"], "-out", files["certificate"]],
        capture_output=True,
        check=False,
    ) if shutil.which("openssl") else None  # fmt: skip
    if made is None or made.returncode:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certificate"], files["key"])
    with serving(context) as hub:
        sentence = dmem.refused("model", "pull", "org/tiny-GGUF", HF_ENDPOINT=hub.url)
    assert "certificate of 127.0.0.1" in sentence and "SSL_CERT_FILE" in sentence


def test_a_split_model_comes_whole(dmem: Program) -> None:
    pieces = {f"big-Q4_K_M-0000{n}-of-00002.gguf": MODEL + bytes(n) for n in (1, 2)}
    dmem.hub.add("org/big", pieces | {"big-Q8_0.gguf": b"x" * 5000})
    result = dmem("model", "pull", "org/big", "--name", "big", "--json")
    assert "Q4_K_M of 2 models in org/big" in result.stderr
    document = json.loads(result.stdout)
    assert [Path(file).name for file in document["files"]] == list(pieces)
    assert document["size"] == 2 * len(MODEL) + 3


def test_rm_deletes_what_was_pulled_and_only_that(dmem: Program) -> None:
    dmem.hub.add("org/two", {"a-Q8_0.gguf": MODEL, "b-Q8_0.gguf": MODEL + b"\0"})
    for spec in ("org/two:a-Q8_0", "org/two:b-Q8_0.gguf"):
        assert dmem("model", "pull", spec).returncode == 0
    assert dmem("model", "rm", "a-Q8_0", "--dry-run").stderr == "would delete a-Q8_0 (760.0 kB)\n"
    assert "--yes" in dmem("model", "rm", "a-Q8_0").stderr
    assert len(list(dmem.home.rglob("*.gguf"))) == 2
    assert dmem("model", "rm", "a-Q8_0", "-y").returncode == 0
    assert [path.name for path in dmem.home.rglob("*.gguf")] == ["b-Q8_0.gguf"]
    (blob,) = (dmem.home / "hf").rglob("blobs/*")
    assert blob.read_bytes() == MODEL + b"\0"
    assert dmem("model", "rm", "b-Q8_0", "-y").returncode == 0
    assert not list((dmem.home / "hf" / "hub").glob("models--*"))
    assert {name for name, one in dmem.models().items() if one["path"]} == {"starter"}


def test_a_model_of_the_configuration_is_pulled_with_its_adapter(dmem: Program) -> None:
    tiny(dmem.hub)
    dmem.hub.add("me/published", PUBLISHED)
    (dmem.home / "config.toml").write_text(
        '[models.mine]\nrepo = "org/tiny-GGUF"\nfile = "Q8_0"\nadapter = "me/published"\n'
    )
    assert "dmem model pull mine" in dmem.refused("chat", "-m", "mine", "hello")
    assert dmem("model", "pull", "mine").returncode == 0
    assert dmem.models()["mine"]["adapter"] == str(dmem.home / "adapters" / "mine.deltamem.gguf")


def test_the_adapter_of_an_imported_model_can_be_pulled(dmem: Program, tmp_path: Path) -> None:
    import gguf

    dmem.hub.add("declare-lab/delta-mem_qwen3_4b-instruct", PUBLISHED, license=None)
    file = tmp_path / "own.gguf"
    reader = gguf.GGUFReader(CASE / "model.gguf")
    name = bytes(reader.fields["general.name"].parts[-1])
    file.write_bytes(MODEL.replace(_text(name), _text(b"Qwen3 4B Instruct 2507"), 1))
    result = dmem("model", "import", str(file), "--name", "own")
    assert "get one with: dmem model pull own" in result.stderr
    result = dmem("model", "pull", "own")
    assert "license: CC-BY-4.0" in result.stderr, "what the catalogue knows when the repository does not say"
    adapter = Path(dmem.models()["own"]["adapter"])
    assert read_adapter(adapter).provenance.license == "CC-BY-4.0"
    assert "comes with the package" in dmem.refused("model", "pull", "starter")
    dmem("model", "import", str(CASE / "model.gguf"), "--name", "other")
    assert "no adapter for it is known" in dmem.refused("model", "pull", "other")


def _text(value: bytes) -> bytes:
    """As GGUF writes a text."""
    return len(value).to_bytes(8, "little") + value
