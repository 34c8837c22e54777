"""Parts of the CUDA backend besides the whole model: split decoders, the best logits, the quantizer. Needs a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.gpu_models import NEEDS_STEP
from support.models import random_config, write_random_exl2_model

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.cuda.cache import CudaCache, decode, encode
from exl2_tui.core.model.cuda.decoder import Decoder, DecoderChain
from exl2_tui.core.model.cuda.model import CudaModel
from exl2_tui.core.model.cuda.prompt import in_order, normalize, rope_and_append, silu_times
from exl2_tui.core.model.rope import RopeTable
from exl2_tui.core.quant import kernels

REASON = library.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
GPU = torch.device("cuda:0")


def load(path: Path, devices: list[torch.device] | torch.device = GPU) -> CudaModel:
    with Checkpoint.open(path) as checkpoint:
        return CudaModel.load(checkpoint, ModelConfig.from_dir(path), devices)


@NEEDS_STEP
def test_decoders_of_half_the_layers_each_give_the_same_bits(tmp_path: Path) -> None:
    model = load(write_random_exl2_model(tmp_path, num_hidden_layers=4))
    caches = [model.new_cache(64), model.new_cache(64)]
    whole = Decoder(model.config, model.embedding, model.layers, model.final_norm, model.head, caches[0])
    first = Decoder(model.config, model.embedding, model.layers[:3], None, None, caches[1])
    second = Decoder(model.config, None, model.layers[3:], model.final_norm, model.head, caches[1], first=3)
    parts = DecoderChain([first, second])
    for count in (1, 8, 3, 1):
        ids = torch.randint(0, model.config.vocab_size, (count,))
        assert torch.equal(whole.step(ids).cpu(), parts.step(ids))
        for cache in caches:
            cache.length += count


def test_layers_on_two_gpus(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one GPU")
    path = write_random_exl2_model(tmp_path, num_hidden_layers=4)
    with Checkpoint.open(path) as checkpoint:
        reference = CausalLM.load(checkpoint, ModelConfig.from_dir(path))
    for places in ([GPU] * 2 + [torch.device("cuda:1")] * 2, [torch.device("cuda:1")] * 4):
        model = load(path, places)
        caches = reference.new_cache(96, "fp32"), model.new_cache(96)
        for count in (40, 1, 8, 1):
            ids = torch.randint(0, model.config.vocab_size, (count,))
            wanted = reference.forward(ids, caches[0], all_logits=True)
            found = model.forward(ids, caches[1], all_logits=True)
            assert ((found - wanted).norm() / wanted.norm()).item() < 3e-3


@pytest.mark.parametrize("vocab", [1, 100, 32000, 128256])
@pytest.mark.parametrize("kind", ["random", "few values", "not numbers", "equal", "in few shares"])
def test_the_best_logits_in_order(vocab: int, kind: str) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    if kind == "few values":
        logits = logits.round()
    elif kind == "not numbers":
        logits[::7], logits[1::11], logits[2::13] = float("nan"), float("inf"), float("-inf")
    elif kind == "equal":
        logits.zero_()
    elif kind == "in few shares":  # of the kernel's threads: more than it can collect
        logits[::1024] += 100
    values, ids = torch.sort(logits, descending=True, stable=True)  # NaN first
    for count in (1, 17, 200, 1024):
        count = min(count, vocab)
        found_ids = torch.empty(count, dtype=torch.int64).pin_memory()
        found = torch.empty(count).pin_memory()
        torch.ops.exl2_cuda.top_logits(logits.cuda(), found_ids, found)
        torch.cuda.synchronize()
        assert torch.equal(found_ids, ids[:count])
        assert torch.equal(found.nan_to_num(nan=7e7), values[:count].nan_to_num(nan=7e7))


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rope_dim"), [(32, 8, 128, 128), (4, 4, 64, 32), (3, 1, 16, 16)])
def test_prompt_kernels_give_what_torch_gives(heads: int, kv_heads: int, dim: int, rope_dim: int) -> None:
    config = ModelConfig.from_dict(
        random_config(num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)
    )
    q, k, v = (torch.randn(300, count, dim).half() for count in (heads, kv_heads, kv_heads))
    angles = torch.randn(300, rope_dim // 2) * 100
    rope = RopeTable(angles.cos(), angles.sin())
    caches = CudaCache(config, 512), CudaCache(config, 512, "fp16", GPU)
    for cache in caches:
        cache.length = 100
        for tensor in (*cache.keys, *cache.values):
            tensor.fill_(77)
    found = rope_and_append(0, q.to(GPU), k.to(GPU), v.to(GPU), rope.to(GPU), caches[1])
    for ours, wanted in zip(found, rope_and_append(0, q, k, v, rope, caches[0]), strict=True):
        assert torch.equal(ours.cpu(), wanted)
    assert torch.equal(caches[1].keys[0].cpu(), caches[0].keys[0])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [16, 32, 64, 96, 128, 256])
def test_keys_and_values_are_coded_as_in_torch(dim: int, bits: int) -> None:
    rows = torch.randn(3, 77, dim) * torch.logspace(-6, 5, 77)[:, None]  # too large for half, and too small
    rows[:, 7], rows[..., 3] = 0, rows[..., 3] * 20
    rows = rows.clamp(-6e4, 6e4).half()
    codes, units = encode(rows, bits)
    found_codes = torch.full((3, 100, codes.shape[-1]), 0x77, dtype=torch.uint8, device=GPU)
    found_units = torch.full((3, 100, units.shape[-1]), 77.0, dtype=torch.float16, device=GPU)
    torch.ops.exl2_cuda.cache_write(rows.to(GPU), found_codes, found_units, 11)
    for found, wanted in ((found_codes, codes), (found_units, units)):
        assert (found[:, :11] == found[0, 0, 0]).all() and (found[:, 88:] == found[0, 0, 0]).all()
        assert torch.equal(found[:, 11:88].cpu(), wanted)
    read = torch.full((3, 77, dim), float("nan"), dtype=torch.float16, device=GPU)
    torch.ops.exl2_cuda.cache_read(found_codes[:, 11:].contiguous(), found_units[:, 11:].contiguous(), read, 0)
    wanted = decode(codes, units, dim).clamp(-65504, 65504).half()
    assert torch.equal(read.cpu(), wanted)


@pytest.mark.parametrize(("size", "width"), [(96, 96), (52, 64), (4096, 4096), (28672, 28672)])
@pytest.mark.parametrize("permuted", [False, True])
def test_rows_are_normalized_and_put_into_order_as_torch_does(size: int, width: int, permuted: bool) -> None:
    if permuted and size < width:
        pytest.skip("rows in another order are not padded")
    perm = torch.randperm(size).to(torch.int32) if permuted else None
    moved = None if perm is None else perm.to(GPU)
    gate, up = (torch.randn(2, 33, size) * 4).half()
    found = silu_times(gate.to(GPU), up.to(GPU), moved, width).cpu().float()
    assert torch.allclose(found, silu_times(gate.clone(), up, perm, width).float(), rtol=2e-3, atol=1e-6)
    assert torch.equal(in_order(gate.to(GPU), moved, width).cpu(), in_order(gate, perm, width))
    weight = torch.randn(size).half()
    for delta in (None, up):
        x = torch.randn(33, size)
        on_gpu = x.to(GPU)
        added = None if delta is None else delta.to(GPU)
        found = normalize(on_gpu, added, weight.to(GPU), 1e-5, moved, width).cpu().float()
        assert torch.allclose(found, normalize(x, delta, weight, 1e-5, perm, width).float(), rtol=2e-3, atol=1e-4)
        assert torch.equal(on_gpu.cpu(), x)


@pytest.mark.parametrize(("rows", "columns", "bits"), [(32, 64, 2), (128, 4099, 4), (128, 1, 8)])
def test_the_quantizer_rounds_as_on_the_cpu(rows: int, columns: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    base, reference = torch.randn(2, rows, columns, generator=generator)
    coupling = torch.randn(rows, rows, generator=generator) * 0.05
    pivots = torch.rand(rows, generator=generator) + 0.5
    steps = (torch.rand(columns, generator=generator) * 0.2 + 0.01).half().float()
    for given in (None, reference):
        wanted = kernels.sequential_round(base, given, coupling, pivots, steps, bits)
        moved = None if given is None else given.to(GPU)
        inputs = [tensor.to(GPU) for tensor in (coupling, pivots, steps)]
        found = kernels.sequential_round(base.to(GPU), moved, *inputs, bits)
        for ours, cpus in zip(found, wanted, strict=True):
            assert torch.equal(ours.cpu(), cpus)


def test_the_quantizer_searches_as_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    group, weights = torch.randn(128, 777, generator=generator) * 0.1, torch.rand(128, generator=generator)
    maxima = torch.tensor([0.5, 0.003, 1e-4]).half()
    middles = torch.randint(0, 16, (3, 777), generator=generator, dtype=torch.uint8)
    wanted, costs = kernels.search_codes(group, weights, maxima, middles, 4, (-2, -1, 0, 1, 2))
    moved = [tensor.to(GPU) for tensor in (group, weights, maxima, middles)]
    found, totals = kernels.search_codes(*moved, 4, (-2, -1, 0, 1, 2))  # type: ignore[call-arg, arg-type]
    assert (found.cpu() == wanted).double().mean() > 0.99
    assert torch.allclose(totals.cpu(), costs, rtol=1e-5)
