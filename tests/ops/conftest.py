"""Every test of a kernel runs for each instruction set that this machine has."""

from __future__ import annotations

import pytest

from exl2_tui.core.ops import Isa, capabilities
from exl2_tui.core.ops.native import ISAS


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Isa:
    chosen: Isa = request.param
    if chosen not in capabilities().isas:
        pytest.skip(f"not here: {capabilities().reason or chosen}")
    return chosen
