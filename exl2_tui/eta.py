"""How long a conversion still takes: the median of the last steps of the same kind, times how many are left.

Forward and backward steps of measuring cost very different times, and so does quantizing; a mean over all of them
would jump at every change of stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Literal

StepKind = Literal["forward", "measure", "quantize"]
WINDOW = 8
FIRST = 3  # steps before anything is said
SLOWER = 1.2  # growth of the time left that deserves a word
PRIOR: dict[StepKind, float] = {"forward": 1.0, "measure": 30.0, "quantize": 12.0}
"""Relative cost of a step of each kind, used only until one of its kind was seen."""


@dataclass(slots=True)
class Eta:
    """measure_steps of which the last `layers` try candidates; then `layers` per target are quantized."""

    layers: int = 0
    measure_steps: int = 0
    targets: int = 1
    seconds: dict[StepKind, list[float]] = field(default_factory=lambda: {"forward": [], "measure": [], "quantize": []})
    slower: bool = False

    def kind(self, stage: str, step: int) -> StepKind:
        """What the step number `step` of a stage is."""
        if stage == "quantize":
            return "quantize"
        return "forward" if step < self.measure_steps - self.layers else "measure"

    def seen(self, stage: str, step: int, seconds: float) -> None:
        """A step took so long."""
        before = self.left()
        taken = self.seconds[self.kind(stage, step)]
        taken.append(seconds)
        after = self.left()
        if before is not None and after is not None:  # the first steps of a kind correct a guess, that is no news
            self.slower = len(taken) > FIRST and after - before > 30 and after > SLOWER * before

    def left(self) -> float | None:
        """Seconds of the steps that are left, the running one counted whole; None until there is something to go by."""
        samples = sum(map(len, self.seconds.values()))
        if samples < FIRST or not self.layers:
            return None
        planned: dict[StepKind, int] = {
            "forward": max(0, self.measure_steps - self.layers),
            "measure": min(self.layers, self.measure_steps),
            "quantize": self.targets * self.layers,
        }
        return sum(self.typical(kind) * max(0, count - len(self.seconds[kind])) for kind, count in planned.items())

    def typical(self, kind: StepKind) -> float:
        """Median of the last steps of a kind; before the first one, what others of its job suggest."""
        if self.seconds[kind]:
            return median(self.seconds[kind][-WINDOW:])
        known = [name for name, taken in self.seconds.items() if taken]
        nearest = max(known, key=lambda name: PRIOR[name])
        return median(self.seconds[nearest][-WINDOW:]) * PRIOR[kind] / PRIOR[nearest]


def rough(seconds: float) -> str:
    """A time in at most two units, rounded so that it does not pretend: "1 h 05 m", "12 m", "3 m 20 s", "40 s"."""
    if seconds >= 3600:
        minutes = round(seconds / 300) * 5
        return f"{minutes // 60} h {minutes % 60:02d} m"
    if seconds >= 600:
        return f"{round(seconds / 60)} m"
    if seconds >= 60:
        tens = round(seconds / 10) * 10
        return f"{tens // 60} m {tens % 60:02d} s"
    return f"{max(1, round(seconds / 5) * 5 if seconds > 10 else round(seconds))} s"


def exact(seconds: float) -> str:
    """A time that has passed: "1 h 12 m", "3 m 07 s", "9.8 s"."""
    if seconds >= 3600:
        return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} m"
    if seconds >= 60:
        return f"{int(seconds) // 60} m {int(seconds) % 60:02d} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
