"""The model as one native call per step: all layers and the head over packed weights (csrc/cpu/model.h).

Python repacks the weights, checks the arguments and owns all memory; it is not involved between two layers, so that a
busy user interface cannot slow the model down by holding the interpreter lock.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import TensorPlace
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError, CheckpointError, ExtensionError, ShapeError
from exl2_tui.core.model.cache import check_room
from exl2_tui.core.model.causal_lm import check_ids
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM, LinearSpec, head_linear, layer_linears, layer_norms
from exl2_tui.core.model.passage import Choice, Passage
from exl2_tui.core.model.protocol import Cache
from exl2_tui.core.model.rope import rope_table
from exl2_tui.core.model.weights import (
    TensorSource,
    locate_matrix,
    read_linear,
    read_matrix,
    read_norm,
    release_linear,
)
from exl2_tui.core.ops import native
from exl2_tui.core.ops.cache import NativeCache
from exl2_tui.core.ops.linear import pack_linear
from exl2_tui.core.ops.native import Isa
from exl2_tui.core.ops.room import WeightRoom
from exl2_tui.core.requests import LoadOptions

# Tokens in work at once: enough to unpack each weight for many tokens, few enough for the caches; and where weights are
# small, few enough that what lies between two layers is not much next to them.
CHUNK = 256
SMALL_CHUNK = 128
SMALL_HIDDEN = 1024
FIRST_ROPE_ROWS = 1024
WEIGHT_PIECE = 256 << 20  # bytes of weights that lie together


class NativeModelCache(NativeCache):
    """A cache with the rope table of its context; the table grows with the tokens, not with the capacity."""

    def __init__(self, config: ModelConfig, context: int, kind: str) -> None:
        super().__init__(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, context, kind)
        self.config = config
        self.cos = torch.empty(0, config.rope_dim // 2)
        self.sin = self.cos

    def rope_rows(self, count: int) -> tuple[Tensor, Tensor]:
        """cos and sin of at least `count` positions from 0, each (rows, R/2) float32."""
        if count > self.cos.shape[0]:
            rows = min(self.capacity, max(FIRST_ROPE_ROWS, 2 * count))
            table = rope_table(self.config, self.capacity, 0, rows)
            self.cos, self.sin = table.cos.contiguous(), table.sin.contiguous()
        return self.cos, self.sin


class NativeModel:
    """Implements protocol.LanguageModel. Steps of several threads run one after another.

    A token needs one row of the embedding, so the rows stay in the checkpoint's file, which stays open. place: where;
    None: they are in memory.
    """

    device = torch.device("cpu")

    def __init__(
        self, config: ModelConfig, handle: int, weight_bytes: int, kernels: str, place: TensorPlace | None
    ) -> None:
        self.config = config
        self.place = place
        self.weight_bytes = weight_bytes
        self.kernels = kernels
        self._handle = handle
        self._step = native.ops().model_step
        self._write = native.ops().model_write
        self._free = weakref.finalize(self, native.ops().model_close, handle)

    @classmethod
    def load(
        cls,
        source: TensorSource,
        config: ModelConfig,
        options: LoadOptions | None = None,
        *,
        isa: Isa | None = None,
        chunk: int | None = None,
    ) -> NativeModel:
        """Repacks tensor by tensor, so that what was read never adds up to a second copy.

        isa: another than the one in use, chunk: another number of tokens in work at once, for tests. Raises
        CheckpointError for what is missing or malformed, ExtensionError without the compiled library, and whatever
        `source` raises to stop (core/model/watched.py).
        """
        options = options or LoadOptions()
        code = native.isa_code(isa)
        threads = options.threads or torch.get_num_threads()  # which is the number of physical cores
        chunk = chunk or (CHUNK if config.hidden_size >= SMALL_HIDDEN else SMALL_CHUNK)
        packer = _Packer(source, options.exact, threads, native.ISAS[code])

        place = locate_matrix(source, EMBEDDING, config.vocab_size, config.hidden_size)
        embedding = packer.embedding(config) if place is None else torch.empty(0, dtype=place.dtype)
        layers: list[Tensor] = []
        for layer in range(config.num_hidden_layers):
            layers += packer.layer(config, layer)
        final_norm = packer.norm(FINAL_NORM, 1, config.hidden_size)
        head = packer.linear(head_linear(config))

        sizes = [
            *(config.hidden_size, config.intermediate_size, config.vocab_size),
            *(config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rope_dim // 2),
        ]
        windows = [config.window(layer) or 0 for layer in range(config.num_hidden_layers)]
        where = [] if place is None else [place.descriptor, place.offset, place.size, place.modified]
        handle = native.ops().model_create(
            *(sizes, config.rms_norm_eps, embedding, where, [final_norm, head], layers, windows, code, chunk, threads)
        )
        if handle < 0 and place is not None:
            raise place.error(-handle)
        label = native.LABELS[native.ISAS[code]] + (", exact" if options.exact else "")
        return cls(config, int(handle), packer.held, label, place)

    @property
    def scratch_bytes(self) -> int:
        """Memory for intermediate results, allocated once."""
        return int(native.ops().model_scratch_bytes(self._handle))

    def new_cache(self, context: int, kind: str = "fp16") -> NativeModelCache:
        return NativeModelCache(self.config, context, kind)

    def forward(
        self,
        ids: Tensor | Sequence[int],
        cache: Cache,
        *,
        all_logits: bool = False,
        cancel: CancelToken | None = None,
    ) -> Tensor:
        own = self._checked(cache)
        vocab = self.config.vocab_size
        # Without torch where it is not needed: every call into it gives the interpreter lock away.
        if isinstance(ids, Tensor) or not ids or min(ids) < 0 or max(ids) >= vocab:
            ids = check_ids(ids, vocab).tolist()
        count = len(ids)
        check_room(count, own.length, own.capacity)
        cos, sin = own.rope_rows(own.length + count)
        logits = torch.empty((count, vocab) if all_logits else (vocab,))
        flag = 0 if cancel is None else cancel.address
        end = self._step(self._handle, ids, own.length, *own.tensors, cos, sin, logits, all_logits, flag)
        if end <= 0:
            raise self._stopped(end)
        own.length += count
        return logits

    def write(
        self,
        token: int,
        cache: Cache,
        choice: Choice,
        *,
        stop_ids: Collection[int],
        seconds: float,
        cancel: CancelToken | None = None,
    ) -> Passage:
        own = self._checked(cache)
        check_ids([token], self.config.vocab_size)
        check_room(1, own.length, own.capacity)
        count = min(choice.count, own.capacity - own.length)
        cos, sin = own.rope_rows(own.length + count)
        logits = torch.empty(self.config.vocab_size)
        tokens = torch.empty(count, dtype=torch.int64)
        vocab = min(choice.vocab, self.config.vocab_size)
        history = (choice.seen, choice.counts, choice.distinct, choice.uses_history)
        steps = self._write(
            *(self._handle, token, own.length, *own.tensors, cos, sin, logits, vocab, *history, choice.settings),
            *(choice.uniforms, choice.used, list(stop_ids), seconds, 0 if cancel is None else cancel.address, tokens),
        )
        if steps <= 0:
            raise self._stopped(steps)
        own.length += steps
        chosen: list[int] = tokens[:steps].tolist()
        return Passage(chosen, None) if chosen[-1] >= 0 else Passage(chosen[:-1], logits)

    def _checked(self, cache: Cache) -> NativeModelCache:
        """The cache, if it is one of ours and the model is there."""
        if not isinstance(cache, NativeModelCache):
            raise ShapeError("the cache was made by another model: new_cache() makes one that fits")
        if not self._free.alive:
            raise ExtensionError("the model was closed")
        return cache

    def _stopped(self, end: int) -> CancelledError | CheckpointError:
        """Why a step was not run to its end. end: 0, or -errno of a row of the embedding that could not be read."""
        return CancelledError() if end == 0 or self.place is None else self.place.error(-end)

    def close(self) -> None:
        self._free()


class _Packer:
    """Reads, repacks and releases; `held` counts the bytes that stay."""

    def __init__(self, source: TensorSource, exact: bool, threads: int, isa: Isa) -> None:
        self.source = source
        self.settings: dict[str, Any] = {
            "exact": exact,
            "threads": threads,
            "isa": isa,
            "room": WeightRoom(WEIGHT_PIECE),
        }
        self.held = 0

    def embedding(self, config: ModelConfig) -> Tensor:
        """(V, C), as it is."""
        matrix = read_matrix(self.source, EMBEDDING, config.vocab_size, config.hidden_size).contiguous()
        self.source.release(EMBEDDING)
        self.held += matrix.nbytes
        return matrix

    def layer(self, config: ModelConfig, layer: int) -> list[Tensor]:
        """The eleven tensors of a layer as csrc/bindings_model_cpu.cpp lists them."""
        norms = [self.norm(name, *shape) for name, shape in layer_norms(config, layer).items()]
        none = torch.empty(0)
        q_norm, k_norm = norms[1:-1] or (none, none)
        q, k, v, o, gate, up, down = (self.linear(spec) for spec in layer_linears(config, layer))
        return [norms[0], q, k, v, o, q_norm, k_norm, norms[-1], gate, up, down]

    def norm(self, name: str, heads: int, size: int) -> Tensor:
        """A norm's weight as float32, (size,) or expanded to (heads, size)."""
        stored = read_norm(self.source, name, heads, size)
        shape = (heads, size) if heads > 1 else stored.shape
        weight = stored.to(torch.float32, copy=True).expand(shape).contiguous()
        self.source.release(name)
        self.held += weight.nbytes
        return weight

    def linear(self, spec: LinearSpec) -> Tensor:
        packed = pack_linear(read_linear(self.source, spec), **self.settings)
        release_linear(self.source, spec)
        self.held += packed.nbytes
        return packed.blob
