"""What each idea of the refined recipe is worth: KL divergence on held-out text at equal stored bytes, and time.

    python benchmarks/quality/ablation.py MODEL VAL.jsonl REFINED_JOB CLASSIC_JOB --bits 3.0 [--limit 20]

The jobs are work directories of `exl2-tui convert` runs of MODEL with the same calibration options, one per recipe;
they supply the calibration rows and both measurements, so that only the quantizing differs. Prints one JSON line per
variant.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import heldout
import torch
from torch import Tensor

from exl2_tui.core.checkpoint import open_file
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.quant.calibration import Calibration
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.recipe import head_recipe
from exl2_tui.core.quant.recipes import ClassicRecipe, QuantizedLayer, Recipe, States
from exl2_tui.core.quant.refined import RefinedRecipe, Tuning
from exl2_tui.core.quant.source import SourceModel
from exl2_tui.core.quant.strategy import Strategy

_Result = TypeVar("_Result")


def calibration(job: Path) -> Calibration:
    stored = open_file(job / "calibration.safetensors")
    rows, measure, held_out = (stored.tensor(name).long() for name in ("rows", "measure", "held_out"))
    return Calibration(rows, measure, held_out, "")


def quantized(model: SourceModel, recipe: Recipe, strategy: Strategy, rows: Calibration, head_bits: int) -> CausalLM:
    """The whole model with its quantized weights, in memory."""
    whole = CausalLM.load(model.checkpoint, model.config)
    states: States = {}
    for layer, block in enumerate(whole.blocks):
        done, states = drain(recipe.quantize_layer(layer, rows, states, strategy, None))
        for linear in done.linears:
            block.linears[linear.prefix].weight = linear.solution.weight.T.contiguous()
    head: QuantizedLayer = drain(recipe.quantize_head(states, head_recipe(head_bits), None))
    whole.head.weight = head.linears[0].solution.weight.T.contiguous()
    return whole


def drain(steps: Generator[object, None, _Result]) -> _Result:
    """What a generator returns, without the events it yields."""

    def whole() -> Generator[object, None, None]:
        results.append((yield from steps))

    results: list[_Result] = []
    for _ in whole():
        pass
    return results[0]


def variants(model: SourceModel) -> Iterator[tuple[str, str, Recipe]]:
    """(name, whose measurement allocates, recipe)."""
    classic = ClassicRecipe(model, "ablation", "sum")
    yield "classic", "classic", classic
    yield "output-KL allocation", "refined", classic
    yield "+ running order, damping 0.02, weighted scales", "refined", refined(model, Tuning(drift=0.0, passes=0))
    yield "+ refit and descent, 2 passes", "refined", refined(model, Tuning(drift=0.0))
    yield "+ half of the drift cancelled (default)", "refined", refined(model, Tuning())
    yield "all of the drift cancelled", "refined", refined(model, Tuning(drift=1.0))


def refined(model: SourceModel, tuning: Tuning) -> RefinedRecipe:
    return RefinedRecipe(model, "ablation", "sum", tuning)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("refined_job", type=Path)
    parser.add_argument("classic_job", type=Path)
    parser.add_argument("--bits", type=float, action="append")
    parser.add_argument("--head-bits", type=int, default=6)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--only", action="append", help="variants whose name contains this")
    options = parser.parse_args()
    model = SourceModel(options.model, torch.device("cpu"))
    rows = calibration(options.refined_job)
    found = {
        "refined": Measurement.read(options.refined_job / "measurement.json"),
        "classic": Measurement.read(options.classic_job / "measurement.json"),
    }
    ids = heldout.texts(options.model, options.val, options.limit)
    reference: list[Tensor] = heldout.logits(heldout.load(options.model), ids)
    for bits in options.bits or [3.0]:
        for name, measured, recipe in variants(model):
            if options.only and not any(part in name for part in options.only):
                continue
            allocator = recipe if measured == "classic" else refined(model, Tuning())
            strategy = allocator.allocate(found[measured], bits)
            started = time.process_time()
            made = quantized(model, recipe, strategy, rows, options.head_bits)
            seconds = time.process_time() - started
            result = heldout.judge(reference, heldout.logits(made, ids), ids)
            facts = {
                "bits": bits,
                "variant": name,
                "bpw": round(strategy.reached_bpw, 4),
                "cpu_seconds": round(seconds),
            }
            print(json.dumps({**facts, **{key: round(value, 5) for key, value in result.items()}}), flush=True)


if __name__ == "__main__":
    main()
