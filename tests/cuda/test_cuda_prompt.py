"""The elementwise CUDA kernels of the prompt path (csrc/cuda/prompt_element.h), compiled for the CPU, against torch."""

from __future__ import annotations

import ctypes

import pytest
import torch
from support.compiled import compile_cpp
from support.models import random_config

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.cuda.cache import CudaCache
from exl2_tui.core.model.cuda.prompt import rope_and_append, silu_times
from exl2_tui.core.model.rope import RopeTable

SOURCE = r"""
#include "prompt_element.h"
using namespace exl2::cuda;
extern "C" uint16_t code_of(float value) { return half_code(value); }
extern "C" float value_of(uint16_t code) { return half_value(code); }
extern "C" void rope_all(uint16_t* q, const uint16_t* k, const uint16_t* v, const float* cosines, const float* sines,
                         uint16_t* keys, uint16_t* values, const int64_t* sizes) {
  const RopeTask task = {q, k, v, cosines, sines, keys, values,
                         sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  for (int64_t t = 0; t < task.tokens; ++t) {
    if (sizes[7] != 0 && task.in_fours()) {
      for (int32_t index = 0; index < task.pairs() / 4; ++index) rope_pairs<4>(task, t, index);
    } else {
      for (int32_t index = 0; index < task.pairs(); ++index) rope_pairs<1>(task, t, index);
    }
  }
}
extern "C" void silu_all(uint16_t* gate, const uint16_t* up, int64_t count) {
  for (int64_t index = 0; index < count; ++index) gate[index] = silu_times(gate[index], up[index]);
}
"""


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_cpp(tmp_path_factory.mktemp("prompt"), SOURCE)
    library.value_of.restype = ctypes.c_float
    library.code_of.restype = ctypes.c_uint16
    return library


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def test_halves_go_both_ways(prompt: ctypes.CDLL) -> None:
    codes = torch.cat((torch.arange(0, 0x7C01, 13), torch.tensor([0x7C00, 1, 0x3FF, 0x400, 0x7BFF])))
    for code in torch.cat((codes, codes + 0x8000)).tolist():
        expected = float(torch.tensor(code if code < 0x8000 else code - 0x10000, dtype=torch.int16).view(torch.float16))
        assert prompt.value_of(ctypes.c_uint16(code)) == expected
        assert prompt.code_of(ctypes.c_float(expected)) == code


@pytest.mark.parametrize("in_fours", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim", "rope_dim", "start"),
    [(5, 4, 2, 16, 16, 0), (3, 6, 1, 32, 16, 7), (1, 2, 2, 64, 64, 30), (9, 3, 3, 128, 96, 2)],
)
def test_rope_gives_the_bits_of_torch(
    prompt: ctypes.CDLL, tokens: int, heads: int, kv_heads: int, dim: int, rope_dim: int, start: int, in_fours: bool
) -> None:
    config = ModelConfig.from_dict(
        random_config(num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim)
    )
    generator = torch.Generator().manual_seed(dim)
    q, k, v = (
        torch.randn(tokens, count, dim, generator=generator).mul(8).half() for count in (heads, kv_heads, kv_heads)
    )
    angles = torch.randn(tokens, rope_dim // 2, generator=generator) * 100
    rope = RopeTable(angles.cos(), angles.sin())
    caches = [CudaCache(config, 40) for _ in range(2)]
    for cache in caches:
        cache.length = start
        for tensor in (*cache.keys, *cache.values):
            tensor.fill_(77)
    wanted, keys, values = rope_and_append(0, q.clone(), k, v, rope, caches[0])
    assert keys.shape == values.shape == (kv_heads, start + tokens, dim)
    sizes = torch.tensor([tokens, heads, kv_heads, dim, rope_dim, 40, start, in_fours])
    into = caches[1].keys[0], caches[1].values[0]
    prompt.rope_all(*map(pointer, (q, k, v, rope.cos, rope.sin, *into, sizes)))
    assert torch.equal(q, wanted)
    assert torch.equal(into[0], caches[0].keys[0]) and torch.equal(into[1], caches[0].values[0])


def test_silu_times_agrees_with_torch(prompt: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(2, 5000, generator=generator) * 6).half()
    found = gate.clone()
    prompt.silu_all(pointer(found), pointer(up), ctypes.c_int64(len(gate)))
    wanted = silu_times(gate.clone()[None], up[None], None, len(up))[0]
    assert torch.allclose(found.float(), wanted.float(), rtol=2e-3, atol=1e-6)
    assert (found == wanted).double().mean() > 0.98
