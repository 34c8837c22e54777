"""One decode step of up to 8 tokens: everything the kernel needs at fixed addresses, and its CUDA graphs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError
from exl2_tui.core.model.cuda.cache import CudaCache
from exl2_tui.core.model.cuda.linear import CudaLinear
from exl2_tui.core.model.passage import Choice, Passage

MAX_STEP = 8
MOST_BEST = 1024  # logits that cross to the CPU: csrc/cuda/kernels.h
MAIL_BYTES = 128  # struct Mail of csrc/cuda/mail.cuh
TURN = 5  # warps, from linear to linear of a phase
LONG_SEGMENT = 1300  # bytes; one feeder keeps up with these (csrc/cuda/feed.cuh)
MOST_HEADS = 8  # of a unit of attention: csrc/cuda/attention.cuh
MODEL_FORMAT = "<9q2d16Q6q"  # struct Model of csrc/cuda/plan.h
LAYER_FORMAT = "<4Q3q4Q"  # struct Layer


class CudaLayer(NamedTuple):
    """One transformer layer; the linears in the order of LayerLinear in csrc/cuda/plan.h."""

    q: CudaLinear
    k: CudaLinear
    v: CudaLinear
    o: CudaLinear
    gate: CudaLinear
    up: CudaLinear
    down: CudaLinear
    attention_norm: Tensor
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None

    @property
    def linears(self) -> tuple[CudaLinear, ...]:
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


class Decoder:
    """Belongs to one cache, whose length is read from device memory. One graph per number of tokens.

    first: the number of the first of `layers`, those on one GPU. embedding is None for layers after the first GPU's,
    final_norm and head are None for layers before the last GPU's: then hidden states go in, or come out.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor | None,
        layers: Sequence[CudaLayer],
        final_norm: Tensor | None,
        head: CudaLinear | None,
        cache: CudaCache,
        first: int = 0,
    ) -> None:
        device = layers[0].attention_norm.device
        self.cache = cache
        heads, dim = config.num_attention_heads, config.head_dim
        grid = torch.cuda.get_device_properties(device).multi_processor_count

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        def upload(plan: bytes) -> Tensor:
            return torch.frombuffer(bytearray(plan), dtype=torch.uint8).to(device)

        rope = cache.rope(device)
        linears = [linear for layer in layers for linear in layer.linears] + ([] if head is None else [head])
        self.state = zeros(1 + MAX_STEP, dtype=torch.int32)
        self.staging = torch.zeros(1 + MAX_STEP, dtype=torch.int32).pin_memory()
        self.mail = torch.zeros(MAIL_BYTES, dtype=torch.uint8).pin_memory()
        self.best_ids = torch.zeros(MOST_BEST, dtype=torch.int64).pin_memory()
        self.best_values = torch.zeros(MOST_BEST).pin_memory()
        self.residual = zeros(MAX_STEP, config.hidden_size)
        self.logits = zeros(MAX_STEP, 0 if head is None else config.vocab_size)
        self.buffers = (
            embedding,
            final_norm,
            rope.cos,
            rope.sin,
            self.state,
            self.residual,
            # Numbers that the kernel's blocks hand each other, each with a stamp (exchange.cuh).
            zeros(MAX_STEP, config.hidden_size),
            zeros(MAX_STEP, config.hidden_size),
            zeros(MAX_STEP, config.query_size + 2 * config.kv_size, 2),
            zeros(MAX_STEP, layers[0].o.in_features),
            zeros(MAX_STEP, layers[0].down.in_features),
            zeros(MOST_HEADS * grid, dim + 2, 2),
            self.logits,
            upload(_plan_linears(layers, head, grid)),
            upload(b"".join(_plan_layer(config, index, layer, cache) for index, layer in enumerate(layers, first))),
            zeros(2, 16, dtype=torch.int64),
        )
        plan = struct.pack(
            MODEL_FORMAT,
            len(layers),
            config.hidden_size,
            config.intermediate_size,
            heads,
            config.num_key_value_heads,
            dim,
            self.logits.shape[1],
            config.rope_dim,
            cache.capacity,
            config.rms_norm_eps,
            dim**-0.5,
            *(0 if tensor is None else tensor.data_ptr() for tensor in self.buffers),
            grid,
            max(linear.slot_bytes for linear in linears),
            max(linear.in_features for linear in linears),
            cache.key_bits,
            cache.value_bits,
            1 if _mean_segment(linears) >= LONG_SEGMENT else 2,
        )
        self.plan = torch.frombuffer(bytearray(plan), dtype=torch.uint8)
        self.gate_strips = max(layer.gate.strips for layer in layers)
        self.most = MAX_STEP  # tokens of one launch; the kernel may take fewer
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (T,) int64 on the CPU, T <= MAX_STEP -> logits (T, V) float32 on the GPU until the next step.

        Appends to the cache behind its length, which stays as it is.
        """
        rows: list[Tensor] = []
        done = 0
        while done < len(tokens):
            count = min(self.most, len(tokens) - done)
            self.staging[0] = self.cache.length + done
            self.staging[1 : 1 + count] = tokens[done : done + count]
            self.state.copy_(self.staging, non_blocking=True)
            if count not in self.graphs:
                taken = self._run(count)  # loads the kernels; a capture must not
                torch.cuda.synchronize(self.state.device)
                if taken < count:
                    self.most = taken
                    continue
                self.graphs[count] = self._capture(partial(self._run, count))
            self.graphs[count].replay()
            done += count
            if done == len(tokens) and not rows:
                return self.logits[:count]
            rows.append(self.logits[:count].clone())
            torch.cuda.synchronize(self.state.device)  # staging is written again
        return torch.cat(rows)

    def advance(self, tokens: Tensor, position: int, hidden: Tensor | None) -> int:
        """tokens (T,) at `position` through these layers alone; how many it can take: with fewer, nothing counts.

        hidden (T, C) float32: what comes in, on another GPU. What comes out: `residual`, or `logits` after the head.
        """
        count = len(tokens)
        self.staging[0] = position
        self.staging[1 : 1 + count] = tokens
        self.state.copy_(self.staging, non_blocking=True)
        if count not in self.graphs:
            taken = self._run(count)
            torch.cuda.synchronize(self.state.device)
            if taken < count:
                return taken
            self.graphs[count] = self._capture(partial(self._run, count))
        if hidden is not None:  # after the first run, which wrote to the residual
            self.residual[:count].copy_(hidden)
        self.graphs[count].replay()
        return count

    def write(
        self,
        token: int,
        choice: Choice,
        *,
        stop_ids: Collection[int],
        seconds: float,
        cancel: CancelToken | None = None,
    ) -> Passage:
        """As passage.WritesPassages, behind the cache's length, which then counts the steps; there is room for one.

        choice.preselection: 1 to MOST_BEST. One native call (csrc/cuda/passage.cu): while a step runs, the next lies on
        the GPU and waits for its token.
        """
        vocab = min(choice.vocab, self.logits.shape[1])
        best = min(choice.preselection, vocab)
        tokens = torch.empty(min(choice.count, self.cache.capacity - self.cache.length), dtype=torch.int64)
        steps = torch.ops.exl2_cuda.write_passage(
            *(self.plan, self.gate_strips, self.mail, self.best_ids[:best], self.best_values[:best], self.logits),
            *(token, self.cache.length, vocab, choice.seen, choice.counts, choice.distinct, choice.uses_history),
            *(choice.settings, choice.uniforms, choice.used, list(stop_ids), seconds),
            *(0 if cancel is None else cancel.address, tokens),
        )
        if not steps:
            raise CancelledError
        self.cache.length += steps
        chosen: list[int] = tokens[:steps].tolist()
        return Passage(chosen, None) if chosen[-1] >= 0 else Passage(chosen[:-1], self.logits[0].cpu())

    def _capture(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph, device = torch.cuda.CUDAGraph(), self.state.device
        # A stream of its own, since torch's default for captures belongs to the first device that captured.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch declares no types
        with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
            work()
        return graph

    def _run(self, count: int) -> int:
        return int(torch.ops.exl2_cuda.decode_step(self.plan, self.gate_strips, count, self.logits))


class DecoderChain:
    """The decoders of a model that is split over several GPUs, in the order of its layers. Steps as Decoder does."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self.decoders = list(decoders)
        self.cache = decoders[0].cache
        self.most = MAX_STEP

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (T,) int64 on the CPU, T <= MAX_STEP -> logits (T, V) float32 on the CPU."""
        rows: list[Tensor] = []
        while (done := sum(map(len, rows))) < len(tokens):
            part = tokens[done : done + self.most]
            taken = self._advance(part, self.cache.length + done)
            if taken < len(part):
                self.most = taken
                continue
            # Waits for all of them, as staging is written again.
            rows.append(self.decoders[-1].logits[: len(part)].to("cpu", copy=True))
        return torch.cat(rows)

    def _advance(self, tokens: Tensor, position: int) -> int:
        """The fewest tokens that any of them takes."""
        hidden = None
        for decoder in self.decoders:
            taken = decoder.advance(tokens, position, hidden)
            if taken < len(tokens):
                return taken
            hidden = decoder.residual[: len(tokens)]
        return len(tokens)


def _mean_segment(linears: Sequence[CudaLinear]) -> float:
    """Bytes that are copied at once, on average over a step."""
    segments = sum(linear.strips * (len(linear.starts) - 1) for linear in linears)
    return sum(linear.codes.nbytes for linear in linears) / segments


def _plan_linears(layers: Sequence[CudaLayer], head: CudaLinear | None, grid: int) -> bytes:
    """struct Linear of every linear. Strips are dealt to the CUDA blocks in turn, on and on from linear to linear.

    Gate and up start at the same block, so that the two halves of an MLP column meet. Which warp has more rows than
    others changes within a phase (q, k and v, gate and up), since its linears wait for each other only at the end.
    """
    plan = bytearray()
    offset = 0
    for layer in layers:
        for linear, place in zip(layer.linears, (0, 1, 2, 0, 0, 1, 0), strict=True):
            plan += linear.plan(offset, TURN * place)
            if linear is not layer.gate:
                offset = (offset + linear.strips) % grid
    return bytes(plan if head is None else plan + head.plan(offset))


def _plan_layer(config: ModelConfig, index: int, layer: CudaLayer, cache: CudaCache) -> bytes:
    """struct Layer of csrc/cuda/plan.h."""
    norms = (layer.attention_norm, layer.mlp_norm, layer.q_norm, layer.k_norm)
    strides = (config.head_dim if norm is not None and norm.dim() == 2 else 0 for norm in norms[2:])
    return struct.pack(
        LAYER_FORMAT,
        *(0 if norm is None else norm.data_ptr() for norm in norms),
        *strides,
        config.window(index) or 0,
        *(part[index].data_ptr() for part in (cache.keys, cache.values, cache.key_units, cache.value_units)),
    )
