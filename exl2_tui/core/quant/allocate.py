"""Choosing one option per slot so that the bits meet a budget: a multiple-choice knapsack, solved exactly.

Slots are blocks (classic) or single linears (default recipe); what an option's error means is the caller's business.
States of a dynamic programme over the slots are pruned with the bound of the linear relaxation, which leaves few, since
that relaxation is off by less than one option of one slot. Pure Python: there are hundreds of slots, not millions.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exl2_tui.core.errors import QuantizationError

MAX_STATES = 20_000
"""States kept per slot. Beyond it the best by bound survive and the result may be off the optimum by a hair."""


@dataclass(frozen=True, slots=True)
class Option:
    """What one choice costs (stored bits) and the error it brings (any additive measure, >= 0)."""

    bits: int
    error: float


Slots = Sequence[Sequence[Option]]


@dataclass(frozen=True, slots=True)
class _Segment:
    """One step along a slot's lower convex hull: `bits` more bits take `gain` error away."""

    slope: float
    bits: int
    gain: float


class _Relaxation:
    """Lower bound of the error of slots from..end within a budget: the hull steps of all of them, steepest first."""

    def __init__(self, hulls: Sequence[list[Option]]) -> None:
        segments: list[_Segment] = []
        for hull in hulls:
            for left, right in itertools.pairwise(hull):
                bits, gain = right.bits - left.bits, left.error - right.error
                segments.append(_Segment(gain / bits, bits, gain))
        segments.sort(key=lambda segment: -segment.slope)
        self.least_bits = sum(hull[0].bits for hull in hulls)
        self.most_error = sum(hull[0].error for hull in hulls)
        self.slopes = [segment.slope for segment in segments]
        self.bits, self.gains = [0], [0.0]
        for segment in segments:
            self.bits.append(self.bits[-1] + segment.bits)
            self.gains.append(self.gains[-1] + segment.gain)

    def error(self, budget: int) -> float:
        """The bound, infinite if not even the cheapest options fit."""
        spare = budget - self.least_bits
        if spare < 0:
            return math.inf
        index = bisect.bisect_right(self.bits, spare) - 1
        gain = self.gains[index]
        if index < len(self.slopes):
            gain += (spare - self.bits[index]) * self.slopes[index]
        return self.most_error - gain


def lower_hull(options: Sequence[Option]) -> list[Option]:
    """Options on the lower convex hull of error over bits, cheapest first."""
    hull: list[Option] = []
    for option in sorted(set(options), key=lambda item: (item.bits, item.error)):
        if hull and option.error >= hull[-1].error:
            continue
        while len(hull) >= 2:
            first, second = hull[-2], hull[-1]
            if (first.error - second.error) * (option.bits - second.bits) > (second.error - option.error) * (
                second.bits - first.bits
            ):
                break
            hull.pop()
        hull.append(option)
    return hull


def _undominated(options: Sequence[Option]) -> list[int]:
    """Indices of options that no other beats in both bits and error, cheapest first."""
    kept: list[int] = []
    for index in sorted(range(len(options)), key=lambda i: (options[i].bits, options[i].error)):
        if not kept or options[index].error < options[kept[-1]].error:
            kept.append(index)
    return kept


def minimize_sum(slots: Slots, budget: int) -> tuple[int, ...]:
    """Indices of the options, one per slot, with the least total error within `budget` bits.

    Raises QuantizationError if the cheapest options together do not fit, or an error is not finite.
    """
    _validate(slots, budget)
    hulls = [lower_hull(options) for options in slots]
    choices = [_undominated(options) for options in slots]
    relaxations = [_Relaxation(hulls[start:]) for start in range(len(slots) + 1)]
    best = _round_down(slots, hulls, budget)
    best_error = sum(slots[i][choice].error for i, choice in enumerate(best)) * (1 + 1e-12)

    # A state is (bits, error, trail); trails are linked lists, so that a state costs the same at any depth.
    states: list[tuple[int, float, _Trail | None]] = [(0, 0.0, None)]
    for slot, options in enumerate(slots):
        relaxation = relaxations[slot + 1]
        grown: list[tuple[int, float, float, _Trail]] = []
        for bits, error, trail in states:
            for choice in choices[slot]:
                option = options[choice]
                total, sum_error = bits + option.bits, error + option.error
                bound = sum_error + relaxation.error(budget - total)
                if bound <= best_error:
                    grown.append((total, sum_error, bound, _Trail(choice, trail)))
        if len(grown) > MAX_STATES:
            grown = sorted(grown, key=lambda state: state[2])[:MAX_STATES]
        grown.sort(key=lambda state: (state[0], state[1]))
        states = []
        for total, sum_error, _, link in grown:
            if not states or sum_error < states[-1][1]:
                states.append((total, sum_error, link))
    if not states:
        return best
    return _unlink(min(states, key=lambda state: state[1])[2])


def minimize_largest(slots: Slots, budget: int) -> tuple[int, ...]:
    """The early release's rule: the lowest error threshold for which the cheapest options below it fit.

    What is left of the budget then goes to the slots with the largest errors.
    """
    _validate(slots, budget)
    thresholds = sorted({option.error for options in slots for option in options})
    low, high = 0, len(thresholds) - 1
    chosen = _cheapest_below(slots, thresholds[high])
    while low <= high:
        middle = (low + high) // 2
        candidate = _cheapest_below(slots, thresholds[middle])
        if candidate is not None and _bits(slots, candidate) <= budget:
            chosen, high = candidate, middle - 1
        else:
            low = middle + 1
    if chosen is None or _bits(slots, chosen) > budget:  # the most tolerant threshold is too expensive: cheapest of all
        chosen = [min(range(len(options)), key=lambda i: options[i].bits) for options in slots]
    return tuple(_spend(slots, chosen, budget, order="largest"))


def minimize_classic(slots: Slots, budget: int, *, steps: int = 21) -> tuple[int, ...]:
    """The classic objective, solved exactly instead of by annealing: sum of error^v for v from 1.5 to 3.5.

    Kept is the v whose solution has the smallest largest error. What is left of the budget is then spent by sweeping
    the slots in order, moving each to its next option while that fits.
    """
    _validate(slots, budget)
    best: tuple[float, float, tuple[int, ...]] | None = None
    for step in range(steps):
        power = 1.5 + 2.0 * step / (steps - 1)
        powered = [[Option(option.bits, option.error**power) for option in options] for options in slots]
        chosen = minimize_sum(powered, budget)
        errors = [slots[i][choice].error for i, choice in enumerate(chosen)]
        candidate = (max(errors), sum(errors), chosen)
        if best is None or candidate[:2] < best[:2]:
            best = candidate
    assert best is not None
    return tuple(_spend(slots, list(best[2]), budget, order="sweep"))


def _validate(slots: Slots, budget: int) -> None:
    for options in slots:
        if not options:
            raise QuantizationError("a layer has no candidate recipe")
        if any(not math.isfinite(option.error) or option.error < 0 for option in options):
            raise QuantizationError("a measured error is not a finite number", hint="Measure this model again.")
    least = sum(min(option.bits for option in options) for options in slots)
    if least > budget:
        raise QuantizationError(
            f"the smallest possible model needs {least} bits, the target allows {budget}",
            hint=f"Ask for at least {least / max(budget, 1):.3f} times the bits per weight.",
        )


def _bits(slots: Slots, chosen: Sequence[int]) -> int:
    return sum(slots[i][choice].bits for i, choice in enumerate(chosen))


def _cheapest_below(slots: Slots, threshold: float) -> list[int] | None:
    chosen: list[int] = []
    for options in slots:
        good = [i for i, option in enumerate(options) if option.error <= threshold]
        if not good:
            return None
        chosen.append(min(good, key=lambda i: (options[i].bits, options[i].error)))
    return chosen


def _round_down(slots: Slots, hulls: Sequence[list[Option]], budget: int) -> tuple[int, ...]:
    """A feasible start: hull steps, steepest first, as long as they fit."""
    position = [0] * len(slots)
    spare = budget - sum(hull[0].bits for hull in hulls)
    steps = [
        ((left.error - right.error) / (right.bits - left.bits), slot, index)
        for slot, hull in enumerate(hulls)
        for index, (left, right) in enumerate(itertools.pairwise(hull))
    ]
    for _, slot, index in sorted(steps, key=lambda step: -step[0]):
        cost = hulls[slot][index + 1].bits - hulls[slot][index].bits
        if position[slot] == index and cost <= spare:
            position[slot], spare = index + 1, spare - cost
    return tuple(list(options).index(hulls[slot][position[slot]]) for slot, options in enumerate(slots))


def _spend(slots: Slots, chosen: list[int], budget: int, *, order: str) -> list[int]:
    """Uses what is left of the budget: "sweep" in slot order, "largest" always at the slot with the largest error."""
    chosen = list(chosen)
    spare = budget - _bits(slots, chosen)
    moved = True
    while moved:
        moved = False
        queue = list(range(len(slots)))
        if order == "largest":
            queue = sorted(queue, key=lambda i: -slots[i][chosen[i]].error)
        for slot in queue:
            options, now = slots[slot], chosen[slot]
            better = [
                i
                for i, option in enumerate(options)
                if option.error < options[now].error and options[now].bits < option.bits <= options[now].bits + spare
            ]
            if better:
                step = min(better, key=lambda i: options[i].bits)
                spare -= options[step].bits - options[now].bits
                chosen[slot] = step
                moved = True
                if order == "largest":
                    break
    return chosen


class _Trail(NamedTuple):
    """The choice for a slot and, as a linked list, those for the slots before."""

    choice: int
    before: _Trail | None


def _unlink(trail: _Trail | None) -> tuple[int, ...]:
    chosen: list[int] = []
    while trail is not None:
        chosen.append(trail.choice)
        trail = trail.before
    return tuple(reversed(chosen))
