"""What a job asks of a recipe, whichever it is: measure in steps, choose, quantize layer by layer.

Every method that takes long is a generator: it yields events and polls the cancel token.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import LayerMeasured, LayerQuantized
from exl2_tui.core.quant import classic
from exl2_tui.core.quant.calibration import Calibration
from exl2_tui.core.quant.gptq import Solution
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.recipe import QParams, head_recipe
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.quant.strategy import Strategy, by_halves
from exl2_tui.core.requests import Allocation

States = dict[str, Tensor]
"""What one step hands to the next, by name; written to disk between them."""


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """One finished linear: its full name, recipe, solution and bias (N,), seconds taken, relative error of its half."""

    prefix: str
    params: QParams
    solution: Solution
    bias: Tensor | None
    seconds: float
    error: float


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """The linears of a block in model order, and replaced norm weights (float16) by full name."""

    linears: tuple[QuantizedLinear, ...]
    norms: dict[str, Tensor]


class Recipe(Protocol):
    """How models are made smaller."""

    def measure_steps(self) -> int:
        """How many calls of measure_step there are."""

    def measure_step(
        self, step: int, calibration: Calibration, states: States, found: Measurement, cancel: CancelToken | None
    ) -> Generator[Event, None, States]:
        """One step; adds to `found`. states: {} for step 0, else what the step before returned."""

    def allocate(self, found: Measurement, bits: float) -> Strategy:
        """Spends the bits. Raises QuantizationError if they are too few."""

    def quantize_layer(
        self, layer: int, calibration: Calibration, states: States, strategy: Strategy, cancel: CancelToken | None
    ) -> Generator[Event, None, tuple[QuantizedLayer, States]]:
        """Quantizes one block. states: {} for layer 0, else what the layer before returned."""

    def quantize_head(
        self, states: States, params: QParams, cancel: CancelToken | None
    ) -> Generator[Event, None, QuantizedLayer]:
        """Quantizes the output head from the states after the last block."""

    def tune_steps(self, rows: int, length: int) -> int:
        """How many calls of tune_step follow the head for such calibration rows; 0 for a recipe that tunes nothing."""

    def tune_start(self, states: States) -> States:
        """What tuning needs of the states after the last block."""

    def tune_step(
        self, step: int, calibration: Calibration, parts: Checkpoint, states: States, cancel: CancelToken | None
    ) -> Generator[Event, None, States]:
        """One step on the finished layers in `parts`. states: of tune_start for step 0, else what the step before
        returned. The last step returns float16 tensors by full name, which replace those of the parts. Any step may
        return {}: then tuning ends, and the parts stay."""


class ClassicRecipe:
    """The reference converter's recipe, see classic.py."""

    def __init__(self, model: SourceModel, job: str, allocation: Allocation, head_bits: int | None = 6) -> None:
        self.model = model
        self.head = head_recipe(6 if head_bits is None else head_bits)
        self.job = job
        self.allocation = allocation

    def measure_steps(self) -> int:
        return self.model.config.num_hidden_layers

    @torch.no_grad()
    def measure_step(
        self, step: int, calibration: Calibration, states: States, found: Measurement, cancel: CancelToken | None
    ) -> Generator[Event, None, States]:
        current = states["states"] if states else self.model.embed(calibration.measure)
        for half in self.model.halves(step, current.shape[1]):
            started = time.perf_counter()
            options, current = classic.measure(half, current, cancel)
            found.halves[half.key] = options
            weights = sum(linear.weight.numel() for linear in half.linears.values())
            yield LayerMeasured(
                self.job,
                half.key,
                tuple(option.total_bits / weights for option in options),
                tuple(option.error for option in options),
                time.perf_counter() - started,
            )
        return {"states": current}

    def allocate(self, found: Measurement, bits: float) -> Strategy:
        found.require_halves(self.model.config.num_hidden_layers)
        return by_halves(found, self.model.decoder_linears(), bits, self.allocation, self.head)

    @torch.no_grad()
    def quantize_layer(
        self, layer: int, calibration: Calibration, states: States, strategy: Strategy, cancel: CancelToken | None
    ) -> Generator[Event, None, tuple[QuantizedLayer, States]]:
        current = states["states"] if states else self.model.embed(calibration.rows)
        finished: list[QuantizedLinear] = []
        for half in self.model.halves(layer, current.shape[1]):
            recipes = strategy.layer(half.key)
            done, current = classic.quantize(half, current, recipes, cancel)
            for short, solution in done.solutions.items():
                linear = QuantizedLinear(
                    half.full_name(short),
                    recipes[short],
                    solution,
                    half.linears[short].bias,
                    done.seconds[short],
                    done.error,
                )
                finished.append(linear)
                yield quantized_event(self.job, linear)
        return QuantizedLayer(tuple(finished), {}), {"states": current}

    @torch.no_grad()
    def quantize_head(
        self, states: States, params: QParams, cancel: CancelToken | None
    ) -> Generator[Event, None, QuantizedLayer]:
        linear = quantize_head(self.model, states["states"], params, cancel)
        yield quantized_event(self.job, linear)
        return QuantizedLayer((linear,), {})

    def tune_steps(self, rows: int, length: int) -> int:
        return 0

    def tune_start(self, states: States) -> States:
        return {}

    def tune_step(
        self, step: int, calibration: Calibration, parts: Checkpoint, states: States, cancel: CancelToken | None
    ) -> Generator[Event, None, States]:
        raise AssertionError("never called, since tune_steps is 0")


def quantize_head(model: SourceModel, states: Tensor, params: QParams, cancel: CancelToken | None) -> QuantizedLinear:
    """The head fitted to states (R, T, C) float16 after the last block; the error is that of its logits."""
    started = time.perf_counter()
    solution, error = classic.head(model.final_norm(), model.head(), states, params, cancel)
    return QuantizedLinear("lm_head", params, solution, None, time.perf_counter() - started, error)


def quantized_event(job: str, linear: QuantizedLinear) -> LayerQuantized:
    """The event that tells of a finished linear. Raises QuantizationError if its error is not a number: what follows
    would be built on it."""
    if not math.isfinite(linear.error):
        raise QuantizationError(
            "the quantized weights lead to NaN or infinite outputs",
            tensor=linear.prefix,
            hint="Look for damaged weights with `exl2-tui models verify`, or convert with other calibration text.",
        )
    bpw = linear.params.bpw(*linear.solution.codes.shape)
    return LayerQuantized(job, linear.prefix, linear.params.describe(), bpw, linear.error, linear.seconds)
