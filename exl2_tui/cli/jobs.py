"""`exl2-tui jobs` lists, resumes and deletes conversions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.conversion import run_job
from exl2_tui.cli.output import note, print_json, print_text
from exl2_tui.core.errors import CancelledError, ConfigError, JobError
from exl2_tui.settings import data_dir

if TYPE_CHECKING:
    from exl2_tui.core.quant.registry import JobSummary

app = typer.Typer(help="List, resume or delete conversions.", rich_markup_mode=None)

Work = Annotated[str, typer.Argument(help="Work directory of the job, or its name.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context, json: opt.Json = False) -> None:
    if context.invoked_subcommand is None:
        list_jobs(json)


@app.command("list")
def list_jobs(json: opt.Json = False) -> None:
    """Conversions whose work directory is still there."""
    from exl2_tui.core.quant.registry import jobs

    found = jobs(data_dir())
    if json:
        print_json([dataclasses.asdict(job) for job in found])
        return
    for job in found:
        targets = ", ".join(f"{value:g}" for value in job.bits)
        print_text(f"{job.path}  {Path(job.source).name}  {targets} bpw  {job.recipe}  {_status(job)}")
    if not found:
        note("No conversions yet. Start one with `exl2-tui convert -i MODEL -o WORKDIR -b 4.0`.")


@app.command("resume")
def resume(work: Work, json: opt.Json = False) -> None:
    """Go on with an interrupted conversion."""
    from exl2_tui.core.quant.job import stored_request
    from exl2_tui.core.quant.registry import find

    job = find(data_dir(), work)
    if job.problem:
        raise JobError(job.problem, file=job.path)
    run_job(stored_request(Path(job.path)), fresh=False, json=json)


@app.command("delete")
def delete(
    work: Work,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: opt.Json = False,
) -> None:
    """Delete a conversion, with the models inside its directory."""
    from exl2_tui.core.quant import registry

    job = registry.find(data_dir(), work)
    if json and not yes:
        raise ConfigError("--json cannot ask whether to delete", hint="Add --yes if that is what you want.")
    if not yes and not typer.confirm(f"Delete {job.path}{_models(job)}?"):
        raise CancelledError
    registry.delete(data_dir(), job)
    if json:
        print_json({"deleted": job.path})
    else:
        note(f"Deleted {job.path}.")


def _status(job: JobSummary) -> str:
    """Such as "finished", "running: measure, step 3" or "stopped: quantize, step 7"."""
    if job.problem:
        return f"damaged: {job.problem}"
    if job.stage == "done":
        return "finished"
    return f"{'running' if job.running else 'stopped'}: {job.stage}, step {job.step}"


def _models(job: JobSummary) -> str:
    """What else goes with the job's directory, for the question before deleting."""
    inside = [path for path in job.models if Path(job.path) in Path(path).parents]
    return f" with {len(inside)} finished model{'s' if len(inside) > 1 else ''}" if inside else ""
