"""PathInput: a line for a file or folder that completes what is typed; the disk is read on a thread."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.suggester import Suggester
from textual.widgets import Button, Input

from exl2_tui.text import clean

MOST_ENTRIES = 2000


class StepInput(Input):
    """A line of a form in steps: its own enter, which goes on, is in the footer as that of everything else is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "submit", "Next", id="wizard.next")]


class StepButton(Button):
    """A button whose own enter is in the footer, too."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "press", "Choose")]


class PathInput(StepInput):
    """→ at the end of the line takes the grey completion."""

    def __init__(self, value: str = "", *, placeholder: str = "", folders: bool = True, id: str | None = None) -> None:
        super().__init__(
            value,
            placeholder=placeholder,
            compact=True,
            select_on_focus=False,
            suggester=PathSuggester(folders_only=folders),
            id=id,
        )


class PathSuggester(Suggester):
    """The first entry of a folder that begins as the last part of the path."""

    def __init__(self, *, folders_only: bool) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._folders_only = folders_only

    async def get_suggestion(self, value: str) -> str | None:
        return await asyncio.to_thread(complete, value, self._folders_only)


def complete(value: str, folders_only: bool) -> str | None:
    """`value` completed, None if there is nothing; names that a terminal would obey are left out."""
    folder, _, start = value.rpartition("/")
    if not value or (not folder and not value.startswith("/")):
        return None
    try:
        with os.scandir(Path(folder or "/").expanduser()) as entries:
            found = sorted(
                (entry.name, "/" if entry.is_dir() else "")
                for _, entry in zip(range(MOST_ENTRIES), entries, strict=False)
                if entry.name.startswith(start)
                and (start or not entry.name.startswith("."))
                and (entry.is_dir() or not folders_only)
            )
    except (OSError, RuntimeError, ValueError):
        return None
    # In the order of names: one that is whole comes first, and not a longer one that would look like the choice.
    fitting = [name + end for name, end in found if clean(name) == name]
    return f"{folder}/{fitting[0]}" if fitting else None
