"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from exl2_tui.cli.output import load_progress, note
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError
from exl2_tui.core.requests import LoadOptions, SamplerSettings
from exl2_tui.core.sizes import size_of
from exl2_tui.settings import Settings, load_settings

if TYPE_CHECKING:
    from exl2_tui.core.engine import Engine
    from exl2_tui.core.library.catalog import Library

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Path or name of a model; see `exl2-tui models`. Default: the last one used."),
]
Mode = Annotated[str, typer.Option("--mode", help="Prompt mode; see `exl2-tui modes`.")]
System = Annotated[str, typer.Option("--system", "-p", help="System prompt.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Stop after this many new tokens.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Stop before this text; may be given several times.")]

Context = Annotated[
    int | None, typer.Option("--context", "-l", min=32, help="Tokens of context; default: the model's own.")
]
Cache = Annotated[
    str | None, typer.Option("--cache", help="KV cache: fp16, q8 (half the memory), on a GPU also q6 and q4.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
GpuSplit = Annotated[
    str | None, typer.Option("--gpu-split", help="Layers on several GPUs: auto, or the GB to use of each, as 8,8.")
]
Exact = Annotated[bool | None, typer.Option("--exact/--fast", help="Float32 activations everywhere, or 8-bit ones.")]
Threads = Annotated[int | None, typer.Option("--threads", min=0, help="CPU threads; 0 takes all cores.")]

Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Keep the k most probable tokens; 0 is off.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Keep the most probable tokens to this mass; 1 is off.")]
MinP = Annotated[float | None, typer.Option("--min-p", help="Drop tokens below this share of the best; 0 is off.")]
Typical = Annotated[float | None, typer.Option("--typical", help="Locally typical mass to keep; 1 is off.")]
RepetitionPenalty = Annotated[float | None, typer.Option("--repetition-penalty", help="1 is off.")]
FrequencyPenalty = Annotated[float | None, typer.Option("--frequency-penalty", help="0 is off.")]
PresencePenalty = Annotated[float | None, typer.Option("--presence-penalty", help="0 is off.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Equal seeds give equal text.")]

T = TypeVar("T", LoadOptions, SamplerSettings)


def override(base: T, **given: Any) -> T:
    """`base` with every option that was given on the command line; those left out are None."""
    return dataclasses.replace(base, **{name: value for name, value in given.items() if value is not None})


def settings() -> Settings:
    """The person's settings; a problem with the file is told on stderr."""
    loaded, problem = load_settings()
    if problem:
        note(problem)
    return loaded


def library() -> Library:
    """The models this person has."""
    from exl2_tui.models_source import open_library

    return open_library(settings())


def find_model(model: str | None) -> Path:
    """The directory to load: `model`, else the last one used if it is still there, else the built-in one."""
    return library().resolve(model or "")


def open_engine(model: str | None, options: LoadOptions, cancel: CancelToken, *, quiet: bool = False) -> Engine:
    """An engine with the model loaded, with progress and a line about it on stderr."""
    from exl2_tui.core.engine import Engine

    models = library()
    path = models.resolve(model or "")
    engine = Engine()
    with load_progress(f"Loading {path.name}") as on_event:
        loaded = engine.load(path, options, on_event, cancel)
    models.mark_used(path)
    if not quiet:
        note(
            f"{loaded.model}: {loaded.architecture}, {loaded.format}, context {loaded.context}, "
            f"{size_of(loaded.weight_bytes)} + {size_of(loaded.cache_bytes)} cache, {loaded.kernels}, "
            f"loaded in {loaded.seconds:.1f} s"
        )
    return engine


@contextmanager
def interruptible() -> Iterator[CancelToken]:
    """A token that Ctrl-C and SIGTERM set. A second Ctrl-C interrupts in the usual, rude way.

    After SIGTERM the program's exit status is that of a process ended by it.
    """
    token = CancelToken()
    received: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if token.cancelled and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        token.cancel()

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield token
    except CancelledError:
        if signal.SIGTERM not in received:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)
