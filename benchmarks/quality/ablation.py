"""What each idea of the refined recipe is worth: KL divergence on the choice half at equal stored bytes, and time.

    python benchmarks/quality/ablation.py MODEL VAL.jsonl REFINED_JOB CLASSIC_JOB RESULTS.jsonl [--bits 2.5,3]

The jobs are work directories of `exl2-tui convert -om` runs of MODEL with the same calibration options, one per recipe;
they supply the calibration rows and both measurements, so that only the quantizing differs. Adds one JSON line per
variant and bitrate to RESULTS.jsonl, leaving out those that are there; --only NAME runs variants with NAME in theirs.
--print only prints RESULTS.jsonl as a table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import heldout
import texts
import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint, open_file, write_file
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.quant import gptq, output
from exl2_tui.core.quant.calibration import Calibration
from exl2_tui.core.quant.gptq import Factor, Solution
from exl2_tui.core.quant.measurement import Measurement
from exl2_tui.core.quant.recipe import QParams
from exl2_tui.core.quant.recipes import ClassicRecipe, QuantizedLayer, Recipe, States
from exl2_tui.core.quant.refined import RefinedRecipe, Tuning
from exl2_tui.core.quant.source import SourceModel, parts_of
from exl2_tui.core.quant.strategy import Strategy
from exl2_tui.core.quant.tune import Schedule

_Result = TypeVar("_Result")
UNTUNED = Schedule(steps=0)


@dataclass(frozen=True, slots=True)
class Variant:
    """One line of the table: whose measurement allocates, and what quantizes.

    without: functions by their full names, and what takes their place.
    """

    name: str
    measured: str
    recipe: Recipe
    without: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)


def solved_plainly(
    weight: Tensor, factor: Factor, params: QParams, *, passes: int, cancel: CancelToken | None = None
) -> Solution:
    """In place of `refine`: the classic recipe's solver."""
    return gptq.solve(weight, factor, params, cancel)


CLASSIC_SOLVER = {"exl2_tui.core.quant.refined.refine": solved_plainly}
NO_DESCENT = {"exl2_tui.core.quant.refine._descend": lambda *_: None}


def variants(model: SourceModel) -> Iterator[Variant]:
    """Each idea added to those before it, then the default with one thing changed."""
    classic = ClassicRecipe(model, "ablation", "sum")
    plain = Tuning(drift=0.0, passes=0, head=False, schedule=UNTUNED)
    twice = dataclasses.replace(plain, passes=2)
    yield Variant("classic", "classic", classic)
    yield Variant("output-KL allocation", "refined", classic)
    for name, tuning, without in (
        ("+ running order", dataclasses.replace(plain, damping=0.12), CLASSIC_SOLVER),
        ("+ damping 0.02", plain, CLASSIC_SOLVER),
        ("+ scales weighted by the Hessian", plain, {}),
        ("+ scales refitted", twice, NO_DESCENT),
        ("+ coordinate descent, 2 passes", twice, {}),
    ):
        yield Variant(name, "refined", RefinedRecipe(model, "ablation", "sum", 6, tuning), without)
    for name, tuning in (
        ("+ half of the drift cancelled", dataclasses.replace(twice, drift=0.5)),
        ("+ head refined as well", Tuning(schedule=UNTUNED)),
        ("+ norms and scales tuned (default)", Tuning()),
    ):
        yield Variant(name, "refined", RefinedRecipe(model, "ablation", "sum", 6, tuning))
    yield Variant("default, head bits auto", "refined", RefinedRecipe(model, "ablation", "sum", None))
    for name, tuning in (
        ("damping 0.005", Tuning(damping=0.005, schedule=UNTUNED)),
        ("damping 0.06", Tuning(damping=0.06, schedule=UNTUNED)),
        ("damping 0.12", Tuning(damping=0.12, schedule=UNTUNED)),
        ("a quarter of the drift", Tuning(drift=0.25, schedule=UNTUNED)),
        ("three quarters of the drift", Tuning(drift=0.75, schedule=UNTUNED)),
        ("all of the drift", Tuning(drift=1.0, schedule=UNTUNED)),
        ("1 pass", Tuning(passes=1, schedule=UNTUNED)),
        ("4 passes", Tuning(passes=4, schedule=UNTUNED)),
    ):
        yield Variant(name, "refined", RefinedRecipe(model, "ablation", "sum", 6, tuning))


def calibration(job: Path) -> Calibration:
    stored = open_file(job / "calibration.safetensors")
    rows, measure, held_out = (stored.tensor(name).long() for name in ("rows", "measure", "held_out"))
    return Calibration(rows, measure, held_out, "")


def quantized(model: SourceModel, recipe: Recipe, strategy: Strategy, rows: Calibration, folder: Path) -> Checkpoint:
    """The finished model as files in `folder`, made as a job makes them."""
    files: list[Path] = []

    def keep(name: str, tensors: Mapping[str, Tensor]) -> None:
        files.append(folder / f"{name}.safetensors")
        write_file(files[-1], dict(tensors))

    keep("embedding", output.embedding_tensors(model))
    states: States = {}
    for layer in range(model.config.num_hidden_layers):
        done, states = drain(recipe.quantize_layer(layer, rows, states, strategy, None))
        keep(f"layer-{layer}", output.layer_tensors(model, layer, done))
    head: QuantizedLayer = drain(recipe.quantize_head(states, strategy.head, None))
    keep("head", output.head_tensors(model, head))
    parts = parts_of(model, files)
    steps = recipe.tune_steps(rows.rows.shape[0], rows.rows.shape[1])
    if steps:
        states = recipe.tune_start(states)
        for step in range(steps):
            states = drain(recipe.tune_step(step, rows, parts, states, None))
            if not states:
                break
        if states:
            keep("tuned", states)
    return parts_of(model, files)


def drain(steps: Generator[object, None, _Result]) -> _Result:
    """What a generator returns, without the events it yields."""

    def whole() -> Generator[object, None, None]:
        results.append((yield from steps))

    results: list[_Result] = []
    for _ in whole():
        pass
    return results[0]


def table(lines: list[dict[str, Any]], names: list[str]) -> Iterator[str]:
    """Markdown: KL divergence on texts / on chats by variant and bitrate; cells that were not run are empty."""
    rates = sorted({line["bits"] for line in lines})
    yield f"| variant | {' | '.join(f'{bits:g} bpw' for bits in rates)} | CPU s |"
    yield "|---" * (len(rates) + 2) + "|"
    for name in names:
        found = {line["bits"]: line for line in lines if line["variant"] == name}
        if found:
            cells = [f"{found[b]['kl']:.3g} / {found[b]['chat_kl']:.3g}" if b in found else "" for b in rates]
            taken = sorted(line["cpu_seconds"] for line in found.values())
            seconds = f"{taken[0]} to {taken[-1]}" if taken[0] < taken[-1] else str(taken[0])
            yield f"| {name} | {' | '.join(cells)} | {seconds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("refined_job", type=Path)
    parser.add_argument("classic_job", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--bits", default="2.5,3,3.5,4,5,6,8")
    parser.add_argument("--only", action="append", help="variants whose name contains this")
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    model = SourceModel(options.model, torch.device("cpu"))
    if options.print:
        lines = list(map(json.loads, options.results.read_text().splitlines()))
        print("\n".join(table(lines, [variant.name for variant in variants(model)])))
        return
    rows = calibration(options.refined_job)
    found = {
        "refined": Measurement.read(options.refined_job / "measurement.json"),
        "classic": Measurement.read(options.classic_job / "measurement.json"),
    }
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    known = {(line["variant"], line["bits"]) for line in map(json.loads, lines)}
    items = texts.items(options.model, options.val, "choice")
    original = heldout.run(heldout.load(options.model), items)
    for bits in map(float, options.bits.split(",")):
        for variant in variants(model):
            if (variant.name, bits) in known:
                continue
            if options.only and not any(part in variant.name for part in options.only):
                continue
            allocator = variant.recipe if variant.name != "output-KL allocation" else RefinedRecipe(model, "", "sum")
            strategy = allocator.allocate(found[variant.measured], bits)
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                with ExitStack() as replaced:
                    for place, function in variant.without.items():
                        replaced.enter_context(patch(place, function))
                    made = quantized(model, variant.recipe, strategy, rows, Path(folder))
                seconds = time.process_time() - began
                run = heldout.run(CausalLM.load(made, model.config), items)
            scores = heldout.judge(original, run, items)
            text, chat = (heldout.summary(scores, kind) for kind in ("text", "chat"))
            facts = {
                "variant": variant.name,
                "bits": bits,
                "bpw": round(strategy.reached_bpw, 4),
                "cpu_seconds": round(seconds),
                **{name: round(text[name], 5) for name in ("kl", "top1", "ppl")},
                "chat_kl": round(chat["kl"], 5),
            }
            print(json.dumps(facts), flush=True)
            with options.results.open("a") as stream:
                stream.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
