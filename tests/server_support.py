"""The real `dmem serve` in a process of its own, for tests with real clients."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chat_support import dmem, environment

from deltamem_cli.store import conversations, states
from deltamem_cli.store.database import Store

# As Hermes, Qwen2.5 and Qwen3 have it.
TOOLS_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools' }}
    {%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""


class Server:
    """`dmem serve` with one home folder; start() again goes on with what stop() or kill() left."""

    def __init__(self, home: Path, *arguments: object, **env: str) -> None:
        self.home = home
        self._arguments, self._env = arguments, environment(home, **env)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = home / "serve.log"
        self.url = self.model = ""

    def start(self) -> None:
        """Returns when it serves; what it writes is in `log`."""
        command = dmem("serve", "--port", "0", "--threads", "1", *self._arguments)
        with self.log.open("w") as file:
            self._process = subprocess.Popen(command, env=self._env, stdout=file, stderr=file)
        deadline = time.monotonic() + 120
        while not (found := re.search(r"Serving (\S+) at (http://\S+) \(", self.log.read_text())):
            assert self._process.poll() is None, f"It did not start:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, "It does not start."
            time.sleep(0.05)
        self.model, self.url = found.groups()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process:
            self._process.send_signal(number)
            code = self._process.wait(60)
            self._process = None
            assert code in (0, -number), f"It ended with {code}:\n{self.log.read_text()}"

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        code: int = 200,
    ) -> Any:
        """The JSON document that the server answers with; code: the status that it must have."""
        return json.loads(self.text(path, body, headers, code))

    def text(
        self,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        code: int = 200,
        method: str | None = None,
    ) -> str:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, said = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, said = error.code, error.read().decode()
        assert status == code, said
        return str(said)

    def store(self) -> Store:
        return Store.read(self.home / "memory.db")

    def state(self, conversation: str, turn: int | None = None) -> bytes:
        """What the conversation's memory is now, or was after `turn`, byte for byte."""
        with self.store() as store:
            found = states.latest(store, conversation) if turn is None else states.before(store, conversation, turn + 1)
            return found.state.tobytes() if found else b""

    def profile(self, conversation: str) -> str:
        with self.store() as store:
            return conversations.get(store, conversation).profile
