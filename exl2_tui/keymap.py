"""Every key of the app in one table: bindings, footer, help and remapping read it.

Ids are what `[keys]` in the settings names. Keys that terminals cannot send (ctrl+i, ctrl+m, ctrl+h, ctrl+enter) and
those a terminal multiplexer takes (ctrl+b) are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding

Place = Literal[
    "app",
    "chat",
    "find",
    "composer",
    "turn",
    "models",
    "hub",
    "downloads",
    "convert",
    "job",
    "wizard",
    "settings",
    "chats",
    "text",
    "dialog",
]

PLACE_TITLES: dict[str, str] = {
    "chat": "Chat",
    "composer": "Writing a message",
    "turn": "On a marked turn",
    "find": "Finding in this chat",
    "chats": "The list of chats",
    "models": "Models",
    "hub": "Models: Hugging Face Hub",
    "downloads": "Models: downloads",
    "convert": "Convert: the list",
    "wizard": "Convert: a new one",
    "job": "Convert: one conversion",
    "settings": "Settings",
    "text": "Editing a text",
    "dialog": "In dialogs",
    "app": "Everywhere",
}

UNSENDABLE = {
    "ctrl+i": "it is tab",
    "ctrl+m": "it is enter",
    "ctrl+h": "it is backspace",
    "ctrl+left_square_bracket": "it is escape",
    "ctrl+enter": "most terminals send plain enter",
    "ctrl+tab": "most terminals do not send it",
    "ctrl+b": "tmux takes it",
}

# What text fields do themselves, and so never reaches anything else (tests/tui/test_themes.py compares with Textual).
EDITING = frozenset(
    (
        *(f"ctrl+{letter}" for letter in "acdefkuvwxyz"),
        *(f"super+{letter}" for letter in "acvxyz"),
        *("f6", "f7", "enter", "up", "down", "left", "right", "home", "end", "pageup", "pagedown"),
        *(f"{key}{name}" for key in ("", "ctrl+", "alt+", "super+") for name in ("backspace", "delete")),
        *(f"shift+{name}" for name in ("up", "down", "left", "right", "home", "end", "delete", "insert")),
        *("ctrl+left", "ctrl+right", "alt+left", "alt+right", "ctrl+insert"),
        *(f"ctrl+shift+{name}" for name in ("a", "k", "z", "left", "right")),
    )
)


@dataclass(frozen=True, slots=True)
class Key:
    """One action. label: in the footer, at most two words. help: one phrase.

    shown: in the footer. roomy: there, too, if there is room for it.
    """

    id: str
    keys: str
    action: str
    label: str
    help: str
    place: Place
    shown: bool = False
    priority: bool = False
    roomy: bool = False


KEYS = (
    Key("app.help", "f1", "help", "Help", "help for what has the focus", "app", shown=True, priority=True),
    Key("app.quit", "ctrl+q", "quit", "Quit", "quit; an answer being written is kept", "app", priority=True),
    Key(
        "app.palette", "ctrl+p", "command_palette", "Commands", "every action by name", "app", shown=True, priority=True
    ),
    Key("app.chat", "f2", "place_chat", "Chat", "the chat", "app"),
    Key("app.models", "f3,ctrl+o", "models", "Models", "models of this machine and of the Hub", "app"),
    Key("app.convert", "f4", "convert", "Convert", "make EXL2 models, and how far that is", "app"),
    Key("app.settings", "f5", "settings", "Settings", "everything that can be set", "app"),
    Key("app.theme", "f12", "next_theme", "Theme", "dark, light, the terminal's own colours, or none", "app"),
    Key("chat.stop", "escape", "stop", "Stop", "stop the answer or the load; the text stays", "chat", shown=True),
    Key("chat.new", "ctrl+n", "new_chat", "New", "new chat", "chat", shown=True),
    Key("chat.retry", "ctrl+r", "retry", "Retry", "answer again; the old answer is kept", "chat", shown=True),
    Key("chat.continue", "ctrl+l", "go_on", "Continue", "go on with an answer that was cut off", "chat"),
    Key("chat.find", "ctrl+f", "find", "Find", "find in this chat", "chat", priority=True, roomy=True),
    Key("chat.mode", "ctrl+t", "pick_mode", "Mode", "prompt mode, with the exact prompt", "chat", shown=True),
    Key("chat.system", "f8", "edit_system", "System", "system prompt of this chat", "chat", roomy=True),
    Key(
        "chat.open",
        "ctrl+g",
        "pick_chat",
        "Chats",
        "all chats: open, search, rename, export, delete",
        "chat",
        shown=True,
    ),
    Key("chat.sampler", "ctrl+s", "sampler", "Sampler", "temperature and the rest, with presets", "chat", roomy=True),
    Key("chat.editor", "f10", "editor", "Editor", "write the message in $EDITOR", "chat", roomy=True),
    Key("chat.export", "f9", "export", "Export", "export this chat to Markdown and JSON", "chat", roomy=True),
    Key("chat.copy", "ctrl+c", "copy_or_stop", "Copy", "copy the selection; else stop", "chat", priority=True),
    Key("chat.page_up", "pageup", "page(-1)", "Up", "scroll up", "chat"),
    Key("chat.page_down", "pagedown", "page(1)", "Down", "scroll down", "chat"),
    Key("chat.top", "ctrl+home", "scroll_top", "Top", "to the beginning", "chat"),
    Key("chat.end", "ctrl+end", "scroll_end", "End", "to the end", "chat"),
    Key("turn.previous", "alt+up", "turn(-1)", "Turn", "mark the turn before", "chat"),
    Key("turn.next", "alt+down", "turn(1)", "Turn", "mark the turn after", "chat"),
    Key("composer.send", "enter", "send", "Send", "send; while an answer is written, queue", "composer"),
    Key("composer.newline", "ctrl+j,shift+enter,alt+enter", "newline", "Line", "new line", "composer"),
    Key("composer.older", "up", "older", "Older", "on the first row: earlier messages", "composer"),
    Key("composer.newer", "down", "newer", "Newer", "on the last row: later messages", "composer"),
    Key("turn.copy", "y", "turn_copy", "Copy", "copy the turn", "turn"),
    Key("turn.code", "c", "turn_code", "Code", "copy its code; again: the next block", "turn"),
    Key("turn.edit", "e", "turn_edit", "Edit", "ask the question differently", "turn"),
    Key("turn.retry", "r", "turn_retry", "Retry", "answer it again", "turn"),
    Key("turn.continue", "g", "turn_go_on", "Continue", "go on with it where it was cut off", "turn"),
    Key("turn.older", "left", "turn_version(-1)", "Version", "the version before", "turn"),
    Key("turn.newer", "right", "turn_version(1)", "Version", "the version after", "turn"),
    Key("models.leave", "escape", "leave", "Chat", "stop loading, clear the filter, then back", "models", shown=True),
    Key(
        "models.load",
        "l",
        "load_here",
        "Load here",
        "load it without leaving (enter: load and chat)",
        "models",
        roomy=True,
    ),
    Key("models.unload", "u", "unload", "Unload", "free the memory of the model", "models", shown=True),
    Key("models.info", "i", "info", "Info", "everything about it, also the bits of every layer", "models", shown=True),
    Key("models.verify", "v", "verify", "Verify", "hashes, shapes, and a look for NaN", "models", shown=True),
    Key("models.remove", "x", "remove", "Delete", "delete it from the disk, after a question", "models", shown=True),
    Key("models.hub", "h", "hub", "Hub", "search the Hugging Face Hub and download", "models", shown=True),
    Key("models.downloads", "d", "downloads", "Downloads", "what is being downloaded", "models", roomy=True),
    Key("models.filter", "slash", "filter", "Filter", "show only some", "models", roomy=True),
    Key("models.sort", "s", "sort", "Sort", "by last use, name, size, or what fits", "models", roomy=True),
    Key("models.less", "minus", "context(-1)", "Context -", "memory with a smaller context", "models", roomy=True),
    Key(
        "models.more",
        "plus,equals_sign",
        "context(1)",
        "Context +",
        "memory with a larger context",
        "models",
        roomy=True,
    ),
    Key(
        "models.cache",
        "t",
        "cache",
        "Cache",
        "memory with the next cache: fp16, q8; on a GPU q6, q4",
        "models",
        roomy=True,
    ),
    Key("models.convert", "c", "convert", "Convert", "make an EXL2 model of it", "models", roomy=True),
    Key("models.add", "a", "add_folder", "Add folder", "look for models in another folder", "models", roomy=True),
    Key("models.rescan", "r", "rescan", "Rescan", "look again", "models", roomy=True),
    Key("models.down", "j", "move(1)", "Down", "down", "models"),
    Key("models.up", "k", "move(-1)", "Up", "up", "models"),
    Key("hub.leave", "escape", "leave", "Back", "back: to the results, to the models", "hub", shown=True),
    Key("hub.search", "slash", "search", "Search", "other words", "hub", shown=True),
    Key("hub.downloads", "d", "downloads", "Downloads", "what is being downloaded", "hub", shown=True),
    Key("hub.models", "m", "models", "Models", "what is on this machine", "hub", shown=True),
    Key("downloads.leave", "escape", "leave", "Models", "back to the models", "downloads", shown=True),
    Key("downloads.pause", "p", "pause", "Pause", "stop it; what is here stays", "downloads", shown=True),
    Key("downloads.resume", "r", "resume", "Resume", "go on where it stopped", "downloads", shown=True),
    Key("downloads.discard", "x", "discard", "Discard", "delete what is here of it", "downloads", shown=True),
    Key(
        "downloads.unlist", "x", "unlist", "Off the list", "no longer list it; the model stays", "downloads", shown=True
    ),
    Key("downloads.chat", "c", "chat", "Chat", "load the finished model and chat", "downloads", shown=True),
    Key("downloads.hub", "h", "hub", "Hub", "search for another one", "downloads", roomy=True),
    Key("convert.leave", "escape", "leave", "Chat", "back to the chat", "convert", shown=True),
    Key("convert.new", "n", "new", "New", "a new conversion", "convert", shown=True),
    Key("convert.pause", "p", "pause", "Pause", "pause it; what is finished is kept", "convert", shown=True),
    Key("convert.resume", "r", "resume", "Resume", "go on with it where it stopped", "convert", shown=True),
    Key("convert.delete", "x", "delete", "Delete", "stop it, and keep or delete its work files", "convert", shown=True),
    Key("convert.chat", "c", "chat", "Chat with it", "load the finished model and chat", "convert", shown=True),
    Key("convert.refresh", "g", "refresh", "Refresh", "look again, other processes included", "convert", roomy=True),
    Key("convert.down", "j", "move(1)", "Down", "down", "convert"),
    Key("convert.up", "k", "move(-1)", "Up", "up", "convert"),
    Key("job.leave", "escape,d", "leave", "Leave", "back to the list; the conversion goes on", "job", shown=True),
    Key("job.pause", "p", "pause", "Pause", "pause it; what is finished is kept", "job", shown=True),
    Key("job.resume", "r", "resume", "Resume", "go on with it where it stopped", "job", shown=True),
    Key("job.cancel", "x", "cancel", "Delete", "stop it, and keep or delete its work files", "job", shown=True),
    Key("job.log", "l", "log", "Log", "the log in place of the layers, and back", "job", shown=True),
    Key("job.order", "e", "order", "Worst", "layers with the largest error first, or newest first", "job", shown=True),
    Key("job.source", "m", "source", "Measured", "the chart of measuring or of quantizing", "job", roomy=True),
    Key("job.chat", "c", "chat", "Chat with it", "load the finished model and chat", "job", shown=True),
    Key("job.copy", "y", "copy_path", "Copy path", "copy the folder of the finished model", "job", roomy=True),
    Key("wizard.next", "enter", "next", "Next", "the next step; on the last one, start", "wizard", shown=True),
    Key("wizard.back", "escape", "back", "Back", "the step before; from the first one, leave", "wizard", shown=True),
    Key(
        "wizard.copy",
        "f9",
        "copy_command",
        "Copy command",
        "copy the command line that does the same",
        "wizard",
        shown=True,
    ),
    Key(
        "wizard.measurement",
        "f8",
        "use_measurement",
        "Use measurement",
        "take the measurement that was found: none is made",
        "wizard",
        roomy=True,
    ),
    Key("turn.done", "escape", "unmark", "Done", "back to writing", "turn", shown=True),
    Key("turn.open", "o", "turn_open", "Open", "open or fold its reasoning", "turn"),
    Key("find.next", "down,enter", "next_match", "Next", "the next match", "find"),
    Key("find.previous", "up,shift+enter", "previous_match", "Previous", "the match before", "find"),
    Key("find.close", "escape", "close_find", "Close", "stay where the match is", "find"),
    Key("settings.leave", "escape", "leave", "Chat", "to the sections, then back to the chat", "settings", shown=True),
    Key("settings.search", "ctrl+f", "search", "Search", "search settings and keys", "settings", shown=True),
    Key("settings.reset", "ctrl+r", "reset", "Reset", "this value back to its default", "settings", shown=True),
    Key(
        "settings.reset_all",
        "f9",
        "reset_all",
        "Reset all",
        "all values back to their defaults",
        "settings",
        shown=True,
    ),
    Key("chats.rename", "f2", "rename", "Rename", "give the chat another name", "chats", priority=True),
    Key("chats.delete", "f8", "delete", "Delete", "delete the chat, after a question", "chats", priority=True),
    Key("chats.export", "f9", "export", "Export", "export the chat to Markdown and JSON", "chats", priority=True),
    Key("dialog.close", "escape", "cancel", "Close", "close it; what was not chosen or saved is left", "dialog"),
    Key("text.save", "ctrl+s,f2", "save", "Use it", "take the text as it stands", "text", priority=True),
    Key("dialog.reset", "ctrl+r", "reset", "Reset", "this value of the sampler back to its default", "dialog"),
    Key("settings.next", "down", "next", "Next", "the next field", "settings"),
    Key("settings.previous", "up", "previous", "Previous", "the field before", "settings"),
)


def bindings(place: Place, *actions: str) -> list[Binding]:
    """The bindings of one place (of some actions, if they are named), for a BINDINGS list."""
    return [
        Binding(key.keys, key.action, key.label, show=key.shown, priority=key.priority, id=key.id, tooltip=key.help)
        for key in KEYS
        if key.place == place and (not actions or key.action in actions)
    ]


def effective(overrides: dict[str, str]) -> dict[str, str]:
    """Keys by id with the person's own choices; unknown ids are ignored."""
    return {key.id: overrides.get(key.id, key.keys) for key in KEYS}


# Over any screen; of the keys of the app only those with priority work there.
DIALOGS: tuple[Place, ...] = ("dialog", "chats", "text")
# Places whose keys are in force together: what one of them takes, the others cannot have.
TOGETHER: tuple[tuple[Place, ...], ...] = (
    ("app", "chat", "composer"),
    ("app", "chat", "turn"),
    ("app", "chat", "find"),
    *(("app", place) for place in ("models", "hub", "downloads", "convert", "job", "wizard", "settings")),
    ("dialog", "chats"),
    ("dialog", "text"),
)
# Places in which letters are typed.
TYPED = {"app", "chat", "composer", "find", "wizard", "settings", *DIALOGS}
# Actions of a place of which only one is possible at a time, and which therefore may have the same key.
EITHER = (frozenset(("downloads.discard", "downloads.unlist")),)
# Keys that mean one thing in a place and another while something in it has the focus.
LAYERED = {"escape", "enter", "up", "down", "ctrl+f", "ctrl+r"}


def problems(overrides: dict[str, str]) -> list[str]:
    """What is wrong with remapped keys: unknown ids, keys no terminal sends, one key for two actions of a place."""
    known = {key.id for key in KEYS}
    found = [f"{name} is no key binding" for name in overrides if name not in known]
    wrong = {name: problem_of(name, keys, overrides) for name, keys in overrides.items() if name in known}
    return found + [f"{name}: {what}" for name, what in wrong.items() if what]


def problem_of(name: str, keys: str, overrides: dict[str, str]) -> str:
    """Why `keys` cannot be those of action `name`, "" if they can."""
    mine = next(key for key in KEYS if key.id == name)
    chosen = effective(overrides)
    for pressed in parts(keys):
        if reason := UNSENDABLE.get(pressed):
            return f"{spell(pressed)} does not work, {reason}"
        if mine.place in TYPED and len(pressed) == 1:
            return f"{spell(pressed)} is a letter of messages"
        needed = pressed in EDITING and pressed not in parts(mine.keys)
        if needed and mine.place in TYPED - {"composer", "find"} and not mine.priority:
            return f"{spell(pressed)} is taken: text fields need it"
        for key in KEYS:
            if key.id == name or pressed not in parts(chosen[key.id]):
                continue
            layered = pressed in LAYERED and key.place != mine.place
            if not layered and _meet(mine, key):
                return f"{spell(pressed)} is taken: {key.help}"
    return "" if parts(keys) else "there is no key"


def _meet(one: Key, other: Key) -> bool:
    """Whether the keys of both are in force together."""
    if {one.id, other.id} in EITHER:
        return False
    if any(key.place == "app" and key.priority for key in (one, other)):
        return True
    return any(one.place in places and other.place in places for places in TOGETHER)


def parts(keys: str) -> list[str]:
    return [part.strip() for part in keys.split(",") if part.strip()]


NAMES = {
    "escape": "esc",
    "enter": "⏎",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "slash": "/",
    "minus": "-",
    "plus": "+",
    "equals_sign": "=",
}


def spell(keys: str) -> str:
    """Keys as a person reads them: "ctrl+n" -> "^n", the first of several."""
    first = keys.split(",")[0].strip()
    modifier, _, key = first.rpartition("+")
    name = NAMES.get(key, key)
    return f"^{name}" if modifier == "ctrl" else f"{modifier}+{name}" if modifier else name


def with_keys(text: str, overrides: dict[str, str]) -> str:
    """A text in which "{chat.new}" stands for the key that has that name now."""
    chosen = effective(overrides)
    return re.sub(r"\{([a-z_]+\.[a-z_]+)\}", lambda match: spell(chosen[match[1]]), text)


def spell_all(keys: str) -> str:
    """All of several keys, such as "f3 or ^o"."""
    return " or ".join(spell(part) for part in parts(keys)) or "none"
