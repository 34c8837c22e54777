"""Perplexity and divergence against plain float64 sums over a fake model's logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support.fake_model import FakeModel, FakeTokenizer

from exl2_tui.core import evaluate
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import (
    CancelledError,
    CheckpointError,
    ContextError,
    GenerationError,
    NotFoundError,
    UnsupportedError,
)
from exl2_tui.core.evaluate import kl_divergence, make_rows, perplexity, read_texts
from exl2_tui.core.events import EvaluationProgress

ROWS = [[1, *range(10, 60)], [1, 20], [1, *range(100, 130)]]


def probabilities(model: FakeModel, row: list[int]) -> list[torch.Tensor]:
    """Per predicted token, the distribution (V,) float64."""
    logits = model.forward(row[:-1], model.new_cache(len(row)), all_logits=True)
    return [torch.softmax(step.double(), 0) for step in logits]


@pytest.mark.parametrize("at_once", [1, 300 * 7, 1 << 23])
def test_perplexity_is_the_plain_definition(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(evaluate, "LOGITS_AT_ONCE", at_once)
    model = FakeModel()
    loss = [-math.log(p[t]) for row in ROWS for p, t in zip(probabilities(model, row), row[1:], strict=True)]
    heard: list[EvaluationProgress] = []
    result = perplexity(model, ROWS, on_progress=heard.append)
    assert result.tokens == len(loss) == 50 + 1 + 30
    assert result.loss == pytest.approx(math.fsum(loss) / len(loss), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert [(e.done, e.total) for e in heard] == [(1, 3), (2, 3), (3, 3)]
    assert heard[-1].perplexity == pytest.approx(result.perplexity)


def test_divergence_is_the_plain_definition() -> None:
    reference, model = FakeModel(), FakeModel(lambda ids: 5 + ids[-1])
    pairs = [
        (p, q) for row in ROWS for p, q in zip(probabilities(reference, row), probabilities(model, row), strict=True)
    ]
    kl = sorted(float((p * (p / q).log()).sum()) for p, q in pairs)
    heard: list[EvaluationProgress] = []
    result = kl_divergence(model, reference, ROWS, on_progress=heard.append)
    assert result.kl == pytest.approx(math.fsum(kl) / len(kl), rel=1e-5)
    assert result.kl_median == pytest.approx(kl[len(kl) // 2], rel=1e-5)
    assert kl[-2] <= result.kl_99 * (1 + 1e-5) and result.kl_99 <= kl[-1] * (1 + 1e-5)
    assert result.top1 == sum(int(p.argmax() == q.argmax()) for p, q in pairs) / len(pairs)
    assert result.perplexity == pytest.approx(perplexity(model, ROWS).perplexity)
    assert result.reference_perplexity == pytest.approx(perplexity(reference, ROWS).perplexity)
    assert heard[-1].kl == pytest.approx(result.kl)


def test_a_model_does_not_differ_from_itself() -> None:
    result = kl_divergence(FakeModel(), FakeModel(), ROWS)
    assert (result.kl, result.kl_99, result.top1) == (0.0, 0.0, 1.0)


class Masked(FakeModel):
    """As a model whose vocabulary is padded: the last rows are never predicted."""

    def forward(self, ids, cache, **options):  # type: ignore[no-untyped-def]
        logits = super().forward(ids, cache, **options)
        logits[..., 280:] = -math.inf
        return logits


class Broken(FakeModel):
    def forward(self, ids, cache, **options):  # type: ignore[no-untyped-def]
        return super().forward(ids, cache, **options) * math.nan


def test_excluded_tokens_count_nothing_and_broken_models_are_named() -> None:
    assert kl_divergence(Masked(), Masked(), ROWS).kl == 0.0
    assert math.isfinite(kl_divergence(FakeModel(), Masked(), ROWS).kl)
    assert kl_divergence(Masked(), FakeModel(), ROWS).kl == math.inf
    with pytest.raises(GenerationError, match="NaN"):
        perplexity(Broken(), ROWS)
    with pytest.raises(GenerationError, match="NaN"):
        kl_divergence(Broken(), FakeModel(), ROWS)


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="300 tokens and the reference 400"):
        kl_divergence(FakeModel(), FakeModel(vocab_size=400), ROWS)
    with pytest.raises(ContextError, match=r"600 tokens.* 512"):
        perplexity(FakeModel(), [[1] * 600])
    with pytest.raises(ContextError, match="nothing to measure"):
        perplexity(FakeModel(), [])


def test_cancel_between_rows() -> None:
    cancel = CancelToken()
    heard: list[EvaluationProgress] = []

    def listen(event: EvaluationProgress) -> None:
        heard.append(event)
        cancel.cancel()

    with pytest.raises(CancelledError):
        perplexity(FakeModel(), ROWS, on_progress=listen, cancel=cancel)
    assert len(heard) == 1


def test_texts_of_files(tmp_path: Path) -> None:
    lines = [
        {"kind": "text", "text": "one"},
        {"kind": "chat", "turns": []},
        {"text": "two"},
        {"kind": "x", "text": "y"},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_texts(file) == ["one", "two"]
    assert read_texts(file, kind=None) == ["one", "two", "y"]
    plain = tmp_path / "a.txt"
    plain.write_text("some\ntext")
    assert read_texts(plain) == ["some\ntext"]
    with pytest.raises(NotFoundError):
        read_texts(tmp_path / "none.txt")
    for content, message in ((b'{"text"', "line 1 is not JSON"), (b"[1]\n", "no line has a text"), (b"\xff", "UTF-8")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_texts(file)


def test_rows() -> None:
    tokenizer = FakeTokenizer()
    assert make_rows(["abcdef", "x", ""], tokenizer, 4) == [[1, *tokenizer.encode("abc")], [1, *tokenizer.encode("x")]]
    assert make_rows(["abcdefg"], tokenizer, 4, limit=2) == [
        [1, *tokenizer.encode("abc")],
        [1, *tokenizer.encode("def")],
    ]
    with pytest.raises(ContextError):
        make_rows(["a"], tokenizer, 1)
