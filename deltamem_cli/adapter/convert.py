"""Turns a published adapter's folder into one adapter file for one base model; prints nothing."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from deltamem_cli import reading
from deltamem_cli.adapter.base_model import BaseModel, read_base_model
from deltamem_cli.adapter.format import Adapter, AdapterConfig, Provenance, read_adapter, write_adapter
from deltamem_cli.adapter.published import PublishedAdapter, Settings, ranges, read_published
from deltamem_cli.formats.errors import AdapterError, shown
from deltamem_cli.formats.weight import Weight
from deltamem_cli.text import decoded

# Published parameter -> our tensor, for the parameters that are taken as they are.
_PLAIN = {
    "memory_q_proj": "q.weight",
    "memory_k_proj": "k.weight",
    "memory_v_proj": "v.weight",
    "beta_proj": "beta.weight",
    "beta_bias": "beta.bias",
    "lambda_proj": "lambda.weight",
    "lambda_bias": "lambda.bias",
    "delta_o_rmsnorm_weight": "delta_o_norm.weight",
}


def convert(folder: Path, base: Path, out: Path, *, license: str | None = None) -> Adapter:
    """Converts the published adapter in folder for the base model in the GGUF file base; replaces out.

    license: what it is under when the folder does not say.
    Returns what was written, as read back. Raises AdapterError when the folder is unsound, or the adapter does not fit the base model.
    """
    published = read_published(folder)
    base_model = read_base_model(base)
    config = _config(published.settings, tuple(sorted(published.layers)), base_model)
    _check_layers(folder, published, base, base_model)
    tensors: dict[str, Weight] = {}
    for layer in config.layers:
        converted = _layer(published.settings, layer, published.layers[layer], base_model)
        tensors |= {f"blk.{layer}.deltamem_{name}": weight for name, weight in converted.items()}
        _check_shapes(folder, base, config, layer, tensors, base_model)
    write_adapter(out, config, tensors, _provenance(folder, base_model, license))
    return read_adapter(out)


def _config(settings: Settings, layers: tuple[int, ...], base: BaseModel) -> AdapterConfig:
    # A norm of a correction that is not made has no effect.
    has_norm = settings.delta_o_rmsnorm and "o" in settings.delta_heads
    return AdapterConfig(
        architecture=base.architecture,
        embedding_length=base.embedding_length,
        block_count=base.block_count,
        layers=layers,
        rank=settings.rank,
        state_heads=settings.num_state_heads,
        write_granularity=settings.memory_write_granularity,
        delta_heads=settings.delta_heads,
        state_update=settings.state_update_mode,
        rankwise_gates=settings.rankwise_gates,
        couple_lambda=settings.couple_lambda,
        normalize_qk=settings.normalize_qk,
        delta_o_norm_eps=settings.delta_o_rmsnorm_eps if has_norm else None,
    )


def _check_layers(folder: Path, published: PublishedAdapter, base: Path, base_model: BaseModel) -> None:
    found = sorted(published.layers)
    available = sorted(base_model.layers)
    # Without target_layers an adapter has every attention layer, so fewer or more mean another base model.
    fits = set(found) <= set(available) if published.settings.target_layers else found == available
    if not fits:
        raise AdapterError(
            f"{folder} adapts the layers {ranges(found)} but {base} has attention in the layers "
            f"{ranges(available) or 'none'}; give the base model that the adapter was trained on"
        )


def _layer(settings: Settings, layer: int, parameters: dict[str, Weight], base: BaseModel) -> dict[str, Weight]:
    factors = settings.delta_factors(parameters.get("delta_scale_raw"))
    converted: dict[str, Weight] = {}
    for name, weight in parameters.items():
        if name in _PLAIN:
            converted[_PLAIN[name]] = Weight.from_float32(weight.float32) if len(weight.shape) == 1 else weight
    for head, factor in factors.items():
        matrix = parameters[f"delta_{head}_proj"].scaled(factor)
        # A matrix of another width is left for the check of shapes to name.
        if matrix.shape[:1] == (base.layers[layer].widths[head],):
            matrix = Weight(base.matrix_rows(head, layer, matrix.data), matrix.type)
        converted[f"delta_{head}.weight"] = matrix
    return converted


def _check_shapes(
    folder: Path, base: Path, config: AdapterConfig, layer: int, tensors: dict[str, Weight], base_model: BaseModel
) -> None:
    widths = base_model.layers[layer].widths
    for name, shape in config.tensor_shapes(layer).items():
        head = name.removeprefix(f"blk.{layer}.deltamem_delta_").removesuffix(".weight")
        wanted = (widths[head], shape[1]) if shape[0] is None else shape
        if None in wanted:
            raise AdapterError(
                f"{folder} corrects {head} in layer {layer}, which {base} has no projection for; "
                "give the base model that the adapter was trained on"
            )
        if tensors[name].shape != wanted:
            raise AdapterError(
                f"{folder} does not fit {base}: the {_published_name(name)} of layer {layer} is "
                f"{_product(tensors[name].shape)} where {_product(wanted)} is needed; "
                "give the base model that the adapter was trained on"
            )


def _published_name(name: str) -> str:
    suffix = name.split("deltamem_")[1]
    plain = {ours: theirs for theirs, ours in _PLAIN.items()}
    return plain.get(suffix) or suffix.removesuffix(".weight") + "_proj"


def _product(shape: tuple[int | None, ...]) -> str:
    return " x ".join(str(extent) for extent in shape)


def _provenance(folder: Path, base: BaseModel, license: str | None) -> Provenance:
    card = _model_card(folder / "README.md")
    source = _source_name(folder)
    return Provenance(
        name=source,
        license=card.get("license") or license,
        description=f"converted by {_program()}",
        base_model=card.get("base_model") or base.name,
        source=source,
    )


def _program() -> str:
    try:
        return f"deltamem-cli {metadata.version('deltamem-cli')}"
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "deltamem-cli"


def _source_name(folder: Path) -> str:
    """The repository's name for a folder in a Hugging Face cache, else the folder's own; never a path."""
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return shown(folder.name)


def _model_card(path: Path) -> dict[str, str]:
    """license and base_model from a model card's front matter, as far as they are plain words.

    Two plain values do not justify a YAML reader; anything unusual is left out.
    """
    try:
        lines = decoded(reading.whole_file(path)).splitlines()
    except OSError:
        return {}
    card: dict[str, str] = {}
    pending: str | None = None
    if not lines or lines[0].strip() != "---":
        return card
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if pending and line.lstrip().startswith("- "):  # the first item of a list
            card[pending] = _word(line.lstrip()[2:])
        pending = None
        if colon and key in ("license", "base_model"):
            if value.strip():
                card[key] = _word(value)
            else:
                pending = key
    return {key: value for key, value in card.items() if value}


def _word(text: str) -> str:
    return shown(text.strip().strip("[]").split(",")[0].strip().strip("'\""))
