"""Points of the layer chart: the halves of every block and the head, each made of its linears."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from statistics import median

from exl2_tui.core.job_events import LayerMeasured, LayerQuantized

OUTLIER = 5.0  # times the median of its kind: this layer lost far more than its like
KINDS_NEEDED = 4  # layers of a kind before one of them can be called an outlier
_LAYER = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class Part:
    """One linear. error: of its half's output, as far as it can be told; seconds it took."""

    bpw: float
    error: float
    seconds: float


@dataclass(slots=True)
class Point:
    """A half of a block, or the head. parts: by full name of the linear, so that what is told twice counts once."""

    key: str
    label: str
    kind: str
    parts: dict[str, Part] = field(default_factory=dict)
    outlier: bool = False

    @property
    def error(self) -> float:
        """The largest of its parts; what is no number is larger than any."""
        errors = [part.error for part in self.parts.values()]
        return next((error for error in errors if not math.isfinite(error)), max(errors, default=0.0))

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts.values())

    @property
    def mean_bpw(self) -> float:
        return sum(part.bpw for part in self.parts.values()) / len(self.parts) if self.parts else 0.0

    @property
    def layer(self) -> int:
        """Number of the block, -1 for what lies outside of blocks."""
        number = self.label.split()[1:2]
        return int(number[0]) if number and number[0].isdigit() else -1


Points = dict[str, Point]
"""By key, in the order they were heard of."""


def add_quantized(points: Points, event: LayerQuantized) -> Point:
    """Adds a finished linear to its half."""
    key, label, kind = describe_key(event.key)
    point = points.setdefault(key, Point(key, label, kind))
    point.parts[event.key] = Part(event.bpw, event.error, event.seconds)
    return point


def add_measured(points: Points, event: LayerMeasured, target: float) -> None:
    """Adds a measured linear (or half): the candidate nearest to the target stands for it."""
    if not event.bpw:
        return
    nearest = min(range(len(event.bpw)), key=lambda index: abs(event.bpw[index] - target))
    key, label, kind = describe_key(event.key)
    point = points.setdefault(key, Point(key, label, kind))
    point.parts[event.key] = Part(event.bpw[nearest], event.errors[nearest], event.seconds)


def mark_outliers(points: Points, kind: str) -> float:
    """Marks the points of a kind that are far worse than their like; returns the median of the kind.

    With few of them nothing is marked but what is no number, and the answer is 0.
    """
    like = [point for point in points.values() if point.kind == kind]
    finite = [point.error for point in like if math.isfinite(point.error)]
    usual = median(finite) if len(finite) >= KINDS_NEEDED else 0.0
    for point in like:
        point.outlier = not math.isfinite(point.error) or (usual > 0 and point.error > OUTLIER * usual)
    return usual


def placed(points: Points, layers: int) -> list[Point | None]:
    """Points of the blocks at their places in the model, two to a layer; None where nothing is yet."""
    blocks = [point for point in points.values() if point.kind != "head"]
    if not layers:
        return list(blocks)
    slots: list[Point | None] = [None] * (2 * layers)
    for point in blocks:
        if 0 <= point.layer < layers:
            slots[2 * point.layer + (point.kind != "attention")] = point
    return slots


def worst(points: Points, count: int) -> list[Point]:
    """Those with the largest error first; what is no number is worst of all."""
    return sorted(points.values(), key=lambda point: (math.isfinite(point.error), -point.error))[:count]


def median_error(points: Points) -> float:
    errors = [point.error for point in points.values() if math.isfinite(point.error)]
    return median(errors) if errors else 0.0


def describe_key(key: str) -> tuple[str, str, str]:
    """Full name of a linear or half -> key of its half, label for people, kind: layers of a kind are comparable."""
    match = _LAYER.search(key)
    if match is None:
        return key, key, "head"
    parts = match.group(2).split(".")
    kind = parts[0]
    name = {"self_attn": "attention", "attention": "attention"}.get(kind, kind)
    return key[: match.end(1)] + f".{kind}", f"layer {match.group(1)} {name}", name


def short_name(key: str) -> str:
    """ "model.layers.3.mlp.down_proj" -> "3 mlp.down_proj"."""
    match = _LAYER.search(key)
    return f"{match.group(1)} {match.group(2)}" if match else key
