"""measurement.json: what measuring found, in the reference converter's schema with our extra fields beside it.

Source: spec/quantizer.md section 4. Files of the reference and of earlier releases of this program are read alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.quant.recipe import ATTENTION, MLP, QParams

MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class MeasuredOption:
    """One choice for a half: recipe per linear, stored bits of all of them, and the error it brings.

    error: relative error of the half's output (classic), or the root of the KL divergence predicted for it (refined).
    """

    recipes: Mapping[str, QParams]
    total_bits: int
    error: float


@dataclass(frozen=True, slots=True)
class MeasuredLinear:
    """One choice for a single linear: its recipe, stored bits and the KL divergence per token that is predicted."""

    params: QParams
    total_bits: int
    kl: float


@dataclass(slots=True)
class Measurement:
    """halves: options by key such as model.layers.0.self_attn. linears: the default recipe's table, by full name."""

    halves: dict[str, list[MeasuredOption]] = field(default_factory=dict)
    linears: dict[str, list[MeasuredLinear]] = field(default_factory=dict)

    def to_json(self, layers: int) -> dict[str, Any]:
        """With the entries that the reference expects for norm and head."""
        listed: dict[str, Any] = {}
        order = [f"model.layers.{layer}.{half}" for layer in range(layers) for half in ("self_attn", "mlp")]
        for key, options in sorted(self.halves.items(), key=lambda item: order.index(item[0])):
            listed[key] = [
                {
                    "accuracy": max(1e-6, 1.0 - option.error),
                    "total_bits": option.total_bits,
                    **{short: recipe.to_json() for short, recipe in option.recipes.items()},
                    "error": option.error,
                }
                for option in options
            ]
        listed["model.norm.norm"] = None
        listed["lm_head.linear"] = None
        linears = {
            name: [{**option.params.to_json(), "total_bits": option.total_bits, "kl": option.kl} for option in options]
            for name, options in self.linears.items()
        }
        return {"measurement": listed, "last_module_idx": 2 * layers + 2, "linears": linears}

    @classmethod
    def from_json(cls, data: object, file: Path | None = None) -> Measurement:
        """Raises QuantizationError for anything that is not such a file."""
        listed = data.get("measurement") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(listed, Mapping):
            raise QuantizationError(
                'expected an object "measurement" of options per block', file=file, hint="Measure this model again."
            )
        found = cls()
        for key, options in listed.items():
            if isinstance(options, list):
                found.halves[str(key)] = [_option(str(key), option, file) for option in options]
        extra = data.get("linears", {})
        if not isinstance(extra, Mapping):
            raise QuantizationError("linears is no object", file=file)
        for name, options in extra.items():
            if not isinstance(options, list) or not options:
                raise QuantizationError(f"the options of {name} are no list", file=file)
            found.linears[str(name)] = [_linear(str(name), option, file) for option in options]
        return found

    @classmethod
    def read(cls, file: Path) -> Measurement:
        """Raises QuantizationError if the file is missing, too large or malformed."""
        try:
            if file.stat().st_size > MAX_BYTES:
                raise QuantizationError(f"the measurement has more than {MAX_BYTES} bytes", file=file)
            data = json.loads(file.read_bytes())
        except OSError as error:
            raise QuantizationError(f"the measurement cannot be read ({error.strerror})", file=file) from None
        except (ValueError, RecursionError) as error:
            raise QuantizationError(f"the measurement is not valid JSON ({error})", file=file) from None
        return cls.from_json(data, file)

    def require_halves(self, layers: int, file: Path | None = None) -> None:
        """Raises QuantizationError unless every half of a model with so many layers was measured."""
        expected = [f"model.layers.{layer}.{half}" for layer in range(layers) for half in ("self_attn", "mlp")]
        missing = [key for key in expected if not self.halves.get(key)]
        if missing or len(self.halves) != len(expected):
            what = f"{missing[0]} is missing" if missing else f"it has {len(self.halves)} entries, not {len(expected)}"
            raise QuantizationError(
                f"the measurement belongs to another model: {what}", file=file, hint="Measure this model again."
            )


def _option(key: str, data: object, file: Path | None) -> MeasuredOption:
    names = ATTENTION if key.endswith("self_attn") else MLP
    if not isinstance(data, Mapping):
        raise QuantizationError(f"an option of {key} is no object", file=file)
    accuracy, bits = data.get("accuracy"), data.get("total_bits")
    if not isinstance(accuracy, int | float) or not math.isfinite(accuracy) or not isinstance(bits, int) or bits <= 0:
        raise QuantizationError(f"an option of {key} has no accuracy or total_bits", file=file)
    error = data.get("error", 1.0 - accuracy)
    if not isinstance(error, int | float) or not math.isfinite(error):
        raise QuantizationError(f"an option of {key} has the error {error!r}", file=file)
    return MeasuredOption({name: QParams.from_json(data.get(name)) for name in names}, bits, max(0.0, float(error)))


def _linear(name: str, data: object, file: Path | None) -> MeasuredLinear:
    bits = data.get("total_bits") if isinstance(data, Mapping) else None
    kl = data.get("kl") if isinstance(data, Mapping) else None
    if not isinstance(kl, int | float) or not math.isfinite(kl) or kl < 0 or not isinstance(bits, int) or bits <= 0:
        raise QuantizationError(f"an option of {name} has no total_bits or kl", file=file)
    return MeasuredLinear(QParams.from_json(data), bits, float(kl))
