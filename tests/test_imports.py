"""The layers of the package: who may import whom, checked on the source text."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "exl2_tui"
STDLIB_ONLY = {
    f"exl2_tui.core.{name}"
    for name in (
        "cancel",
        "errors",
        "events",
        "job_events",
        "model_events",
        "requests",
        "sizes",
        "config",
        "config_rope",
        "json_keys",
        "spare_core",
    )
}
UI_LIBRARIES = {"textual", "rich", "typer", "click"}
HEAVY = {"torch", "transformers", "numpy"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, *, lazy: bool) -> set[str]:
    """Full names that `path` imports; lazy=False leaves out those inside functions and TYPE_CHECKING blocks."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if typing_only or (not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            skipped.update(child for child in ast.walk(node) if child is not node)
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_layers(module: str) -> None:
    path = MODULES[module]
    everything = imported(path, lazy=True)
    at_import = imported(path, lazy=False)
    tops = {name.split(".")[0] for name in everything}

    if module in STDLIB_ONLY:
        foreign = {name for name in everything if name.split(".")[0] not in sys.stdlib_module_names}
        foreign = {name for name in foreign if not within(name, *STDLIB_ONLY)}
        assert not foreign, f"{module} may import the standard library only"
    if within(module, "exl2_tui.core"):
        assert not tops & UI_LIBRARIES, f"{module} is core and imports a user interface"
        outside = {name for name in everything if within(name, "exl2_tui") and not within(name, "exl2_tui.core")}
        assert not outside - {"exl2_tui", "exl2_tui.__version__"}, f"{module} is core and imports {outside}"
        if not within(module, "exl2_tui.core.quant"):
            assert not any(within(name, "exl2_tui.core.quant") for name in everything), f"{module} imports core.quant"
    if within(module, "exl2_tui.screens", "exl2_tui.widgets"):
        assert not tops & HEAVY, f"{module} is drawn before torch is loaded"
        core = {name for name in everything if within(name, "exl2_tui.core") and not within(name, *STDLIB_ONLY)}
        assert not core, f"{module} reaches past the service into {core}"
    if within(module, "exl2_tui.app", "exl2_tui.service", "exl2_tui.cli", "exl2_tui.settings", "exl2_tui.__main__"):
        eager = {name for name in at_import if name.split(".")[0] in HEAVY}
        heavy_core = {name for name in at_import if within(name, "exl2_tui.core") and not within(name, *STDLIB_ONLY)}
        assert not eager | heavy_core, f"{module} loads {eager | heavy_core} before it is needed"
