"""`exl2-tui eval`: how good a model is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import print_json, print_text, progress_line
from exl2_tui.core.errors import ContextError
from exl2_tui.core.events import EvaluationProgress

if TYPE_CHECKING:
    from exl2_tui.core.engine import LoadedModel

app = typer.Typer(help="Measure a model: perplexity, or how far it is from another one.", rich_markup_mode=None)

Texts = Annotated[Path, typer.Argument(help='A text file, or .jsonl with {"text": ...} lines.')]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens per row.")]
Rows = Annotated[int | None, typer.Option("--rows", min=1, help="At most this many rows.")]
ProgressOf = Callable[[EvaluationProgress], None]


@app.command("perplexity")
def perplexity(
    text: Texts,
    model: opt.Model = None,
    length: Length = 512,
    rows: Rows = None,
    exact: opt.Exact = None,
    threads: opt.Threads = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """How well a model predicts a text: exp of the mean negative log-likelihood per token; lower is better."""
    from exl2_tui.core import evaluate

    options = opt.override(opt.settings().load, context=length, exact=exact, threads=threads, device=device)
    texts = evaluate.read_texts(text)  # before a model is loaded, which can take minutes
    with opt.interruptible() as cancel:
        current = opt.open_engine(model, options, cancel, quiet=json).current
        data = rows_of(current, texts, text, length, rows)
        with rows_progress() as on_progress:
            result = evaluate.perplexity(current.model, data, on_progress=on_progress, cancel=cancel)
    if json:
        print_json(dataclasses.asdict(result))
    else:
        print_text(f"perplexity {result.perplexity:.4f} over {result.tokens} tokens in {result.rows} rows")


@app.command("kl")
def kl(
    text: Texts,
    reference: Annotated[
        str, typer.Option("--reference", "-r", help="The model to compare with, usually the original.")
    ],
    model: opt.Model = None,
    length: Length = 512,
    rows: Rows = None,
    exact: opt.Exact = None,
    threads: opt.Threads = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """How far a model's predictions are from a reference's: KL divergence and agreement on the most probable token."""
    from exl2_tui.core import evaluate

    options = opt.override(opt.settings().load, context=length, exact=exact, threads=threads, device=device)
    texts = evaluate.read_texts(text)  # before a model is loaded, which can take minutes
    with opt.interruptible() as cancel:
        current = opt.open_engine(model, options, cancel, quiet=json).current
        other = opt.open_engine(reference, options, cancel, quiet=json).current
        data = rows_of(current, texts, text, length, rows)
        with rows_progress() as on_progress:
            result = evaluate.kl_divergence(current.model, other.model, data, on_progress=on_progress, cancel=cancel)
    if json:
        print_json(dataclasses.asdict(result))
        return
    print_text(f"KL divergence       {result.kl:.5f} nats (median {result.kl_median:.5f}, 99 % {result.kl_99:.4f})")
    print_text(f"top-1 agreement     {100 * result.top1:.2f} %")
    print_text(f"perplexity          {result.perplexity:.4f}, reference {result.reference_perplexity:.4f}")
    print_text(f"measured on         {result.tokens} tokens in {result.rows} rows")


def rows_of(current: LoadedModel, texts: list[str], file: Path, length: int, limit: int | None) -> list[list[int]]:
    """Rows of token ids from the texts of a file. Raises ContextError if nothing can be measured on them."""
    from exl2_tui.core.evaluate import make_rows

    length = min(length, current.generator.context_size)
    rows = make_rows(texts, current.tokenizer, length, limit)
    if not rows:
        raise ContextError("the text is too short to predict anything in it", file=file, hint="Use a longer text")
    return rows


@contextmanager
def rows_progress() -> Iterator[ProgressOf]:
    with progress_line("Measuring") as update:
        yield lambda event: update(event.done, event.total)
