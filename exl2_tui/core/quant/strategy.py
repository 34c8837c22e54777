"""What every linear of the decoder gets: the allocation's result, and how each recipe arrives at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.model.layout import LinearSpec
from exl2_tui.core.quant.allocate import Option, minimize_classic, minimize_largest
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.recipe import QParams
from exl2_tui.core.requests import Allocation


@dataclass(frozen=True, slots=True)
class Strategy:
    """recipes by full name of the decoder's linears, in model order; head: that of the output head. bits: the target;
    reached_bpw: what the decoder's linears really cost."""

    bits: float
    reached_bpw: float
    predicted_error: float
    recipes: Mapping[str, QParams]
    head: QParams

    def to_json(self) -> dict[str, Any]:
        return {
            "bits": self.bits,
            "reached_bpw": self.reached_bpw,
            "predicted_error": self.predicted_error,
            "recipes": {name: recipe.to_json() for name, recipe in self.recipes.items()},
            "head": self.head.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Strategy:
        recipes = {name: QParams.from_json(recipe) for name, recipe in data["recipes"].items()}
        head = QParams.from_json(data["head"])
        return cls(data["bits"], data["reached_bpw"], data["predicted_error"], recipes, head)

    def layer(self, prefix: str) -> dict[str, QParams]:
        """Recipes by short name of the linears under `prefix`."""
        start = prefix + "."
        return {name[len(start) :]: recipe for name, recipe in self.recipes.items() if name.startswith(start)}


def budget_of(linears: list[LinearSpec], bits: float) -> int:
    """Stored bits that a target of `bits` per weight allows."""
    return int(bits * sum(spec.in_features * spec.out_features for spec in linears))


def reached(linears: list[LinearSpec], recipes: Mapping[str, QParams]) -> float:
    """Bits per weight that these recipes cost."""
    total = sum(recipes[spec.prefix].total_bits(spec.in_features, spec.out_features) for spec in linears)
    return total / sum(spec.in_features * spec.out_features for spec in linears)


def by_halves(
    measurement: Measurement, linears: list[LinearSpec], bits: float, allocation: Allocation, head: QParams
) -> Strategy:
    """One measured option per half, as the classic recipe allocates. Raises QuantizationError if bits are too few."""
    shapes = {spec.prefix: (spec.in_features, spec.out_features) for spec in linears}
    slots = []
    for key, options in measurement.halves.items():
        for option in options:
            cost = sum(recipe.total_bits(*shapes[f"{key}.{short}"]) for short, recipe in option.recipes.items())
            if cost != option.total_bits:
                raise QuantizationError(
                    f"the measurement belongs to another model: {key} has {option.total_bits} bits there, {cost} here",
                    hint="Measure this model again.",
                )
        slots.append([Option(option.total_bits, option.error) for option in options])
    check_reachable(slots, linears, bits)
    choose = minimize_largest if allocation == "largest" else minimize_classic
    chosen = choose(slots, budget_of(linears, bits))
    recipes: dict[str, QParams] = {}
    error = 0.0
    for (key, options), choice in zip(measurement.halves.items(), chosen, strict=True):
        recipes.update({f"{key}.{short}": recipe for short, recipe in options[choice].recipes.items()})
        error += options[choice].error
    return Strategy(bits, reached(linears, recipes), error, recipes, head)


def check_reachable(slots: list[list[Option]], linears: list[LinearSpec], bits: float) -> None:
    """Raises QuantizationError, naming the smallest target there is, if `bits` is below it."""
    least = sum(min(option.bits for option in options) for options in slots)
    weights = sum(spec.in_features * spec.out_features for spec in linears)
    if least > budget_of(linears, bits):
        raise QuantizationError(
            f"{bits:g} bits per weight are fewer than this model can have",
            hint=f"With scales and permutations its smallest size is {least / weights + 0.005:.2f} bits per weight.",
        )
