from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path

import pytest

from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.quant.allocate import Option, minimize_classic, minimize_largest, minimize_sum


def random_slots(seed: int, slots: int, options: int) -> list[list[Option]]:
    generator = random.Random(seed)
    return [
        [Option(generator.randrange(16, 400), generator.random() ** 3) for _ in range(options)] for _ in range(slots)
    ]


def cost(slots: list[list[Option]], chosen: tuple[int, ...]) -> tuple[int, float]:
    picked = [slots[i][choice] for i, choice in enumerate(chosen)]
    return sum(option.bits for option in picked), sum(option.error for option in picked)


@pytest.mark.parametrize("seed", range(25))
def test_sum_is_the_optimum_of_all_combinations(seed: int) -> None:
    slots = random_slots(seed, 5, 5)
    least = sum(min(option.bits for option in options) for options in slots)
    most = sum(max(option.bits for option in options) for options in slots)
    budget = random.Random(seed).randrange(least, most + 1)
    combinations = itertools.product(*(range(len(options)) for options in slots))
    feasible = [cost(slots, chosen) for chosen in combinations]
    bits, error = cost(slots, minimize_sum(slots, budget))
    assert bits <= budget
    assert error == pytest.approx(min(error for bits, error in feasible if bits <= budget), abs=1e-12)

    chosen = minimize_largest(slots, budget)
    assert cost(slots, chosen)[0] <= budget
    threshold = max(slots[i][choice].error for i, choice in enumerate(chosen))
    assert all(
        max(slots[i][choice].error for i, choice in enumerate(other)) >= threshold
        for other in itertools.product(*(range(len(options)) for options in slots))
        if cost(slots, other)[0] <= budget
    )
    assert cost(slots, minimize_classic(slots, budget))[0] <= budget


def test_a_large_model_is_allocated_quickly_and_close_to_the_budget() -> None:
    slots = [
        [Option((1 << 24) * bits // 32 + 77 * slot, 2.0 ** (-bits / 16) * (1 + slot % 7)) for bits in range(64, 257, 6)]
        for slot in range(150)
    ]
    budget = 150 * (1 << 24) * 4
    started = time.process_time()
    bits, _ = cost(slots, minimize_sum(slots, budget))
    assert time.process_time() - started < 10
    assert 0.999 * budget < bits <= budget


def test_classic_on_the_reference_measurement(nano_chat_exl2: Path) -> None:
    measured = json.loads((nano_chat_exl2 / "measurement-reference.json").read_text())["measurement"]
    slots = [[Option(o["total_bits"], 1 - o["accuracy"]) for o in value] for value in measured.values() if value]
    numel = 8 * (2 * 384 * 384 + 2 * 384 * 128 + 3 * 384 * 640)
    for bpw in (2.6, 3.0, 4.0, 6.0):
        bits, error = cost(slots, minimize_classic(slots, int(bpw * numel)))
        assert 0.98 * bpw * numel < bits <= bpw * numel
        assert error < len(slots) * 0.25


def test_refusals() -> None:
    with pytest.raises(QuantizationError, match="smallest possible"):
        minimize_sum([[Option(10, 1.0)]], 9)
    with pytest.raises(QuantizationError, match="finite"):
        minimize_sum([[Option(10, float("nan"))]], 90)
    with pytest.raises(QuantizationError, match="no candidate"):
        minimize_largest([[]], 90)
