"""How good a model is: perplexity, and KL divergence and top-1 agreement with a reference model.

Every token of a row but the first is predicted from those before it. Logits are looked at in pieces, so the memory
needed does not grow with the text.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CheckpointError, ContextError, GenerationError, NotFoundError, UnsupportedError
from exl2_tui.core.events import EvaluationProgress
from exl2_tui.core.model.protocol import LanguageModel

ROW_LENGTH = 512
# Logits of one model held at once, as a number of float32 values (32 MiB).
LOGITS_AT_ONCE = 1 << 23
LONGEST_STEP = 256

Progress = Callable[[EvaluationProgress], None]


class RowTokenizer(Protocol):
    """What is needed to make rows."""

    bos_id: int | None

    def encode(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(loss); loss is the mean of -ln p over `tokens` predicted tokens of `rows` rows, in nats."""

    perplexity: float
    loss: float
    tokens: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """A model against a reference, per predicted token.

    kl: mean of KL(reference || model) in nats; kl_median and kl_99 its quantiles. top1: share of tokens for which both
    find the same one most probable.
    """

    kl: float
    kl_median: float
    kl_99: float
    top1: float
    perplexity: float
    reference_perplexity: float
    tokens: int
    rows: int
    seconds: float


def read_texts(path: Path | str, kind: str | None = "text") -> list[str]:
    """Texts to measure on: the lines of a .jsonl file as {"text": ...}, or any other file as one text.

    kind: of lines that have a "kind", only these are taken; None takes all that have a text. Raises NotFoundError and
    CheckpointError.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError("there is no such file", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot be read as UTF-8 text: {error}", file=path) from error
    if path.suffix != ".jsonl":
        return [content]
    texts = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            raise CheckpointError(f"line {number} is not JSON", file=path, hint='Write {"text": ...} lines') from None
        text = item.get("text") if isinstance(item, dict) else None
        if isinstance(text, str) and (kind is None or item.get("kind", kind) == kind):
            texts.append(text)
    if not texts:
        raise CheckpointError("no line has a text to measure on", file=path, hint='Write {"text": ...} lines')
    return texts


def make_rows(
    texts: Sequence[str], tokenizer: RowTokenizer, length: int = ROW_LENGTH, limit: int | None = None
) -> list[list[int]]:
    """Rows of at most `length` ids, BOS (if there is one) in front of each.

    Of several texts each is cut to one row, so that they count alike; a single text is run through to its end.
    limit: at most this many rows.
    """
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    room = length - len(start)
    if room < 1 or length < 2:
        raise ContextError(f"rows of {length} tokens hold nothing to predict", hint="Use at least 2")
    rows = []
    for text in texts:
        ids = tokenizer.encode(text)
        pieces = range(0, len(ids), room) if len(texts) == 1 else (0,)
        rows += [start + ids[at : at + room] for at in pieces]
    return [row for row in rows if len(row) > 1][:limit]


def perplexity(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Perplexity:
    """How well a model predicts the rows. Raises CancelledError, ContextError, GenerationError (no numbers)."""
    started = time.perf_counter()
    scorer = _Scorer([model], rows, cancel)
    loss, tokens = 0.0, 0
    for done, row in enumerate(rows, start=1):
        for (logits,), targets in scorer.steps(row):
            loss -= _chosen(torch.log_softmax(logits, -1), targets)
            tokens += len(targets)
        _check(loss)
        if on_progress is not None:
            on_progress(EvaluationProgress(done, len(rows), tokens, _exp(loss / tokens)))
    return Perplexity(_exp(loss / tokens), loss / tokens, tokens, len(rows), time.perf_counter() - started)


def kl_divergence(
    model: LanguageModel,
    reference: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    on_progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> Divergence:
    """How far a model's predictions are from a reference's. Raises as `perplexity`; both need one vocabulary."""
    sizes = (model.config.vocab_size, reference.config.vocab_size)
    if sizes[0] != sizes[1]:
        raise UnsupportedError(
            f"the model predicts {sizes[0]} tokens and the reference {sizes[1]}",
            hint="Compare a model with the one it was made from",
        )
    started = time.perf_counter()
    scorer = _Scorer([model, reference], rows, cancel)
    loss, reference_loss, equal, tokens = 0.0, 0.0, 0, 0
    divergences: list[Tensor] = []
    total = 0.0
    for done, row in enumerate(rows, start=1):
        for (logits, reference_logits), targets in scorer.steps(row):
            ours, theirs = torch.log_softmax(logits, -1), torch.log_softmax(reference_logits, -1)
            # A token the reference excludes (-inf) adds 0 to the sum.
            difference = (theirs - ours).masked_fill(theirs == -math.inf, 0.0)
            kl = (theirs.exp() * difference).sum(-1, dtype=torch.float64)
            divergences.append(kl.float())
            total += float(kl.sum())
            equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            loss -= _chosen(ours, targets)
            reference_loss -= _chosen(theirs, targets)
            tokens += len(targets)
        _check(loss + reference_loss + total)
        if on_progress is not None:
            on_progress(EvaluationProgress(done, len(rows), tokens, _exp(loss / tokens), total / tokens))
    every = torch.cat(divergences).sort().values
    return Divergence(
        kl=total / tokens,
        kl_median=float(every[len(every) // 2]),
        kl_99=float(every[math.ceil(0.99 * (len(every) - 1))]),
        top1=equal / tokens,
        perplexity=_exp(loss / tokens),
        reference_perplexity=_exp(reference_loss / tokens),
        tokens=tokens,
        rows=len(rows),
        seconds=time.perf_counter() - started,
    )


class _Scorer:
    """Runs rows through one or more models side by side, a piece at a time."""

    def __init__(self, models: Sequence[LanguageModel], rows: Sequence[Sequence[int]], cancel: CancelToken | None):
        if not rows:
            raise ContextError("there is nothing to measure on", hint="Give a text of more than a few words")
        longest = max(map(len, rows))
        for model in models:
            limit = model.config.max_position_embeddings
            if longest - 1 > limit:
                raise ContextError(
                    f"a row has {longest} tokens, but the model was made for {limit}", hint="Use shorter rows"
                )
        self._models = models
        self._caches = [model.new_cache(longest - 1) for model in models]
        self._step = max(1, min(LONGEST_STEP, LOGITS_AT_ONCE // max(model.config.vocab_size for model in models)))
        self._cancel = cancel

    def steps(self, row: Sequence[int]) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Per piece of T tokens: each model's logits (T, V) float32, and the tokens (T,) that really followed."""
        for cache in self._caches:
            cache.truncate(0)
        for start in range(0, len(row) - 1, self._step):
            if self._cancel is not None:
                self._cancel.check()
            end = min(start + self._step, len(row) - 1)
            logits = [
                model.forward(row[start:end], cache, all_logits=True, cancel=self._cancel)
                for model, cache in zip(self._models, self._caches, strict=True)
            ]
            yield logits, torch.tensor(row[start + 1 : end + 1])


def _chosen(log_probabilities: Tensor, targets: Tensor) -> float:
    """Sum of ln p of the targets; (T, V) float32, (T,) int64."""
    return float(log_probabilities.gather(1, targets[:, None]).sum(dtype=torch.float64))


def _check(value: float) -> None:
    if math.isnan(value):
        raise GenerationError(
            "the model computed NaN (not a number)", hint="The weights are probably damaged: check the files"
        )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
