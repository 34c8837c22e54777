"""What the person chose last time: a TOML file in the config directory, read and written as frozen dataclasses.

The file may be edited by hand. A value that cannot be used falls back to its default, is named in `problem`, and a copy
of the file is kept beside it before anything overwrites it. Keys this version does not know survive a save.
EXL2_TUI_HOME moves everything (settings, chats, models) into one directory. Standard library and platformdirs only.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import platformdirs

from exl2_tui.core.errors import ConfigError, Exl2Error
from exl2_tui.core.requests import LoadOptions, SamplerSettings
from exl2_tui.toml import dump_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

FILE_NAME = "settings.toml"
THEMES = ("auto", "dark", "light", "terminal", "mono")


def config_dir() -> Path:
    """Where settings lie; EXL2_TUI_HOME wins."""
    home = os.environ.get("EXL2_TUI_HOME")
    return Path(home) if home else Path(platformdirs.user_config_dir("exl2-tui"))


def data_dir() -> Path:
    """Where chats, downloaded models and jobs lie; EXL2_TUI_HOME wins."""
    home = os.environ.get("EXL2_TUI_HOME")
    return Path(home) if home else Path(platformdirs.user_data_dir("exl2-tui"))


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How new chats begin. max_new_tokens: the longest answer. enter_sends False: enter adds a line, ctrl+j sends."""

    mode: str = "auto"
    system: str = ""
    user_name: str = "User"
    bot_name: str = "Chatbort"
    max_new_tokens: int = 1024
    enter_sends: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= 1 << 24:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}, but must lie between 1 and {1 << 24}")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """last: path or name of the model used last, "" for the built-in one. directories: where models are looked for."""

    last: str = ""
    directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AppearanceSettings:
    theme: str = "auto"
    turns: int = 10

    def __post_init__(self) -> None:
        if self.theme not in THEMES:
            raise ConfigError(f'theme is "{self.theme}", but must be one of {", ".join(THEMES)}')
        if not 4 <= self.turns <= 30:
            raise ConfigError(f"turns is {self.turns}, but must lie between 4 and 30")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that is remembered. keys: binding id -> keys, as in keymap.py."""

    chat: ChatSettings = field(default_factory=ChatSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    load: LoadOptions = field(default_factory=LoadOptions)
    models: ModelSettings = field(default_factory=ModelSettings)
    appearance: AppearanceSettings = field(default_factory=AppearanceSettings)
    keys: dict[str, str] = field(default_factory=dict)


SECTIONS: dict[str, Any] = {
    "chat": ChatSettings,
    "sampler": SamplerSettings,
    "load": LoadOptions,
    "models": ModelSettings,
    "appearance": AppearanceSettings,
}


def load_settings(directory: Path | None = None) -> tuple[Settings, str]:
    """Reads the settings. Returns them and a problem to show ("" if there is none); never raises for a bad file."""
    path = (directory or config_dir()) / FILE_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Settings(), ""
    except OSError as error:
        return Settings(), f"{path} cannot be read: {error.strerror}. Default settings are used."
    try:
        table = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        kept = _keep_aside(path)
        return Settings(), f"{path} is not valid TOML ({error}). It is kept as {kept} and defaults are used."
    settings, wrong = _from_table(table)
    if not wrong:
        return settings, ""
    kept = _keep_aside(path)
    return settings, f"{path}: {'; '.join(wrong)}. Defaults are used there, and a copy is kept as {kept}."


def is_first_run(directory: Path | None = None) -> bool:
    """Whether nothing has ever been saved here."""
    return not ((directory or config_dir()) / FILE_NAME).exists()


def save_settings(settings: Settings, directory: Path | None = None) -> None:
    """Writes the settings so that a crash leaves the old or the new file, never half of one. Raises OSError."""
    path = (directory or config_dir()) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        old = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        old = {}
    text = dump_toml(_merge(old, _to_table(settings)))
    handle, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _keep_aside(path: Path) -> str:
    """Copies a file that needs the person's eye; returns the copy's name, the newest copy winning."""
    aside = path.with_name(path.name + ".bad")
    try:
        shutil.copyfile(path, aside)
    except OSError:
        return path.name
    return aside.name


def _from_table(table: dict[str, Any]) -> tuple[Settings, list[str]]:
    wrong: list[str] = []
    parts: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        values = table.get(name, {})
        if not isinstance(values, dict):
            wrong.append(f"[{name}] must be a table")
            continue
        parts[name] = _section(name, kind, values, wrong)
    keys = table.get("keys", {})
    if isinstance(keys, dict) and all(isinstance(value, str) for value in keys.values()):
        parts["keys"] = dict(keys)
    else:
        wrong.append("[keys] must map names to strings")
    return Settings(**parts), wrong


def _section(name: str, kind: Any, values: dict[str, Any], wrong: list[str]) -> Any:
    """One dataclass from its table, field by field, so that one bad value costs only itself."""
    result = kind()
    hints = get_type_hints(kind)
    for part in dataclasses.fields(kind):
        if part.name not in values:
            continue
        try:
            value = _convert(values[part.name], hints[part.name])
            result = dataclasses.replace(result, **{part.name: value})
        except Exl2Error as error:
            wrong.append(f"{name}.{part.name}: {error.message}")
    return result


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type of a field. Raises ConfigError."""
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError("expected a list of strings")
        return tuple(value)
    choices = get_args(hint)
    if choices and isinstance(choices[0], str):  # Literal["fp16", "q8"]
        if value not in choices:
            raise ConfigError(f"expected one of {', '.join(choices)}, found {value!r}")
        return value
    wanted = next((item for item in choices if item is not type(None)), hint)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(f"expected {wanted.__name__}, found {type(value).__name__}")
    return value


def _to_table(settings: Settings) -> dict[str, Any]:
    """None is written by leaving the key out."""
    table = dataclasses.asdict(settings)
    for name in SECTIONS:
        table[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in table[name].items()}
    return table


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """New values over old ones; keys only the old file has stay, those that are None now go."""
    merged = dict(old)
    for name, value in new.items():
        if name == "keys":
            merged[name] = value
        elif isinstance(value, dict):
            before = old.get(name)
            merged[name] = _merge(before if isinstance(before, dict) else {}, value)
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged
