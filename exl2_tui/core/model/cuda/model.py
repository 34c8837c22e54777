"""A model on one or several GPUs. Decoding replays CUDA graphs of csrc/cuda; prompts go layer by layer.

Up to MAX_STEP tokens at once are a step; more are a prompt: each linear is decoded to fp16 once per chunk of tokens and
multiplied by cuBLAS. Where the step's kernel cannot run (library.has_step), steps go layer by layer too. Products of up
to MOST_ROWS rows take the packed weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import MemoryLimitError, UnsupportedError
from exl2_tui.core.model.attention import attention_mask
from exl2_tui.core.model.cache import check_room
from exl2_tui.core.model.causal_lm import check_ids
from exl2_tui.core.model.cuda.cache import CudaCache
from exl2_tui.core.model.cuda.decoder import MAX_STEP, MOST_BEST, CudaLayer, Decoder, DecoderChain
from exl2_tui.core.model.cuda.library import has_step, require
from exl2_tui.core.model.cuda.linear import MOST_ROWS, CudaLinear, pack_linear
from exl2_tui.core.model.cuda.prompt import in_order, normalize, rope_and_append, silu_times
from exl2_tui.core.model.layout import EMBEDDING, FINAL_NORM, LinearSpec, head_linear, layer_linears, layer_norms
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.passage import Choice, Passage
from exl2_tui.core.model.protocol import Cache
from exl2_tui.core.model.rope import RopeTable
from exl2_tui.core.model.weights import TensorSource, read_linear, read_matrix, read_norm, release_linear

CHUNK = 2048
ALL_ROWS, LAST_ROW, NO_ROWS = slice(None), slice(-1, None), slice(0, 0)
HEAD_DIMS = (16, 32, 64, 96, 128, 256)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """torch's OutOfMemoryError as MemoryLimitError, with what torch had set aside given back to the GPU."""
    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise MemoryLimitError(
            f"there is not enough GPU memory for {what}",
            hint="Choose a smaller context or a model of fewer bits, close other programs, or use the device cpu.",
        ) from None


class CudaModel:
    """Implements protocol.LanguageModel. Where the tensors of a layer lie, the layer is computed."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: Sequence[CudaLayer],
        final_norm: Tensor,
        head: CudaLinear,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = list(layers)
        self.final_norm = final_norm
        self.head = head
        self.devices = [layer.attention_norm.device for layer in self.layers]
        self.has_step = all(has_step(device) for device in dict.fromkeys(self.devices))
        names = ", ".join(_gpu_name(device) for device in dict.fromkeys(self.devices))
        self.kernels = f"CUDA ({names})" if self.has_step else f"CUDA, layer by layer ({names})"
        linears = [linear for layer in self.layers for linear in layer.linears]
        largest = max(linear.out_features * linear.in_features for linear in linears)
        self._workspaces = {
            device: torch.empty(largest, dtype=torch.float16, device=device) for device in dict.fromkeys(self.devices)
        }
        self._decoder: Decoder | DecoderChain | None = None

    @classmethod
    @memory_errors("this model")
    def load(
        cls, source: TensorSource, config: ModelConfig, device: torch.device | Sequence[torch.device]
    ) -> CudaModel:
        """Reads and packs every tensor, for one device or one per layer (neighbours together, with their numbers).

        Raises ExtensionError without a GPU, UnsupportedError for a shape, MemoryLimitError where it does not fit.
        """
        devices = [device] * config.num_hidden_layers if isinstance(device, torch.device) else list(device)
        for used in dict.fromkeys(devices):
            require(used)
        if config.head_dim not in HEAD_DIMS:
            raise UnsupportedError(f"a head_dim of {config.head_dim} cannot run on the GPU", hint="Use the device cpu.")

        if config.hidden_size % 4:
            raise UnsupportedError(
                f"a hidden size of {config.hidden_size} cannot run on the GPU: it is no multiple of 4",
                hint="Use the device cpu.",
            )

        def half(tensor: Tensor, place: torch.device) -> Tensor:
            return tensor.to(device=place, dtype=torch.float16).contiguous()

        def norm(name: str, heads: int, size: int, place: torch.device) -> Tensor:
            weight = half(read_norm(source, name, heads, size), place)
            source.release(name)
            return weight

        def linear(spec: LinearSpec, place: torch.device) -> CudaLinear:
            packed = pack_linear(read_linear(source, spec), place)
            release_linear(source, spec)
            return packed

        embedding = half(read_matrix(source, EMBEDDING, config.vocab_size, config.hidden_size), devices[0])
        layers = []
        for index, place in enumerate(devices):
            norms = [norm(name, *shape, place) for name, shape in layer_norms(config, index).items()]
            q_norm, k_norm = norms[1:-1] or (None, None)
            linears = _share_permutations([linear(spec, place) for spec in layer_linears(config, index)])
            q, k, v, o, gate, up, down = linears
            layers.append(CudaLayer(q, k, v, o, gate, up, down, norms[0], norms[-1], q_norm, k_norm))
        final_norm = norm(FINAL_NORM, 1, config.hidden_size, devices[-1])
        head = linear(head_linear(config), devices[-1])
        source.release(EMBEDDING)
        return cls(config, embedding, layers, final_norm, head)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def weight_bytes(self) -> int:
        linears = sum(linear.nbytes for layer in self.layers for linear in layer.linears)
        return self.embedding.nbytes + linears + self.head.nbytes

    def new_cache(self, context: int, kind: str = "fp16") -> CudaCache:
        cache = CudaCache(self.config, context, kind, self.devices)
        self._decoder = None
        return cache

    @torch.no_grad()
    @memory_errors("running this model")
    def forward(
        self,
        ids: Tensor | Sequence[int],
        cache: Cache,
        *,
        all_logits: bool = False,
        cancel: CancelToken | None = None,
    ) -> Tensor:
        assert isinstance(cache, CudaCache)
        tokens = check_ids(ids, self.config.vocab_size)
        check_room(len(tokens), cache.length, cache.capacity)
        if self.has_step and len(tokens) <= MAX_STEP:
            logits = self._step(tokens, cache)
            return (logits if all_logits else logits[-1]).cpu()
        start = cache.length
        rows = []
        try:
            for chunk in torch.split(tokens, CHUNK):
                is_last = cache.length + len(chunk) == start + len(tokens)
                wanted = ALL_ROWS if all_logits else LAST_ROW if is_last else NO_ROWS
                hidden = self._prompt(chunk, cache, wanted, cancel)
                cache.length += len(chunk)
                if len(hidden):
                    rows.append(self._logits(hidden).cpu())
        except BaseException:
            cache.length = start
            raise
        return torch.cat(rows) if all_logits else rows[0][0]

    @torch.no_grad()
    @memory_errors("running this model")
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
        """Implements passage.WritesPassages.

        Where few logits do not tell the next token, layers lie on several GPUs or are run one by one: one step, and all
        of its logits.
        """
        assert isinstance(cache, CudaCache)
        decoder = self._decoder_of(cache) if self.has_step else None
        if not 0 < choice.preselection <= MOST_BEST or not isinstance(decoder, Decoder):
            return Passage([], self.forward([token], cache, cancel=cancel))
        check_ids([token], self.config.vocab_size)
        check_room(1, cache.length, cache.capacity)
        return decoder.write(token, choice, stop_ids=stop_ids, seconds=seconds, cancel=cancel)

    def close(self) -> None:
        self._decoder = None
        self.layers = []
        self.embedding = self.embedding.new_empty(0, 0)
        self._workspaces = {}
        torch.cuda.empty_cache()

    def _step(self, tokens: Tensor, cache: CudaCache) -> Tensor:
        """tokens (T,), T <= MAX_STEP -> logits (T, V) on the GPU until the next step."""
        logits = self._decoder_of(cache).step(tokens)
        cache.length += len(tokens)
        return logits

    def _decoder_of(self, cache: CudaCache) -> Decoder | DecoderChain:
        if self._decoder is None or self._decoder.cache is not cache:
            self._decoder = self._new_decoder(cache)
        return self._decoder

    def _new_decoder(self, cache: CudaCache) -> Decoder | DecoderChain:
        config, parts = self.config, []
        for _, group in groupby(enumerate(self.devices), key=lambda item: item[1]):
            first, *_ = indices = [index for index, _ in group]
            is_last = indices[-1] == len(self.layers) - 1
            norm, head = (self.final_norm, self.head) if is_last else (None, None)
            layers = [self.layers[index] for index in indices]
            parts.append(Decoder(config, None if first else self.embedding, layers, norm, head, cache, first))
        return parts[0] if len(parts) == 1 else DecoderChain(parts)

    def _prompt(self, tokens: Tensor, cache: CudaCache, wanted: slice, cancel: CancelToken | None) -> Tensor:
        """tokens (T,) -> hidden states before the final norm of the rows `wanted`, (?, C) float32.

        Fills the cache behind its length. Behind the last layer's cache only the rows that are wanted go on.
        """
        x = functional.embedding(tokens.to(self.device), self.embedding).float()
        delta: Tensor | None = None  # what is to be added to the residual
        for index, (layer, device) in enumerate(zip(self.layers, self.devices, strict=True)):
            if cancel is not None:
                cancel.check()
            if x.device != device:
                x, delta = x.to(device), None if delta is None else delta.to(device)
            rows = wanted if index == len(self.layers) - 1 else ALL_ROWS
            x, delta = self._layer(index, layer, x, delta, rows, cache.rope(device, cache.length, len(tokens)), cache)
        return x if delta is None else x + delta

    def _layer(
        self,
        index: int,
        layer: CudaLayer,
        x: Tensor,
        delta: Tensor | None,
        wanted: slice,
        rope: RopeTable,
        cache: CudaCache,
    ) -> tuple[Tensor, Tensor | None]:
        """x (T, C) float32 += delta and what the attention gives.

        Returns x and what the MLP gives, (?, C) float16, of the rows `wanted`, which may be none.
        """
        q, k, v = self._normalized(x, delta, layer.attention_norm, layer.q, layer.k, layer.v)
        q, keys, values = self._append(index, layer, q, k, v, rope, cache)
        first, x = range(len(x))[wanted].start, x[wanted]
        if not len(x):
            return x, None
        attended = self._attend(q[wanted], keys, values, cache.length + first, self.config.window(index))
        delta = self._multiply(in_order(attended, layer.o.perm, layer.o.in_features), layer.o)
        gate, up = self._normalized(x, delta, layer.mlp_norm, layer.gate, layer.up)
        return x, self._multiply(silu_times(gate, up, layer.down.perm, layer.down.in_features), layer.down)

    def _append(
        self, index: int, layer: CudaLayer, q: Tensor, k: Tensor, v: Tensor, rope: RopeTable, cache: CudaCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (T, H D), k and v (T, G D) float16, as the linears give them -> q (T, H, D) with its rope, and all keys and
        values, (G, S, D), to which those of k and v were appended."""
        config, count = self.config, len(q)
        q, k, v = (y.view(count, -1, config.head_dim) for y in (q, k, v))
        if layer.q_norm is not None and layer.k_norm is not None:
            q = RMSNorm(layer.q_norm, config.rms_norm_eps).forward(q)
            k = RMSNorm(layer.k_norm, config.rms_norm_eps).forward(k)
        return rope_and_append(index, q, k, v, rope, cache)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None) -> Tensor:
        """q (T, H, D) of the tokens `start` ..., keys and values (G, S, D) of 0 ... start + T - 1 -> (T, H D)."""
        count = len(q)
        is_causal = start == 0 and (window is None or count <= window)
        mask = None if is_causal else attention_mask(start, count, window, q.device)
        if not self.has_step:
            return _attend_by_group(q, keys, values, mask, is_causal)
        mixed = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, is_causal=is_causal, enable_gqa=True
        )
        return mixed[0].transpose(0, 1).flatten(1)

    def _normalized(self, x: Tensor, delta: Tensor | None, norm: Tensor, *linears: CudaLinear) -> list[Tensor]:
        """x += delta; the linears of its RMSNorm, (T, N) float16. Those that share an order of rows share the input."""
        results: list[Tensor] = []
        rows: Tensor | None = None
        for index, linear in enumerate(linears):
            if rows is None or linear.perm is not linears[index - 1].perm:
                rows = normalize(x, delta, norm, self.config.rms_norm_eps, linear.perm, linear.in_features)
                delta = None
            results.append(self._multiply(rows, linear))
        return results

    def _multiply(self, rows: Tensor, linear: CudaLinear) -> Tensor:
        """rows (T, K) float16 in packed order -> (T, N) float16."""
        if len(rows) <= MOST_ROWS:
            return linear.multiply(rows, torch.float16)
        return functional.linear(rows, linear.dequantize(self._workspaces[rows.device]), linear.bias)

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden (T, C) -> (T, V) float32."""
        head, eps = self.head, self.config.rms_norm_eps
        rows = normalize(hidden, None, self.final_norm, eps, head.perm, head.in_features)
        if len(rows) <= MOST_ROWS:
            return head.multiply(rows, torch.float32)
        size = head.out_features * head.in_features
        if self._workspaces[hidden.device].numel() < size:
            self._workspaces[hidden.device] = head.codes.new_empty(size, dtype=torch.float16)
        return self._multiply(rows, head).float()


def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _attend_by_group(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """q (T, H, D), keys and values (G, S, D) -> (T, H D), with the heads that share keys as the batch.

    torch has no kernel for Turing that knows of shared keys: told of them, it would decode all scores to float32.
    """
    tokens, heads, dim = q.shape
    groups = len(keys)
    queries = q.view(tokens, groups, heads // groups, dim).permute(1, 2, 0, 3)
    keys, values = (part[:, None].expand(-1, heads // groups, -1, -1) for part in (keys, values))
    mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=is_causal)
    return mixed.permute(2, 0, 1, 3).reshape(tokens, heads * dim)


def _share_permutations(linears: list[CudaLinear]) -> list[CudaLinear]:
    """The same linears, with permutations that are equal stored once: equal pointers tell kernels to share inputs."""
    result: list[CudaLinear] = []
    for linear in linears:
        for other in result:
            if (
                linear.inverse is not None
                and other.inverse is not None
                and linear.inverse.shape == other.inverse.shape
                and torch.equal(linear.inverse, other.inverse)
            ):
                linear = replace(linear, inverse=other.inverse, perm=other.perm)
                break
        result.append(linear)
    return result
