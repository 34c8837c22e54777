"""`exl2-tui modes`: the prompt modes there are."""

from __future__ import annotations

from exl2_tui.cli import options as opt
from exl2_tui.cli.output import print_json, print_text


def modes(json: opt.Json = False) -> None:
    """List the prompt modes: how a conversation is written down for a model."""
    from exl2_tui.core import prompts

    rows = [(name, prompts.get(name).description) for name in prompts.names()]
    if json:
        print_json([{"name": name, "description": description} for name, description in rows])
        return
    width = max(len(name) for name, _ in rows)
    for name, description in rows:
        print_text(f"{name:<{width}}  {description}")
