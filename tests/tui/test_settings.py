"""Settings survive a round trip, hand edits, crashes and keys of other versions."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exl2_tui.core.requests import LoadOptions, SamplerSettings
from exl2_tui.settings import (
    AppearanceSettings,
    ChatSettings,
    ModelSettings,
    Settings,
    config_dir,
    load_settings,
    save_settings,
)
from exl2_tui.toml import dump_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERYTHING = Settings(
    chat=ChatSettings("chatml", 'be "brief"\nand\tkind \\ \x1b', "Ann", "Bot", 77, False),
    sampler=SamplerSettings(temperature=0.0, top_k=3, seed=12),
    load=LoadOptions(context=2048, cache="q8", device="cpu", exact=True, threads=3),
    models=ModelSettings(last="/models/ünï", directories=("/a", "/b c")),
    appearance=AppearanceSettings("light", 12),
    keys={"chat.send": "ctrl+j,f9"},
)


def test_first_start_has_defaults_and_no_problem(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == (Settings(), "")


def test_everything_survives_a_round_trip(tmp_path: Path) -> None:
    save_settings(EVERYTHING, tmp_path)
    assert load_settings(tmp_path) == (EVERYTHING, "")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


def test_home_variable_moves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXL2_TUI_HOME", str(tmp_path / "home"))
    save_settings(EVERYTHING)
    assert config_dir() == tmp_path / "home"
    assert (tmp_path / "home" / "settings.toml").exists()


def test_none_removes_the_key(tmp_path: Path) -> None:
    save_settings(EVERYTHING, tmp_path)
    save_settings(replace(EVERYTHING, sampler=SamplerSettings(seed=None)), tmp_path)
    assert load_settings(tmp_path)[0].sampler.seed is None


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("new = 1\n[chat]\nfuture = [1, 2]\n[plugin.x]\ny = 'z'\n")
    settings, problem = load_settings(tmp_path)
    assert problem == ""
    save_settings(settings, tmp_path)
    table = tomllib.loads((tmp_path / "settings.toml").read_text())
    assert table["new"] == 1 and table["chat"]["future"] == [1, 2] and table["plugin"]["x"]["y"] == "z"


@pytest.mark.parametrize("text", ["[chat\n", "a = ", "\x00", "x = " + "[" * 5000])
def test_a_broken_file_is_kept_aside(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    settings, problem = load_settings(tmp_path)
    assert settings == Settings()
    assert "settings.toml" in problem and "kept as" in problem
    save_settings(settings, tmp_path)
    assert (tmp_path / "settings.toml.bad").read_text() == text


def test_one_bad_value_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        "[sampler]\ntemperature = -3\ntop_k = 7\n[chat]\nmode = 5\nuser_name = 'Ann'\n"
        "[appearance]\ntheme = 'pink'\n[load]\ncache = 'q3'\nthreads = true\n[keys]\nx = 1\n"
    )
    settings, problem = load_settings(tmp_path)
    assert settings.sampler == SamplerSettings(top_k=7)
    assert settings.chat.user_name == "Ann" and settings.chat.mode == "auto"
    for name in ("sampler.temperature", "chat.mode", "appearance.theme", "load.cache", "load.threads", "[keys]"):
        assert name in problem
    assert "top_k" not in problem


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_settings(EVERYTHING, tmp_path)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError):
        save_settings(Settings(), tmp_path)
    monkeypatch.undo()
    assert load_settings(tmp_path) == (EVERYTHING, "")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUES, max_size=5))
def test_what_is_written_reads_back(table: dict[str, object]) -> None:
    assert tomllib.loads(dump_toml(table)) == table
