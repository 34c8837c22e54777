"""How long a conversion still takes, learned from what it and earlier ones took.

Every step has a kind (a block run forward, a block whose candidates are tried, a block quantized, ...), since they cost
very different times and a mean over all of them would jump at every change of stage. A kind of which steps were seen
takes the median of the last ones. One that is still to come takes what it cost in an earlier conversion, compared with
the kinds that were seen; before anything was seen, the forecast of the whole job is shared out.

`Promise` turns the estimates into what is shown: a time that runs down, and never goes up without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

StepKind = Literal["calibrate", "forward", "measure", "quantize", "head", "finish"]
WINDOW = 8
PRIOR: dict[StepKind, float] = {
    "calibrate": 20.0,
    "forward": 1.0,
    "measure": 12.0,
    "quantize": 8.0,
    "head": 20.0,
    "finish": 6.0,
}
"""Relative cost of a step of each kind where no earlier conversion tells it."""
STAGE_KINDS: dict[str, tuple[StepKind, ...]] = {
    "calibrate": ("calibrate",),
    "measure": ("forward", "measure"),
    "quantize": ("quantize", "head"),
    "finish": ("finish",),
}
"""What the stages that people are told of consist of; the names are those of JobEstimate.stages."""
GROWTH = 1.2
"""A time left that grows by more than this share must be shown as longer, with a reason."""
SLACK = 5.0  # seconds of growth that are no news, however short the time


@dataclass(slots=True)
class Eta:
    """Steps of one job: measure_steps, of which the last `layers` try candidates; then `layers` and a head per target.

    expected: seconds of the whole job by the forecast, 0 if there is none. prior: relative cost of a step per kind.
    done: seconds by number of the step, None for one that was done when nobody looked.
    """

    layers: int = 0
    measure_steps: int = 0
    targets: int = 1
    expected: float = 0.0
    prior: Mapping[StepKind, float] = field(default_factory=lambda: PRIOR)
    done: dict[StepKind, dict[int, float | None]] = field(default_factory=lambda: {kind: {} for kind in PRIOR})

    def measuring(self, step: int) -> StepKind:
        """What the step number `step` of measuring is."""
        return "forward" if step < self.measure_steps - self.layers else "measure"

    @property
    def measured(self) -> int:
        """Steps of measuring that are done."""
        return len(self.done["forward"]) + len(self.done["measure"])

    def seen(self, kind: StepKind, step: int, seconds: float | None) -> None:
        """A step is done and took so long."""
        self.done[kind][step] = seconds

    def planned(self, kind: StepKind) -> int:
        """How many steps of a kind the job has."""
        return {
            "calibrate": 1,
            "forward": max(0, self.measure_steps - self.layers),
            "measure": min(self.layers, self.measure_steps),
            "quantize": self.targets * self.layers,
            "head": self.targets,
            "finish": self.targets,
        }[kind]

    def left(self) -> float | None:
        """Seconds of the steps that are left, the running one counted whole; None if there is nothing to go by."""
        stages = self.left_by_stage()
        return sum(stages.values()) if stages is not None else None

    def left_by_stage(self) -> dict[str, float] | None:
        """`left` by the names of JobEstimate.stages, in their order; those that are done are left out."""
        if not self.layers:
            return None
        left: dict[str, float] = {}
        for stage, kinds in STAGE_KINDS.items():
            for kind in kinds:
                steps = max(0, self.planned(kind) - len(self.done[kind]))
                seconds = self.typical(kind) if steps else 0.0
                if seconds is None:
                    return None
                if steps:
                    left[stage] = left.get(stage, 0.0) + steps * seconds
        return left

    def typical(self, kind: StepKind) -> float | None:
        """Seconds that a step of this kind takes; None if there is nothing to go by."""
        taken = self.taken(kind)
        if taken:
            return median(taken[-WINDOW:])
        scale = self._scale()
        return None if scale is None else scale * self.prior[kind]

    def taken(self, kind: StepKind) -> list[float]:
        """What the steps of a kind took, in their order."""
        return [seconds for _, seconds in sorted(self.done[kind].items()) if seconds is not None]

    @property
    def learned(self) -> bool:
        """Whether every kind that is still to come was seen in this job."""
        return all(self.taken(kind) for kind in PRIOR if len(self.done[kind]) < self.planned(kind))

    def _scale(self) -> float | None:
        """Seconds per unit of `prior`: of the steps seen so far, before the first one of the forecast."""
        spent = {kind: taken for kind in PRIOR if kind != "calibrate" and (taken := self.taken(kind))}
        units = sum(self.prior[kind] * len(taken) for kind, taken in spent.items())
        if units:
            return sum(map(sum, spent.values())) / units
        units = sum(self.prior[kind] * self.planned(kind) for kind in PRIOR)
        return self.expected / units if self.expected and units else None


@dataclass(slots=True)
class Promise:
    """The end that was announced, by the clock; `longer` is when it last had to be put off, 0 if never."""

    end: float | None = None
    longer: float = 0.0

    def left(self, estimate: float, now: float) -> float:
        """Seconds to show. A shorter estimate is taken at once; a longer one is put off until it is worth a word."""
        shown = None if self.end is None else self.end - now
        if shown is not None and estimate > shown:
            if estimate <= max(GROWTH * shown, shown + SLACK):
                return max(0.0, shown)
            self.longer = now
        self.end = now + estimate
        return estimate


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
