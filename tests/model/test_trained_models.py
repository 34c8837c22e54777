"""The reference model on trained weights: perplexity, a known answer, logits of transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.causal_lm import CausalLM

TEXTS = 3  # of 67: on all of them 25.85, 28.76 and 30.56, as the models' README says


def load(folder: Path) -> CausalLM:
    with Checkpoint.open(folder) as checkpoint:
        return CausalLM.load(checkpoint, ModelConfig.from_dir(folder))


def rows(folder: Path) -> list[torch.Tensor]:
    """<s> and up to 511 tokens of the first held-out texts."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    items = map(json.loads, (folder.parent / "val.jsonl").read_text().splitlines())
    texts = [item["text"] for item in items if item["kind"] == "text"][:TEXTS]
    return [torch.tensor([1, *tokenizer.encode(text, add_special_tokens=False).ids[:511]]) for text in texts]


@pytest.mark.parametrize(
    ("fixture", "expected"), [("small_chat", 27.527), ("nano_chat", 29.717), ("nano_chat_exl2", 31.384)]
)
def test_perplexity(fixture: str, expected: float, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    model = load(folder)
    total, count = 0.0, 0
    for row in rows(folder):
        logits = model.forward(row[:-1], model.new_cache(len(row)), all_logits=True)
        total += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
        count += len(row) - 1
    assert math.exp(total / count) == pytest.approx(expected, abs=0.005)


def test_logits_of_transformers(nano_chat: Path) -> None:
    model = load(nano_chat)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        nano_chat, dtype=torch.float32, local_files_only=True
    ).eval()
    ids = rows(nano_chat)[0][:300]
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    found = model.forward(ids, model.new_cache(300, "fp32"), all_logits=True)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_known_answer(small_chat: Path) -> None:
    model = load(small_chat)
    tokenizer = Tokenizer.from_file(str(small_chat / "tokenizer.json"))
    prompt = "<|im_start|>user\nWhat is a volcano?<|im_end|>\n<|im_start|>assistant\n"
    cache = model.new_cache(128)
    ids, answer = tokenizer.encode(prompt, add_special_tokens=False).ids, []
    while not answer or answer[-1] not in model.config.eos_token_ids:
        ids = [int(model.forward(ids, cache).argmax())]
        answer += ids
    text = "A volcano is an opening in the earth's surface where melted rock, ash and gas can come out."
    assert tokenizer.decode(answer).strip() == text
