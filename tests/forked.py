"""Runs command lines one after the other in processes of their own, and starts the interpreter once for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Imports what takes most of a start, then forks for each line that it reads: arguments, environment and the files that
# take stdout and stderr. Nothing that is imported here has looked into the environment for the program's settings:
# huggingface_hub would have.
SERVER = """
import json, os, sys, traceback
import gguf, httpx, numpy, rich.console, rich.progress, typer
from deltamem_cli import cli

for line in sys.stdin:
    arguments, environment, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.environ.clear()
            os.environ.update(environment)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, path in enumerate(files, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdin = open(0)
            code = cli.main(arguments)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """The process that forks. folder: for what is shown."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / "stdout", folder / "stderr"]
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        assert self.server.stdin and self.server.stdout
        asked = [list(arguments), dict(environment), *map(os.fspath, self.files)]
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        out, err = (file.read_text() for file in self.files)
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        self.server.communicate()
