"""TurnActions: what the chat screen does with the turn under the turn cursor."""

from __future__ import annotations

from collections.abc import Callable

from exl2_tui.hints import hint, keys_of
from exl2_tui.keymap import KEYS, effective, parts
from exl2_tui.screens.frugal import FrugalScreen
from exl2_tui.session import ChatSession, can_go_on
from exl2_tui.state import Changes
from exl2_tui.store.tree import Turn
from exl2_tui.widgets.bars import StatusRow
from exl2_tui.widgets.transcript import Transcript


class TurnActions(FrugalScreen):
    """The cursor never takes the focus: keys reach it through the composer, and any other letter drops it."""

    def __init__(self, session: ChatSession, copy: Callable[[str, str], None]) -> None:
        super().__init__(id="chat")
        self._session = session
        self._copy = copy
        self._next_code = 0

    def repaint(self, changes: Changes) -> None:
        """Draws what changed. ChatScreen does: Textual's screens cannot be abstract classes."""
        raise NotImplementedError

    def marked_changed(self) -> None:
        """The cursor is somewhere else."""

    def turn_key(self, key: str) -> bool:
        """Keys pressed in the composer while a turn is marked; True if the key was meant for the turn."""
        if self.query_one(Transcript).marked is None:
            return False
        action = self._turn_actions.get(key)
        if action is None:
            if len(key) == 1 or key in ("enter", "space", "backspace"):
                self._mark(None)
            return False
        self.call_later(self.run_action, action)
        return True

    @property
    def _turn_actions(self) -> dict[str, str]:
        """Actions by the keys they have now; escape is bound on the screen, where it has other meanings, too."""
        chosen = effective(keys_of(self))
        turn = [key for key in KEYS if key.place == "turn" and key.id != "turn.done"]
        return {pressed: key.action for key in turn for pressed in parts(chosen[key.id])}

    def action_turn(self, step: int) -> None:
        transcript = self.query_one(Transcript)
        self._mark(transcript.mark(step))

    def _mark(self, turn: Turn | None) -> None:
        self._next_code = 0
        self.query_one(Transcript).mark_turn(turn)
        self.marked_changed()
        status = self.query_one(StatusRow)
        if turn is None:
            status.hush()
            return
        view = self.query_one(Transcript).view(turn)
        actions = ["{turn.copy} copy"]
        actions += ["{turn.code} code"] if view is not None and view.blocks else []
        actions += ["{turn.open} reasoning"] if view is not None and view.has_thoughts else []
        actions += ["{turn.edit} edit"] if turn.role == "user" else ["{turn.retry} retry"]
        actions += ["{turn.continue} continue"] if can_go_on(turn) else []
        actions += ["{turn.older} {turn.newer} versions"] if len(self._session.chat.siblings(turn)) > 1 else []
        status.say(hint(self, " · ".join([*actions, "{turn.done} done"])), seconds=0)

    def action_unmark(self) -> None:
        self._mark(None)

    def action_turn_copy(self) -> None:
        turn = self.query_one(Transcript).marked
        if turn is not None:
            self._copy(turn.text, "the message")

    def action_turn_code(self) -> None:
        """Copies the next code block of the marked answer."""
        transcript = self.query_one(Transcript)
        turn = transcript.marked
        view = transcript.view(turn) if turn is not None else None
        blocks = view.blocks if view is not None else []
        if not blocks:
            self.query_one(StatusRow).say("There is no code in this turn")
            return
        number = self._next_code % len(blocks)
        self._next_code = number + 1
        name = f"code block {number + 1} of {len(blocks)}" if len(blocks) > 1 else "the code block"
        self._copy(blocks[number].text, name)

    def action_turn_edit(self) -> None:
        turn = self.query_one(Transcript).marked
        if turn is None or turn.role != "user":
            self.query_one(StatusRow).say("Only questions can be edited")
            return
        from exl2_tui.screens.dialogs import TextDialog

        def chosen(text: str | None) -> None:
            if text is not None and text.strip():
                self._mark(None)
                self.repaint(self._session.edit(turn, text))
                self.query_one(Transcript).go_to_end()

        self.app.push_screen(
            TextDialog("Ask differently", turn.text, hint="The old question and its answers are kept."), chosen
        )

    def action_turn_retry(self) -> None:
        turn = self.query_one(Transcript).marked
        if turn is not None:
            self._mark(None)
            self.repaint(self._session.retry(turn))
            self.query_one(Transcript).go_to_end()

    def action_turn_go_on(self) -> None:
        turn = self.query_one(Transcript).marked
        if turn is not None:
            self._mark(None)
            self.repaint(self._session.go_on(turn))

    def action_turn_version(self, step: int) -> None:
        transcript = self.query_one(Transcript)
        turn = transcript.marked
        if turn is None:
            return
        changes = self._session.show_version(turn, step)
        if changes == Changes():
            self.query_one(StatusRow).say("There is no other version that way")
            return
        self.repaint(changes)
        versions = self._session.chat.siblings(turn)
        shown = next((version for version in versions if version in self._session.chat.path()), None)
        self._mark(shown)

    def action_turn_open(self) -> None:
        transcript = self.query_one(Transcript)
        turn = transcript.marked
        view = transcript.view(turn) if turn is not None else None
        if view is not None and view.turn.role == "assistant":
            view.live.toggle_thoughts()
