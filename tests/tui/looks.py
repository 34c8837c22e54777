"""Pictures of a screen in every look, from one run of the app: dark, light, and without colour.

Changing the look while the app runs saves two thirds of the time, and shows that everything on screen follows.
"""

from __future__ import annotations

import sys

import pytest
from pytest_textual_snapshot import SVGImageExtension
from syrupy.assertion import SnapshotAssertion
from textual.app import App
from textual.pilot import Pilot

MOST_WIDGETS = 600  # of any screen
THEME = {"dark": "exl2-dark", "light": "exl2-light", "nocolor": "exl2-mono"}
SIZES = [(80, 24), (120, 40)]

every_size = pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
one_python = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="snapshots are kept for one Python version")


def coloured(app: App[None]) -> list[str]:
    """Texts on the screen that have a colour, be it the default one by name."""
    strips = app.screen._compositor.render_strips()
    return [text for strip in strips for text, style, _ in strip if style and (style.color or style.bgcolor)]


async def compare(pilot: Pilot[None], snapshot: SnapshotAssertion) -> None:
    """Compares what is on screen with the stored pictures; update with --snapshot-update, then look at them."""
    app = pilot.app
    pictures = snapshot.use_extension(SVGImageExtension)
    different = []
    assert len(list(app.screen.walk_children())) <= MOST_WIDGETS
    for look in THEME:
        app.theme = THEME[look]
        app.refresh_css(animate=False)
        await pilot.pause()
        await pilot.pause()
        if look == "nocolor":
            assert not coloured(app), "the terminal would be sent colours"
        picture = app.export_screenshot(title=app.title, simplify=True)
        if pictures(name=look) != picture:
            different.append(look)
    assert not different, f"{', '.join(different)} differ from the stored pictures"
