"""`exl2-tui bench`: how fast a model runs on this machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import print_json, print_text, progress_line
from exl2_tui.core.sizes import size_of

Prompts = Annotated[list[int] | None, typer.Option("--prompt", min=1, help="Length of a prompt; repeatable.")]
Depths = Annotated[list[int] | None, typer.Option("--depth", min=0, help="Tokens cached before writing; repeatable.")]


def bench(
    model: opt.Model = None,
    prompt: Prompts = None,
    depth: Depths = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", "-n", min=2, help="Tokens to write at each depth.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs of each prompt; the median counts.")] = 3,
    cache: opt.Cache = None,
    device: opt.Device = None,
    gpu_split: opt.GpuSplit = None,
    exact: opt.Exact = None,
    threads: opt.Threads = None,
    json: opt.Json = False,
) -> None:
    """Tokens per second for prompts and for writing, memory, and the share of the memory bandwidth that is used."""
    from exl2_tui.core import speed

    options = opt.override(
        opt.settings().load, cache=cache, device=device, gpu_split=gpu_split, exact=exact, threads=threads
    )
    with opt.interruptible() as cancel:
        current = opt.open_engine(model, options, cancel, quiet=json).current
        with progress_line("Measuring") as update:
            report = speed.measure(
                current.model,
                current.read_bytes,
                prompts=prompt or (128, 512),
                depths=depth or (0, 512),
                new_tokens=new_tokens,
                repeats=repeats,
                kind=options.cache,
                on_progress=lambda event: update(event.done, event.total),
                cancel=cancel,
            )
    if json:
        print_json(dataclasses.asdict(report))
        return
    for run in report.prompt:
        print_text(f"prompt of {run.tokens:>5}    {run.tokens_per_second:9.1f} tokens/s")
    for step in report.decode:
        share = f"{100 * step.bandwidth_fraction:.0f} % of the memory bandwidth"
        read = f"{size_of(step.bytes_per_token)} per token"
        print_text(f"writing at {step.depth:>5}   {step.tokens_per_second:9.1f} tokens/s   {read}, {share}")
    print_text(f"memory bandwidth   {report.bandwidth / 1e9:9.1f} GB/s")
    print_text(f"peak memory        {size_of(report.peak_memory):>11}")
