"""The options of all commands that load a model: which one, how it is run, what becomes of its thinking."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from deltamem_cli import paths, reading
from deltamem_cli.cache_types import CACHE_TYPES
from deltamem_cli.commands.options import completion
from deltamem_cli.errors import UsageError
from deltamem_cli.text import short

if TYPE_CHECKING:
    CacheType = str
else:
    CacheType = Literal[tuple(CACHE_TYPES)]


def model_option(text: str) -> Any:
    """`-m/--model`, with `text` as its help."""
    return typer.Option("-m", "--model", metavar="MODEL", help=text, autocompletion=completion.models)


def adapter_option(text: str) -> Any:
    """`--adapter`, with `text` as its help."""
    return typer.Option("--adapter", metavar="ADAPTER", help=text, autocompletion=completion.adapters)


ModelOption = Annotated[str | None, model_option("A name in dmem model list, or a GGUF file.  [config: model]")]
AdapterOption = Annotated[str | None, adapter_option("A name in dmem adapter list, or a GGUF file.  [config: adapter]")]
SystemOption = Annotated[
    str | None, typer.Option("-s", "--system", metavar="TEXT", help="System prompt.  [config: system]")
]
StreamOption = Annotated[bool, typer.Option("--no-stream", help="Show each reply only when it is complete.")]
TemplateOption = Annotated[
    Path | None,
    typer.Option(
        "--template",
        metavar="FILE",
        help="Chat template (jinja) to use instead of the model's own.  [config: template]",
    ),
]
WriteOption = Annotated[
    Literal["all", "user"] | None,
    typer.Option("--write", help="What to remember: everything, or only what you say.  [config: write]"),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--ctx-size", metavar="N", min=0, help="Context size in tokens; 0: the model's maximum.  [config: ctx_size]"
    ),
]
GpuOption = Annotated[
    int | None,
    typer.Option("-ngl", "--gpu-layers", metavar="N", min=-1, help="Layers on the GPU; -1: all.  [config: gpu_layers]"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, help="CPU threads; by default one per idle physical core.  [config: threads]"
    ),
]


@dataclass(frozen=True)
class Hardware:
    """How a model is run; None: as the configuration says. The names are those of session.request.Request."""

    gpu_layers: GpuOption = None
    rpc: Annotated[
        str | None,
        typer.Option(
            "--rpc", metavar="HOST:PORT,…", help="Other machines that compute layers (dmem rpc-server).  [config: rpc]"
        ),
    ] = None
    tensor_split: Annotated[
        str | None,
        typer.Option(
            "-ts",
            "--tensor-split",
            metavar="N,N,…",
            help="Share of the layers for each device, servers first; by default by memory.  [config: tensor_split]",
        ),
    ] = None
    threads: ThreadsOption = None
    cache_type_k: Annotated[
        CacheType | None,
        typer.Option("-ctk", "--cache-type-k", help="Data type of keys in the KV cache.  [config: cache_type_k]"),
    ] = None
    cache_type_v: Annotated[
        CacheType | None,
        typer.Option(
            "-ctv",
            "--cache-type-v",
            help="Data type of values in the KV cache; q… needs flash attention.  [config: cache_type_v]",
        ),
    ] = None
    flash_attention: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option("-fa", "--flash-attn", help="Flash attention.  [config: flash_attention]"),
    ] = None


@dataclass(frozen=True)
class Thinking:
    """What becomes of the thinking part of replies; None: as the configuration, or the model's template, says."""

    think: Annotated[
        bool | None,
        typer.Option(
            "--think/--no-think", help="Turn thinking on or off, for models that support both.  [default: auto]"
        ),
    ] = None
    show_thinking: Annotated[
        bool | None,
        typer.Option(
            "--show-thinking/--hide-thinking",
            help="Show the model's thinking, dimmed; if stdout is not a terminal, on stderr and only if asked for.  "
            "[config: show_thinking]",
        ),
    ] = None
    remember_thinking: Annotated[
        bool | None,
        typer.Option(
            "--remember-thinking/--forget-thinking",
            help="Write the thinking into the memory too.  [config: remember_thinking]",
        ),
    ] = None


DEFAULT_HARDWARE, DEFAULT_THINKING = Hardware(), Thinking()


def key_values(pairs: list[str] | None) -> dict[str, str]:
    """`-o KEY VALUE`s as a mapping; what the names mean is the session's business."""
    options = {}
    for pair in pairs or []:
        name, _, value = pair.partition("=")
        options[name.replace("-", "_")] = value
    return options


def check_no_folder(said: str | Path | None, what: str) -> None:
    """Raises UsageError for a path at which something other than a file is; a file may come later, and so may a name.

    what: the setting that `said` is for.
    """
    path = paths.expanded(said) if said else None
    if path and os.path.basename(str(said)) != str(said) and path.exists() and (why := reading.why_no_file(path)):
        raise UsageError(f"{short(str(said))} can't be the {what}, as it {why}: give a file, or a name")


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a command take dataclasses like those above: each of their fields is an option of its own to Typer."""
    signature = inspect.signature(command, eval_str=True)
    # not get_type_hints: Python 3.10 wraps what has the default None in another Optional, where Typer finds no option
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    groups = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    fields = {name: get_type_hints(group, include_extras=True) for name, group in groups.items()}

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in fields[name]})
        return command(**values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        for option, annotation in fields.get(name, {name: hints[name]}).items():
            default = getattr(groups[name], option) if name in groups else parameter.default
            parameters.append(inspect.Parameter(option, parameter.kind, default=default, annotation=annotation))
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
