"""Decode and prompt speed of the CUDA backend on this GPU, with random weights made on the device.

Prints, per shape and width: decode at depth 0 and, with each kind of cache, 2048 (CUDA graph alone, with the host, and
with the host in passages), the share of the read bandwidth measured in the same run, and prompts of 2048 tokens.

    python benchmarks/gpu_decode.py            # all shapes
    python benchmarks/gpu_decode.py 7B:4 8B:4  # some: shape and bits per weight
"""

from __future__ import annotations

import statistics
import struct
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.cuda.cache import CudaCache
from exl2_tui.core.model.cuda.decoder import CudaLayer, Decoder
from exl2_tui.core.model.cuda.linear import CudaLinear, cut_segments, empty_linear, inverse_of
from exl2_tui.core.model.cuda.model import CudaModel
from exl2_tui.core.model.footprint import CACHE_KINDS, cache_bytes
from exl2_tui.core.requests import SamplerSettings

GPU = torch.device("cuda:0")
SHAPES = {  # hidden, ffn, layers, heads, kv heads, vocabulary, head_dim
    "1.1B": (2048, 5632, 22, 32, 4, 32000, 64),
    "7B": (4096, 11008, 32, 32, 32, 32000, 128),
    "8B": (4096, 14336, 32, 32, 8, 128256, 128),
    "34B": (8192, 22016, 48, 64, 8, 32000, 128),
}
DEFAULT = ["1.1B:4", "7B:4", "7B:2", "7B:3", "7B:5", "7B:16", "8B:4", "34B:4"]
GROUP_ROWS = 128
DEPTH = 2048
REPEATS = 50
PASSAGE = 60  # tokens, fewer than a sampler draws random numbers for at once


def random_linear(rows: int, columns: int, bits: int, order: tuple[Tensor, Tensor] | None) -> CudaLinear:
    """Random codes behind valid headers. order: inverse and perm."""
    blocks, most = rows // 32, GROUP_ROWS // 32
    widths = [(bits, min(most, blocks - first)) for first in range(0, blocks, most)]
    kind = "float" if bits == 16 else "exl2"
    inverse, perm = (None, None) if order is None or bits == 16 else order
    linear = empty_linear(kind, widths, columns, GPU, inverse, perm)
    strips = linear.codes.view(linear.strips, -1)
    if bits == 16:
        strips.view(torch.float16).normal_(0, 0.02)
    else:
        strips.random_(0, 256)
    headers = bytearray()
    for part in cut_segments(widths):
        kind = 2 if bits == 16 else 0
        headers += struct.pack("<I4B4e", part.first_block, part.bits, part.blocks, kind, part.group_blocks, *[2e-5] * 4)
    places = torch.tensor(linear.starts[:-1], device=GPU)[:, None] + torch.arange(16, device=GPU)
    strips[:, places.flatten()] = torch.frombuffer(headers, dtype=torch.uint8).to(GPU)
    return linear


def random_order(rows: int) -> tuple[Tensor, Tensor]:
    perm = torch.randperm(rows, device=GPU)
    return inverse_of(perm), perm.to(torch.int32)


def random_model(shape: str, bits: int) -> CudaModel:
    hidden, ffn, layers, heads, kv_heads, vocabulary, dim = SHAPES[shape]
    config = ModelConfig.from_dict(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": dim,
            "vocab_size": vocabulary,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
        }
    )

    def norm() -> Tensor:
        return torch.ones(hidden, dtype=torch.float16, device=GPU)

    def layer() -> CudaLayer:
        first, second, third, fourth = (random_order(rows) for rows in (hidden, hidden, heads * dim, ffn))
        q = random_linear(hidden, heads * dim, bits, first)
        k, v = (random_linear(hidden, kv_heads * dim, bits, first) for _ in range(2))
        o = random_linear(heads * dim, hidden, bits, third)
        gate, up = (random_linear(hidden, ffn, bits, second) for _ in range(2))
        return CudaLayer(q, k, v, o, gate, up, random_linear(ffn, hidden, bits, fourth), norm(), norm(), None, None)

    embedding = torch.randn(vocabulary, hidden, device=GPU).mul_(0.02).half()
    head = random_linear(hidden, vocabulary, 16 if bits == 16 else 6, None)
    return CudaModel(config, embedding, [layer() for _ in range(layers)], norm(), head)


def milliseconds(work: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        work.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / REPEATS


def seconds(work: Callable[[], None]) -> float:
    """Per call, what the host does included."""
    work()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - began) / REPEATS


def read_bandwidth() -> float:
    """Bytes per second of adding up 4 GiB."""
    data = torch.ones(1 << 30, device=GPU)
    data.sum()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(5):
        data.sum()
    end.record()
    torch.cuda.synchronize()
    return 5 * data.nbytes / float(start.elapsed_time(end)) * 1e3


def measure(shape: str, bits: int, bandwidth: float) -> None:
    model = random_model(shape, bits)
    weights = model.weight_bytes - model.embedding.nbytes
    for kind in CACHE_KINDS["cuda"]:
        measure_cache(
            f"{shape:>5} {bits:2d} bits, {kind:>4} cache", model, model.new_cache(4096, kind), weights, bandwidth
        )


def measure_cache(what: str, model: CudaModel, cache: CudaCache, weights: int, bandwidth: float) -> None:
    ids = torch.randint(5, 30000, (DEPTH,))
    for repeat in range(4):
        if repeat == 1:
            began = time.perf_counter()
        cache.length = 0
        model.forward(ids, cache)
    print(f"{what}, prompt of {DEPTH}: {3 * DEPTH / (time.perf_counter() - began):6.0f} t/s")
    for depth in (0, DEPTH) if cache.kind == "fp16" else (DEPTH,):

        def step(depth: int = depth) -> None:
            cache.length = depth
            model.forward([5], cache)

        whole = seconds(step)
        moved = weights + cache_bytes(model.config, depth, cache.kind)
        start = f"{what}, depth {depth:4d}:"
        if not isinstance(model._decoder, Decoder):
            share = moved / whole / bandwidth
            print(f"{start} {1 / whole:5.0f} t/s layer by layer, {share:4.0%} of the bandwidth with the host")
            continue
        graph, chosen = milliseconds(model._decoder.graphs[1]), written(model, cache, depth)
        print(
            f"{start} {graph:.3f} ms = {1e3 / graph:5.0f} t/s "
            f"({1 / whole:5.0f} with the host token by token, {1 / chosen:5.0f} in passages), "
            f"{moved / graph * 1e3 / bandwidth:4.0%} of the bandwidth"
        )


def written(model: CudaModel, cache: CudaCache, depth: int) -> float:
    """Seconds per token of a greedy passage: for other choices, few logits of random weights are often too close."""
    sampler = Sampler(SamplerSettings.greedy(), model.config.vocab_size)
    times = []
    for _ in range(4):
        cache.length = depth
        choice = sampler.ahead(sampler.history([5]), PASSAGE)
        assert choice is not None
        began = time.perf_counter()
        tokens = model.write(5, cache, choice, stop_ids=(), seconds=100).tokens
        times.append((time.perf_counter() - began) / max(1, len(tokens)))
    return statistics.median(times)


def main() -> None:
    library.require()
    bandwidth = read_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, read bandwidth {bandwidth / 1e9:.0f} GB/s")
    for name in sys.argv[1:] or DEFAULT:
        shape, _, bits = name.partition(":")
        measure(shape, int(bits), bandwidth)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
