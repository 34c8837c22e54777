"""Pictures of a screen in every look, from one run of the app: dark, light, and without colour.

Changing the look while the app runs saves two thirds of the time, and shows that everything on screen follows.
"""

from __future__ import annotations

import sys

import pytest
from pytest_textual_snapshot import SVGImageExtension
from syrupy.assertion import SnapshotAssertion
from textual.filter import Monochrome
from textual.pilot import Pilot

MOST_WIDGETS = 600  # of any screen
LOOKS = ("dark", "light", "nocolor")
SIZES = [(80, 24), (120, 40)]

every_size = pytest.mark.parametrize("size", SIZES, ids=["80x24", "120x40"])
one_python = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="snapshots are kept for one Python version")


async def compare(pilot: Pilot[None], snapshot: SnapshotAssertion) -> None:
    """Compares what is on screen with the stored pictures; update with --snapshot-update, then look at them."""
    app = pilot.app
    pictures = snapshot.use_extension(SVGImageExtension)
    different = []
    assert len(list(app.screen.walk_children())) <= MOST_WIDGETS
    for look in LOOKS:
        if look == "nocolor":  # what NO_COLOR does when the app starts
            app._filters.append(Monochrome())
        app.theme = "exl2-light" if look == "light" else "exl2-dark"
        app.refresh_css(animate=False)
        await pilot.pause()
        await pilot.pause()
        picture = app.export_screenshot(title=app.title, simplify=True)
        if pictures(name=look) != picture:
            different.append(look)
    assert not different, f"{', '.join(different)} differ from the stored pictures"
