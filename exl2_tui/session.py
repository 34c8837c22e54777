"""ChatSession: every rule of chatting with a model, without a screen.

One answer at a time; a second message waits in `queue`. A question is saved before the engine hears of it, an answer
from its first token. Only GenerationFinished or Failed ends an answer, and whatever was written stays; what waits, or
was not sent yet, is saved as the draft of its chat.
"""

from __future__ import annotations

import time

from exl2_tui.core.events import (
    Event,
    Failed,
    GenerationFinished,
    LoadFinished,
    LoadProgress,
    PrefillProgress,
    PromptReady,
    TokenDelta,
    Unloaded,
)
from exl2_tui.core.requests import ChatRequest, LoadOptions, Message, SamplerSettings
from exl2_tui.keymap import with_keys
from exl2_tui.settings import Settings
from exl2_tui.state import Changes, Clock, Meters, ModelService, ModelState, Queued, Writing
from exl2_tui.store.base import ChatStore
from exl2_tui.store.tree import Chat, Turn

AUTOSAVE_SECONDS = 1.0


class ChatSession:
    """State and actions of the chat screen. Actions and `apply` run on one thread and say what changed."""

    def __init__(
        self,
        settings: Settings,
        store: ChatStore,
        *,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        self._service: ModelService | None = None
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._next_save = 0
        self._last_autosave = 0.0
        self.settings = settings
        self.model = ModelState()
        self.writing: Writing | None = None
        self.queue: list[Queued] = []
        self.prompts_read = 0  # since the start
        self.converting = ""  # how far a conversion is, for the header
        self.downloading = ""  # how far a download is
        self.chat = self._new = self._fresh_chat(settings.chat.mode, settings.chat.system)
        self._drafts: dict[str, str] = {}  # as saved last

    def attach(self, service: ModelService) -> None:
        """Gives the session its engine; nothing can be asked before."""
        self._service = service

    # The model

    def load(self, model: str, options: LoadOptions) -> Changes:
        """Starts loading; "" asks for the model used last or the built-in one."""
        if self._service is None:
            return Changes()
        self.model = ModelState("loading", model, options=options)
        self.model.load_id = self._service.load(model, options)
        return Changes(model=True, status=True)

    def unload(self) -> Changes:
        """Frees the model; an answer being written is stopped first."""
        if self._service is None:
            return Changes()
        changes = self.stop()
        self._service.unload()
        return changes | Changes(flash="Unloading the model")

    def cancel_load(self) -> Changes:
        if self.model.status != "loading" or self._service is None:
            return Changes()
        self._service.cancel(self.model.load_id)
        return Changes(flash="Stopping the load")

    @property
    def ready(self) -> bool:
        return self.model.status == "ready"

    @property
    def meters(self) -> Meters:
        """Of the chat in view: of its last answer, or of the one that is being written in it."""
        size = self.model.info.context if self.model.info is not None else 0
        stats = next((turn.stats for turn in reversed(self.chat.path()) if turn.stats is not None), None)
        meters = Meters(0, size) if stats is None else Meters(stats.context_used, size, stats.decode_speed)
        writing = self.writing
        if writing is not None and writing.chat is self.chat and writing.prompt_tokens:
            meters.context_used = writing.prompt_tokens + writing.tokens
            meters.speed = writing.speed(self._clock()) or meters.speed
        return meters

    @property
    def pace(self) -> float:
        """Tokens per second that are being written on this processor's cores, which drawing takes from."""
        info = self.model.info
        if self.writing is None or info is None or info.device != "cpu":
            return 0.0
        return self.writing.pace(self._clock())

    # Talking

    def send(self, text: str) -> Changes:
        """Asks `text`, or queues it while an answer is being written or the model is still loading."""
        if not text.strip():
            return Changes()
        self.chat.draft = ""
        if self.writing is not None or not self.ready:
            self.queue.append(Queued(self.chat, text))
            self.save_draft(self.chat)
            return Changes(queue=True)
        return self._ask(self.chat, text, self.chat.head)

    def edit(self, turn: Turn, text: str) -> Changes:
        """A new version of a question, with a new answer; the old branch stays."""
        if self.writing is not None or not self.ready or not text.strip():
            return Changes(flash="Wait for the answer first" if self.writing else "No model is loaded")
        return self._ask(self.chat, text, turn.parent)

    def retry(self, turn: Turn | None = None) -> Changes:
        """A new version of an answer (of the last one, if none is named); the old one stays."""
        question = self.chat.last("user") if turn is None else turn
        if question is not None and question.role == "assistant":
            question = self.chat.turns[question.parent or ""]
        if question is None:
            return Changes(flash="Nothing to retry yet")
        if self.writing is not None:
            return Changes(flash=with_keys("Stop the answer first ({chat.stop})", self.settings.keys))
        if not self.ready:
            return Changes(flash="No model is loaded")
        return self._answer(self.chat, question)

    def go_on(self, turn: Turn | None = None) -> Changes:
        """Continues an answer that was cut off (the last one, if none is named); its text stays and grows."""
        answer = self.chat.last("assistant") if turn is None else turn
        if answer is None or not can_go_on(answer):
            return Changes(flash="Only an answer that was cut off can be continued")
        if self.writing is not None:
            return Changes(flash=with_keys("Stop the answer first ({chat.stop})", self.settings.keys))
        if not self.ready:
            return Changes(flash="No model is loaded")
        answer.state, answer.note, answer.hint = "writing", "", ""
        self.writing = Writing(self.chat, answer, started=self._clock(), token_ids=list(answer.token_ids))
        self.writing.continued = True
        self._next_save += 1
        self._store.save_turn(self.chat, answer, token=self._next_save)
        return Changes(turns=True, live=True, status=True)

    def stop(self) -> Changes:
        """Ends the answer; its text stays and waiting messages go nowhere (`take_queue` gives them back)."""
        if self._service is None or self.writing is None or self.writing.phase == "stopping":
            return Changes()
        if self.writing.phase != "saving":
            self._service.cancel(self.writing.request_id)
        self.writing.phase = "stopping"
        return Changes(live=True, status=True)

    def keep_unfinished(self) -> None:
        """The app ends: what was written so far is saved; reading it back counts as stopped."""
        if self.writing is not None:
            self._store.save_turn(self.writing.chat, self.writing.turn)
        self.save_draft(self.chat)

    def save_draft(self, chat: Chat) -> None:
        """Saves what waits in a chat and what is being typed in it, as one text."""
        if chat.turns:
            self._keep_draft(chat.id, [*(item.text for item in self.queue if item.chat is chat), chat.draft])
        else:
            self._save_new_draft()

    def _save_new_draft(self) -> None:
        """That of all chats without turns: they have no name by which somebody could choose one."""
        typed = "" if self._new.turns else self._new.draft
        self._keep_draft("", [*(item.text for item in self.queue if not item.chat.turns), typed])

    def _keep_draft(self, name: str, texts: list[str]) -> None:
        text = "\n".join(filter(None, texts))
        if self._drafts.get(name) != text:
            self._drafts[name] = text
            self._store.save_draft(name, text)

    def take_last_queued(self) -> str:
        """The message that was queued last, which then no longer waits; "" if none does."""
        return self.queue.pop().text if self.queue else ""

    def take_queue(self) -> str:
        """The waiting messages as one text, which are then no longer waiting."""
        text = "\n".join(item.text for item in self.queue)
        elsewhere = {item.chat for item in self.queue if item.chat is not self.chat}
        self.queue.clear()
        for chat in elsewhere:
            self.save_draft(chat)
        return text

    def new_chat(self) -> Changes:
        """An empty chat with the same mode and system prompt; what is being typed comes along. An answer being written
        goes on in its own chat."""
        before, typed = self.chat, self._new.draft
        self.chat = self._fresh_chat(before.mode, before.system)
        if before is not self._new and not self._new.turns:  # something was left there, too
            before.draft = "\n".join(filter(None, (typed, before.draft)))
        self.chat.draft, before.draft = before.draft, ""
        self._new = self.chat
        self.save_draft(self.chat)
        self.save_draft(before)
        return Changes(turns=True, status=True, model=True)

    def renamed(self, chat_id: str, title: str) -> Changes:
        """A chat has another title now; the one in view shows it."""
        if chat_id != self.chat.id:
            return Changes()
        self.chat.title = title
        return Changes(model=True)

    def forget(self, chat_id: str) -> Changes:
        """A chat is about to be deleted: its answer is stopped, and if it is in view a new one takes its place."""
        changes = Changes()
        if self.writing is not None and self.writing.chat.id == chat_id:
            changes = self.stop()
        self.queue = [item for item in self.queue if item.chat.id != chat_id]
        return changes | self.new_chat() if chat_id == self.chat.id else changes

    def set_mode(self, mode: str) -> Changes:
        self.chat.mode = mode
        self._save_chat()
        return Changes(model=True)

    def set_system(self, text: str) -> Changes:
        self.chat.system = text
        self._save_chat()
        return Changes(turns=True, flash="System prompt set" if text.strip() else "System prompt removed")

    def open(self, chat: Chat) -> Changes:
        """Looks at another chat. If an answer is written or a message waits in it, that very object is shown."""
        self.save_draft(self.chat)
        at_work = [item.chat for item in self.queue] + ([self.writing.chat] if self.writing is not None else [])
        self.chat = next((known for known in at_work if known.id == chat.id), chat)
        return Changes(turns=True, status=True, model=True)

    def show_version(self, turn: Turn, step: int) -> Changes:
        """Looks at the next (1) or previous (-1) version of a turn."""
        versions = self.chat.siblings(turn)
        at = [version.id for version in versions].index(turn.id) + step
        if not 0 <= at < len(versions):
            return Changes()
        self.chat.show(versions[at])
        self._save_chat()
        return Changes(turns=True, status=True)

    def preview(self, draft: str, mode: str, token: int) -> None:
        """Asks for the exact prompt of this chat with `draft` as the next question; the answer is a PromptPreview."""
        messages = self.chat.messages()
        if draft.strip() or not messages or messages[-1].role != "user":
            messages = (*messages, Message("user", draft if draft.strip() else "Hello"))
        if self._service is not None:
            chat = self.settings.chat
            self._service.preview_prompt(messages, mode, token, user_name=chat.user_name, bot_name=chat.bot_name)

    def preview_sampler(self, sampler: SamplerSettings, token: int) -> None:
        """Asks what a sampler would do after the last prompt; the answer is a SamplerPreview."""
        if self._service is not None:
            self._service.preview_sampler(sampler, token)

    def list_modes(self) -> None:
        """Asks for the prompt modes; the answer is a ModesListed."""
        if self._service is not None:
            self._service.list_modes()

    # Events

    def saved(self, token: int) -> Changes:
        """The store has the question whose save carried `token`: now the engine may hear of it."""
        writing = self.writing
        if self._service is None or writing is None or writing.request_id != -1 or token != self._next_save:
            return Changes()
        if writing.phase == "stopping":
            return self._end("stopped")
        last = writing.turn if writing.continued else writing.chat.turns[writing.turn.parent or ""]
        chat = self.settings.chat
        writing.phase = "reading"
        writing.started = self._clock()
        writing.request_id = self._service.generate(
            ChatRequest(
                messages=writing.chat.messages(until=last),
                mode=writing.chat.mode,
                sampler=self.settings.sampler,
                max_new_tokens=chat.max_new_tokens,
                user_name=chat.user_name,
                bot_name=chat.bot_name,
            )
        )
        return Changes(live=True, status=True)

    def apply(self, event: Event) -> Changes:
        """Takes one event in. Events of anything that is over change nothing."""
        if isinstance(event, LoadProgress):
            if self.model.status != "loading":
                return Changes()
            self.model.done, self.model.total = event.done, event.total
            return Changes(model=True, status=True)
        if isinstance(event, LoadFinished):
            return self._loaded(event)
        if isinstance(event, Unloaded):
            self.model = ModelState()
            return Changes(model=True, status=True, flash=f"{event.model} is unloaded, its memory is free")
        if isinstance(event, Failed):
            return self._failed(event)
        writing = self.writing
        if writing is None or getattr(event, "request_id", None) != writing.request_id:
            return Changes()
        if isinstance(event, PromptReady):
            return self._prompt_ready(writing, event)
        if isinstance(event, PrefillProgress):
            writing.prefilled = event.done
            return Changes(live=True, status=True)
        if isinstance(event, TokenDelta):
            return self._token(writing, event)
        if isinstance(event, GenerationFinished):
            before = writing.turn.stats if writing.continued else None
            writing.turn.stats = event.after(before) if before is not None else event
            return self._end("stopped" if event.reason == "cancelled" else "done")
        return Changes()

    def _loaded(self, event: LoadFinished) -> Changes:
        if self.model.status != "loading":
            return Changes()
        self.model = ModelState("ready", event.model, info=event, options=self.model.options)
        return Changes(model=True, status=True, turns=not self.chat.turns) | self._next_queued()

    def _failed(self, event: Failed) -> Changes:
        writing = self.writing
        if writing is not None and event.request_id == writing.request_id:
            writing.turn.note, writing.turn.hint = event.message, event.hint
            return self._end("error")
        if self.model.status == "loading" and event.request_id in (None, self.model.load_id):
            self.model = ModelState("failed", self.model.name, error=event.message, hint=event.hint)
            return Changes(model=True, status=True, turns=True)
        return Changes(flash=event.message) if event.request_id is None else Changes()

    def _prompt_ready(self, writing: Writing, event: PromptReady) -> Changes:
        writing.turn.mode = event.mode
        writing.turn.dropped = event.dropped
        writing.prompt_tokens = event.prompt_tokens
        writing.prefilled = event.cached_tokens
        return Changes(live=True, status=True, model=True, flash=event.note)

    def _token(self, writing: Writing, event: TokenDelta) -> Changes:
        now = self._clock()
        if not writing.tokens:
            writing.first_token = now
            self.prompts_read += 1
        if writing.phase == "reading":
            writing.phase = "writing"
        writing.tokens += len(event.token_ids)
        writing.token_ids.extend(event.token_ids)
        writing.turn.text += event.text
        if now - self._last_autosave >= AUTOSAVE_SECONDS:
            self._last_autosave = now
            self._store.save_turn(writing.chat, writing.turn)
        return Changes(live=True, status=True)

    # Steps

    def _fresh_chat(self, mode: str, system: str) -> Chat:
        return Chat(mode=mode, system=system, created=self._wall_clock())

    def _save_chat(self) -> None:
        """An empty chat is not worth a row yet."""
        if self.chat.turns:
            self._store.save_chat(self.chat)

    def _ask(self, chat: Chat, text: str, parent: str | None) -> Changes:
        had_no_name = not chat.turns
        changes = self._answer(chat, chat.add(Turn("user", text, parent, created=self._wall_clock())))
        self.save_draft(chat)
        if had_no_name:
            self._save_new_draft()
        return changes

    def _answer(self, chat: Chat, question: Turn) -> Changes:
        now = self._wall_clock()
        answer = Turn("assistant", "", question.id, state="writing", created=now, model=self.model.name)
        chat.add(answer)
        chat.updated = now
        self.writing = Writing(chat, answer, started=self._clock())
        self._next_save += 1
        self._store.save_chat(chat)
        self._store.save_turn(chat, question)
        self._store.save_turn(chat, answer, token=self._next_save)
        return Changes(turns=True, live=True, status=True, queue=True)

    def _end(self, state: str) -> Changes:
        writing = self.writing
        if writing is None:
            return Changes()
        turn = writing.turn
        turn.state = "stopped" if state == "stopped" else "error" if state == "error" else "done"
        turn.token_ids = tuple(writing.token_ids)
        self.writing = None
        self._store.save_turn(writing.chat, turn)
        changes = Changes(turns=True, live=True, status=True)
        return changes | self._next_queued() if state == "done" else changes

    def _next_queued(self) -> Changes:
        """Sends the next waiting message, if an answer may begin now."""
        if not self.queue or self.writing is not None or not self.ready:
            return Changes()
        item = self.queue.pop(0)
        return self._ask(item.chat, item.text, item.chat.head)


def can_go_on(turn: Turn) -> bool:
    """Whether an answer ended before the model wanted to."""
    cut = turn.state in ("stopped", "error") or (turn.stats is not None and turn.stats.reason in ("length", "context"))
    return turn.role == "assistant" and turn.state != "writing" and bool(turn.text) and cut
