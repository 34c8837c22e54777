"""Decoding layer by layer, as on Turing, whatever the GPU: the product of few rows, and whole models. Needs a GPU.

Compiled with -gencode arch=compute_75,code=sm_90 the library has Turing's code for a GPU that can be had; then all
models go layer by layer, also those of test_cuda_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.gptq_writer import quantize_linear, write_gptq_model
from support.gpu_models import RERUNS, RoundedCache, assert_agree, load_both
from support.models import write_random_exl2_model, write_random_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from exl2_tui.core.formats import DenseWeight, Exl2Weight, GptqWeight, LinearWeight
from exl2_tui.core.generation.sampler import Sampler
from exl2_tui.core.model.cuda import library
from exl2_tui.core.model.cuda import model as cuda_model
from exl2_tui.core.model.cuda.linear import CudaLinear, pack_linear
from exl2_tui.core.model.footprint import CACHE_BITS
from exl2_tui.core.requests import SamplerSettings

REASON = library.unavailable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")]
GPU = torch.device("cuda:0")
GUARD = 333  # numbers around a result that must stay what they are


@pytest.fixture
def layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel for the step, and the only attention kernel that torch has for Turing."""
    attend = cuda_model._attend_by_group

    def attend_as_on_turing(*arguments: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return attend(*arguments)

    monkeypatch.setattr(cuda_model, "has_step", lambda _: False)
    monkeypatch.setattr(cuda_model, "_attend_by_group", attend_as_on_turing)


def exl2(groups: Sequence[tuple[int, int]], columns: int, permuted: bool, bias: bool) -> Exl2Weight:
    """groups: bits and rows. Every code and scale is as likely as any other."""
    generator = torch.Generator().manual_seed(columns)
    features = sum(rows for _, rows in groups)
    codes = [torch.randint(0, 1 << bits, (rows, columns), generator=generator) for bits, rows in groups]
    return Exl2Weight.from_codes(
        torch.cat(codes).byte(),
        torch.randint(0, 16, (len(groups), columns), generator=generator).byte(),
        (torch.rand(len(groups), generator=generator) * 0.01 + 1e-3).half(),
        groups,
        torch.randperm(features, generator=generator) if permuted else torch.arange(features),
        torch.randn(columns, generator=generator).half() if bias else None,
    )


def gptq(bits: int, sym: bool, desc_act: bool, group_size: int, features: int, columns: int) -> GptqWeight:
    source = np.random.default_rng(bits).normal(0, 0.05, (columns, features)).astype(np.float32)
    stored, _ = quantize_linear(source, bits=bits, group_size=group_size, desc_act=desc_act, sym=sym, v2=True)
    names = ("qweight", "qzeros", "scales", "g_idx")
    tensors = {name: torch.from_numpy(stored[name]) for name in names}
    return GptqWeight(**tensors, bias=torch.randn(columns).half(), bits=bits, group_size=group_size, v2=True)


def exact(weight: LinearWeight) -> Tensor:
    """(K, N) float64 in packed order, codes times scales without any rounding."""
    if isinstance(weight, Exl2Weight):
        codes = [weight.codes(group).double() - (1 << (group.bits - 1)) for group in weight.groups]
        return (torch.cat(codes) * weight.scale_steps().double()[weight.row_groups()])[:, : weight.out_features]
    if isinstance(weight, GptqWeight):
        groups = weight.row_groups
        matrix = (weight.codes().double() - weight.zeros.double()[groups]) * weight.scales.double()[groups]
        return matrix if weight.perm is None else matrix[weight.perm]
    return weight.weight.double().t()


def assert_products(weight: LinearWeight) -> None:
    """Of 1 to 8 rows: both dtypes, nothing written besides, the same bits again."""
    packed = pack_linear(weight, GPU)
    matrix = exact(weight).to(GPU)
    bias = 0 if weight.bias is None else weight.bias.to(GPU).double()
    generator = torch.Generator().manual_seed(1)
    for count in range(1, 9):
        x = torch.randn(count, len(matrix), generator=generator).half().to(GPU)
        rows = torch.nn.functional.pad(x, (0, packed.in_features - len(matrix)))
        found = checked_product(packed, rows, torch.float32)
        wanted, scale = x.double() @ matrix + bias, x.double().abs() @ matrix.abs() + 1
        assert ((found - wanted).abs() / scale).max().item() < 2e-6  # float sums; a code that is off by one: 1e-4
        assert torch.equal(checked_product(packed, rows, torch.float16), found.half())


def checked_product(packed: CudaLinear, rows: Tensor, dtype: torch.dtype) -> Tensor:
    size = len(rows) * packed.out_features
    results = []
    for _ in range(2):
        around = torch.full((size + 2 * GUARD,), torch.nan, dtype=dtype, device=GPU)
        out = around[GUARD : GUARD + size].view(len(rows), packed.out_features)
        torch.ops.exl2_cuda.plain_product(packed.plan_tensor, rows, out)
        assert around[:GUARD].isnan().all() and around[GUARD + size :].isnan().all()
        results.append(out)
    assert torch.equal(*results)
    return results[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("rows", [32, 96, 128])  # of a group: segments of 1 to 4 blocks
def test_products_of_every_width(bits: int, rows: int) -> None:
    columns = {32: 32, 96: 200, 128: 1000}[rows]
    assert_products(exl2([(bits, rows)] * 20, columns, rows == 96, rows == 128))


@pytest.mark.parametrize("permuted", [False, True])
def test_products_of_mixed_widths(permuted: bool) -> None:
    groups = [(8, 64), (6, 128), (6, 32), (5, 128), (4, 128), (4, 128), (3, 96), (2, 128), (2, 32)]
    assert_products(exl2(groups, 136, permuted, permuted))
    assert_products(exl2(groups[:1], 40, permuted, not permuted))  # fewer segments than warps


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize(("bits", "sym"), [(2, False), (3, True), (4, True), (4, False), (8, False)])
def test_products_of_gptq(bits: int, sym: bool, desc_act: bool) -> None:
    assert_products(gptq(bits, sym, desc_act, 32, 352, 96))
    assert_products(gptq(bits, sym, desc_act, 128, 2560, 32))


@pytest.mark.parametrize(("features", "columns"), [(32, 1), (40, 72), (4160, 33), (100, 300)])
def test_products_of_dense_weights(features: int, columns: int) -> None:
    weight = torch.randn(columns, features, generator=torch.Generator().manual_seed(features)).half()
    assert_products(DenseWeight(weight, torch.randn(columns).half() if columns > 50 else None))


def test_a_product_takes_no_more_rows_than_it_says() -> None:
    packed = pack_linear(exl2([(4, 32)], 32, False, False), GPU)
    for count, width in ((0, 32), (9, 32), (4, 16)):
        with pytest.raises(RuntimeError):
            packed.multiply(torch.zeros(count, width, dtype=torch.float16, device=GPU), torch.float32)


@pytest.mark.parametrize("widths", [(2,), (4,), (8, 6, 5, 4, 3, 2)])
def test_exl2_models(layer_by_layer: None, tmp_path: Path, widths: tuple[int, ...]) -> None:
    assert_agree(write_random_exl2_model(tmp_path, widths=widths))


@pytest.mark.parametrize("desc_act", [False, True])
def test_gptq_models(layer_by_layer: None, tmp_path: Path, desc_act: bool) -> None:
    source = write_random_model(tmp_path / "float", hidden_size=128, intermediate_size=256)
    write_gptq_model(source, tmp_path / "gptq", bits=4, group_size=32, desc_act=desc_act, sym=False)
    assert_agree(tmp_path / "gptq")


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("LlamaForCausalLM", {"hidden_size": 40, "intermediate_size": 72}),
        ("LlamaForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}),
        ("LlamaForCausalLM", {"num_attention_heads": 20, "num_key_value_heads": 2, "head_dim": 64}),
        ("LlamaForCausalLM", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 96}),
        ("LlamaForCausalLM", {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 16}),
        ("Qwen2ForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}),
        ("Qwen3ForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}),
        ("MistralForCausalLM", {"sliding_window": 24}),
    ],
)
def test_shapes_and_architectures(
    layer_by_layer: None, tmp_path: Path, architecture: str, overrides: dict[str, Any]
) -> None:
    assert_agree(write_random_model(tmp_path, architecture, **overrides))


# Tolerances: see test_cuda_model.py.
@pytest.mark.parametrize(("kind", "tolerance"), [("q8", 6e-3), ("q6", 5e-2), ("q4", 5e-2)])
def test_coded_caches(layer_by_layer: None, tmp_path: Path, kind: str, tolerance: float) -> None:
    path = write_random_model(tmp_path, num_attention_heads=8, num_key_value_heads=2, head_dim=64)
    reference, model = load_both(path)
    caches = RoundedCache(reference.config, 200, CACHE_BITS[kind]), model.new_cache(200, kind)
    generator = torch.Generator().manual_seed(1)
    for count in (1, 3, 40, 1, 8, 100, 1, 5):
        ids = torch.randint(0, reference.config.vocab_size, (count,), generator=generator)
        wanted = reference.forward(ids, caches[0], all_logits=True)
        found = model.forward(ids, caches[1], all_logits=True)
        assert ((found - wanted).norm() / wanted.norm()).item() < tolerance


def test_greedy_texts_have_the_same_bits_every_time(layer_by_layer: None, tmp_path: Path) -> None:
    _, model = load_both(write_random_exl2_model(tmp_path))
    assert model.kernels.startswith("CUDA, layer by layer (")
    cache, runs = model.new_cache(200), []
    for _ in range(min(RERUNS, 100)):
        cache.truncate(0)
        token, logits = 7, []
        for _ in range(30):
            logits.append(model.forward([token], cache))
            token = int(logits[-1].argmax())
        runs.append(torch.stack(logits))
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_passage_is_one_token_and_its_logits(layer_by_layer: None, tmp_path: Path) -> None:
    _, model = load_both(write_random_exl2_model(tmp_path))
    cache, sampler = model.new_cache(50), Sampler(SamplerSettings.greedy(), 256)
    choice = sampler.ahead(sampler.history([5]), 10)
    assert choice is not None
    passage = model.write(6, cache, choice, stop_ids=(), seconds=1)
    assert passage.tokens == [] and passage.logits is not None and cache.length == 1
    cache.truncate(0)
    assert torch.equal(model.forward([6], cache), passage.logits)
