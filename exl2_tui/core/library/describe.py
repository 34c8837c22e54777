"""What a model directory holds, read from its headers without loading it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.events import ModelInfo, ModelSource
from exl2_tui.core.formats import Exl2Weight, GptqWeight
from exl2_tui.core.library.scan_store import Examined
from exl2_tui.core.model.estimate import footprint
from exl2_tui.core.model.layout import model_linears
from exl2_tui.core.model.weights import linear_names, read_linear, take_inventory

KINDS = {"exl2": "EXL2", "gptq": "GPTQ"}
_DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


@dataclass(frozen=True, slots=True)
class LinearInfo:
    """One linear layer as stored. bits_per_weight counts everything the layer stores; recipe: what it is made of."""

    name: str
    kind: str
    in_features: int
    out_features: int
    bits_per_weight: float
    recipe: str


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """A model's shape and its linear layers in model order."""

    info: ModelInfo
    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    vocab_size: int
    linears: tuple[LinearInfo, ...]


def describe(path: Path, name: str | None = None, source: ModelSource = "directory") -> ModelInfo:
    """One line about a model; whatever is wrong with it goes into `problem`, nothing is raised."""
    return examine(path, name, source).info


def examine(path: Path, name: str | None = None, source: ModelSource = "directory") -> Examined:
    """The same with what its memory is computed from."""
    name = name or path.name
    try:
        with Checkpoint.open(path) as checkpoint:
            config = ModelConfig.from_dir(path)
            take_inventory(checkpoint, config).check(path)
            info = _info(checkpoint, config, list(_linears(checkpoint, config)), name, source)
            return Examined(info, footprint(checkpoint, config))
    except Exl2Error as error:
        size = sum(file.stat().st_size for file in path.glob("*.safetensors") if file.is_file())
        where = f"tensor {error.tensor}: " if error.tensor else ""
        return Examined(ModelInfo(name, str(path), source, "?", "?", 0.0, size, 0, problem=where + error.message), None)


def describe_layers(path: Path) -> ModelDetails:
    """Everything about a model that can be told without loading it. Raises what opening it raises."""
    with Checkpoint.open(path) as checkpoint:
        config = ModelConfig.from_dir(path)
        take_inventory(checkpoint, config).check(path)
        linears = list(_linears(checkpoint, config))
        return ModelDetails(
            info=_info(checkpoint, config, linears, path.name, "directory"),
            architecture=config.architecture,
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            vocab_size=config.vocab_size,
            linears=tuple(_with_recipes(checkpoint, config, linears)),
        )


def format_text(linears: list[LinearInfo]) -> tuple[str, float]:
    """The format for people ("EXL2 4.13 bpw", "fp16") and the average bits per weight of the decoder's linears."""
    decoder = [linear for linear in linears if not linear.name.endswith("lm_head")]
    if not decoder:
        return "?", 0.0
    weights = sum(linear.in_features * linear.out_features for linear in decoder)
    bits = sum(linear.bits_per_weight * linear.in_features * linear.out_features for linear in decoder) / weights
    kind = Counter(linear.kind for linear in decoder).most_common(1)[0][0]
    return (f"{KINDS[kind]} {bits:.2f} bpw" if kind in KINDS else kind), bits


def _info(
    checkpoint: Checkpoint, config: ModelConfig, linears: list[LinearInfo], name: str, source: ModelSource
) -> ModelInfo:
    text, bits = format_text(linears)
    return ModelInfo(
        name=name,
        path=str(checkpoint.path),
        source=source,
        family=config.architecture.removesuffix("ForCausalLM"),
        format=text,
        bits_per_weight=bits,
        size_bytes=checkpoint.weight_bytes,
        context=config.max_position_embeddings,
    )


def _linears(checkpoint: Checkpoint, config: ModelConfig) -> Iterator[LinearInfo]:
    """The linear layers in model order, from headers alone."""
    for spec in model_linears(config):
        names = linear_names(checkpoint, spec)
        kind: str = checkpoint.linear_kind(spec.prefix) or "float"
        weights = spec.in_features * spec.out_features
        if spec.fused is not None and checkpoint.linear_kind(spec.prefix) is None:
            weights = spec.in_features * spec.fused.out_features
        stored = [checkpoint.info(name) for name in names if not name.endswith(".bias")]
        bits = 8 * sum(info.nbytes for info in stored) / weights
        if kind == "float" and stored:
            kind = _DTYPES.get(stored[0].dtype, stored[0].dtype.lower())
        yield LinearInfo(spec.prefix, kind, spec.in_features, spec.out_features, bits, "")


def _with_recipes(checkpoint: Checkpoint, config: ModelConfig, linears: list[LinearInfo]) -> Iterator[LinearInfo]:
    """The same, with what each quantized layer is made of; reads the layers' small tensors."""
    for spec, linear in zip(model_linears(config), linears, strict=True):
        weight = read_linear(checkpoint, spec)
        if isinstance(weight, Exl2Weight):
            yield replace(linear, recipe=_exl2_recipe(weight))
        elif isinstance(weight, GptqWeight):
            order = "" if weight.perm is None else ", act-order"
            yield replace(linear, recipe=f"{weight.bits} bits in groups of {weight.group_size}{order}")
        else:
            yield linear


def _exl2_recipe(weight: Exl2Weight) -> str:
    """Such as "8b 15 % + 6b 85 %, groups of 128": the share of rows of each width, and the largest group."""
    rows: Counter[int] = Counter()
    for group in weight.groups:
        rows[group.bits] += group.rows
    shares = (f"{bits}b {100 * count / weight.in_features:.0f} %" for bits, count in sorted(rows.items(), reverse=True))
    return f"{' + '.join(shares)}, groups of {max(group.rows for group in weight.groups)}"
