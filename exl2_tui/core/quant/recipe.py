"""Recipes: how one linear layer spends its bits, and the candidates the classic converter tries.

A recipe knows nothing of weights or files; with a shape it says which row groups there are and what they cost.
Source: spec/quantizer.md sections 5.4 and 6, spec/exl2-format.md sections 10 and 11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exl2_tui.core.errors import QuantizationError

WIDTHS = (8, 6, 5, 4, 3, 2)
"""Bits a code may have, in the order in which groups must lie in a file."""


@dataclass(frozen=True, slots=True)
class QParams:
    """One recipe: row sections of falling width, each with its share of the rows and its group size.

    bits (J,), bits_prop (J,) summing to 1, group_size (J,) in rows, a multiple of 32.
    """

    bits: tuple[int, ...]
    bits_prop: tuple[float, ...]
    group_size: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.bits or not len(self.bits) == len(self.bits_prop) == len(self.group_size):
            raise QuantizationError(f"a recipe needs as many widths as proportions and group sizes, found {self}")
        if list(self.bits) != sorted(set(self.bits), reverse=True) or not set(self.bits) <= set(WIDTHS):
            raise QuantizationError(f"recipe widths must fall and be among 8, 6, 5, 4, 3, 2, found {self.bits}")
        if any(size <= 0 or size % 32 for size in self.group_size):
            raise QuantizationError(f"group sizes must be multiples of 32, found {self.group_size}")
        if any(not 0.0 < share <= 1.0 for share in self.bits_prop) or abs(sum(self.bits_prop) - 1.0) > 1e-3:
            raise QuantizationError(f"recipe proportions must be positive and sum to 1, found {self.bits_prop}")

    def groups(self, rows: int) -> tuple[tuple[int, int], ...]:
        """(bits, rows) of every group of a matrix with `rows` input features, most bits first.

        Sections are rounded up to whole groups; the last group is cut where the rows run out.
        """
        if rows <= 0 or rows % 32:
            raise QuantizationError(
                f"EXL2 stores input features in multiples of 32, found {rows}",
                hint="Keep this model in its original precision.",
            )
        groups: list[tuple[int, int]] = []
        left = rows
        for bits, share, size in zip(self.bits, self.bits_prop, self.group_size, strict=True):
            for _ in range(math.ceil(min(rows * share, left) / size)):
                groups.append((bits, min(size, left)))
                left -= groups[-1][1]
        return tuple(groups)

    def total_bits(self, rows: int, columns: int) -> int:
        """Stored bits of a (rows, columns) matrix with scales, groups and permutation (exl2-format.md section 11)."""
        groups = self.groups(rows)
        codes = sum(bits * count for bits, count in groups) * columns
        return codes + len(groups) * (16 + 32 + 4 * columns) + 32 * rows

    def bpw(self, rows: int, columns: int) -> float:
        return self.total_bits(rows, columns) / (rows * columns)

    def describe(self) -> str:
        """Such as "0.1:4b_128g/0.9:3b_128g s4"."""
        sections = zip(self.bits_prop, self.bits, self.group_size, strict=True)
        return "/".join(f"{share:g}:{bits}b_{size}g" for share, bits, size in sections) + " s4"

    def to_json(self) -> dict[str, Any]:
        """The object that measurement.json stores per linear."""
        return {
            "group_size": {str(bits): size for bits, size in zip(self.bits, self.group_size, strict=True)},
            "bits": list(self.bits),
            "bits_prop": list(self.bits_prop),
            "scale_bits": 4,
        }

    @classmethod
    def from_json(cls, data: object) -> QParams:
        """Reads `to_json` and the reference converter's objects. Raises QuantizationError for anything else."""
        if not isinstance(data, Mapping):
            raise QuantizationError(f"a recipe must be an object, found {type(data).__name__}")
        bits, shares, sizes = data.get("bits"), data.get("bits_prop"), data.get("group_size")
        if not isinstance(bits, list) or not isinstance(shares, list) or data.get("scale_bits", 4) != 4:
            raise QuantizationError("a recipe needs lists bits and bits_prop and 4 scale_bits")
        if isinstance(sizes, int):
            sizes = {str(width): sizes for width in bits}
        if not isinstance(sizes, Mapping):
            raise QuantizationError("a recipe needs an object group_size")
        try:
            return cls(
                tuple(int(width) for width in bits),
                tuple(float(share) for share in shares),
                tuple(int(sizes[str(width)]) for width in bits),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise QuantizationError(f"a recipe is malformed: {error!r}") from error


def mix(size: int | tuple[int, ...], *bits: int, high: tuple[float, ...] = ()) -> QParams:
    """Shorthand: sections of `bits`, all but the last with the shares `high`, one group size or one per section."""
    sizes = (size,) * len(bits) if isinstance(size, int) else size
    return QParams(bits, (*high, round(1.0 - sum(high), 6)), sizes)


def head_recipe(bits: int) -> QParams:
    """The fixed recipe of the output head for `-hb bits`."""
    table = {
        2: mix(32, 4, 2, high=(0.3,)),
        3: mix(32, 4, 3, high=(0.15,)),
        4: mix(32, 6, 4, high=(0.15,)),
        5: mix(128, 6, 5, high=(0.15,)),
        6: mix(128, 8, 6, high=(0.15,)),
        8: mix(128, 8),
    }
    if bits not in table:
        raise QuantizationError(f"head bits are {bits}, but must be one of {', '.join(map(str, table))}")
    return table[bits]


# The classic candidates: one row per option, one recipe per linear (spec/quantizer.md section 6).
_A3_05 = mix(64, 3, 2, high=(0.05,))
_A3_10 = mix(64, 3, 2, high=(0.1,))
_A3_25 = mix(64, 3, 2, high=(0.25,))
_A3_30 = mix(64, 3, 2, high=(0.3,))


def _tenth(size: int, high: int, low: int) -> QParams:
    return mix(size, high, low, high=(0.1,))


def _quarter(size: int, high: int, low: int) -> QParams:
    return mix(size, high, low, high=(0.25,))


_ATTENTION_QKO_V: tuple[tuple[QParams, QParams], ...] = (
    (_A3_05, _A3_05),
    (_A3_10, _A3_25),
    (_A3_10, _tenth(128, 4, 3)),
    (_A3_10, _tenth(128, 4, 3)),  # o takes v's recipe in this row, see below
    (_tenth(128, 4, 3), _tenth(128, 4, 3)),
    (_tenth(128, 4, 3), _tenth(64, 4, 3)),
    (mix(128, 4), mix(128, 4)),
    (mix(128, 4), mix(64, 4)),
    (mix(64, 4), mix(32, 4)),
    (mix(32, 4), mix(32, 4)),
    (_tenth(128, 5, 4), _tenth(64, 5, 4)),
    (_tenth(64, 5, 4), _tenth(32, 5, 4)),
    (_tenth(64, 5, 4), mix(64, 5)),
    (_tenth(32, 5, 4), mix(32, 5)),
    (_tenth(128, 6, 5), mix(128, 6)),
    (_tenth(32, 6, 5), mix(32, 6)),
    (mix(128, 6), mix(128, 6)),
    (mix(32, 6), mix(32, 8)),
    (mix(128, 8), mix(128, 8)),
)

_DOWN_2 = mix((32, 64, 64), 6, 3, 2, high=(0.05, 0.2))

_MLP_GATE_UP_DOWN: tuple[tuple[QParams, QParams, QParams], ...] = (
    (_A3_05, _A3_05, _DOWN_2),
    (_A3_10, _A3_25, _DOWN_2),
    (_A3_10, _A3_30, mix(32, 5, 3, high=(0.05,))),
    (_A3_10, _A3_30, mix(32, 5, 4, high=(0.05,))),
    (_tenth(128, 4, 3), _quarter(128, 4, 3), mix((32, 128, 128), 8, 4, 3, high=(0.05, 0.1))),
    (_tenth(32, 4, 3), _quarter(32, 4, 3), mix(32, 8, 4, 3, high=(0.05, 0.1))),
    (_tenth(32, 4, 3), _quarter(32, 4, 3), mix((32, 128), 8, 4, high=(0.05,))),
    (mix(128, 4), mix(32, 4), mix((32, 128), 8, 4, high=(0.05,))),
    (mix(32, 4), mix(32, 4), mix(32, 8, 4, high=(0.05,))),
    (_tenth(128, 5, 4), _quarter(128, 5, 4), mix((32, 128, 128), 8, 5, 4, high=(0.05, 0.1))),
    (_tenth(32, 5, 4), _quarter(32, 5, 4), mix(32, 8, 5, 4, high=(0.05, 0.1))),
    (_tenth(128, 6, 5), _quarter(128, 6, 5), mix((32, 128, 128), 8, 6, 5, high=(0.05, 0.1))),
    (_tenth(32, 6, 5), _quarter(32, 6, 5), mix(32, 8, 6, 5, high=(0.05, 0.1))),
    (mix(128, 6), mix(128, 6), mix((32, 128), 8, 6, high=(0.05,))),
    (_tenth(128, 8, 6), _tenth(128, 8, 6), mix(128, 8, 6, high=(0.15,))),
    (_tenth(128, 8, 6), _tenth(128, 8, 6), mix(128, 8)),
    (mix(128, 8), mix(128, 8), mix(128, 8)),
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def classic_attention_options() -> tuple[dict[str, QParams], ...]:
    """The 19 options of an attention block: recipe per linear name."""
    options = [{"q_proj": qko, "k_proj": qko, "v_proj": v, "o_proj": qko} for qko, v in _ATTENTION_QKO_V]
    options[3]["o_proj"] = options[3]["v_proj"]
    return tuple(options)


def classic_mlp_options(*, gated: bool = True) -> tuple[dict[str, QParams], ...]:
    """The 17 options of an MLP block: recipe per linear name; MLPs without a gate have none for it."""
    options = [dict(zip(MLP, recipes, strict=True)) for recipes in _MLP_GATE_UP_DOWN]
    if not gated:
        for option in options:
            del option["gate_proj"]
    return tuple(options)
