"""SettingsScreen: everything that can be set, by section, with a search over all of it; the keys are its last part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from exl2_tui.keymap import KEYS, PLACE_TITLES, bindings, effective, problem_of, spell_all
from exl2_tui.screens.form import FieldRow, Form
from exl2_tui.session import ChatSession
from exl2_tui.settings import Settings, config_dir
from exl2_tui.settings_form import GROUPS, Field, Group, is_default
from exl2_tui.state import Changes
from exl2_tui.text import from_home, one_line
from exl2_tui.widgets.bars import StatusRow
from exl2_tui.widgets.header import Header
from exl2_tui.widgets.key_row import KeyRow

KEY_SECTION = "Keys"
SECTIONS = (*(group.title for group in GROUPS), KEY_SECTION)


class KeyList(OptionList):
    """Says when it has another width: what it says is cut to it."""

    class Resized(Message):
        pass

    def on_resize(self) -> None:
        self.post_message(self.Resized())


class FieldGroup(Vertical):
    """The fields of a section. Its rows, five widgets each, are made when some of them are shown for the first time."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group
        self.display = False

    async def put(self, fields: Sequence[Field], settings: Settings, *, titled: bool) -> None:
        """Shows these fields only, with the name of the section or without it."""
        if fields and not self.children:
            heading = Static(Content(self.group.title), classes="group", markup=False)
            await self.mount_all([heading, *(FieldRow(field, settings) for field in self.group.fields)])
        self.display = bool(fields)
        for title in self.query(".group"):
            title.display = titled
        for row in self.query(FieldRow):
            row.display = row.field in fields


class SettingsScreen(Form):
    """A place of the app. `change` gets every valid change, also of keys; `count(settings)` may be asked of it."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings("settings")]
    HELP = "Every change is used and saved at once. A value that cannot be used is explained beside it."

    def __init__(self, session: ChatSession, change: Callable[[Settings], None]) -> None:
        super().__init__(session.settings, change, id="settings")
        self._session = session
        self._section = SECTIONS[0]

    def compose(self) -> ComposeResult:
        yield Header("Settings")
        with Horizontal(id="search-row"):
            yield Input(placeholder="search settings and keys", compact=True, id="search")
            yield Static(Content(_home(config_dir())), id="where", markup=False)
        with Horizontal(id="panes"):
            yield OptionList(*(Option(name, id=name) for name in SECTIONS), markup=False, compact=True, id="sections")
            with Vertical(classes="form", id="right"):
                with VerticalScroll(can_focus=False, id="fields"):
                    yield from (FieldGroup(group) for group in GROUPS)
                yield KeyList(markup=False, compact=True, classes="-rows", id="keys")
        with Vertical(id="bottom"):
            yield Static("", id="about", markup=False)
            yield StatusRow(id="changed")
        yield KeyRow(lambda: {"settings.leave": self._leave_label})

    def on_mount(self) -> None:
        self.query_one("#search", Input).cursor_blink = False
        self.query_one("#sections", OptionList).highlighted = 0
        self.query_one("#sections").focus()
        self._count()
        self.repaint(Changes(model=True))

    def on_resize(self) -> None:
        self.repaint(Changes(model=True))

    def on_key_list_resized(self) -> None:
        self._fill_keys()

    def repaint(self, changes: Changes) -> None:
        if changes.model:
            self.query_one(Header).show(self._session)

    def settings_changed(self, settings: Settings) -> None:
        self._count()

    # What is shown

    async def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_list.id == "sections":
            self._section = SECTIONS[event.option_index]
            await self._filter()
        elif event.option_id is not None and event.option_list.has_focus:
            self._tell_key(event.option_id)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if event.widget.id == "keys":
            options = self.query_one("#keys", OptionList)
            if options.highlighted is not None:
                self._tell_key(options.get_option_at_index(options.highlighted).id or "")
        elif event.widget.id == "sections":
            self.tell("enter goes to the values of a section")
        elif event.widget.id == "search":
            self.tell("enter goes to the first that is found")

    def _tell_key(self, name: str) -> None:
        """The key under the cursor: its default, its name in the file, and what is wrong with it."""
        key = next(key for key in KEYS if key.id == name)
        wrong = problem_of(name, effective(self._settings.keys)[name], self._settings.keys)
        text = f"{key.help} · default {spell_all(key.keys)} · enter takes another key · [keys] {key.id}"
        self.tell(f"✗ {wrong} · {text}" if wrong else text)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        if event.option_list.id == "keys" and event.option_id is not None:
            self._capture(event.option_id)
        elif self._section == KEY_SECTION:
            self.query_one("#keys").focus()
        else:
            self._focus_first()

    @on(Input.Changed, "#search")
    async def _search(self) -> None:
        await self._filter()
        self.refresh_bindings()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """From the search to what was found."""
        if event.input.id != "search":
            return
        if not self._focus_first() and self.query_one("#keys").display:
            self.query_one("#keys").focus()

    def _focus_first(self) -> bool:
        """To the first value that is shown; False if none is."""
        shown = [group for group in self.query(FieldGroup) if group.display]
        row = next((row for group in shown for row in group.query(FieldRow) if row.display), None)
        if row is not None:
            row.query("Input, Select").first().focus()
        return row is not None

    def _words(self) -> list[str]:
        return self.query_one("#search", Input).value.lower().split()

    async def _filter(self) -> None:
        """Shows one section, or everything that has the words that are searched for."""
        words = self._words()
        found_any = False
        for shown in self.query(FieldGroup):
            group = shown.group
            if words:
                found = [
                    field
                    for field in group.fields
                    if _has(words, f"{group.title} {field.title} {field.help} {field.key}")
                ]
            else:
                found = list(group.fields) if group.title == self._section else []
            found_any = found_any or bool(found)
            await shown.put(found, self._settings, titled=bool(words))
        self.query_one("#fields").display = found_any
        self._fill_keys()
        keys = self.query_one("#keys", OptionList)
        keys.display = bool(keys.option_count) if words else self._section == KEY_SECTION
        if words and not found_any and not keys.option_count:
            self.tell("No setting has these words.")

    def _fill_keys(self) -> None:
        words = self._words()
        chosen = effective(self._settings.keys)
        options = self.query_one("#keys", OptionList)
        kept = options.highlighted
        room = max(24, min(52, (options.scrollable_content_region.width or 58) - 20))
        rows: list[Option] = []
        place = ""
        for key in sorted(KEYS, key=lambda key: list(PLACE_TITLES).index(key.place)):
            title = PLACE_TITLES[key.place]
            if not _has(words, f"{title} {key.label} {key.help} {chosen[key.id]} {spell_all(chosen[key.id])}"):
                continue
            if title != place:
                place = title
                rows.append(Option(Content.styled(title, "bold $primary"), disabled=True))
            wrong = problem_of(key.id, chosen[key.id], self._settings.keys)
            changed = chosen[key.id] != key.keys
            rows.append(
                Option(
                    Content.assemble(
                        ("✗ " if wrong else "• " if changed else "  ", "$error" if wrong else "$primary"),
                        f"{one_line(key.help, room):<{room + 2}}",
                        (one_line(spell_all(chosen[key.id])), "$primary"),
                    ),
                    id=key.id,
                )
            )
        options.set_options(rows)
        if rows:
            options.highlighted = min(kept if kept is not None else 1, len(rows) - 1)

    def _count(self) -> None:
        fields = sum(not is_default(self._settings, field) for group in GROUPS for field in group.fields)
        count = fields + len(self._settings.keys)
        said = "everything is at its default" if not count else f"• {count} changed from the default"
        self.query_one(StatusRow).show(Content.styled(f"  {said}", "$secondary"), Content(""))

    # Actions

    @property
    def _leave_label(self) -> str:
        """What escape does: it empties the search, then goes to the sections, then to the chat."""
        search = self.query_one_optional("#search", Input)
        if search is not None and search.value:
            return "Clear"
        return "Chat" if self.focused is None or self.focused.id == "sections" else "Sections"

    def action_leave(self) -> None:
        does = self._leave_label
        if does == "Clear":
            self.query_one("#search", Input).value = ""
        elif does == "Sections":
            self.query_one("#sections").focus()
        else:
            self.dismiss()

    def action_search(self) -> None:
        self.query_one("#search", Input).focus()

    def action_next(self) -> None:
        self.focus_next()

    def action_previous(self) -> None:
        self.focus_previous()

    def action_reset(self) -> None:
        """A key goes back to its default here, a field in Form."""
        options = self.query_one("#keys", OptionList)
        if self.focused is options and options.highlighted is not None:
            name = options.get_option_at_index(options.highlighted).id
            keys = {key: value for key, value in self._settings.keys.items() if key != name}
            self._use_keys(keys)
        else:
            super().action_reset()

    def action_reset_all(self) -> None:
        from exl2_tui.screens.dialogs import ChoiceDialog

        def answered(choice: str | None) -> None:
            if choice != "reset":
                return
            kept = dataclasses.replace(Settings(), models=self._settings.models)
            self.use(kept)
            for row in self.query(FieldRow):
                row.show(kept)
            self._fill_keys()

        self.app.push_screen(
            ChoiceDialog(
                "Reset all settings?",
                "Every value and every key goes back to its default. Chats, models and model folders stay.",
                [("keep", "Leave them as they are"), ("reset", "Reset all")],
            ),
            answered,
        )

    def _capture(self, name: str) -> None:
        from exl2_tui.screens.key_capture import KeyCapture

        def captured(keys: str | None) -> None:
            if keys is not None:
                self._use_keys({**self._settings.keys, name: keys})

        self.app.push_screen(KeyCapture(name, self._settings.keys), captured)

    def _use_keys(self, keys: dict[str, str]) -> None:
        defaults = {key.id: key.keys for key in KEYS}
        kept = {name: value for name, value in keys.items() if defaults.get(name) != value}
        self.use(dataclasses.replace(self._settings, keys=kept))
        self._fill_keys()


def _has(words: list[str], text: str) -> bool:
    """Whether every word occurs in the text; they are in lower case."""
    return all(word in text.lower() for word in words)


def _home(path: Path) -> str:
    """Where the file is."""
    return one_line(from_home(path / "settings.toml"))
