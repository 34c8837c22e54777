"""Bit streams against the spec's words and against a packer that works bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gptq_writer import pack_stream

from exl2_tui.core.errors import DtypeError, ShapeError
from exl2_tui.core.formats.packing import CODE_BITS, pack_columns, pack_rows, unpack_columns, unpack_rows, word_rows

SPEC_WORDS = {
    2: "1b1b1b1b 1b1b1b1b",
    3: "53977053 70539770 97705397",
    4: "4d6f81a3 c5e7092b 4d6f81a3 c5e7092b",
    5: "4dfc4543 78245ba3 0753617d 4b276cf4 e55c7066",
    6: "9f611283 90bbd2d9 b2579740 8f201eb3 9cab91d5 71538703",
    8: "18110a03 342d261f 5049423b 6c655e57 88817a73 a49d968f c0b9b2ab dcd5cec7",
}


@pytest.mark.parametrize("bits", CODE_BITS)
def test_words_of_the_spec(bits: int) -> None:
    codes = ((7 * torch.arange(32) + 3) % 2**bits).to(torch.uint8)[:, None]
    words = pack_rows(codes, bits)
    assert " ".join(f"{word & 0xFFFFFFFF:08x}" for word in words[:, 0].tolist()) == SPEC_WORDS[bits]
    assert torch.equal(unpack_rows(words, bits, 32), codes)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(CODE_BITS),
    blocks=st.integers(0, 5),
    columns=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_to_a_bit_by_bit_packer(bits: int, blocks: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (32 * blocks, columns), dtype=np.uint8)
    packed = pack_rows(torch.from_numpy(codes), bits)
    assert np.array_equal(packed.numpy().view(np.uint32), pack_stream(codes, bits))
    assert np.array_equal(unpack_rows(packed, bits, 32 * blocks).numpy(), codes)
    along = pack_columns(torch.from_numpy(codes.T.copy()), bits)
    assert np.array_equal(along.numpy(), packed.numpy().T)
    assert np.array_equal(unpack_columns(along, bits, 32 * blocks).numpy(), codes.T)


def test_words_of_any_stride() -> None:
    codes = torch.randint(0, 8, (64, 40), dtype=torch.uint8)
    words = pack_rows(codes, 3)
    assert torch.equal(unpack_rows(words[:, 3:17], 3, 64), codes[:, 3:17])
    assert torch.equal(unpack_rows(words[3:], 3, 32), codes[32:])
    assert torch.equal(unpack_rows(words[:, ::2], 3, 64), codes[:, ::2])


def test_half_repeats_where_the_width_allows_them() -> None:
    assert [word_rows(16, bits) for bits in (2, 4, 6, 8)] == [1, 2, 3, 4]
    codes = torch.randint(0, 64, (16, 3), dtype=torch.uint8)
    assert torch.equal(unpack_rows(pack_rows(codes, 6), 6, 16), codes)
    for bits, rows in ((3, 16), (5, 31), (2, 8), (4, 4), (8, 3)):
        with pytest.raises(ShapeError, match="whole words"):
            word_rows(rows, bits)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="code 4 does not fit into 2 bits"):
        pack_rows(torch.full((16, 1), 4, dtype=torch.uint8), 2)
    with pytest.raises(DtypeError):
        pack_rows(torch.zeros(32, 1, dtype=torch.int64), 2)
    with pytest.raises(DtypeError):
        unpack_rows(torch.zeros(2, 1, dtype=torch.int64), 2, 32)
    with pytest.raises(ShapeError, match="need 4 word rows, found 5"):
        unpack_rows(torch.zeros(5, 1, dtype=torch.int32), 4, 32)
    with pytest.raises(ShapeError, match="7 bits"):
        word_rows(32, 7)
