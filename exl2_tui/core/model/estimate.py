"""Will it fit: the memory a model takes, computed from file headers before a byte of weights is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.model.footprint import COMFORTABLE, DENSE, Backend, Footprint, MemoryEstimate, cache_bytes
from exl2_tui.core.model.layout import EMBEDDING, LinearSpec, head_linear, layer_linears, model_linears
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.model.split import ModelSizes
from exl2_tui.core.model.weights import TensorSource, linear_names, take_inventory
from exl2_tui.core.sizes import size_of

# Bits that the CPU's fast path keeps of halves, and of how many rows together (csrc/cpu/linear_narrow.h).
NARROW_BITS = {"F16": 14, "BF16": 12}
NARROW_ROWS = 64


class TensorSize(Protocol):
    @property
    def dtype(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


class MeasurableSource(TensorSource, Protocol):
    """A TensorSource whose headers tell sizes."""

    def info(self, name: str) -> TensorSize: ...


def footprint(source: MeasurableSource, config: ModelConfig) -> Footprint:
    """The numbers of a model that is here."""
    embedding = source.info(EMBEDDING).nbytes
    return Footprint.of(
        config,
        packed=packed_bytes(source, config),
        embedding=embedding,
        narrowed=narrowed_bytes(source, config),
        elements=dense_bytes(source, config, 1),
    )


def estimate(
    source: MeasurableSource,
    config: ModelConfig,
    context: int | None = None,
    cache: str = "fp16",
    backend: Backend = "native",
    *,
    available: int | None = None,
    exact: bool = False,
) -> MemoryEstimate:
    """What loading would take. context None: the longest up to the model's own (and a sensible limit) that fits.

    The reference turns weights into float32 (on a GPU float16), elsewhere they stay packed. available: None asks the
    system.
    """
    room = available_memory() if available is None else available
    return footprint(source, config).at(context, cache, backend, room, exact)


def require_fit(found: MemoryEstimate, cache: str, model: str) -> None:
    """Raises MemoryLimitError with a remedy if the estimate says no."""
    if found.fits != "no" or found.available is None:
        return
    small = found.weights < COMFORTABLE * found.available
    if small and cache == "fp16":
        hint = "Choose a smaller context, or the cache kind q8, which takes about half."
    elif small:
        hint = "Choose a smaller context."
    else:
        hint = "Close other programs, or take a smaller model or one with fewer bits per weight."
    raise MemoryLimitError(
        f"{model} needs {size_of(found.total)} ({size_of(found.weights)} for weights, "
        f"{size_of(found.cache)} for a context of {found.context} tokens), "
        f"but {size_of(found.available)} are available",
        hint=hint,
    )


def packed_bytes(source: MeasurableSource, config: ModelConfig) -> int:
    """Weights as stored, each once; a tied head counts again, because it is packed for its kernel."""
    used = _size(source, take_inventory(source, config).used)
    head = head_linear(config)
    is_tied = head.tied_to is not None and source.linear_kind(head.prefix) is None
    return used + (_size(source, linear_names(source, head)) if is_tied else 0)


def narrowed_bytes(source: MeasurableSource, config: ModelConfig) -> int:
    """What halves in fewer bits save: of the linears, a tied head among them, not of the embedding itself."""
    specs = (spec for spec in model_linears(config) if spec.in_features % NARROW_ROWS == 0)
    names = {name for spec in specs for name in linear_names(source, spec) if name.endswith(".weight")}
    found = (source.info(name) for name in names)
    return sum(tensor.nbytes * (16 - NARROW_BITS.get(tensor.dtype, 16)) // 16 for tensor in found)


def dense_bytes(source: TensorSource, config: ModelConfig, width: int = 4) -> int:
    """Weights as matrices of `width` bytes per element; a tied head that is not stored shares the embedding."""
    elements = config.vocab_size * config.hidden_size
    for spec in model_linears(config):
        if spec.tied_to is None or source.linear_kind(spec.prefix) is not None:
            elements += spec.in_features * spec.out_features
    return width * elements


def model_sizes(
    source: MeasurableSource, config: ModelConfig, context: int, cache: str, backend: Backend
) -> ModelSizes:
    """The estimate of `estimate`, by what lies together when layers are put on several devices."""
    width = DENSE.get(backend)

    def size(spec: LinearSpec) -> int:
        if width is not None:
            return width * spec.in_features * spec.out_features
        stored = _size(source, linear_names(source, spec))
        is_part = spec.fused is not None and source.linear_kind(spec.prefix) is None
        return stored * spec.out_features // spec.fused.out_features if spec.fused and is_part else stored

    kept = cache_bytes(config, context, cache) // config.num_hidden_layers
    layers = (sum(map(size, layer_linears(config, index))) + kept for index in range(config.num_hidden_layers))
    return ModelSizes(
        layers=tuple(layers),
        embedding=(width or 2) * config.vocab_size * config.hidden_size,
        head=size(head_linear(config)),
        scratch=Footprint.of(config).scratch(context, backend),
    )


def _size(source: MeasurableSource, names: Iterable[str]) -> int:
    return sum(source.info(name).nbytes for name in names)
