"""Will it fit: the memory a model takes, computed from file headers before a byte of weights is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import MemoryLimitError, UnsupportedError
from exl2_tui.core.model.layout import LinearSpec, head_linear, layer_linears, model_linears
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.model.split import ModelSizes
from exl2_tui.core.model.weights import TensorSource, linear_names, take_inventory

Fits = Literal["yes", "tight", "no"]
Backend = Literal["native", "cuda", "reference", "gpu-reference"]

DENSE = {"reference": 4, "gpu-reference": 2}  # bytes per weight of those that decode all weights
PROMPT_CHUNK = {"native": 512, "reference": 512, "gpu-reference": 512, "cuda": 2048}  # tokens of a prompt run at once
CUDA_CONTEXT = 600 << 20  # what the driver and cuBLAS keep, not counted by torch
DEFAULT_CONTEXT_LIMIT = 32768  # more than this only for those who ask: attention over it takes seconds per token
CONTEXT_STEP = 256
COMFORTABLE = 0.9  # of the available memory


class TensorSize(Protocol):
    @property
    def nbytes(self) -> int: ...


class MeasurableSource(TensorSource, Protocol):
    """A TensorSource whose headers tell sizes."""

    def info(self, name: str) -> TensorSize: ...


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """All in bytes; available None: the system does not tell. context: tokens the cache is for."""

    context: int
    weights: int
    cache: int
    scratch: int
    available: int | None

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch

    @property
    def fits(self) -> Fits:
        if self.available is None or self.total <= COMFORTABLE * self.available:
            return "yes"
        return "tight" if self.total <= self.available else "no"


def estimate(
    source: MeasurableSource,
    config: ModelConfig,
    context: int | None = None,
    cache: str = "fp16",
    backend: Backend = "native",
    *,
    available: int | None = None,
) -> MemoryEstimate:
    """What loading would take. context None: the longest up to the model's own (and a sensible limit) that fits.

    The reference turns weights into float32 (on a GPU float16), elsewhere they stay packed. available: None asks the
    system.
    """
    room = available_memory() if available is None else available
    width = DENSE.get(backend)
    weights = packed_bytes(source, config) if width is None else dense_bytes(source, config, width)
    if context is None:
        context = _longest_context(config, cache, weights, backend, room)
    return MemoryEstimate(
        context, weights, cache_bytes(config, context, cache), scratch_bytes(config, context, backend), room
    )


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
        f"{model} needs {_gigabytes(found.total)} ({_gigabytes(found.weights)} for weights, "
        f"{_gigabytes(found.cache)} for a context of {found.context} tokens), "
        f"but {_gigabytes(found.available)} are available",
        hint=hint,
    )


def packed_bytes(source: MeasurableSource, config: ModelConfig) -> int:
    """Weights as stored, each once; a tied head counts again, because it is packed for its kernel."""
    used = _size(source, take_inventory(source, config).used)
    head = head_linear(config)
    is_tied = head.tied_to is not None and source.linear_kind(head.prefix) is None
    return used + (_size(source, linear_names(source, head)) if is_tied else 0)


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
        scratch=scratch_bytes(config, context, backend),
    )


def cache_bytes(config: ModelConfig, context: int, kind: str) -> int:
    """Keys and values of `context` tokens. q8 has one fp16 scale per 32 values."""
    dim = config.head_dim
    if kind == "fp16":
        per_head = 4 * dim
    elif kind == "q8":
        per_head = 2 * dim + 4 * -(-dim // 32)
    elif kind == "fp32":
        per_head = 8 * dim
    else:
        raise UnsupportedError(f'the cache kind "{kind}" is not one of fp16, q8')
    return per_head * config.num_key_value_heads * config.num_hidden_layers * context


def scratch_bytes(config: ModelConfig, context: int, backend: Backend) -> int:
    """Float32 activations of one chunk of a prompt, and what each implementation needs besides."""
    tokens = min(PROMPT_CHUNK[backend], context)
    widths = 4 * config.hidden_size + 2 * config.query_size + 2 * config.kv_size + 3 * config.intermediate_size
    activations = 4 * tokens * widths + 4 * config.vocab_size
    if backend in DENSE:  # a layer's cache in float32 and a mask
        driver = CUDA_CONTEXT if backend == "gpu-reference" else 0
        return driver + activations + 8 * context * config.query_size + 16 * tokens * context
    if backend == "cuda":  # the largest linear as fp16, and a mask
        largest = max(spec.in_features * spec.out_features for spec in layer_linears(config, 0))
        return CUDA_CONTEXT + activations + 2 * largest + tokens * context
    return activations


def _longest_context(config: ModelConfig, cache: str, weights: int, backend: Backend, room: int | None) -> int:
    """At least one step, so that the caller can tell what is missing."""
    longest = min(config.max_position_embeddings, DEFAULT_CONTEXT_LIMIT)
    if room is None:
        return longest

    def total(context: int) -> int:
        return weights + cache_bytes(config, context, cache) + scratch_bytes(config, context, backend)

    steps = range(longest // CONTEXT_STEP * CONTEXT_STEP, CONTEXT_STEP, -CONTEXT_STEP)
    candidates = [longest, *steps]
    fitting = (context for context in candidates if total(context) <= COMFORTABLE * room)
    return next(fitting, min(longest, CONTEXT_STEP))


def _size(source: MeasurableSource, names: Iterable[str]) -> int:
    return sum(source.info(name).nbytes for name in names)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"
