"""The default recipe: bits per linear by their effect on the output, solved in running order against drifted inputs.

Measuring: forward once keeping every block's input, then backward once from the head (`fisher.py`); on the way down
every linear's candidates are quantized and judged by the KL divergence they are predicted to cause.
Quantizing: each stage (q, k, v; o; gate, up; down) sees the inputs that the quantized stages before it produce, aims at
weights that cancel their drift (`drift.py`), and is solved by `refine.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.errors import QuantizationError
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import LayerMeasured, Tuned
from exl2_tui.core.model.layout import HEAD, head_linear
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.quant import fisher
from exl2_tui.core.quant.allocate import Option, minimize_largest, minimize_sum
from exl2_tui.core.quant.calibration import Calibration
from exl2_tui.core.quant.classic import ROUNDED_HEAD
from exl2_tui.core.quant.drift import head_moments, moments
from exl2_tui.core.quant.gptq import Factor, Solution, factorize
from exl2_tui.core.quant.halves import Half, relative_error, run
from exl2_tui.core.quant.head import measure_head, refine_head
from exl2_tui.core.quant.measurement import MeasuredLinear, MeasuredOption, Measurement
from exl2_tui.core.quant.recipe import QParams, head_recipe, mix
from exl2_tui.core.quant.recipes import (
    QuantizedLayer,
    QuantizedLinear,
    States,
    quantize_head,
    quantized_event,
)
from exl2_tui.core.quant.refine import refine
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.quant.strategy import Strategy, budget_of, by_halves, check_reachable, reached
from exl2_tui.core.quant.tune import Schedule, Tuner
from exl2_tui.core.requests import Allocation


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the ablation (benchmarks/quality) varies.

    damping: share of the mean diagonal added to a Hessian; held-out loss is flat from 0.003 to 0.03, 0.12 is clearly
    worse. drift: share of the drift that a stage tries to cancel. passes: rounds of scale refit and coordinate descent
    after GPTQ; a third one changes the loss by under 0.5 %. head: whether the output head is solved in the same way.
    """

    damping: float = 0.02
    drift: float = 0.5
    passes: int = 2
    head: bool = True
    schedule: Schedule = field(default_factory=Schedule)


CANDIDATES: tuple[QParams, ...] = (
    mix(64, 2),
    mix(32, 2),
    mix(64, 3, 2, high=(0.1,)),
    mix(64, 3, 2, high=(0.3,)),
    mix(64, 3, 2, high=(0.6,)),
    mix(32, 6, 2, high=(0.05,)),
    mix(64, 3),
    mix(32, 3),
    mix(64, 4, 3, high=(0.1,)),
    mix(64, 4, 3, high=(0.3,)),
    mix(64, 4, 3, high=(0.6,)),
    mix(32, 8, 3, high=(0.05,)),
    mix(128, 4),
    mix(32, 4),
    mix(64, 5, 4, high=(0.1,)),
    mix(64, 5, 4, high=(0.3,)),
    mix(64, 5, 4, high=(0.6,)),
    mix(64, 5),
    mix(64, 6, 5, high=(0.3,)),
    mix(64, 6, 5, high=(0.6,)),
    mix(128, 6),
    mix(32, 6),
    mix(128, 8, 6, high=(0.3,)),
    mix(128, 8, 6, high=(0.6,)),
    mix(128, 8),
)

_STAGE_OF = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
"""Linears that see the same input, and so share a factorisation."""


class RefinedRecipe:
    """See the module's docstring."""

    def __init__(
        self,
        model: SourceModel,
        job: str,
        allocation: Allocation,
        head_bits: int | None = 6,
        tuning: Tuning | None = None,
    ) -> None:
        self.model = model
        self.head_bits = head_bits
        self.tuning = tuning or Tuning()
        self.job = job
        self._tuner: Tuner | None = None
        self.allocation = allocation

    def measure_steps(self) -> int:
        """One forward step per block, one for the head, one backward step per block."""
        return 2 * self.model.config.num_hidden_layers + 1

    def measure_step(
        self, step: int, calibration: Calibration, states: States, found: Measurement, cancel: CancelToken | None
    ) -> Generator[Event, None, States]:
        """States: the input of every block not yet gone back through, and the gradient once there is one."""
        layers = self.model.config.num_hidden_layers
        if step < layers:
            known = states or {_input(0): self.model.embed(calibration.measure)}
            current = known[_input(step)]
            with torch.no_grad():
                for half in self.model.halves(step, current.shape[1]):
                    current = run(half, current, cancel)
            return {**known, _input(step + 1): current}
        if step == layers:
            last = states[_input(layers)]
            norm, head = self.model.final_norm(), self.model.head()
            if head.weight.numel() <= ROUNDED_HEAD:
                yield self._measure_head(norm, head, last, found, cancel)
            gradient = fisher.head_gradient(norm, head, last, 0, cancel)
            return {**{name: kept for name, kept in states.items() if name != _input(layers)}, "gradient": gradient}
        layer = 2 * layers - step
        block, rope = self.model.block(layer), self.model.rope(states["gradient"].shape[1])
        traces, below = fisher.backward_block(block, states[_input(layer)], states["gradient"], rope, cancel)
        factors: dict[str, Factor] = {}
        for name, trace in traces.items():
            yield self._measure_linear(name, block.linears[name].weight, trace, factors, found, cancel)
        for part in ("self_attn", "mlp"):
            key = f"model.layers.{layer}.{part}"
            found.halves[key] = tied_options({name: found.linears[name] for name in traces if name.startswith(key)})
        kept = {name: tensor for name, tensor in states.items() if name != _input(layer)}
        return {**kept, "gradient": below}

    @torch.no_grad()
    def _measure_linear(
        self,
        name: str,
        stored: Tensor,
        trace: fisher.Trace,
        factors: dict[str, Factor],
        found: Measurement,
        cancel: CancelToken | None,
    ) -> LayerMeasured:
        started = time.perf_counter()
        weight = stored.float().T.contiguous()
        stage = _STAGE_OF.get(name.rsplit(".", 1)[1], name)
        options: list[MeasuredLinear] = []
        try:
            if stage not in factors:
                factors[stage] = factorize(trace.inputs.T @ trace.inputs / len(trace.inputs), self.tuning.damping)
            for params in CANDIDATES:
                solution = refine(weight, factors[stage], params, passes=0, cancel=cancel)
                kl = trace.predicted_kl(solution.weight - weight)
                options.append(MeasuredLinear(params, params.total_bits(*weight.shape), kl))
        except QuantizationError as error:
            raise QuantizationError(error.message, tensor=f"{name}.weight", hint=error.hint) from None
        found.linears[name] = options
        return LayerMeasured(
            self.job,
            name,
            tuple(option.total_bits / weight.numel() for option in options),
            tuple(option.kl for option in options),
            time.perf_counter() - started,
        )

    @torch.no_grad()
    def _measure_head(
        self, norm: RMSNorm, head: Linear, states: Tensor, found: Measurement, cancel: CancelToken | None
    ) -> LayerMeasured:
        started = time.perf_counter()
        options = measure_head(norm, head, states, self.tuning.damping, cancel)
        found.linears[HEAD] = options
        bpw = tuple(option.total_bits / head.weight.numel() for option in options)
        return LayerMeasured(self.job, HEAD, bpw, tuple(option.kl for option in options), time.perf_counter() - started)

    def allocate(self, found: Measurement, bits: float) -> Strategy:
        """Spends the bits on the least sum of predicted KL; a classic measurement is allocated by blocks.

        Where the head's bits are part of the budget, that is as large as with a head of 6 bits.
        """
        linears = self.model.decoder_linears()
        if not found.linears:
            found.require_halves(self.model.config.num_hidden_layers)
            return by_halves(found, linears, bits, self.allocation, self._fixed_head())
        missing = [spec.prefix for spec in linears if spec.prefix not in found.linears]
        if missing or len(found.linears.keys() - {HEAD}) != len(linears):
            raise QuantizationError(
                f"the measurement belongs to another model: {(missing or ['it has other layers'])[0]}",
                hint="Measure this model again.",
            )
        tables = [found.linears[spec.prefix] for spec in linears]
        slots = [
            [Option(option.params.total_bits(spec.in_features, spec.out_features), option.kl) for option in table]
            for spec, table in zip(linears, tables, strict=True)
        ]
        check_reachable(slots, linears, bits)
        budget = budget_of(linears, bits)
        has_head = self.head_bits is None and HEAD in found.linears
        if has_head:
            head = head_linear(self.model.config)
            tables.append(found.linears[HEAD])
            slots.append([Option(option.total_bits, option.kl) for option in found.linears[HEAD]])
            budget += head_recipe(6).total_bits(head.in_features, head.out_features)
        choose = minimize_largest if self.allocation == "largest" else minimize_sum
        picked = [table[choice] for table, choice in zip(tables, choose(slots, budget), strict=True)]
        recipes = {spec.prefix: option.params for spec, option in zip(linears, picked, strict=False)}
        chosen = picked[-1].params if has_head else self._fixed_head()
        return Strategy(bits, reached(linears, recipes), sum(option.kl for option in picked), recipes, chosen)

    def _fixed_head(self) -> QParams:
        if self.head_bits is None:
            raise QuantizationError(
                "this measurement does not say what the bits of the output head are worth",
                hint="Measure this model again, or give the head's bits (-hb 6).",
            )
        return head_recipe(self.head_bits)

    @torch.no_grad()
    def quantize_layer(
        self, layer: int, calibration: Calibration, states: States, strategy: Strategy, cancel: CancelToken | None
    ) -> Generator[Event, None, tuple[QuantizedLayer, States]]:
        """States: "reference", what the original computes, and "drifted", what the quantized layers so far do.

        The first half makes new ones, the second overwrites them: with those given, which are views of files, the
        states are there twice and not more often.
        """
        reference = states["reference"] if states else self.model.embed(calibration.rows)
        drifted = states["drifted"] if states else reference
        finished: list[QuantizedLinear] = []
        tokens = reference.shape[1]
        pairs = zip(self.model.halves(layer, tokens), self.model.halves(layer, tokens), strict=True)
        for number, (original, working) in enumerate(pairs):
            own = number > 0
            solved, reference = self._quantize_half(
                original, working, reference, drifted, strategy, cancel, in_place=own
            )
            drifted = run(working, drifted, cancel, in_place=own)
            error = relative_error(drifted, reference)
            for short, (solution, seconds) in solved.items():
                bias = original.linears[short].bias
                params = strategy.recipes[original.full_name(short)]
                finished.append(QuantizedLinear(original.full_name(short), params, solution, bias, seconds, error))
                yield quantized_event(self.job, finished[-1])
        return QuantizedLayer(tuple(finished), {}), {"reference": reference, "drifted": drifted}

    def _quantize_half(
        self,
        original: Half,
        working: Half,
        reference: Tensor,
        drifted: Tensor,
        strategy: Strategy,
        cancel: CancelToken | None,
        *,
        in_place: bool,
    ) -> tuple[dict[str, tuple[Solution, float]], Tensor]:
        """Quantizes the stages of a half in turn and installs them in `working`; solution and seconds by short name,
        and what the original makes of `reference`, which `in_place` overwrites."""
        solved: dict[str, tuple[Solution, float]] = {}
        after = reference
        for number, stage in enumerate(original.stages):
            seen, after = moments(original, working, number, reference, drifted, cancel, in_place=in_place)
            try:
                factor = factorize(seen.hessian, self.tuning.damping)
            except QuantizationError as error:
                raise QuantizationError(error.message, tensor=original.full_name(stage[0]), hint=error.hint) from None
            for short in stage:
                started = time.perf_counter()
                linear = working.linears[short]
                weight = original.linears[short].weight.float().T.contiguous()
                try:
                    target = seen.target(weight, self.tuning.drift, self.tuning.damping)
                    params = strategy.recipes[original.full_name(short)]
                    solution = refine(target, factor, params, passes=self.tuning.passes, cancel=cancel)
                except QuantizationError as error:
                    name = f"{original.full_name(short)}.weight"
                    raise QuantizationError(error.message, tensor=name, hint=error.hint) from None
                linear.weight = solution.weight.T.to(linear.weight.dtype).contiguous()
                solved[short] = solution, time.perf_counter() - started
        return solved, after

    @torch.no_grad()
    def quantize_head(
        self, states: States, params: QParams, cancel: CancelToken | None
    ) -> Generator[Event, None, QuantizedLayer]:
        head = self.model.head()
        if head.weight.numel() > ROUNDED_HEAD or not self.tuning.head:
            linear = quantize_head(self.model, states["drifted"], params, cancel)
        else:
            started = time.perf_counter()
            seen = head_moments(self.model.final_norm(), states["reference"], states["drifted"], cancel)
            tuning = self.tuning
            solution, error = refine_head(head, seen, params, tuning.drift, tuning.damping, tuning.passes, cancel)
            linear = QuantizedLinear(HEAD, params, solution, None, time.perf_counter() - started, error)
        yield quantized_event(self.job, linear)
        return QuantizedLayer((linear,), {})

    def tune_steps(self, rows: int, length: int) -> int:
        """The steps of the schedule and one that judges them."""
        steps = len(self.tuning.schedule.batches(rows, length))
        return steps + 1 if steps else 0

    def tune_start(self, states: States) -> States:
        return {"reference": states["reference"]}

    def tune_step(
        self, step: int, calibration: Calibration, parts: Checkpoint, states: States, cancel: CancelToken | None
    ) -> Generator[Event, None, States]:
        """States: "reference", the original's after its last block, and what Tuner.step goes on from."""
        ids, reference = calibration.rows, states["reference"]
        if self._tuner is None or self._tuner.parts is not parts:
            self._tuner = Tuner(self.model, parts, (ids.shape[0], ids.shape[1]), self.tuning.schedule)
        state = {name: tensor for name, tensor in states.items() if name != "reference"} or self._tuner.start()
        if step < len(self._tuner.batches):
            state = self._tuner.step(step, ids, reference, state, cancel)
            is_worth_it = float(state["first"]) >= self.tuning.schedule.worth
            return {"reference": reference, **state} if is_worth_it else {}
        logs = state["logs"]
        before = self._tuner.divergence(ids, reference, torch.zeros_like(logs), cancel)
        after = self._tuner.divergence(ids, reference, logs, cancel)
        yield Tuned(self.job, before, after, after < before)
        tuned, self._tuner = self._tuner.tuned(logs), None
        return tuned if after < before else {}


def tied_options(linears: Mapping[str, list[MeasuredLinear]], count: int = 18) -> list[MeasuredOption]:
    """Options of a whole half along its best trade-off, for programs that know only the reference's measurements.

    Error is the root of the predicted KL divergence, as KL grows with the square of a relative error.
    """
    slots = [[Option(option.total_bits, option.kl) for option in options] for options in linears.values()]
    least = sum(min(option.bits for option in options) for options in slots)
    most = sum(max(option.bits for option in options) for options in slots)
    found: dict[int, MeasuredOption] = {}
    for step in range(count):
        chosen = minimize_sum(slots, least + (most - least) * step // (count - 1))
        picked = [options[choice] for options, choice in zip(linears.values(), chosen, strict=True)]
        recipes = {name.rsplit(".", 1)[1]: option.params for name, option in zip(linears, picked, strict=True)}
        bits, error = sum(option.total_bits for option in picked), math.sqrt(sum(option.kl for option in picked))
        found[bits] = MeasuredOption(recipes, bits, error)
    return list(found.values())


def _input(layer: int) -> str:
    """Name of the state that holds the input of a block."""
    return f"input.{layer:05d}"
