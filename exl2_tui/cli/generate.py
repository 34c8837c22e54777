"""`exl2-tui generate`: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import note, print_json, print_text
from exl2_tui.core.events import Failed, GenerationFinished, TokenDelta
from exl2_tui.core.requests import CompletionRequest


def speeds(finished: GenerationFinished) -> str:
    """One line about a finished generation."""
    fresh = finished.prompt_tokens - finished.cached_tokens
    return (
        f"prompt {fresh} tokens, {finished.prefill_speed:.1f} tokens/s · "
        f"{finished.generated_tokens} tokens written, {finished.decode_speed:.1f} tokens/s · "
        f"first after {finished.first_token_seconds:.2f} s · {finished.reason.replace('_', ' ')}"
    )


def generate(
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text to continue; default: stdin.")] = None,
    model: opt.Model = None,
    max_tokens: opt.MaxTokens = 128,
    special: Annotated[
        bool, typer.Option("--special", help="Let <|...|> in the prompt become special tokens.")
    ] = False,
    stop: opt.Stop = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    typical: opt.Typical = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    seed: opt.Seed = None,
    context: opt.Context = None,
    cache: opt.Cache = None,
    device: opt.Device = None,
    gpu_split: opt.GpuSplit = None,
    exact: opt.Exact = None,
    threads: opt.Threads = None,
    json: opt.Json = False,
) -> None:
    """Continue a text without any template, as it is written, then print the speeds."""
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give a text with -p, or pipe one in", param_hint="--prompt")
        prompt = sys.stdin.read()
    settings = opt.settings()
    sampler = opt.override(
        settings.sampler,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
    )
    options = opt.override(
        settings.load, context=context, cache=cache, device=device, gpu_split=gpu_split, exact=exact, threads=threads
    )
    request = CompletionRequest(prompt, special, sampler, max_tokens, tuple(stop or ()))
    with opt.interruptible() as cancel:
        engine = opt.open_engine(model, options, cancel, quiet=json)
        if not json:
            print_text(prompt, end="")
        for event in engine.complete(request, request_id=1, cancel=cancel):
            if json:
                print_json(event.to_json())
            elif isinstance(event, TokenDelta):
                print_text(event.text, end="")
            elif isinstance(event, GenerationFinished):
                print_text("")
                note(speeds(event))
            elif isinstance(event, Failed):
                print_text("")
                note(f"exl2-tui: {event.message}. {event.hint}")
            if isinstance(event, Failed):
                raise typer.Exit(1)
            if isinstance(event, GenerationFinished) and event.reason == "cancelled":
                raise typer.Exit(130)
