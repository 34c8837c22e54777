"""KL divergence, top-1 agreement and perplexity of models against the original on the held-out items of val.jsonl.

    python benchmarks/quality/heldout.py ORIGINAL VAL.jsonl MODEL [MODEL ...] [--half judge]

Independent of the quantizer: whole models in plain torch float32, read by the loader; averages are over predicted
tokens. Which items there are: `texts.py`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import texts
import torch
from texts import Item
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.linear import Linear
from exl2_tui.core.model.norm import RMSNorm
from exl2_tui.core.model.rope import rope_table

TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Run:
    """What a model makes of all items: the states (T, C) float32 before its final norm, and its tail."""

    states: list[Tensor]
    norm: RMSNorm
    head: Linear


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over the predicted tokens of one item."""

    kind: str
    tokens: int
    kl: float
    same: int
    loss: float
    original_loss: float


def load(path: Path) -> CausalLM:
    with Checkpoint.open(path) as checkpoint:
        return CausalLM.load(checkpoint, ModelConfig.from_dir(path))


@torch.no_grad()
def run(model: CausalLM, items: Sequence[Item]) -> Run:
    """Items of about equal length run together, padded at the end, which a causal model does not see."""
    states: list[Tensor] = [torch.empty(0)] * len(items)
    order = sorted(range(len(items)), key=lambda index: -len(items[index].ids))
    while order:
        longest = len(items[order[0]].ids)
        batch, order = order[: TOKENS_AT_ONCE // longest], order[TOKENS_AT_ONCE // longest :]
        rows = [items[index].ids for index in batch]
        x = model.embedding.forward(torch.stack([functional.pad(row, (0, longest - len(row))) for row in rows]))
        rope = rope_table(model.config, longest, 0, longest)
        for block in model.blocks:
            x = block.forward(x, rope)
        for index, row, kept in zip(batch, rows, x, strict=True):
            states[index] = kept[: len(row) - 1].clone()
    return Run(states, model.norm, model.head)


@torch.no_grad()
def judge(original: Run, candidate: Run, items: Sequence[Item]) -> list[Score]:
    scores: list[Score] = []
    for item, ours, theirs in zip(items, original.states, candidate.states, strict=True):
        p = functional.log_softmax(original.head.forward(original.norm.forward(ours)), dim=-1)
        q = functional.log_softmax(candidate.head.forward(candidate.norm.forward(theirs)), dim=-1)
        targets = item.ids[1:, None]
        scores.append(
            Score(
                item.kind,
                len(targets),
                float((p.exp() * (p - q)).sum(dtype=torch.float64)),
                int((p.argmax(1) == q.argmax(1)).sum()),
                -float(q.gather(1, targets).sum(dtype=torch.float64)),
                -float(p.gather(1, targets).sum(dtype=torch.float64)),
            )
        )
    return scores


def summary(scores: Sequence[Score], kind: str) -> dict[str, float]:
    """Means over the tokens of all items of a kind."""
    chosen = [score for score in scores if score.kind == kind]
    count = sum(score.tokens for score in chosen)
    return {
        "kl": sum(score.kl for score in chosen) / count,
        "top1": sum(score.same for score in chosen) / count,
        "ppl": math.exp(sum(score.loss for score in chosen) / count),
        "original_ppl": math.exp(sum(score.original_loss for score in chosen) / count),
        "tokens": count,
        "items": len(chosen),
    }


def stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--half", choices=("choice", "judge"), default="judge")
    options = parser.parse_args()
    items = texts.items(options.original, options.val, options.half)
    original = run(load(options.original), items)
    for path in options.models:
        scores = judge(original, run(load(path), items), items)
        found = {kind: summary(scores, kind) for kind in ("text", "chat")}
        print(json.dumps({"model": "/".join(path.parts[-2:]), "bytes": stored_bytes(path), **found}), flush=True)


if __name__ == "__main__":
    main()
