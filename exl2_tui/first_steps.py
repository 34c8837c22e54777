"""What a start begins with: the first one with a screen of its own, later ones with what was left unfinished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exl2_tui.settings import data_dir

if TYPE_CHECKING:
    from exl2_tui.app import Exl2App


def look_back(app: Exl2App) -> None:
    """On a later start: who ever started a conversion hears of one that was interrupted.

    The name of the file is that of `core.quant.registry`, which is not needed where there is none.
    """
    if (data_dir() / "jobs.json").is_file():
        app.convert.greet()


def show(app: Exl2App) -> None:
    """Shows what this machine has, and goes where the person wants to begin."""
    from exl2_tui.screens.first_run import FirstRun

    def chosen(choice: str | None) -> None:
        app.preferences.change(app.settings)  # writes the file, so that this is not shown again
        if choice == "models":
            app.action_models()
        elif choice == "hub":
            app.models.show("hub")
        elif choice == "convert":
            app.action_convert()
        elif choice is not None and choice.startswith("folder "):
            app.models.add_folder(choice.removeprefix("folder "), tell=True)
            app.action_models()

    app.push_screen(FirstRun(), chosen)
    if app.service is not None:
        app.service.describe_machine()
        app.service.list_models()
