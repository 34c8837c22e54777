"""Rules of the user interface, checked on its source: outside text is never markup, workers never end the app."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "exl2_tui"
FILES = sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("screens/*.py"), *PACKAGE.glob("widgets/*.py")])
NEED_MARKUP_OFF = {"Static", "OptionList", "RichLog", "notify"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            yield (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")), node


def keyword(call: ast.Call, name: str) -> object:
    value = next((part.value for part in call.keywords if part.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_text_is_never_markup(path: Path) -> None:
    for name, call in calls(path):
        if name in NEED_MARKUP_OFF and (call.args or name != "notify"):  # Condition.notify() has none
            assert keyword(call, "markup") is False, f"{path.name}:{call.lineno}: {name} without markup=False"
        assert name not in ("from_markup", "Text.from_markup"), f"{path.name}:{call.lineno}: parses markup"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_workers_have_a_group_and_never_end_the_app(path: Path) -> None:
    for name, call in calls(path):
        if name == "run_worker":
            assert isinstance(keyword(call, "group"), str), f"{path.name}:{call.lineno}: a worker without a group"
            assert keyword(call, "exit_on_error") is False, f"{path.name}:{call.lineno}: a worker may end the app"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_mounted_that_fails_while_the_app_leaves(path: Path) -> None:
    """Events are still drawn between `exit` and the end; then `mount` raises, but `mount_all` does nothing."""
    for name, call in calls(path):
        assert name != "mount", f"{path.name}:{call.lineno}: use mount_all"


def test_every_screen_has_a_help_of_its_own() -> None:
    """But the help itself, and those that take every key or show one line."""
    found = {}
    for module in PACKAGE.glob("screens/*.py"):
        for node in ast.parse(module.read_text()).body:
            bases = {ast.unparse(base).partition("[")[0] for base in getattr(node, "bases", ())}
            if isinstance(node, ast.ClassDef) and bases & {"Screen", "ModalScreen", "ModelsTab", "Form", "FindActions"}:
                names = {target.id for part in node.body if isinstance(part, ast.Assign) for target in part.targets}  # type: ignore[attr-defined]
                found[node.name] = "HELP" in names
    without = {name for name, has_help in found.items() if not has_help}
    assert without == {"Form", "ModelsTab", "FrugalScreen", "HelpScreen", "KeyCapture", "TooSmall"}
    assert len(found) > 20
