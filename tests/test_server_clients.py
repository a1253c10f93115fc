"""Programs that people have, with the settings that server/README.md gives them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server_support import Server

from deltamem_cli.store import conversations, profiles


@pytest.fixture
def curl(server: Server) -> Any:
    """curl(path, body, *arguments): what it prints."""
    if not (program := shutil.which("curl")):
        pytest.skip("there is no curl")

    def run(path: str, body: Any, *arguments: str) -> str:
        command = [program, "-sN", server.url + path, "-d", json.dumps(body), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    return run


def turns_of(server: Server, profile: str) -> int:
    with server.store() as store:
        found = profiles.find(store, profile)
        last = conversations.latest(store, found) if found else None
        return last.n_turns if last else 0


def test_llm_talks_to_a_profile_and_goes_on_with_it(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: dmem\n  model_name: {server.model}@llm\n  api_base: {server.url}/v1\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", "dmem", *arguments]
        done = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert llm("Tell me more.").strip()
    assert turns_of(server, "llm") == 1
    llm("--no-stream", "-c", "And then?")
    assert turns_of(server, "llm") == 2


def test_curl_reads_a_stream_event_by_event(server: Server, curl: Any) -> None:
    body = {"model": server.model, "messages": [{"role": "user", "content": "Tell me more."}], "stream": True}
    lines = [line for line in curl("/v1/chat/completions", body).split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_curl_reads_ollama_s_stream_line_by_line(server: Server, curl: Any) -> None:
    lines = curl("/api/generate", {"model": server.model, "prompt": "Tell me more."}).splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_the_head_of_an_answer_names_the_conversation(server: Server, curl: Any) -> None:
    body = {"messages": [{"role": "user", "content": "Hello."}]}
    said = curl("/v1/chat/completions", body, "-i", "-H", "X-Dmem-Conversation: curl")
    head, _, document = said.partition("\n\n")
    assert f"x-dmem-conversation: {json.loads(document)['metadata']['conversation']}" in head.lower()


@pytest.mark.parametrize(
    "half", [b'{"role": "user", "content": "a\\ud800b"}', b'{"role": "user", "content": "a", "name": "\\ud800"}']
)
def test_half_a_character_is_no_reason_to_fail(server: Server, half: bytes) -> None:
    body = (
        b'{"messages": ['
        + half
        + b'], "metadata": {"conversation": "\\ud800"}, "model": "'
        + server.model.encode()
        + b'"}'
    )
    assert server.ask("/v1/chat/completions", body)["choices"]
    assert server.ask("/v1/conversations", b'{"metadata": {"a": "\\ud800"}}')["metadata"] == {"a": "\ufffd"}


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/v1/chat/completions", b"{", 400, {"type": "invalid_request_error", "param": None, "code": None}),
        ("/v1/chat/completions", b'{"messages": []}', 400, {"param": "messages"}),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, {}),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "n": 2}', 400, {"param": "n"}),
        ("/v1/responses", b'{"input": "a", "model": "other"}', 404, {"code": "model_not_found", "param": "model"}),
        ("/v1/nothing", b"{}", 404, {"type": "not_found_error"}),
    ],
)
def test_an_error_is_in_openai_s_form(
    server: Server, path: str, body: bytes, status: int, error: dict[str, Any]
) -> None:
    told = server.ask(path, body, code=status)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert error.items() <= told.items()
