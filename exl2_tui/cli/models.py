"""`exl2-tui models`: the models of this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import bytes_text, note, print_json, print_text
from exl2_tui.core.errors import NotFoundError
from exl2_tui.settings import Settings, save_settings

app = typer.Typer(help="List models, show one, or tell where they lie.", rich_markup_mode=None)
Directory = Annotated[Path, typer.Argument(help="A model, or a folder of models.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context, json: opt.Json = False) -> None:
    if context.invoked_subcommand is None:
        list_models(json)


@app.command("list")
def list_models(json: opt.Json = False) -> None:
    """Every model found: built-in, in added directories, in the Hugging Face cache."""
    with opt.interruptible() as cancel:
        found = opt.library().list(cancel)
    if json:
        print_json([dataclasses.asdict(model) for model in found])
        return
    width = max((len(model.name) for model in found), default=0)
    for model in found:
        facts = model.problem or f"{model.format:<16} {bytes_text(model.size_bytes):>10}  context {model.context}"
        print_text(f"{model.name:<{width}}  {model.family:<10} {facts}")
    if len(found) <= 1:
        note("Add a folder of models with `exl2-tui models add DIRECTORY`.")


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(help="Path or name of a model.")],
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
    print_text(f"{details.architecture}, {info.format}, {bytes_text(info.size_bytes)}, context {info.context}")
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
