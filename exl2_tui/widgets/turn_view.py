"""TurnView: one question or answer in the transcript, with what became of it in the row below."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from exl2_tui.core.events import GenerationFinished
from exl2_tui.hints import hint
from exl2_tui.segments import Line
from exl2_tui.session import can_go_on
from exl2_tui.store.tree import Turn
from exl2_tui.text import one_line, plain, sentence, speed_text, tokens_text
from exl2_tui.widgets.bars import Row
from exl2_tui.widgets.growing import Growing
from exl2_tui.widgets.text_view import TextView

if TYPE_CHECKING:
    from exl2_tui.segments import Code
    from exl2_tui.widgets.live_text import LiveText

QUESTION_LIMIT = 6_000  # characters of a question that are drawn; the rest is named by its length
REASONS = {
    "stop_token": "",
    "stop_string": "",
    "length": "reached the longest answer allowed",
    "context": "context is full",
    "cancelled": "",
}


class TurnView(Vertical, Growing):
    """A question is its text; an answer is its text, notices and a row of figures."""

    DEFAULT_CSS: ClassVar[str] = """
    TurnView { height: auto; margin-top: 1; padding: 0 2; border-left: blank $background; }
    TurnView.-marked { border-left: outer $primary; }
    TurnView > TextView { max-width: 92; }
    TurnView > LiveText { margin-left: 2; }
    TurnView > .-notice { margin-left: 2; }
    TurnView > Row { margin: 1 0 0 2; max-width: 92; color: $secondary; }
    TurnView > Row.-version { margin-top: 0; }
    """

    class Marked(Message):
        """The turn was clicked."""

        def __init__(self, turn: Turn) -> None:
            super().__init__()
            self.turn = turn

    def __init__(self, turn: Turn, version: int, versions: int) -> None:
        super().__init__()
        self.turn = turn
        self.version = version
        self.versions = versions
        self._shown = len(turn.text)
        self._notice = ""
        self._whole = False  # the parts are mounted
        self.finished = turn.state != "writing"  # what is shown is all of it

    def compose(self) -> ComposeResult:
        if self.turn.role == "user":
            yield TextView(self._question())
            if self.versions > 1:
                yield Row(classes="-figures -version")
            return
        from exl2_tui.widgets.live_text import LiveText  # the Markdown parser is not needed for the first frame

        self._shown = len(self.turn.text)
        yield LiveText(self.turn.text, done=self.turn.state != "writing")
        yield Row(classes="-figures")

    def on_mount(self) -> None:
        if not self.is_attached:  # the app is leaving: Textual has mounted no parts
            return
        self._whole = True
        if self.turn.state == "writing":
            self.feed()
            self.refresh_notices()
        elif self.turn.role == "assistant":
            self.finish()
        else:
            self.show_record()

    @property
    def unseen(self) -> int:
        """Characters of the answer that are not drawn yet."""
        return len(self.turn.text) - self._shown

    @property
    def unseen_lines(self) -> int:
        return self.turn.text.count("\n", self._shown)

    @property
    def blocks(self) -> list[Code]:
        """The code of an answer, in order."""
        return self.live.blocks if self._whole and self.turn.role == "assistant" else []

    @property
    def has_thoughts(self) -> bool:
        """Whether there is reasoning to fold and open."""
        return self._whole and self.turn.role == "assistant" and self.live.has_thoughts

    @property
    def live(self) -> LiveText:
        return self.query_one("LiveText")  # type: ignore[return-value]

    def feed(self) -> None:
        """Draws what came since the last time; `on_mount` does it for what comes before."""
        if self.unseen and self.turn.role == "assistant" and self._whole:
            new = self.turn.text[self._shown :]
            self._shown = len(self.turn.text)
            self.live.feed(new)

    def finish(self) -> None:
        """The answer has ended: everything is shown, with its record. Before `on_mount` that does it."""
        if not self._whole:
            return
        self.feed()
        self.live.finish()
        self.finished = True
        self.refresh_notices()
        self.show_record()

    def hints_changed(self) -> None:
        """Keys have other names than before."""
        if self.finished:
            self.refresh_notices()
            self.show_record()

    def refresh_notices(self) -> None:
        """The lines above and below an answer that say what the person should know."""
        text = _notice(self.turn, hint(self, "{chat.retry} tries again"))
        if text.plain == self._notice:
            return
        self._notice = text.plain
        for old in self.query(".-notice"):
            old.remove()
        view = TextView([Line(line, "", "  ") for line in text.split("\n")], classes="-notice")
        if self.turn.state == "error":
            view.styles.margin = (1 if self.turn.text else 0, 0, 0, 2)
            self.mount_all([view], before=self.query_one(".-figures"))
        else:
            view.styles.margin = (0, 0, 1, 2)
            self.mount_all([view], before=self.live)

    def find(self, pattern: re.Pattern[str] | None, number: int) -> tuple[Widget, int] | None:
        """Lights up a pattern; returns where its `number`-th match is (widget, row), None for -1 or if there is none.

        Text and what is drawn of it differ a little (Markdown), so a number too high means the last match.
        """
        parts = list(self.query(TextView))
        counts = [part.find(pattern, -1) for part in parts]
        at = min(number, sum(counts) - 1)
        if at < 0:
            return None
        for part, count in zip(parts, counts, strict=True):
            if at < count:
                part.find(pattern, at)
                return part, part.row_of(at)
            at -= count
        return None

    def show_progress(self, left: Content, right: Content) -> None:
        """The moving row below an answer that is being written."""
        self.query_one(".-figures", Row).put(left, right)

    def show_record(self) -> None:
        """What became of the answer, and which version it is."""
        if self.turn.role == "user" and self.versions < 2:
            return
        self.query_one(".-figures", Row).put(Content(record(self.turn)), self._pager())

    def _pager(self) -> Content:
        """What can be done with a cut answer, and which version this is."""
        parts: list[str | tuple[str, str]] = []
        if can_go_on(self.turn):
            parts.append((hint(self, "{chat.continue} continue  {chat.retry} retry  "), "$secondary"))
        if self.versions > 1:
            parts.append((f"‹ {self.version} of {self.versions} ›", "$primary"))
        return Content.assemble(*parts)

    def _question(self) -> list[Line]:
        text = self.turn.text
        more = len(text) - QUESTION_LIMIT
        shown = [Line(plain(line, "bold"), "  ", "  ") for line in text[:QUESTION_LIMIT].split("\n")]
        shown[0] = Line(shown[0].body, "› ", "  ")
        if more > 0:
            shown.append(Line(Content.styled(f"… {more:,} more characters", "$secondary"), "  ", "  "))
        return shown

    def on_click(self) -> None:
        if not self.screen.get_selected_text():
            self.post_message(self.Marked(self.turn))


def record(turn: Turn) -> str:
    """The figures of a finished turn in one row, why it ended first: a narrow row cuts what is last."""
    if turn.role == "user":
        return ""
    parts: list[str] = []
    stats = turn.stats
    if turn.state == "stopped":
        parts.append(one_line(turn.note) or "stopped by you")
    if isinstance(stats, GenerationFinished):
        if reason := REASONS.get(stats.reason, ""):
            parts.append(reason)
        if stats.decode_speed:
            parts.append(speed_text(stats.decode_speed))
        parts.append(tokens_text(stats.generated_tokens))
        seconds = stats.prefill_seconds + stats.decode_seconds
        parts.append(f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s")
        parts.append(f"first token {stats.first_token_seconds:.2f} s")
    return " · ".join(parts)


def _notice(turn: Turn, again: str) -> Content:
    """Dropped messages, or the error with what to do about it. again: what a key does."""
    if turn.state == "error":
        lines = [plain(f"✗ {sentence(turn.note)}", "$error")]
        if turn.hint:
            lines.append(plain(f"  {one_line(turn.hint)}"))
        lines.append(Content.styled(f"  Your message and the text so far are kept. {again}.", "$secondary"))
        return Content("\n").join(lines)
    if turn.dropped:
        what = "message was" if turn.dropped == 1 else "messages were"
        return Content.styled(f"The {turn.dropped:,} oldest {what} left out: the context is full.", "$warning")
    return Content("")
