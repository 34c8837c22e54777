"""ModelList: a row per model with what it takes and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from exl2_tui.core.events import ModelInfo
from exl2_tui.core.model_events import LibraryListed
from exl2_tui.core.sizes import size_of
from exl2_tui.session import ChatSession
from exl2_tui.text import column, one_line
from exl2_tui.widgets.bars import meter
from exl2_tui.widgets.keyed_list import KeyedList

FACTS = 48  # cells right of the name
FIT_STYLES = {"yes": "$success", "tight": "$warning", "cpu": "$warning", "no": "$error", "unknown": "$secondary"}


class ModelList(KeyedList):
    """The models of this machine, by directory."""

    def show(self, models: Sequence[ModelInfo], session: ChatSession, last: str) -> None:
        """last: directory of the model used last."""
        self.put([(model.path, row(model, session, self.room, last)) for model in models])


def heading(room: int, listed: LibraryListed | None) -> Content:
    memory = "MEMORY" if listed is None or listed.context is None else f"MEM {context_text(listed.context)}"
    if listed is not None and listed.cache != "fp16":
        memory += f" {listed.cache}"
    name = f"{'NAME':<{room - FACTS - 2}}"
    return Content.styled(f"   {name}{'FORMAT':>15}{'SIZE':>8}{'CTX':>6}{one_line(memory, 10):>11}  FITS", "$secondary")


def row(model: ModelInfo, session: ChatSession, room: int, last: str) -> Content:
    """One line of the list."""
    state = state_of(model, session)
    mark = {"loaded": ("● ", "$primary"), "loading": ("◌ ", "$primary"), "broken": ("✗ ", "$error")}.get(
        state, ("○ ", "$secondary") if model.path == last else ("  ", "")
    )
    name = column(model.name, room - FACTS - 2)
    context = context_text(model.context) if model.context else ""
    facts = f"{one_line(model.format, 14):>15}{size_of(model.size_bytes):>8}{context:>6}"
    memory = size_of(model.memory) if model.memory else ""
    if state == "loading":
        return Content.assemble(
            mark, name, (facts, "$secondary"), "   ", meter(session.model.done, session.model.total, cells=14)
        )
    return Content.assemble(mark, name, (facts, "$secondary"), f"{memory:>11}  ", fit_word(model, state))


def state_of(model: ModelInfo, session: ChatSession) -> str:
    """ "loaded", "loading", "broken" or ""."""
    loaded = session.model
    if loaded.status == "ready" and loaded.info is not None:
        same = loaded.info.path == model.path if loaded.info.path else loaded.info.model == model.name
        if same:
            return "loaded"
    if loaded.status == "loading" and loaded.name == model.path:
        return "loading"
    return "broken" if model.problem else ""


def fit_word(model: ModelInfo, state: str) -> tuple[str, str]:
    """The last column, with its style."""
    if state == "loaded":
        return "loaded", "$primary"
    if state == "broken":
        return "broken", "$error"
    return ("" if model.fits == "unknown" else model.fits), FIT_STYLES[model.fits]


def context_text(tokens: int) -> str:
    """ "8k" for 8192, "1,000" for 1000."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"
