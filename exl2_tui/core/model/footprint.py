"""Footprint: what a model takes in memory, as arithmetic on a few numbers. Knows nothing of files or torch.

The numbers are small enough to be kept in a cache, so that a list of models can say what fits at any context without
opening one of them; they come from headers (`estimate.py`) or, for a model that is not here yet, from its config.json
and the sizes of its files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import UnsupportedError
from exl2_tui.core.requests import CacheKind

Fits = Literal["yes", "tight", "no"]
Backend = Literal["native", "cuda", "reference", "gpu-reference"]

# What each keeps keys and values in; q6 has keys of 8 bits and values of 4.
CACHE_KINDS: dict[Backend, tuple[CacheKind, ...]] = {
    "native": ("fp16", "q8"),
    "cuda": ("fp16", "q8", "q6", "q4"),
    "reference": ("fp16",),
    "gpu-reference": ("fp16",),
}
CACHE_BITS = {"fp32": (32, 32), "fp16": (16, 16), "q8": (8, 8), "q6": (8, 4), "q4": (4, 4)}  # of keys and values
DENSE = {"reference": 4, "gpu-reference": 2}  # bytes per weight of those that decode all weights
PROMPT_CHUNK = {"native": 512, "reference": 512, "gpu-reference": 512, "cuda": 2048}  # tokens of a prompt run at once
CUDA_CONTEXT = 600 << 20  # what the driver and cuBLAS keep, not counted by torch
DEFAULT_CONTEXT_LIMIT = 32768  # more than this only for those who ask: attention over it takes seconds per token
CONTEXT_STEP = 256
COMFORTABLE = 0.9  # of the available memory


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


@dataclass(frozen=True, slots=True)
class Footprint:
    """packed: bytes of the weights as kernels hold them; elements: how many numbers they are as plain matrices.

    embedding: bytes of it, part of packed; a CPU reads its rows from the file, each when a token needs it. narrowed:
    bytes that a CPU saves with halves in fewer bits (csrc/cpu/linear_narrow.h), unless told to be exact.
    cached_heads: kv heads of all layers. activations: float32 values per token of a prompt. largest: weights of the
    largest linear of a layer. longest: the model's own context.
    """

    packed: int
    embedding: int
    narrowed: int
    elements: int
    cached_heads: int
    head_dim: int
    activations: int
    query_size: int
    vocab_size: int
    largest: int
    longest: int

    @classmethod
    def of(
        cls, config: ModelConfig, *, packed: int = 0, embedding: int = 0, narrowed: int = 0, elements: int = 0
    ) -> Footprint:
        hidden, ffn = config.hidden_size, config.intermediate_size
        return cls(
            packed=packed,
            embedding=embedding,
            narrowed=narrowed,
            elements=elements,
            cached_heads=config.num_key_value_heads * config.num_hidden_layers,
            head_dim=config.head_dim,
            activations=4 * hidden + 2 * config.query_size + 2 * config.kv_size + 3 * ffn,
            query_size=config.query_size,
            vocab_size=config.vocab_size,
            largest=hidden * max(ffn, config.query_size),
            longest=config.max_position_embeddings,
        )

    def weights(self, backend: Backend, exact: bool = False) -> int:
        """Bytes of the weights in memory."""
        if backend in DENSE:
            return DENSE[backend] * self.elements
        if backend == "native":
            return self.packed - self.embedding - (0 if exact else self.narrowed)
        return self.packed

    def cache(self, context: int, kind: str) -> int:
        """Bytes of the keys and values of `context` tokens. Fewer than 16 bits have one fp16 scale per 32 values."""
        if kind not in CACHE_BITS:
            raise UnsupportedError(f'the cache kind "{kind}" is not one of {", ".join(CACHE_BITS)}')
        dim, bits = self.head_dim, CACHE_BITS[kind]
        scales = 0 if min(bits) >= 16 else 4 * -(-dim // 32)
        return (dim * sum(bits) // 8 + scales) * self.cached_heads * context

    def scratch(self, context: int, backend: Backend) -> int:
        """Float32 activations of one chunk of a prompt, and what each implementation needs besides."""
        tokens = min(PROMPT_CHUNK[backend], context)
        activations = 4 * tokens * self.activations + 4 * self.vocab_size
        if backend in DENSE:  # a layer's cache in float32 and a mask
            driver = CUDA_CONTEXT if backend == "gpu-reference" else 0
            return driver + activations + 8 * context * self.query_size + 16 * tokens * context
        if backend == "cuda":  # the largest linear as fp16, and a mask
            return CUDA_CONTEXT + activations + 2 * self.largest + tokens * context
        return activations

    def at(
        self, context: int | None, cache: str, backend: Backend, available: int | None, exact: bool = False
    ) -> MemoryEstimate:
        """What loading takes. context None: the longest up to the model's own (and a sensible limit) that fits."""
        weights = self.weights(backend, exact)
        if context is None:
            context = self._longest_fitting(cache, weights, backend, available)
        return MemoryEstimate(context, weights, self.cache(context, cache), self.scratch(context, backend), available)

    def _longest_fitting(self, cache: str, weights: int, backend: Backend, room: int | None) -> int:
        """At least one step, so that the caller can tell what is missing."""
        longest = min(self.longest, DEFAULT_CONTEXT_LIMIT)
        if room is None:
            return longest
        steps = range(longest // CONTEXT_STEP * CONTEXT_STEP, CONTEXT_STEP, -CONTEXT_STEP)
        fitting = (
            context
            for context in (longest, *steps)
            if weights + self.cache(context, cache) + self.scratch(context, backend) <= COMFORTABLE * room
        )
        return next(fitting, min(longest, CONTEXT_STEP))


def cache_bytes(config: ModelConfig, context: int, kind: str) -> int:
    """Keys and values of `context` tokens."""
    return Footprint.of(config).cache(context, kind)
