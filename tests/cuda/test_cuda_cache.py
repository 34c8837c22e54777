"""Codes of the GPU's cache, as the kernels and the torch beside them compute them (csrc/cuda/cache.cuh)."""

from __future__ import annotations

import pytest
import torch
from support.models import random_config

from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import ShapeError, UnsupportedError
from exl2_tui.core.model.cuda.cache import CudaCache, decode, encode, hadamard
from exl2_tui.core.model.footprint import CACHE_KINDS, cache_bytes
from exl2_tui.core.model.rope import rope_table


@pytest.mark.parametrize("dim", [16, 32])
def test_the_hadamard_matrix_is_orthonormal_and_its_own_inverse(dim: int) -> None:
    matrix = hadamard(torch.eye(dim))
    assert torch.allclose(matrix @ matrix.T, torch.eye(dim), atol=1e-6)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix.abs(), torch.full((dim, dim), dim**-0.5))


@pytest.mark.parametrize("dim", [16, 32, 64, 96, 128, 256])
@pytest.mark.parametrize(("bits", "step"), [(8, 1 / 127), (4, 16 / 120)])
def test_every_element_is_at_most_half_a_step_away(dim: int, bits: int, step: float) -> None:
    rows = torch.randn(2, 50, dim, generator=torch.Generator().manual_seed(dim)).half()
    codes, units = encode(rows, bits)
    assert codes.shape == (2, 50, dim * bits // 8) and units.shape == (2, 50, -(-dim // 32))
    turned, found = (hadamard(x.view(2, 50, -1, min(dim, 32))) for x in (rows.float(), decode(codes, units, dim)))
    assert ((found - turned).abs() / turned.abs().amax(-1, keepdim=True)).max() < 0.51 * step


def test_an_element_that_sticks_out_costs_the_others_little() -> None:
    rows = torch.randn(1, 200, 128, generator=torch.Generator().manual_seed(1))
    rows[..., 5] = 40
    found = decode(*encode(rows, 4), 128)
    plain = rows.view(1, 200, 4, 32)
    steps = plain.abs().amax(-1, keepdim=True) / 7.5
    without = ((plain / steps - 0.5).round() + 0.5) * steps
    others = torch.arange(128) != 5
    assert (found - rows)[..., others].norm() < 0.8 * (without.view_as(rows) - rows)[..., others].norm()


def test_zeros_stay_zeros() -> None:
    for bits in (8, 4):
        assert decode(*encode(torch.zeros(1, 3, 64), bits), 64).abs().max() == 0


@pytest.mark.parametrize("kind", CACHE_KINDS["cuda"])
def test_a_cache_gives_back_what_it_stored(kind: str) -> None:
    config = ModelConfig.from_dict(
        random_config(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    )
    cache = CudaCache(config, 20, kind)
    assert cache.nbytes == cache_bytes(config, 20, kind)
    generator = torch.Generator().manual_seed(0)
    stored = []
    for count in (5, 1, 9):
        rows = torch.randn(2, 2, count, 32, generator=generator).half()
        stored.append(rows)
        found = cache.append(1, *rows)
        cache.length += count
        for part, read in zip(torch.cat(stored, 2), found, strict=True):
            assert read.shape == part.shape
            assert ((read - part).norm() / part.norm()).item() <= {"fp16": 0, "q8": 0.006}.get(kind, 0.1)
    cache.truncate(5)
    assert torch.equal(cache.read(1, 5)[0], found[0][:, :5])
    with pytest.raises(ShapeError):
        cache.truncate(6)
    rope, wanted = cache.rope(torch.device("cpu"), 3, 4), rope_table(config, 20, 3, 4)
    assert torch.equal(rope.cos, wanted.cos) and torch.equal(rope.sin, wanted.sin)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="q8"):
        CudaCache(ModelConfig.from_dict(random_config()), 20, "q3")
