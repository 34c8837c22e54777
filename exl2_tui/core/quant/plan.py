"""The steps of a conversion and the seconds each is expected to take: by shapes and the measured speed of the machine
before it starts, corrected by what finished steps really took once there are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exl2_tui.core.quant import selftext
from exl2_tui.core.quant.calibration import CalibrationSpec
from exl2_tui.core.quant.head import CANDIDATES as HEAD_CANDIDATES
from exl2_tui.core.quant.head import JUDGED_TOKENS
from exl2_tui.core.quant.machine import SIZE, STORAGE, Speed
from exl2_tui.core.quant.refined import CANDIDATES
from exl2_tui.core.quant.rows import writing_steps
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.quant.tune import Schedule
from exl2_tui.core.requests import ConvertRequest

CLASSIC_RECIPES = 14
"""Distinct recipes that the classic measurement tries per linear."""
CLASSIC_OPTIONS = 18
"""Options per half, each of which is a forward pass of that half."""
LEAST_UNTUNED = 4.0
"""Bits per weight from which on the first step of tuning usually finds that it is not worth it."""
OVERHEAD = 1e-5
"""Seconds that an operation takes however small it is."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Expected seconds: the calibration rows, every measuring step, one layer, the head, every tuning step of every
    bitrate, writing and evaluating."""

    calibrate: float
    measure: tuple[float, ...]
    layers: int
    layer: float
    head: float
    tune: tuple[tuple[float, ...], ...]
    finish: float
    targets: int

    @property
    def seconds(self) -> float:
        """The whole job."""
        return sum(seconds for _, seconds in self.stages)

    @property
    def stages(self) -> tuple[tuple[str, float], ...]:
        """The whole job by what is done, all bitrates together, as JobEstimate.stages; what is skipped is left out."""
        quantize = self.targets * (self.layers * self.layer + self.head) + sum(map(sum, self.tune))
        parts = (
            ("calibrate", self.calibrate),
            ("measure", sum(self.measure)),
            ("quantize", quantize),
            ("finish", self.targets * self.finish),
        )
        return tuple((name, seconds) for name, seconds in parts if seconds > 0)

    @property
    def steps(self) -> int:
        """Measuring steps and layers of all bitrates: what a progress bar counts."""
        return len(self.measure) + self.targets * self.layers

    def done(self, timing: Mapping[str, Sequence[float]]) -> int:
        return len(timing.get("measure", ())) + len(timing.get("quantize", ()))

    def left(self, timing: Mapping[str, Sequence[float]], finished: int) -> float:
        """Seconds left after these steps and `finished` models.

        timing: seconds of every finished step by kind, "measure" and "quantize". What is still to come is expected to
        be as much slower or faster than planned as the steps of its kind so far, or else those of the other kind.
        """
        measured, quantized = timing.get("measure", ()), timing.get("quantize", ())
        planned = {"measure": sum(self.measure[: len(measured)]), "quantize": len(quantized) * self.layer}
        ratios = {
            kind: sum(timing[kind]) / seconds for kind, seconds in planned.items() if seconds > 0 and timing.get(kind)
        }
        other = next(iter(ratios.values()), 1.0)
        layers = self.targets * self.layers - len(quantized)
        tuned = max(0, len(timing.get("tune", ())) - sum(map(len, self.tune[:finished])))
        tuning = [step for steps in self.tune[finished:] for step in steps][tuned:]
        ends = (self.targets - finished) * (self.head + self.finish) + sum(tuning)
        return ratios.get("measure", other) * sum(self.measure[len(measured) :]) + ratios.get("quantize", other) * (
            layers * self.layer + ends
        )


def make_plan(request: ConvertRequest, model: SourceModel, spec: CalibrationSpec, speed: Speed) -> Plan:
    """The plan of a job with these calibration rows on a machine of this speed."""
    counted = _Counter(model, speed)
    rows, measure_rows = spec.rows * spec.length, spec.measure_rows * spec.measure_length
    refined = request.recipe == "refined"
    layers = model.config.num_hidden_layers
    measure: tuple[float, ...] = ()
    if request.measurement is None and refined:
        forward = counted.forward(measure_rows, spec.measure_length) + counted.storage(measure_rows, 1)
        backward = counted.refined_measure(measure_rows, spec.measure_length)
        measure = (*(forward,) * layers, counted.measure_head(measure_rows), *(backward,) * layers)
    elif request.measurement is None:
        measure = (counted.classic_measure(measure_rows, spec.measure_length),) * layers
    layer = counted.refined_layer(rows, spec.length) if refined else counted.classic_layer(rows, spec.length)
    judged = spec.held_out_rows * spec.length
    evaluate = 2 * (layers * counted.forward(judged, spec.length) + counted.head(judged))
    write = (max(request.bits) / 8 * model.decoder_weights + 3 * counted.head_weights) / STORAGE
    targets = 0 if request.measure_to is not None else len(request.bits)
    calibrate = counted.self_text(spec) if request.calibration is None else 0.0
    tuning = counted.tuning(spec) if refined else ()
    tune = tuple(tuning if bits < LEAST_UNTUNED else tuning[:1] for bits in request.bits[:targets])
    return Plan(calibrate, measure, layers, layer, counted.quantize_head(rows), tune, evaluate + write, targets)


class _Counter:
    """Seconds of the parts of a job for one model; tokens are the rows times their length."""

    def __init__(self, model: SourceModel, speed: Speed) -> None:
        config = model.config
        self.speed = speed
        self.model = model
        self.hidden, self.vocab = config.hidden_size, config.vocab_size
        self.layers = config.num_hidden_layers
        self.attention, self.ffn = config.query_size, config.intermediate_size
        self.kv = config.kv_size
        self.block = [spec for spec in model.decoder_linears() if spec.prefix.startswith("model.layers.0.")]
        self.weights = sum(spec.in_features * spec.out_features for spec in self.block)
        self.head_weights = self.hidden * self.vocab
        self.stages = (self.hidden, self.attention, self.hidden, self.ffn)

    def forward(self, tokens: int, length: int) -> float:
        """One block over all tokens."""
        products = 2 * self.weights + 4 * length * self.attention
        elements = 24 * self.hidden + 8 * self.ffn + 8 * (self.attention + 2 * self.kv)
        return tokens * (products * self.speed.product + elements * self.speed.element)

    def head(self, tokens: int) -> float:
        """Logits of all tokens and their probabilities."""
        return tokens * self.vocab * (2 * self.hidden * self.speed.product + 8 * self.speed.element)

    def storage(self, tokens: int, states: int) -> float:
        """Writing that many hidden states, float16."""
        return 2 * tokens * self.hidden * states / STORAGE

    def hessians(self, tokens: int, sums: int) -> float:
        """Sums of products of the inputs of every stage, and one factorisation of each."""
        return sum(
            2 * sums * tokens * features**2 * self.speed.product + self.factor(features) for features in self.stages
        )

    def factor(self, features: int) -> float:
        """One factorisation: its products, and what grows with the square only, as the small one tried tells."""
        products = 8 / 3 * self.speed.product
        return products * features**3 + max(0.0, self.speed.factor - products) * SIZE * features**2

    def solves(self, per_weight: float, products: int) -> float:
        """One solution of every linear of a block; products in units of K * K * N."""
        return sum(
            spec.in_features * spec.out_features * (per_weight + products * spec.in_features * self.speed.product)
            for spec in self.block
        )

    def measure_head(self, tokens: int) -> float:
        """Every candidate solved and judged by its logits; then the gradient of all tokens."""
        judged = min(JUDGED_TOKENS, tokens)
        weights = self.head_weights * (self.speed.tried + self.hidden * self.speed.product)
        hessian = 2 * tokens * self.hidden**2 * self.speed.product + self.factor(self.hidden)
        return hessian + len(HEAD_CANDIDATES) * (weights + 2.5 * self.head(judged)) + 3 * self.head(tokens)

    def refined_measure(self, tokens: int, length: int) -> float:
        judged = sum(
            tokens * spec.out_features * (2 * spec.in_features * self.speed.product + 2 * self.speed.element)
            for spec in self.block
        )
        tried = len(CANDIDATES) * (self.solves(self.speed.tried, 1) + judged)
        return 3 * self.forward(tokens, length) + self.hessians(tokens, 1) + tried + self.storage(tokens, 2)

    def refined_layer(self, tokens: int, length: int) -> float:
        drift = self.hessians(tokens, 2) + self.solves(0.0, 4)
        passes = 4 * self.forward(tokens, length) + self.storage(tokens, 2)
        return passes + drift + self.solves(self.speed.refined, 13)

    def classic_measure(self, tokens: int, length: int) -> float:
        tried = CLASSIC_RECIPES * self.solves(self.speed.classic, 1)
        passes = (1 + CLASSIC_OPTIONS) * self.forward(tokens, length) + self.storage(tokens, 1)
        return passes + self.hessians(tokens, 1) + tried

    def classic_layer(self, tokens: int, length: int) -> float:
        passes = 2 * self.forward(tokens, length) + self.storage(tokens, 1)
        return passes + self.hessians(tokens, 1) + self.solves(self.speed.classic, 1)

    def quantize_head(self, tokens: int) -> float:
        hessian = 2 * tokens * self.hidden**2 * self.speed.product + self.factor(self.hidden)
        return hessian + self.head_weights * (self.speed.classic + 3 * self.hidden * self.speed.product)

    def tuning(self, spec: CalibrationSpec) -> tuple[float, ...]:
        """Steps that go twice forward and back to the inputs, and the last one, which judges them."""
        batches = Schedule().batches(spec.rows, spec.length)
        tokens = len(batches[0]) * spec.length if batches else 0
        step = 3 * self.layers * self.forward(tokens, spec.length) + 4 * self.head(tokens)
        return (
            (*(step,) * len(batches), step * max(1, spec.rows // 8) * spec.length / max(1, tokens)) if batches else ()
        )

    def self_text(self, spec: CalibrationSpec) -> float:
        """The model writes its share of the tokens, one of every text at a time: each step reads all weights, and the
        keys and values of the tokens before once for every query head."""
        if self.model.decoder_weights > selftext.LARGEST_MODEL:
            return 0.0
        tokens = int(selftext.SHARE * spec.rows * spec.length)
        seen = min(spec.length, selftext.DOCUMENT) / 2 * self.attention * self.layers
        read = 3 * (self.model.decoder_weights + self.head_weights) * self.speed.element
        steps = writing_steps(self.model.config, spec) * (read + 35 * self.layers * OVERHEAD)
        written = self.layers * self.forward(tokens, 0) + self.head(tokens)
        return written + steps + 6 * tokens * seen * self.speed.element
