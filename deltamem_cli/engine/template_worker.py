"""Renders chat templates in a process of its own, run as a script: a line of JSON in, a line out. Imports no dmem.

A template is a stranger's program. The sandbox keeps it from files and modules; what it may take of time and memory
only the system can limit, so it runs where it can be stopped.

The environment is the one that templates are written for, that of transformers: trimmed blocks, `break` and
`continue`, `{% generation %}`, `tojson` that keeps letters, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import json
import signal
import sys
from functools import cache, lru_cache
from typing import Any

CPU_SECONDS = 1.0  # an ordinary template takes milliseconds
MEMORY = 256 * 2**20  # bytes beyond what the process has when it is ready
LONGEST = 8 * 2**20  # letters that are taken for a prompt


def main() -> None:
    """Answers requests, one JSON document a line on stdin and stdout, until stdin ends."""
    sys.path[:] = json.loads(sys.stdin.readline())  # the packages of the process that asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the process that asks
    _environment()
    _limit_memory()
    print("ready", flush=True)
    for line in sys.stdin:
        _limit_time(CPU_SECONDS)
        answer = _answer(json.loads(line))
        _limit_time(0)
        print(answer, flush=True)


def _answer(asked: dict[str, Any]) -> str:
    """{"text": ...}, or {"invalid": why} for what is no template, or {"refused": why}."""
    try:
        try:
            compiled = _compiled(asked["source"])
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (jinja has no one base class for what it finds)
            line = getattr(error, "lineno", None)
            return json.dumps({"invalid": (f"in line {line}: " if line else "") + _line(error)})
        try:
            text = compiled.render(asked["variables"]) if "variables" in asked else ""
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the template itself raises)
            return json.dumps({"refused": _line(error)})
        return json.dumps({"text": text} if len(text) <= LONGEST else {"limit": "memory"})
    except MemoryError:
        return json.dumps({"limit": "memory"})


@lru_cache(maxsize=8)
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


@cache
def _environment() -> Any:
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What a reply's text is, for training; rendered as if the tag were not there."""

        tags = {"generation"}  # noqa: RUF012 (the base class wants it so)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    def tojson(value: Any, indent: int | None = None, sort_keys: bool = False, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _limit_time(seconds: float) -> None:
    """Without Python's help, which comes only between two steps: the default of this signal ends the process."""
    if hasattr(signal, "setitimer"):  # not on Windows, where the clock of the process that asks is all there is
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = taken + MEMORY if hard == resource.RLIM_INFINITY else min(taken + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        pass  # only Linux counts what a process takes; elsewhere the time limit has to do


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:500]


if __name__ == "__main__":
    main()
