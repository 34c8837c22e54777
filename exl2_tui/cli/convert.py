"""`exl2-tui convert` makes EXL2 models; `exl2-tui jobs` lists, resumes and deletes conversions."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import bytes_text, note, print_json, print_text
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, ConfigError, JobError, QuantizationError
from exl2_tui.core.events import (
    Allocated,
    CalibrationReady,
    Evaluated,
    Event,
    JobEstimate,
    JobFinished,
    JobProgress,
    LayerMeasured,
    LayerQuantized,
    ModelWritten,
    QualityWarning,
    StageStarted,
    Tuned,
)
from exl2_tui.core.requests import Allocation, ConvertRequest, RecipeName
from exl2_tui.job_journal import recorded
from exl2_tui.settings import data_dir

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

app = typer.Typer(rich_markup_mode=None)
jobs_app = typer.Typer(help="List, resume or delete conversions.", rich_markup_mode=None)
app.add_typer(jobs_app, name="jobs")

Work = Annotated[str, typer.Argument(help="Work directory of the job, or its name.")]


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Option("-i", "--in-dir", help="Model directory, float16, bfloat16 or float32.")],
    work: Annotated[Path, typer.Option("-o", "--out-dir", help="Work directory; the same command resumes it.")],
    bits: Annotated[str, typer.Option("-b", "--bits", help="Average bits per weight, 2 to 8; several: 3.0,4.0.")] = "4",
    calibration: Annotated[
        Path | None, typer.Option("-c", "--cal-dataset", help="Text, JSONL or parquet; default: a built-in set.")
    ] = None,
    column: Annotated[str | None, typer.Option("--column", help="Column of the calibration file.")] = None,
    measurement: Annotated[
        Path | None, typer.Option("-m", "--measurement", help="measurement.json to reuse instead of measuring.")
    ] = None,
    measure_to: Annotated[
        Path | None, typer.Option("-om", "--output-measurement", help="Stop after measuring and write it here.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-cf", "--compile-full", help="Where the finished model goes; default: in -o.")
    ] = None,
    head_bits: Annotated[
        str, typer.Option("-hb", "--head-bits", help="2, 3, 4, 5, 6, 8, or auto: inside the budget of a 6-bit head.")
    ] = "6",
    rows: Annotated[int | None, typer.Option("-r", "--dataset-rows", min=1, help="Calibration rows.")] = None,
    length: Annotated[int | None, typer.Option("-l", "--length", min=32, help="Tokens per row.")] = None,
    measure_rows: Annotated[int | None, typer.Option("-mr", "--measurement-rows", min=1)] = None,
    measure_length: Annotated[int | None, typer.Option("-ml", "--measurement-length", min=32)] = None,
    shard_size: Annotated[int, typer.Option("-ss", "--shard-size", min=0, help="MiB per file; 0: one file.")] = 8192,
    recipe: Annotated[
        str, typer.Option("--recipe", help="refined, or classic: as the reference converter.")
    ] = "refined",
    allocation: Annotated[
        str, typer.Option("--allocation", help="Make the sum of errors small, or the largest one.")
    ] = "sum",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    fresh: Annotated[bool, typer.Option("-nr", "--no-resume", help="Delete the job in -o and start anew.")] = False,
    json: opt.Json = False,
) -> None:
    """Quantize a model to EXL2. Interrupted by Ctrl-C or a crash, the same command goes on where it was."""
    request = ConvertRequest(
        source=str(source.expanduser().resolve()),
        work=str(work.expanduser().resolve()),
        bits=parse_bits(bits),
        head_bits=parse_head_bits(head_bits),
        recipe=cast("RecipeName", recipe),  # ConvertRequest refuses other names
        allocation=cast("Allocation", allocation),
        output=_absolute(output),
        calibration=_absolute(calibration),
        column=column,
        rows=rows,
        length=length,
        measure_rows=measure_rows,
        measure_length=measure_length,
        measurement=_absolute(measurement),
        measure_to=_absolute(measure_to),
        shard_size=shard_size,
        device=device,
    )
    run_job(request, fresh=fresh, json=json)


def parse_bits(text: str) -> tuple[float, ...]:
    """ "3.0,4" -> (3.0, 4.0). Raises ConfigError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"bits are {text!r}, but must be numbers separated by commas") from None


def parse_head_bits(text: str) -> int | None:
    """ "6" -> 6, "auto" -> None. Raises ConfigError."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise ConfigError(f"head bits are {text!r}, but must be one of 2, 3, 4, 5, 6, 8, or auto")
    return int(text)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().resolve())


def run_job(request: ConvertRequest, *, fresh: bool, json: bool) -> None:
    """Runs or resumes a job, showing what happens; raises QuantizationError if a finished model is broken."""
    from exl2_tui.core.quant.job import ConvertJob
    from exl2_tui.core.quant.registry import remember

    broken = 0
    with opt.interruptible() as cancel:
        job = ConvertJob.open(request, fresh=fresh)
        remember(data_dir(), Path(request.work))
        try:
            broken = _show_json(job, cancel) if json else _show(job, cancel)
        except CancelledError:
            note(f"Stopped. Run the same command, or `exl2-tui jobs resume {request.work}`, to go on.")
            raise
        finally:
            job.close()
    if broken:
        raise QuantizationError(
            f"{broken} of {len(request.bits)} models failed the evaluation", hint="See report.md beside each of them."
        )


def _show_json(job: object, cancel: CancelToken) -> int:
    from exl2_tui.core.quant.job import ConvertJob

    assert isinstance(job, ConvertJob)
    broken = 0
    for event in recorded(job.work.path, job.run(cancel), cancel, resumed=job.resumed):
        print_json(event.to_json())
        if isinstance(event, JobFinished):
            broken = event.broken
    return broken


def _show(job: object, cancel: CancelToken) -> int:
    """A progress bar on stderr with a line per finished thing above it; returns the number of broken models."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from exl2_tui.core.quant.job import ConvertJob

    assert isinstance(job, ConvertJob)
    console = Console(file=sys.stderr, highlight=False, markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    broken = 0
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True) as progress:
        task = progress.add_task("Starting", total=None, left="")
        for event in recorded(job.work.path, job.run(cancel), cancel, resumed=job.resumed):
            _update(progress, task, event)
            line = describe(event)
            if line:
                progress.console.print(line, soft_wrap=True)
            if isinstance(event, JobFinished):
                broken = event.broken
                for path in event.paths:
                    print_text(path)
    return broken


def _update(progress: Progress, task: TaskID, event: Event) -> None:
    if isinstance(event, StageStarted):
        progress.update(task, description=event.stage.capitalize())
    elif isinstance(event, JobProgress):
        left = "" if event.seconds_left is None else f"{duration(event.seconds_left)} left"
        label = f"{event.stage.capitalize()}: {event.detail}"
        progress.update(task, description=label, completed=event.done, total=event.total or None, left=left)


def describe(event: Event) -> str:
    """One line about an event for people, "" for those that only move the bar."""
    if isinstance(event, JobEstimate):
        return (
            f"Needs about {bytes_text(event.peak_memory)} of memory ({bytes_text(event.available_memory)} free) and "
            f"{bytes_text(event.disk)} of disk ({bytes_text(event.free_disk)} free)"
        )
    if isinstance(event, StageStarted):
        what = f" at {event.bits:g} bits per weight" if event.bits else ""
        return f"{event.stage.capitalize()}{what}{' (resumed)' if event.resumed else ''}"
    if isinstance(event, CalibrationReady):
        return (
            f"  {event.rows} rows of {event.length} tokens from {event.description}; "
            f"{event.measure_rows} measure, {event.held_out_rows} judge the result"
        )
    if isinstance(event, LayerMeasured):
        cheapest, best = event.errors[event.bpw.index(min(event.bpw))], min(event.errors)
        return f"  {event.key}: error {cheapest:.2g} at {min(event.bpw):.2f} bpw, {best:.2g} at best"
    if isinstance(event, Allocated):
        return f"  {event.reached_bpw:.3f} bits per weight for a target of {event.bits:g}"
    if isinstance(event, LayerQuantized):
        return f"  {event.key}: {event.recipe}, {event.bpw:.2f} bpw, error {event.error:.4f}, {event.seconds:.1f} s"
    if isinstance(event, Tuned):
        verdict = "" if event.kept else ", so they stay as they were"
        return f"  norms and scales: KL divergence {event.kl_before:.4f} before, {event.kl_after:.4f} after{verdict}"
    if isinstance(event, QualityWarning):
        return f"Warning: {event.message}" + (f" ({event.key})" if event.key else "")
    if isinstance(event, Evaluated):
        verdict = "BROKEN" if event.broken else "ok"
        return (
            f"  {verdict}: KL divergence {event.kl:.4f}, same top token {100 * event.top1:.1f} %, perplexity "
            f"{event.perplexity:.2f} (original {event.original_perplexity:.2f}) on {event.tokens} held-out tokens"
        )
    if isinstance(event, ModelWritten):
        return f"  {event.path}: {bytes_text(event.size)}"
    return ""


def duration(seconds: float) -> str:
    """ "1 h 05 min", "3 min 20 s" or "12 s"."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


@jobs_app.callback(invoke_without_command=True)
def default(context: typer.Context, json: opt.Json = False) -> None:
    if context.invoked_subcommand is None:
        list_jobs(json)


@jobs_app.command("list")
def list_jobs(json: opt.Json = False) -> None:
    """Every conversion started on this machine that still has its work directory."""
    from exl2_tui.core.quant.registry import jobs

    found = jobs(data_dir())
    if json:
        print_json([dataclasses.asdict(job) for job in found])
        return
    for job in found:
        targets = ", ".join(f"{value:g}" for value in job.bits)
        state = job.problem or ("finished" if job.stage == "done" else f"{job.stage}, step {job.step}")
        print_text(f"{job.path}  {Path(job.source).name}  {targets} bpw  {job.recipe}  {state}")
    if not found:
        note("No conversions yet. Start one with `exl2-tui convert -i MODEL -o WORKDIR -b 4.0`.")


@jobs_app.command("resume")
def resume(work: Work, json: opt.Json = False) -> None:
    """Go on with an interrupted conversion."""
    from exl2_tui.core.quant.job import stored_request
    from exl2_tui.core.quant.registry import find

    job = find(data_dir(), work)
    if job.problem:
        raise JobError(job.problem, file=job.path)
    run_job(stored_request(Path(job.path)), fresh=False, json=json)


@jobs_app.command("delete")
def delete(work: Work, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete a conversion's files, finished models inside its work directory included."""
    from exl2_tui.core.quant import registry

    job = registry.find(data_dir(), work)
    if not yes and not typer.confirm(f"Delete {job.path}?"):
        raise CancelledError
    registry.delete(data_dir(), job)
