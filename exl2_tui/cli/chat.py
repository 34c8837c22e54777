"""`exl2-tui` and `exl2-tui chat`: the full-screen chat, or a conversation line by line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from exl2_tui import __version__
from exl2_tui.cli import options as opt
from exl2_tui.cli.generate import speeds
from exl2_tui.cli.output import note, print_text
from exl2_tui.core.events import Failed, GenerationFinished, PromptReady, TokenDelta
from exl2_tui.core.requests import ChatRequest, Message
from exl2_tui.settings import save_settings
from exl2_tui.terminal import can_draw, has_terminal

Plain = Annotated[bool, typer.Option("--plain", help="Line by line instead of full screen.")]
ModeOrDefault = Annotated[str | None, typer.Option("--mode", help="Prompt mode; see `exl2-tui modes`.")]
SystemOrDefault = Annotated[str | None, typer.Option("--system", "-p", help="System prompt.")]


def show_version(value: bool) -> None:
    if value:
        print_text(f"exl2-tui {__version__}")
        raise typer.Exit


def default(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Version.")] = False,
    plain: Plain = False,
) -> None:
    if context.invoked_subcommand is None:
        chat(plain=plain)


def chat(
    model: opt.Model = None,
    mode: ModeOrDefault = None,
    system: SystemOrDefault = None,
    plain: Plain = False,
) -> None:
    """Talk to a model: full screen, or line by line with --plain, TERM=dumb or no terminal (each line is a prompt)."""
    if model is not None and Path(model).is_dir():
        model = str(Path(model).resolve())  # it is remembered, and must mean the same in another directory
    if mode is not None:
        from exl2_tui.core.prompts.modes import get

        get(mode)  # a wrong name is told before a model is loaded
    if plain or not can_draw():
        chat_plain(model, mode, system)
        return
    from exl2_tui.app import run

    run(model, mode, system)


def chat_plain(model: str | None, mode: str | None, system: str | None) -> None:
    """One question a line on stdin, one answer on stdout, until end of file."""
    settings = opt.settings()
    mode = mode or settings.chat.mode
    system = settings.chat.system if system is None else system
    messages = [Message("system", system)] if system else []
    interactive = has_terminal()
    with opt.interruptible() as cancel:
        engine = opt.open_engine(model, settings.load, cancel)
    if model is not None and model != settings.models.last:
        save_settings(dataclasses.replace(settings, models=dataclasses.replace(settings.models, last=model)))
    if interactive:
        note("One message a line. Ctrl-C stops an answer, Ctrl-D ends the chat.")
    number = 0
    while (line := read_line(interactive)) is not None:
        if not line.strip():
            continue
        number += 1
        messages.append(Message("user", line))
        request = ChatRequest(
            tuple(messages),
            mode=mode,
            sampler=settings.sampler,
            max_new_tokens=settings.chat.max_new_tokens,
            user_name=settings.chat.user_name,
            bot_name=settings.chat.bot_name,
        )
        text: list[str] = []
        ids: list[int] = []
        with opt.interruptible() as cancel:
            for event in engine.chat(request, request_id=number, cancel=cancel):
                if isinstance(event, TokenDelta):
                    print_text(event.text, end="")
                    text.append(event.text)
                    ids.extend(event.token_ids)
                elif isinstance(event, PromptReady):
                    if event.note and number == 1:
                        note(event.note)
                    if event.dropped:
                        note(f"The context is full: the oldest {event.dropped} messages are no longer seen.")
                elif isinstance(event, GenerationFinished):
                    print_text("")
                    if interactive:
                        note(speeds(event))
                elif isinstance(event, Failed):
                    note(f"exl2-tui: {event.message}. {event.hint}")
                    if not interactive:
                        raise typer.Exit(1)
        if cancel.cancelled and not interactive:
            raise typer.Exit(130)
        messages.append(Message("assistant", "".join(text), tuple(ids)))


def read_line(interactive: bool) -> str | None:
    """The next line without its end, or None at the end of the input or on Ctrl-C."""
    try:
        if interactive:
            return input("> ")
    except (EOFError, KeyboardInterrupt):
        print_text("")
        return None
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None
