"""`exl2-tui models`: the models of this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.hub import download, search
from exl2_tui.cli.output import note, print_json, print_text, progress_line
from exl2_tui.core.errors import CheckpointError, JobError, NotFoundError
from exl2_tui.core.model_events import ModelVerified, VerifyProgress
from exl2_tui.core.sizes import size_of
from exl2_tui.settings import Settings, save_settings
from exl2_tui.terminal import has_terminal

app = typer.Typer(help="List, show, verify, delete, search and download models.", rich_markup_mode=None)
app.command("search")(search)
app.command("download")(download)
Model = Annotated[str, typer.Argument(help="Path or name of a model.")]
FITS = {"yes": "fits", "tight": "tight", "cpu": "on the CPU", "no": "does not fit", "unknown": ""}
Directory = Annotated[Path, typer.Argument(help="A model, or a folder of models.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context, json: opt.Json = False) -> None:
    if context.invoked_subcommand is None:
        list_models(json)


@app.command("list")
def list_models(
    json: opt.Json = False,
    context: opt.Context = None,
    cache: opt.Cache = None,
    device: opt.Device = None,
) -> None:
    """Every model of this machine, with the memory it takes and whether that fits."""
    from exl2_tui.models_source import CoreModels

    options = opt.override(opt.settings().load, context=context, cache=cache, device=device)
    with opt.interruptible() as cancel, progress_line("Reading models") as update:
        listed = CoreModels().scan(options, 0, cancel, lambda _: update(0, 1))
    if json:
        print_json([dataclasses.asdict(model) for model in listed.models])
        return
    width = max((len(model.name) for model in listed.models), default=0)
    for model in listed.models:
        facts = model.problem or (
            f"{model.format:<16} {size_of(model.size_bytes):>10}  context {model.context:<7} "
            f"needs {size_of(model.memory):>10}  {FITS[model.fits]}"
        )
        print_text(f"{model.name:<{width}}  {model.family:<10} {facts}")
    free = f", {size_of(listed.available)} of memory free" if listed.available is not None else ""
    note(f"Models: {size_of(listed.disk_bytes)}; {size_of(listed.free_disk)} free on the disk{free}.")
    if len(listed.models) <= 1:
        note("Add a folder of models with `exl2-tui models add DIRECTORY`, or get one with `exl2-tui models search`.")


@app.command("show")
def show(
    model: Model,
    json: opt.Json = False,
) -> None:
    """One model: shape, size, and the bits of every layer."""
    from exl2_tui.core.library.describe import describe_layers

    path = opt.find_model(model)
    details = describe_layers(path)
    if json:
        print_json(dataclasses.asdict(details))
        return
    info = details.info
    print_text(f"{info.name}  {info.path}")
    print_text(f"{details.architecture}, {info.format}, {size_of(info.size_bytes)}, context {info.context}")
    print_text(
        f"{details.layers} layers, hidden {details.hidden_size}, {details.heads} heads / {details.kv_heads} kv, "
        f"vocabulary {details.vocab_size}"
    )
    width = max((len(linear.name) for linear in details.linears), default=0)
    for linear in details.linears:
        print_text(
            f"  {linear.name:<{width}}  {linear.kind:<5} {linear.bits_per_weight:6.3f} bpw  "
            f"{linear.in_features:>6} x {linear.out_features:<6} {linear.recipe}"
        )


@app.command("verify")
def verify(model: Model, json: opt.Json = False) -> None:
    """Compare hashes where they are known, shapes with the config, and look for NaN and infinity in every tensor."""
    from exl2_tui.core.library.verify import verify as check

    path = opt.find_model(model)
    result: ModelVerified | None = None
    with opt.interruptible() as cancel, progress_line(f"Verifying {path.name}") as update:
        for event in check(path, path.name, cancel):
            if json:
                print_json(event.to_json())
            if isinstance(event, VerifyProgress):
                update(event.done, event.total)
            elif isinstance(event, ModelVerified):
                result = event
    if result is None:
        return
    if not json:
        _print_result(result)
    if not result.sound:
        raise CheckpointError(
            "the model is damaged", file=path, hint="Download or convert it again; do not trust its answers"
        )


def _print_result(result: ModelVerified) -> None:
    for file in result.files:
        print_text(f"{file.verdict:<8} {file.name}  {file.note}")
    for fault in result.faults:
        print_text(f"{'bad':<8} {fault.tensor or 'model'}  {fault.fault}")
    verdict = "Nothing is wrong with it" if result.sound else "It is damaged"
    print_text(f"{verdict}: {result.tensors:,} tensors, {result.values:,} numbers looked at in {result.seconds:.1f} s")


@app.command("delete")
def delete(
    model: Model,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")] = False,
) -> None:
    """Delete a model from the disk, after saying what goes. In the Hugging Face cache shared files stay."""
    from exl2_tui.core.library.removal import plan_removal, remove

    library = opt.library()
    given = Path(model).expanduser().absolute()  # not resolved: of a link only the link is deleted
    path = given if given.is_dir() else library.resolve(model)
    plan = plan_removal(library, path, given.name)
    if plan.refused:
        raise JobError(plan.refused, file=path)
    note(f"{len(plan.files)} files, {size_of(plan.freed)}, are deleted from {plan.root}")
    for name in plan.files:
        note(f"  {name}")
    if plan.note:
        note(plan.note)
    if not yes:
        asked = "Type the name of the model to delete it: "
        if not has_terminal() or input(asked).strip() != plan.name:
            raise JobError("nothing was deleted", hint=f"Answer with {plan.name}, or give --yes")
    done = remove(library, plan)
    if done.problem:
        raise JobError(f"not everything could be deleted: {done.problem}", file=path)
    note(f"{size_of(done.freed)} freed")


@app.command("add")
def add(directory: Directory) -> None:
    """Look for models in this directory from now on."""
    path = directory.expanduser().resolve()
    if not path.is_dir():
        raise NotFoundError("there is no such directory", file=path)
    settings = opt.settings()
    if str(path) not in settings.models.directories:
        save_directories(settings, (*settings.models.directories, str(path)))
    from exl2_tui.core.library.catalog import find_models

    note(f"{len(list(find_models(path)))} models found in {path}")


@app.command("remove")
def remove(directory: Directory) -> None:
    """Stop looking in this directory; nothing on disk is deleted."""
    settings = opt.settings()
    names = {str(directory), str(directory.expanduser().resolve())}
    kept = tuple(name for name in settings.models.directories if name not in names)
    if len(kept) == len(settings.models.directories):
        added = ", ".join(settings.models.directories) or "none"
        raise NotFoundError("this directory was not added", file=directory, hint=f"Added directories: {added}")
    save_directories(settings, kept)


def save_directories(settings: Settings, directories: tuple[str, ...]) -> None:
    models = dataclasses.replace(settings.models, directories=directories)
    save_settings(dataclasses.replace(settings, models=models))
