"""ChatScreen: transcript, composer, meters. It draws what the session says changed and turns keys into its actions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.events import Event, ModeChoice, ModesListed
from exl2_tui.editor import edit_text
from exl2_tui.hints import hint, keys_of
from exl2_tui.keymap import bindings
from exl2_tui.pace import LONGEST_SECONDS
from exl2_tui.screens.chat_drafts import DraftActions
from exl2_tui.screens.chat_find import FindActions
from exl2_tui.screens.frugal import Growth
from exl2_tui.session import ChatSession
from exl2_tui.state import Changes, Clock
from exl2_tui.store.base import ChatStore
from exl2_tui.store.tree import Chat, Turn
from exl2_tui.text import one_line
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.chat_sidebar import ChatSidebar
from exl2_tui.widgets.composer import Composer
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.status import progress_row, status_row, welcome
from exl2_tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from exl2_tui.widgets.turn_view import TurnView

TICK_SECONDS = 0.25


class ChatScreen(FindActions, DraftActions):
    """The place where people talk to a model."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("chat"),
        *(binding for binding in bindings("turn") if binding.id == "turn.done"),  # the others go through the composer
    ]
    HELP = (
        "Talk to a model. Every question and answer is kept: retry and edit make new versions. {turn.previous} marks "
        "a turn, then {turn.older} and {turn.newer} walk through its versions. The row below shows the context in "
        "use, the speed and the sampler."
    )

    def __init__(
        self,
        session: ChatSession,
        *,
        copy: Callable[[str, str], None],
        mode_chosen: Callable[[str], None],
        store: ChatStore,
        pick_chat: Callable[[], None],
        open_chat: Callable[[str], None],
        export: Callable[[Chat], None],
        sampler: Callable[[], None],
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        super().__init__(session, copy, store)
        self._wall_clock = wall_clock
        self._mode_chosen = mode_chosen
        self._pick_chat = pick_chat
        self._open_chat = open_chat
        self._export = export
        self._sampler = sampler
        self._clock = clock
        self._modes: tuple[ModeChoice, ...] = (ModeChoice("auto", "what the model's own template says"),)
        self._ticker: Timer | None = None
        self._fed = 0.0  # when text was last drawn, by the clock
        self._metered: tuple[Turn, int] | None = None  # the answer being written whose meters were drawn, and the tick
        self._waiting_lines = 0
        self._shown_turn: Turn | None = None
        self._shown_chat = session.chat
        self._drafts_told = False
        self._can_stop = self._can_unmark = False

    def compose(self) -> ComposeResult:
        appearance = self._session.settings.appearance
        yield Header("Chat")
        with Horizontal(id="middle"):
            yield ChatSidebar()
            with Vertical():
                yield Transcript(appearance.turns)
                with Vertical(id="bottom"):
                    yield Row(id="pill")
                    yield Row(id="queue")
                    yield Composer(enter_sends=self._session.settings.chat.enter_sends, turn_key=self.turn_key)
                    yield StatusRow(id="status")
        yield KeyRow()

    def on_mount(self) -> None:
        self._ticker = self.set_interval(TICK_SECONDS, self._tick, pause=True)
        composer = self.query_one(Composer)
        composer.focus()
        self.repaint(Changes(model=True, turns=True, status=True, queue=True))
        self.restore_draft()

    def on_resize(self) -> None:
        self._draw_header()

    # Drawing

    def repaint(self, changes: Changes) -> None:
        """Draws what changed and nothing else; once the app is leaving, nothing."""
        if not self.is_attached:
            return
        session = self._session
        transcript = self.query_one(Transcript)
        if changes.turns:
            self._finish_shown()
            transcript.set_welcome(welcome(session))
            transcript.show(session.chat)
        if changes.turns or changes.chats:
            self._fill_sidebar()
        if changes.keys:
            transcript.hints_changed()
        if session.chat is not self._shown_chat:
            self._shown_chat = session.chat
            self.show_draft()
        writing = session.writing
        moved = self._meters_move()
        if writing is not None and writing.chat is session.chat:
            self._shown_turn = writing.turn
            if changes.live or changes.turns:
                transcript.feed(writing.turn)
                if moved or changes.turns:
                    self._draw_progress()
                self._fed = self._clock()
        if changes.model:
            self._draw_header()
        if (changes.status and moved) or changes.model:
            self._draw_status()
        if changes.queue:
            self._draw_queue()
        if changes.flash:
            self.query_one(StatusRow).say(changes.flash)
        self._set_ticking(writing is not None or session.model.status == "loading")
        self._refresh_stop()

    def growth(self, widget: Widget) -> Growth | None:
        """That of the answer which is being written, if the reader follows its end."""
        from exl2_tui.widgets.text_view import TextView

        transcript = self.query_one(Transcript)
        if not (isinstance(widget, TextView) and transcript.following and widget in self._compositor.visible_widgets):
            return None
        return Growth(transcript, widget.rows.height - widget.size.height)

    def marked_changed(self) -> None:
        self._refresh_stop()

    def _refresh_stop(self) -> None:
        """Escape is in the footer while there is something to stop, or else to leave."""
        session = self._session
        busy = session.writing is not None or session.model.status == "loading" or bool(session.queue)
        can_unmark = not busy and self.query_one(Transcript).marked is not None
        if (busy, can_unmark) != (self._can_stop, self._can_unmark):
            self._can_stop, self._can_unmark = busy, can_unmark
            self.refresh_bindings()

    @work(group="sidebar", exclusive=True, exit_on_error=False)
    async def _fill_sidebar(self) -> None:
        """Reads the list off the loop; exclusive, so that only the last of several changes is drawn."""
        rows = await asyncio.wrap_future(self._store.list_chats())
        sidebar = self.query_one(ChatSidebar)
        sidebar.set_class(bool(rows), "-some")
        sidebar.show(rows, self._session.chat.id, self._wall_clock())
        unsent = next((row for row in rows if row.draft), None)
        if unsent is not None and not self._drafts_told:
            opens = hint(self, "{chat.open} opens it")
            self.query_one(StatusRow).say(f"Not sent yet, in “{one_line(unsent.title, 40)}”: {opens}", seconds=6)
        self._drafts_told = True

    def on_chat_sidebar_chosen(self, event: ChatSidebar.Chosen) -> None:
        self._open_chat(event.chat_id)
        self.query_one(Composer).focus()

    def service_event(self, event: Event) -> None:
        """Remembers the list of modes for the next time the picker opens."""
        if isinstance(event, ModesListed):
            self._modes = event.modes

    def _finish_shown(self) -> None:
        """The answer that was being drawn has ended: draw its last text and its record."""
        turn = self._shown_turn
        if turn is not None and turn.state != "writing":
            self._shown_turn = None
            self.query_one(Transcript).finish(turn)

    def _draw_header(self) -> None:
        self.query_one(Header).show(self._session)

    def _draw_status(self) -> None:
        row = self.query_one(StatusRow)
        row.show(*status_row(self._session, self._ticks, row.content_size.width, cancel="{chat.stop} cancels "))

    def _meters_move(self) -> bool:
        """Whether figures should be drawn anew: while tokens come, nobody reads them more often than every tick."""
        writing = self._session.writing
        before = self._metered
        self._metered = (writing.turn, self._ticks) if writing is not None and writing.phase == "writing" else None
        return self._metered is None or self._metered != before

    def _draw_queue(self) -> None:
        queue = self._session.queue
        row = self.query_one("#queue", Row)
        self.query_one(Composer).queued = bool(queue)
        row.display = bool(queue)
        if queue:
            more = f" and {len(queue) - 1} more" if len(queue) > 1 else ""
            when = "after this answer" if self._session.writing is not None else "when the model is ready"
            if self._session.model.status in ("none", "failed"):
                when = hint(self, "when a model is loaded: {app.models}")
            row.put(
                Content.assemble(("  waiting  ", "$warning"), (one_line(queue[0].text, 60) + more, "$secondary")),
                Content.styled(f"{when} · {hint(self, '{composer.older} changes it ')}", "$secondary"),
            )

    def _draw_progress(self) -> None:
        writing = self._session.writing
        view = self.query_one(Transcript).view(writing.turn) if writing is not None else None
        if writing is not None and view is not None and view.is_mounted:
            view.show_progress(*progress_row(writing, self._clock(), self._ticks, keys_of(self)))
            view.refresh_notices()

    @property
    def _ticks(self) -> int:
        """Counts with the clock; turns the spinner."""
        return int(self._clock() / TICK_SECONDS)

    def _set_ticking(self, on: bool) -> None:
        if self._ticker is not None:
            if on:
                self._ticker.resume()
            else:
                self._ticker.pause()

    def _tick(self) -> None:
        """Moves the spinner and the seconds; runs only while something is going on, and not between frames of text."""
        if self.is_current and self._clock() - self._fed > LONGEST_SECONDS:
            self._draw_progress()
            self._draw_status()

    def on_transcript_following(self, event: Transcript.Following) -> None:
        """Shows how much waits below while the reader is scrolled up."""
        pill = self.query_one("#pill", Row)
        pill.display = event.waiting > 0
        if event.waiting:
            lines = "line" if event.waiting == 1 else "lines"
            shows = Content(hint(self, "{chat.end} shows them "))
            pill.put(Content.styled(f"  ↓ {event.waiting:,} new {lines}", "$primary"), shows)

    def on_turn_view_marked(self, event: TurnView.Marked) -> None:
        transcript = self.query_one(Transcript)
        self._mark(None if transcript.marked is event.turn else event.turn)

    # Actions

    def on_composer_submitted(self, event: Composer.Submitted) -> None:
        self._mark(None)
        self.repaint(self._session.send(event.text))
        self.query_one(Transcript).go_to_end()

    def on_composer_taken_back(self) -> None:
        self._give_back(self._session.take_last_queued())
        self.repaint(Changes(queue=True))

    def on_composer_scrolled(self, event: Composer.Scrolled) -> None:
        self.action_page(event.pages)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self._can_stop
        if action == "unmark":
            return self._can_unmark
        return super().check_action(action, parameters)

    def action_stop(self) -> None:
        """Stops the answer and takes waiting messages back; with neither it cancels the load."""
        session = self._session
        changes = session.stop() if session.writing is not None else Changes()
        if session.queue:
            self._give_back(session.take_queue())
            changes = changes | Changes(queue=True)
        elif changes == Changes():
            changes = session.cancel_load()
        self.repaint(changes)

    def _give_back(self, text: str) -> None:
        composer = self.query_one(Composer)
        draft = composer.message
        composer.set_message(f"{text}\n{draft}" if draft.strip() else text)

    def action_new_chat(self) -> None:
        self._mark(None)
        self.repaint(self._session.new_chat())
        self.query_one(Composer).focus()

    def action_pick_chat(self) -> None:
        self._pick_chat()

    def action_sampler(self) -> None:
        self._sampler()

    def action_editor(self) -> None:
        """The app steps aside while the editor has the terminal."""
        composer = self.query_one(Composer)
        try:
            with self.app.suspend():
                text = edit_text(composer.message)
        except SuspendNotSupported:
            self.query_one(StatusRow).say("An editor cannot be opened in this terminal")
        except Exl2Error as error:
            self.query_one(StatusRow).say(error.message, "$error")
        else:
            composer.set_message(text)
        composer.focus()

    def action_export(self) -> None:
        if self._session.chat.turns:
            self._export(self._session.chat)
        else:
            self.query_one(StatusRow).say("There is nothing to export yet")

    def action_retry(self) -> None:
        self.repaint(self._session.retry())
        self.query_one(Transcript).go_to_end()

    def action_go_on(self) -> None:
        self.repaint(self._session.go_on())
        self.query_one(Transcript).go_to_end()

    def action_pick_mode(self) -> None:
        session = self._session
        draft = self.query_one(Composer).message

        from exl2_tui.screens.mode_picker import ModePicker

        def ask(mode: str, token: int) -> None:
            session.preview(draft, mode, token)

        def chosen(mode: str | None) -> None:
            if mode is not None:
                self.use_mode(mode)

        self.app.push_screen(ModePicker(self._modes, session.chat.mode, ask, ready=session.ready), chosen)
        session.list_modes()

    def use_mode(self, mode: str) -> None:
        """Questions from here on are asked in another prompt mode."""
        session = self._session
        if mode != session.chat.mode:
            self.repaint(session.set_mode(mode) | Changes(flash=f"Prompt mode {mode} from here on"))
            self._mode_chosen(mode)

    def action_edit_system(self) -> None:
        from exl2_tui.screens.dialogs import TextDialog

        def chosen(text: str | None) -> None:
            if text is not None and text != self._session.chat.system:
                self.repaint(self._session.set_system(text))

        self.app.push_screen(
            TextDialog(
                "System prompt",
                self._session.chat.system,
                placeholder="How the model should behave, for example: Answer briefly.",
                hint="It stands before the whole chat and stays when old turns are dropped.",
            ),
            chosen,
        )

    def action_copy_or_stop(self) -> None:
        """Copies what is selected; with nothing selected it stops the answer, and otherwise says how to quit."""
        selected = self.query_one(Composer).selected_text or self.get_selected_text()
        if selected:
            self._copy(selected, "the selection")
            self.clear_selection()
        elif self._session.writing is not None:
            self.action_stop()
        else:
            self.query_one(StatusRow).say(hint(self, "Nothing is selected. {app.quit} quits."))

    def action_page(self, pages: int) -> None:
        self.query_one(Transcript).page(pages)

    def action_scroll_top(self) -> None:
        self.query_one(Transcript).go_to_top()

    def action_scroll_end(self) -> None:
        self.query_one(Transcript).go_to_end()
