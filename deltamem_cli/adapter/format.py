"""The adapter file: one GGUF that the native loader and Python both read; knows nothing of where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from deltamem_cli import files
from deltamem_cli.adapter.limits import MAX_LAYERS, MAX_RANK, MAX_STATE_HEADS
from deltamem_cli.formats.errors import AdapterError, shown
from deltamem_cli.formats.gguf_header import Header, TensorPlace, Value, read_header
from deltamem_cli.formats.weight import STORAGE, Weight

VERSION = 1
WRITE_GRANULARITIES = ("token", "message_mean", "sentence_mean")
STATE_UPDATES = ("standard", "lambda_outside", "no_lambda")
DELTA_HEADS = ("q", "k", "v", "o")
WRITES = ("all", "user")

_PREFIX = "adapter.deltamem."
_TYPE_NUMBERS = {"F32": 0, "F16": 1, "BF16": 30}  # ggml's
_TYPE_NAMES = {number: name for name, number in _TYPE_NUMBERS.items()}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter computes and which base model it fits; see design.md section 1 for the meaning."""

    architecture: str
    embedding_length: int
    block_count: int
    layers: tuple[int, ...]
    rank: int = 8
    state_heads: int = 1
    write_granularity: str = "token"
    delta_heads: tuple[str, ...] = ("q", "o")
    state_update: str = "standard"
    rankwise_gates: bool = True
    couple_lambda: bool = True
    normalize_qk: bool = True
    delta_o_norm_eps: float | None = None

    @property
    def read_width(self) -> int:
        """Numbers in q, k, v and a read: state_heads * rank."""
        return self.state_heads * self.rank

    @property
    def gate_width(self) -> int:
        """How many numbers beta has per token: one per row of the states, or one per head."""
        return self.read_width if self.rankwise_gates else self.state_heads

    @property
    def has_lambda(self) -> bool:
        """Whether lambda has its own parameters."""
        return not self.couple_lambda and self.state_update != "no_lambda"

    @property
    def variant(self) -> str:
        """The published name: TSW, MSW or SSW; sentence writes have no published one."""
        spans = {"token": [], "message_mean": ["SSW"], "sentence_mean": ["sentence"]}[self.write_granularity]
        names = spans + (["MSW"] if self.state_heads > 1 else [])
        return "+".join(names) or "TSW"

    def problem(self) -> str | None:
        """What is wrong with these settings, as a clause without subject file, or None."""
        checks = [
            (self.architecture != "", "the architecture is empty"),
            (1 <= self.rank <= MAX_RANK, f"rank is {self.rank}, not 1 to {MAX_RANK}"),
            (
                1 <= self.state_heads <= MAX_STATE_HEADS,
                f"state_heads is {self.state_heads}, not 1 to {MAX_STATE_HEADS}",
            ),
            (self.embedding_length >= 1, f"embedding_length is {self.embedding_length}"),
            (1 <= self.block_count <= MAX_LAYERS, f"block_count is {self.block_count}, not 1 to {MAX_LAYERS}"),
            (
                self.write_granularity in WRITE_GRANULARITIES,
                f"write_granularity {shown(self.write_granularity)!r} is none of {', '.join(WRITE_GRANULARITIES)}",
            ),
            (
                self.state_update in STATE_UPDATES,
                f"state_update {shown(self.state_update)!r} is none of {', '.join(STATE_UPDATES)}",
            ),
            (
                self.delta_heads == tuple(head for head in DELTA_HEADS if head in self.delta_heads) != (),
                f"delta_heads {shown(list(self.delta_heads))} is not a choice of q, k, v, o in that order",
            ),
            (bool(self.layers), "layers is empty"),
            (
                list(self.layers) == sorted(set(self.layers)),
                "layers is not in ascending order without repeats",
            ),
            (
                all(0 <= layer < self.block_count for layer in self.layers),
                f"layers names a layer outside 0 to {self.block_count - 1}",
            ),
            (
                self.delta_o_norm_eps is None or "o" in self.delta_heads,
                "delta_o_norm_eps is set though o is not among delta_heads",
            ),
            (
                self.delta_o_norm_eps is None or (math.isfinite(self.delta_o_norm_eps) and self.delta_o_norm_eps > 0),
                f"delta_o_norm_eps is {self.delta_o_norm_eps}, not a number above 0",
            ),
        ]
        return next((text for holds, text in checks if not holds), None)

    def tensor_shapes(self, layer: int) -> dict[str, tuple[int | None, ...]]:
        """Names and numpy shapes of a layer's tensors in file order; None where the base's width decides."""
        hidden, read, gate = self.embedding_length, self.read_width, self.gate_width
        shapes: dict[str, tuple[int | None, ...]] = {
            "q.weight": (read, hidden),
            "k.weight": (read, hidden),
            "v.weight": (read, hidden),
            "beta.weight": (gate, hidden),
            "beta.bias": (gate,),
        }
        if self.has_lambda:
            shapes |= {"lambda.weight": (gate, hidden), "lambda.bias": (gate,)}
        for head in self.delta_heads:
            shapes[f"delta_{head}.weight"] = (hidden if head == "o" else None, read)
        if self.delta_o_norm_eps is not None:
            shapes["delta_o_norm.weight"] = (hidden,)
        return {f"blk.{layer}.deltamem_{name}": shape for name, shape in shapes.items()}


@dataclass(frozen=True)
class Provenance:
    """Where an adapter comes from; never a path of the machine that made it."""

    name: str | None = None
    license: str | None = None
    description: str | None = None
    base_model: str | None = None
    source: str | None = None
    training: str | None = None  # JSON text


_PROVENANCE_KEYS = {
    "name": "general.name",
    "license": "general.license",
    "description": "general.description",
    "base_model": "general.base_model.0.name",
    "source": _PREFIX + "source",
    "training": _PREFIX + "training",
}

# Settings as (field, GGUF type); keys are _PREFIX + field. delta_o_norm_eps is the only one that may be absent.
_SETTINGS = {
    "rank": "u32",
    "state_heads": "u32",
    "write_granularity": "str",
    "delta_heads": "array of str",
    "state_update": "str",
    "rankwise_gates": "bool",
    "couple_lambda": "bool",
    "normalize_qk": "bool",
    "delta_o_norm_eps": "f32",
    "embedding_length": "u32",
    "block_count": "u32",
    "layers": "array of u32",
}


@dataclass(frozen=True)
class Adapter:
    """A whole adapter file in memory; tensors are keyed by their GGUF names."""

    config: AdapterConfig
    tensors: dict[str, Weight] = field(repr=False)
    provenance: Provenance
    size: int

    @property
    def parameters(self) -> int:
        """The number of parameters in all tensors."""
        return sum(weight.data.size for weight in self.tensors.values())

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each file type, the commonest first."""
        names = [weight.type for weight in self.tensors.values()]
        return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}


def write_adapter(
    path: Path, config: AdapterConfig, tensors: Mapping[str, Weight], provenance: Provenance | None = None
) -> None:
    """Writes an adapter file; it appears whole or not at all, and replaces what lies at path.

    tensors: every tensor of config.tensor_shapes for every layer of config.layers, and no other
    Raises AdapterError when settings and tensors do not fit together or the file cannot be written.
    """
    import gguf

    problem = config.problem() or _tensor_problem(config, tensors)
    if problem:
        raise AdapterError(f"{path} was not written because {problem}; correct the adapter that is to be written")
    if not path.parent.is_dir():
        why = f"{path.parent} is not a folder" if path.parent.exists() else "its folder does not exist"
        raise AdapterError(f"{path} cannot be written because {why}; create it first")
    try:
        with files.replacing(path) as part:
            writer = gguf.GGUFWriter(part, config.architecture)
            writer.add_type("adapter")
            writer.add_string("adapter.type", "deltamem")
            writer.add_uint32(_PREFIX + "version", VERSION)
            for name, type in _SETTINGS.items():
                _add_setting(writer, _PREFIX + name, type, getattr(config, name))
            for name, key in _PROVENANCE_KEYS.items():
                text = getattr(provenance or Provenance(), name)
                if text is not None:
                    writer.add_string(key, text)
            for layer in config.layers:
                for name in config.tensor_shapes(layer):
                    weight = tensors[name]
                    writer.add_tensor(
                        name,
                        np.ascontiguousarray(weight.data),
                        raw_dtype=gguf.GGMLQuantizationType(_TYPE_NUMBERS[weight.type]),
                    )
            try:
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
                writer.flush()
            finally:
                writer.close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AdapterError(f"{path} cannot be written ({reason}); choose another place with -o") from None


def _add_setting(writer: Any, key: str, type: str, value: Any) -> None:
    import gguf

    if value is None:
        return
    if type == "array of u32":
        writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    elif type == "array of str":
        writer.add_array(key, list(value))
    else:
        add = {"u32": writer.add_uint32, "f32": writer.add_float32, "bool": writer.add_bool, "str": writer.add_string}
        add[type](key, value)


def read_adapter(path: Path) -> Adapter:
    """Reads and checks a whole adapter file.

    Raises AdapterError, naming the first thing that is wrong, for anything but a sound deltamem adapter.
    """
    header = read_header(path)
    if header.get("general.type") != "adapter" or header.get("adapter.type") != "deltamem":
        kind = shown(header.get("adapter.type") or header.get("general.type") or "model")
        raise AdapterError(
            f"{path} is a GGUF file of the kind {kind}, not a deltamem adapter; make one with: dmem adapter convert"
        )
    problem = _unknown_key(header) or _missing_key(header)
    if problem is None:
        config = _config(header)
        problem = config.problem() or _place_problem(config, header)
    if problem is None:
        tensors = _load(header)
        problem = _tensor_problem(config, tensors)
    if problem:
        raise AdapterError(f"{path} is not a sound deltamem adapter: {problem}; convert or download it again")
    return Adapter(config, tensors, _provenance(header), header.size)


def _unknown_key(header: Header) -> str | None:
    known = {"adapter.type", _PREFIX + "version", *_PROVENANCE_KEYS.values(), *(_PREFIX + name for name in _SETTINGS)}
    for key in header.metadata:
        # Other general.* keys only describe a file to its reader, so they can change nothing that is computed.
        if key not in known and not key.startswith("general."):
            return f"its key {shown(key)} is unknown to this version"
    return None


def _missing_key(header: Header) -> str | None:
    needed = {"general.architecture": "str", _PREFIX + "version": "u32"}
    needed |= {_PREFIX + name: type for name, type in _SETTINGS.items()}
    needed |= {key: "str" for key in _PROVENANCE_KEYS.values()}
    optional = {_PREFIX + "delta_o_norm_eps", *_PROVENANCE_KEYS.values()}
    for key, type in needed.items():
        found: Value | None = header.metadata.get(key)
        if found is None and key not in optional:
            return f"its key {key} is missing"
        if found is not None and found.type != type:
            return f"its key {key} is of type {found.type}, not {type}"
    if header.get(_PREFIX + "version") != VERSION:
        return f"its format version is {header.get(_PREFIX + 'version')}, and this program reads version {VERSION}"
    return None


def _config(header: Header) -> AdapterConfig:
    values = {name: header.get(_PREFIX + name) for name in _SETTINGS}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return AdapterConfig(architecture=header.get("general.architecture"), **values)


def _provenance(header: Header) -> Provenance:
    return Provenance(**{entry.name: header.get(_PROVENANCE_KEYS[entry.name]) for entry in fields(Provenance)})


def _place_problem(config: AdapterConfig, header: Header) -> str | None:
    """Checks names, types and places before any tensor is loaded."""
    expected = {name for layer in config.layers for name in config.tensor_shapes(layer)}
    for name in header.tensors:
        if name not in expected:
            return f"its tensor {shown(name)} is unknown or does not belong to its settings"
    for name in sorted(expected):
        if name not in header.tensors:
            return f"its tensor {name} is missing"
        place = header.tensors[name]
        if place.type not in _TYPE_NAMES:
            return f"its tensor {name} has the type number {place.type}, and only F32, F16 and BF16 are used"
        if place.offset + _nbytes(place) > header.size:
            return f"it ends before the numbers of its tensor {name}"
    return None


def _nbytes(place: TensorPlace) -> int:
    return math.prod(place.shape) * STORAGE[_TYPE_NAMES[place.type]].itemsize


def _load(header: Header) -> dict[str, Weight]:
    tensors: dict[str, Weight] = {}
    with header.path.open("rb") as file:
        for name, place in header.tensors.items():
            type = _TYPE_NAMES[place.type]
            file.seek(place.offset)
            raw = file.read(_nbytes(place))
            tensors[name] = Weight(np.frombuffer(raw, dtype=STORAGE[type]).reshape(place.shape), type)
    return tensors


def _tensor_problem(config: AdapterConfig, tensors: Mapping[str, Weight]) -> str | None:
    expected = {name: shape for layer in config.layers for name, shape in config.tensor_shapes(layer).items()}
    for name in tensors:
        if name not in expected:
            return f"its tensor {shown(name)} is unknown or does not belong to its settings"
    for name, shape in expected.items():
        if name not in tensors:
            return f"its tensor {name} is missing"
        weight = tensors[name]
        fits = len(weight.shape) == len(shape) and all(
            found >= 1 and wanted in (None, found) for found, wanted in zip(weight.shape, shape, strict=True)
        )
        if not fits:
            wanted_text = " x ".join("?" if wanted is None else str(wanted) for wanted in shape)
            found_text = " x ".join(str(found) for found in weight.shape)
            return f"its tensor {name} has the shape {found_text} where {wanted_text} is needed"
        if len(shape) == 1 and weight.type != "F32":
            return f"its tensor {name} is {weight.type} and must be F32"
        if not weight.is_finite:
            return f"its tensor {name} holds NaN or infinite numbers"
    return None


def trained_writes(path: Path) -> str:
    """What of a turn the adapter was trained to write: all of it, as published, or what the user says. Reads the header."""
    header = read_header(path)
    training = header.get(_PROVENANCE_KEYS["training"])
    summary = training_summary(Provenance(training=training)) if isinstance(training, str) else None
    said = summary.get("write") if isinstance(summary, dict) else None
    return said if said in WRITES else WRITES[0]


def training_summary(provenance: Provenance) -> Any:
    """The training summary as data, or its text when it is not JSON."""
    try:
        return json.loads(provenance.training) if provenance.training is not None else None
    except json.JSONDecodeError:
        return provenance.training
