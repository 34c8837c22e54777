"""A chat is a tree of turns: retry and edit add a sibling, nothing is overwritten, `head` names the branch in view."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

from exl2_tui.core.events import GenerationFinished
from exl2_tui.core.requests import Message, Role
from exl2_tui.text import one_line

TurnState = Literal["writing", "done", "stopped", "error"]


def new_id() -> str:
    """Ids are made before anything is saved, so that the screen never waits for the database."""
    return uuid.uuid4().hex


@dataclass(slots=True)
class Turn:
    """One question or answer. Text is raw, as the model wrote it; widgets clean it.

    note: the error of a failed answer, or why one stopped that no person stopped. dropped: messages left out of its
    prompt. stats: set when it ended well.
    """

    role: Role
    text: str
    parent: str | None
    id: str = field(default_factory=new_id)
    state: TurnState = "done"
    created: float = 0.0
    mode: str = ""
    model: str = ""
    note: str = ""
    hint: str = ""
    dropped: int = 0
    token_ids: tuple[int, ...] = ()
    stats: GenerationFinished | None = None


class Chat:
    """Turns by id and who follows whom. mode and system are those of the next answer."""

    def __init__(self, *, mode: str = "auto", system: str = "", created: float = 0.0, chat_id: str = "") -> None:
        self.id = chat_id or new_id()
        self.title = ""
        self.mode = mode
        self.system = system
        self.created = created
        self.updated = created
        self.draft = ""  # what was written and not sent
        self.head: str | None = None
        self.turns: dict[str, Turn] = {}
        self._children: dict[str | None, list[str]] = {}

    def add(self, turn: Turn) -> Turn:
        """Appends the turn under its parent and looks at it. The first question names the chat."""
        self.turns[turn.id] = turn
        self._children.setdefault(turn.parent, []).append(turn.id)
        self.head = turn.id
        if not self.title and turn.role == "user":
            self.title = one_line(turn.text, 60)
        return turn

    def path(self) -> list[Turn]:
        """The branch in view, oldest first."""
        turns: list[Turn] = []
        at = self.head
        while at is not None:
            turns.append(self.turns[at])
            at = self.turns[at].parent
        return turns[::-1]

    def siblings(self, turn: Turn) -> list[Turn]:
        """All versions of the turn, oldest first, itself among them."""
        return [self.turns[child] for child in self._children.get(turn.parent, [])]

    def show(self, turn: Turn) -> None:
        """Looks at the branch through `turn`, down to its newest leaf."""
        at = turn.id
        while self._children.get(at):
            at = self._children[at][-1]
        self.head = at

    def last(self, role: Role) -> Turn | None:
        """The newest turn of that role in view."""
        return next((turn for turn in reversed(self.path()) if turn.role == role), None)

    def messages(self, until: Turn | None = None) -> tuple[Message, ...]:
        """What the model is asked: the system prompt and the branch down to `until`, or all of it.

        Answers without text (they failed) are left out, and questions that then follow each other become one, since
        many chat templates insist that roles alternate.
        """
        messages = [Message("system", self.system)] if self.system.strip() else []
        for turn in self.path():
            if turn.role == "assistant" and not turn.text:
                pass
            elif turn.role == "user" and messages and messages[-1].role == "user":
                messages[-1] = Message("user", f"{messages[-1].content}\n\n{turn.text}")
            else:
                messages.append(Message(turn.role, turn.text, turn.token_ids or None))
            if until is not None and turn.id == until.id:
                break
        return tuple(messages)
