"""Settings as fields of a form: what each is called, what it means, how its text becomes a value. No widgets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from exl2_tui.core.errors import ConfigError
from exl2_tui.core.requests import CacheKind, SamplerSettings
from exl2_tui.settings import SECTIONS, THEMES, Settings

ON, OFF = "on", "off"


@dataclass(frozen=True, slots=True)
class Field:
    """One row: `section.name` in the settings file. choices: the only values there are, if not empty.

    long: a text that may have several lines.
    """

    section: str
    name: str
    title: str
    help: str
    choices: tuple[str, ...] = ()
    long: bool = False

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"


@dataclass(frozen=True, slots=True)
class Group:
    title: str
    fields: tuple[Field, ...]


def _sampler(name: str, title: str, help: str) -> Field:
    return Field("sampler", name, title, help)


SAMPLER = Group(
    "Sampler",
    (
        _sampler("temperature", "Temperature", "0 always takes the most probable token; 1 leaves the model as it is"),
        _sampler("top_k", "Top k", "only the k most probable tokens; 0 is off"),
        _sampler("top_p", "Top p", "the most probable tokens that together reach p; 1 is off"),
        _sampler("min_p", "Min p", "tokens at least p times as probable as the best; 0 is off"),
        _sampler("typical_p", "Typical p", "tokens about as surprising as expected; 1 is off"),
        _sampler("repetition_penalty", "Repetition penalty", "above 1 makes repeated tokens less probable; 1 is off"),
        _sampler("repetition_range", "Repetition range", "how many tokens it looks back; -1 is all"),
        _sampler("frequency_penalty", "Frequency penalty", "grows with every repetition; 0 is off"),
        _sampler("presence_penalty", "Presence penalty", "once for every token that occurred; 0 is off"),
        _sampler("seed", "Seed", "a number makes answers repeatable; empty draws a new one"),
    ),
)

GROUPS = (
    Group(
        "Appearance",
        (
            Field("appearance", "theme", "Theme", "auto asks the terminal; mono: no colours, as with NO_COLOR", THEMES),
            Field("appearance", "turns", "Turns on screen", "4 to 30; older ones load when you scroll to them"),
        ),
    ),
    Group(
        "Chat",
        (
            Field(
                "chat",
                "enter_sends",
                "Enter sends",
                "off: enter adds a line, {composer.newline} sends",
                (ON, OFF),
            ),
            Field("chat", "max_new_tokens", "Longest answer", "tokens after which an answer is ended"),
            Field(
                "chat",
                "system",
                "System prompt",
                "of new chats; enter edits it, {chat.system} that of one chat",
                long=True,
            ),
            Field("chat", "user_name", "Your name", "in mode raw"),
            Field("chat", "bot_name", "Name of the model", "in mode raw"),
        ),
    ),
    SAMPLER,
    Group(
        "Loading models",
        (
            Field("load", "context", "Context", "tokens; empty takes what the model and memory allow"),
            Field("load", "cache", "Cache", "q8 takes half the memory of fp16; q6, q4: on a GPU", get_args(CacheKind)),
            Field("load", "device", "Device", "auto, cpu, cuda or cuda:1"),
            Field("load", "gpu_split", "Several GPUs", "auto, or GB for each, as 8,8"),
            Field("load", "threads", "Threads", "0 uses all cores"),
            Field(
                "load", "exact", "Exact kernels", "float32 activations everywhere: slower, a little closer", (ON, OFF)
            ),
            Field("models", "directories", "Model folders", "where models are looked for, separated by ;"),
        ),
    ),
)

PRESETS: dict[str, SamplerSettings] = {
    "balanced": SamplerSettings(),
    "precise": SamplerSettings(temperature=0.3, top_k=40, top_p=0.9, repetition_penalty=1.0),
    "creative": SamplerSettings(temperature=1.1, top_k=0, top_p=1.0, min_p=0.05),
    "greedy": SamplerSettings.greedy(),
}


def text_of(settings: Settings, field: Field) -> str:
    """The value as the form shows it."""
    value = getattr(getattr(settings, field.section), field.name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return ON if value else OFF
    if isinstance(value, tuple):
        return "; ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_text(settings: Settings, field: Field, text: str) -> Settings:
    """The settings with one field changed. Raises ConfigError, whose message is shown below the field."""
    section = getattr(settings, field.section)
    value = _parse(text.strip(), get_type_hints(SECTIONS[field.section])[field.name])
    return dataclasses.replace(settings, **{field.section: dataclasses.replace(section, **{field.name: value})})


def is_default(settings: Settings, field: Field) -> bool:
    return text_of(settings, field) == text_of(Settings(), field)


def _parse(text: str, hint: Any) -> Any:
    kinds = get_args(hint)
    if hint is bool:
        return text == ON
    if hint is str or (kinds and isinstance(kinds[0], str)):
        return text
    if str in kinds:  # tuple[str, ...]
        return tuple(part.strip() for part in text.split(";") if part.strip())
    if type(None) in kinds and not text:
        return None
    wanted = float if hint is float else int
    try:
        return wanted(text.replace(",", "") if wanted is int else text)
    except (ValueError, OverflowError):
        kind = "a number" if wanted is float else "a whole number"
        raise ConfigError(f"{text[:30]!r} is not {kind}") from None
