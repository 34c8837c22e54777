"""KL divergence, top-1 agreement and perplexity of models against the original on the held-out texts of val.jsonl.

    python benchmarks/quality/heldout.py ORIGINAL VAL.jsonl MODEL [MODEL ...]

Independent of the quantizer: whole models in plain torch float32, read by the loader. Texts (kind "text") are cut to
511 tokens after <s>; the average is over predicted tokens.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.rope import rope_table
from exl2_tui.core.tokenizer import Tokenizer

LENGTH = 511


def load(path: Path) -> CausalLM:
    with Checkpoint.open(path) as checkpoint:
        return CausalLM.load(checkpoint, ModelConfig.from_dir(path))


def texts(model_dir: Path, val: Path, limit: int | None = None) -> list[Tensor]:
    """Token ids (T,) of every held-out text."""
    tokenizer = Tokenizer.load(model_dir)
    items = [json.loads(line) for line in val.read_text().splitlines()]
    chosen = [item["text"] for item in items if item["kind"] == "text"][:limit]
    return [torch.tensor([1, *tokenizer.encode(text)[:LENGTH]]) for text in chosen]


@torch.no_grad()
def logits(model: CausalLM, ids: list[Tensor]) -> list[Tensor]:
    """log-probabilities (T-1, V) per text. Rows are padded at the end, which a causal model does not see."""
    found: list[Tensor] = []
    for start in range(0, len(ids), 4):
        batch = ids[start : start + 4]
        longest = max(map(len, batch))
        padded = torch.stack([functional.pad(row, (0, longest - len(row))) for row in batch])
        rope = rope_table(model.config, longest, 0, longest)
        x = model.embedding.forward(padded)
        for block in model.blocks:
            x = block.forward(x, rope)
        out = functional.log_softmax(model.head.forward(model.norm.forward(x)), dim=-1)
        found += [out[row, : len(tokens) - 1].clone() for row, tokens in enumerate(batch)]
    return found


def judge(reference: list[Tensor], candidate: list[Tensor], ids: list[Tensor]) -> dict[str, float]:
    divergence = loss = original = 0.0
    same = count = 0
    for p, q, tokens in zip(reference, candidate, ids, strict=True):
        divergence += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        loss -= float(q.gather(1, tokens[1:, None]).sum(dtype=torch.float64))
        original -= float(p.gather(1, tokens[1:, None]).sum(dtype=torch.float64))
        same += int((p.argmax(1) == q.argmax(1)).sum())
        count += len(tokens) - 1
    return {
        "kl": divergence / count,
        "top1": same / count,
        "ppl": math.exp(loss / count),
        "original_ppl": math.exp(original / count),
        "tokens": count,
    }


def stored_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, help="use only the first texts")
    options = parser.parse_args()
    ids = texts(options.original, options.val, options.limit)
    reference = logits(load(options.original), ids)
    for path in options.models:
        result = judge(reference, logits(load(path), ids), ids)
        print(json.dumps({"model": "/".join(path.parts[-2:]), "bytes": stored_bytes(path), **result}), flush=True)


if __name__ == "__main__":
    main()
