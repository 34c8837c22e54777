"""Models: the library, its dialogs, the Hub and downloads, by keys and mouse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widget import Widget
from textual.widgets import Input, Static

from exl2_tui.core.events import Failed
from exl2_tui.core.model_events import (
    DownloadFinished,
    DownloadsListed,
    FileCheck,
    LibraryFailed,
    PartialDownload,
    ScanProgress,
    TensorFault,
    VerifyEnded,
    VerifyProgress,
)
from exl2_tui.core.requests import LoadOptions
from exl2_tui.screens.convert_wizard import WizardScreen
from exl2_tui.screens.downloads import DownloadsScreen
from exl2_tui.screens.hub import HubScreen
from exl2_tui.screens.model_dialogs import RemoveDialog, VerifyDialog
from exl2_tui.screens.models import ModelsScreen
from exl2_tui.settings import Settings, load_settings
from exl2_tui.widgets.bars import Row, StatusRow
from exl2_tui.widgets.key_row import KeyRow
from exl2_tui.widgets.model_list import ModelList
from exl2_tui.widgets.place_tabs import PlaceTabs
from tests.tui.conftest import MakeApp
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import until
from tests.tui.model_fakes import MODELS, NOW, FakeModels, verified
from tests.tui.models_driver import models, removal


async def test_the_list_says_what_each_takes_and_whether_it_fits(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        rows = seen.rows
        assert [row[2:6] for row in rows] == ["nano", "Tiny", "Code", "Qwen", "brok"]
        assert rows[0].startswith("● nano-chat") and rows[0].endswith("loaded")
        assert "TinyLlama [1.1B]" in rows[1] and rows[1].endswith("yes") and "900 MB" in rows[1]
        assert rows[2].endswith("tight") and "22.8 GB" in rows[2] and "16k" in rows[2]
        assert rows[3].endswith("no") and "fp16" in rows[3]
        assert rows[4].startswith("✗ broken[2J") and rows[4].endswith("broken")
        assert "models 86.0 GB · 61.0 GB free on disk · 24.0 GB memory free" in seen.status
        assert "On this machine 5" in seen.app.screen.query_one("#tabs", Row).plain
        await seen.at("CodeLlama")
        assert "24 layers · 64 heads, 8 kv · vocab 32,000 · mode codellama" in seen.text("#details")
        assert "Needs 22.8 GB of 24.0 GB" in seen.text("#details") and "Close to the limit" in seen.text("#details")
        assert "used 30 days ago · the app's own folder" in seen.text("#details")
        await seen.at("Qwen")
        assert "The weights alone are too large" in seen.text("#details")
        await seen.at("broken")
        assert "config.json is missing" in seen.text("#details")
        assert "i shows all of it, x deletes it" in seen.text("#details")
        asked = [path for (path,) in seen.calls("details")]
        assert sorted(asked) == sorted(model.path for model in MODELS if not model.problem)  # each once


async def test_the_context_and_the_cache_are_chosen_on_the_screen(make_app: MakeApp, home: Path) -> None:
    async with models(make_app) as seen:
        await seen.press("plus", "plus", "plus", "plus")
        assert seen.app.settings.load.context == 8192 and seen.calls("scan")[-1] == (8192, "fp16")
        assert "MEM 8k" in seen.app.screen.query_one("#columns", Row).plain and "22.8 GB" in seen.rows[2]
        await seen.press("minus")
        assert "MEM 4k" in seen.app.screen.query_one("#columns", Row).plain and "11.4 GB" in seen.rows[2]
        await seen.press("t")
        assert "MEM 4k q8" in seen.app.screen.query_one("#columns", Row).plain and "5.7 GB" in seen.rows[2]
        await seen.press("minus", "minus", "minus", "minus", "minus")
        assert seen.app.settings.load == LoadOptions(context=None, cache="q8")
        await seen.press("plus", "l")
        assert seen.chat.service.loads[-1] == ("/models/nano-chat", LoadOptions(context=1024, cache="q8"))
        await until(lambda: load_settings(home)[0].load.cache == "q8")


async def test_a_context_set_elsewhere_finds_its_neighbours(make_app: MakeApp) -> None:
    settings = Settings(load=LoadOptions(context=5000))
    async with models(make_app, settings=settings) as seen:
        await seen.press("plus")
        assert seen.app.settings.load.context == 8192


async def test_what_the_loaded_model_holds_counts_as_free(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        assert seen.fake.reclaimed[-1] == 13_300_000
        await seen.press("u")
        await until(lambda: not seen.app.session.ready)
        await until(lambda: seen.fake.reclaimed[-1] == 0)
        assert seen.rows[0].startswith("○ nano-chat")
        await seen.press("u")
        assert "No model is loaded" in seen.status


async def test_sorting_and_filtering_keep_the_cursor(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.at("Qwen")
        orders = {}
        for _ in range(4):
            await seen.press("s")
            orders[seen.app.models.state.order] = [row[2:6] for row in seen.rows]
            assert seen.app.screen.query_one(ModelList).at_cursor == "/models/qwen"
        assert orders == {
            "name": ["Code", "nano", "Qwen", "Tiny", "brok"],
            "size": ["Qwen", "Code", "Tiny", "nano", "brok"],
            "fits": ["nano", "Tiny", "Code", "Qwen", "brok"],
            "last used": ["nano", "Tiny", "Code", "Qwen", "brok"],
        }
        await seen.press("slash", *"gptq", "enter")
        assert len(seen.rows) == 1 and "TinyLlama" in seen.rows[0]
        await seen.press("slash", *"zzz")
        assert "No model matches" in seen.text("#details")
        keys = seen.app.screen.query_one(KeyRow).plain
        assert "Context" not in keys and "Unload" not in keys  # letters go into the filter


async def test_the_key_row_says_what_escape_does_now(make_app: MakeApp) -> None:
    async with models(make_app) as seen:

        def escape() -> str:
            return seen.app.screen.query_one(KeyRow).plain.split()[1]

        assert escape() == "Chat"
        await seen.press("slash", *"gptq")
        assert escape() == "Clear"
        await seen.press("enter")  # to the list, which stays filtered
        assert escape() == "Clear" and len(seen.rows) == 1
        await seen.press("escape")
        assert escape() == "Chat" and len(seen.rows) == 5
        await seen.press("slash")
        assert escape() == "List"
        await seen.press("escape", "i")
        assert escape() == "List" and isinstance(seen.app.screen, ModelsScreen)
        await seen.press("escape")
        await seen.at("Qwen")
        await seen.press("l")
        await until(lambda: seen.app.session.model.status == "loading")
        await seen.chat.settle()
        assert escape() == "Stop"


async def test_looking_again_says_what_came_of_it(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        seen.fake.answering = False
        await seen.press("r")
        assert "Looked again" not in seen.status
        seen.fake.answering = True
        seen.fake.scan(seen.app.models.options)
        await seen.chat.settle()
        assert "Looked again: 5 models" in seen.status


async def test_enter_loads_and_chats(make_app: MakeApp, home: Path) -> None:
    async with models(make_app, key="ctrl+o") as seen:
        await seen.press("end", "enter")
        assert "config.json is missing" in seen.status
        await seen.at("Qwen")
        await seen.press("enter")
        await until(lambda: len(seen.chat.service.loads) == 2)
        assert seen.chat.service.loads[-1] == ("/models/qwen", LoadOptions())
        assert seen.app.screen is seen.chat.chat_screen
        seen.chat.service.loaded("Qwen2.5-32B-Instruct")
        await until(lambda: load_settings(home)[0].models.last == "/models/qwen")
        assert "Qwen2.5-32B-Instruct" in seen.chat.header


async def test_the_filter_never_has_the_focus_by_itself(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while the screen is being made: letters that were meant as keys would go there."""
    focused: list[object] = []

    def noted(screen: ModelsScreen, widget: Widget | None, *options: bool, **more: bool) -> None:
        focused.append(widget)
        super(ModelsScreen, screen).set_focus(widget, *options, **more)

    monkeypatch.setattr(ModelsScreen, "set_focus", noted)
    async with models(make_app) as seen:
        assert focused and {type(widget) for widget in focused} == {ModelList}
        assert seen.app.focused is focused[0]


async def test_the_loaded_model_is_not_loaded_again(make_app: MakeApp) -> None:
    """Its cache stays; with another context it is."""
    async with models(make_app, key="ctrl+o") as seen:
        await seen.at("nano-chat")
        await seen.press("l")
        assert "loaded already" in seen.status
        await seen.press("enter")
        await until(lambda: seen.app.screen is seen.chat.chat_screen)
        assert len(seen.chat.service.loads) == 1 and seen.app.session.ready
        await seen.press("ctrl+o")
        await seen.screen(ModelsScreen)
        await seen.press("plus", "enter")
        await until(lambda: len(seen.chat.service.loads) == 2)


async def test_loading_shows_in_its_row_and_escape_stops_it(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.at("CodeLlama")
        await seen.press("l")
        seen.chat.service.progress(12_000_000)
        await seen.chat.settle()
        row = next(row for row in seen.rows if "CodeLlama" in row)
        assert row.startswith("◌ ") and "━━━━━━━───────" in row
        assert "50%" in seen.status and "esc cancels" in seen.status
        await seen.press("escape")
        assert seen.chat.service.cancelled[-1] == seen.chat.service.load_id
        seen.app.push_event(Failed("Loading was stopped", "", seen.chat.service.load_id))
        await seen.chat.settle()
        assert isinstance(seen.app.screen, ModelsScreen)
        assert "Loading was stopped" in seen.status
        await seen.press("l")
        seen.chat.service.fail_load("Needs 23 GB", "Choose a smaller context")
        await seen.chat.settle()
        assert "Needs 23 GB Choose a smaller context" in seen.status


async def test_a_scan_tells_what_it_reads_and_what_fails(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        seen.fake.answering = False
        await seen.press("r")
        seen.app.push_event(ScanProgress(1, "a\x1b[2Jmodel"))
        await seen.chat.settle()
        seen.app.screen.query_one(StatusRow).hush()
        assert "Reading a[2Jmodel" in seen.status
        seen.app.push_event(LibraryFailed("", ""))  # given up for a newer scan
        seen.app.push_event(LibraryFailed("the disk is gone", "Plug it in"))
        await until(lambda: any("the disk is gone" in str(toast.message) for toast in seen.app._notifications))
        assert len(seen.app._notifications) == 1


async def test_a_folder_is_added_saved_and_scanned(make_app: MakeApp, home: Path) -> None:
    async with models(make_app) as seen:
        more = home / "more"
        more.mkdir()
        (home / "file").touch()
        scans = len(seen.calls("scan"))
        await seen.press("a")
        dialog = seen.app.screen
        wrong = dialog.query_one("#wrong", Static)
        for name, said in (("nowhere", "✗ There is no such folder"), ("file", "✗ This is a file, not a folder")):
            dialog.query_one(Input).value = str(home / name)
            await seen.press("enter")
            await until(lambda said=said: str(wrong.render()).startswith(said))  # type: ignore[misc]
        assert seen.app.screen is dialog and not seen.app.settings.models.directories
        dialog.query_one(Input).value = str(more)
        await seen.press("enter")
        await until(lambda: len(seen.calls("scan")) == scans + 1)
        assert load_settings(home)[0].models.directories == (str(more),)
        await until(lambda: f"No models in {more}"[:60] in seen.status)
        seen.fake.models = (*MODELS, replace(MODELS[0], path=str(more / "one")))
        await seen.press("a")
        seen.app.screen.query_one(Input).value = str(more)  # once more: what is in it now
        await seen.press("enter")
        await until(lambda: "1 model in" in seen.status)
        await seen.press("escape")
        await until(lambda: seen.app.screen is seen.chat.chat_screen)


async def test_details_have_memory_and_the_bits_of_every_layer(make_app: MakeApp) -> None:
    async with models(make_app, size=(120, 40)) as seen:
        await seen.at("CodeLlama")
        full = seen.text("#full")
        assert "Prompt mode  codellama" in full and "rope base 1,000,000" in full
        assert "weights 19.8 GB, working space 300 MB" in full
        assert "16k" in full and "26.7 GB!" in full and "23.4 GB~" in full
        assert "attention" in full and "feed-forward" in full and "head 6.00" in full
        assert full.count("█") > 20
        await seen.press("i")
        assert seen.app.focused is not None and seen.app.focused.id == "side"
    async with models(make_app) as seen:
        await seen.at("CodeLlama")
        await seen.press("i")
        assert seen.app.screen.query_one("#side").display and not seen.app.screen.query_one("#left").display
        await seen.press("escape")
        assert seen.app.screen.query_one("#left").display


async def test_verify_shows_progress_and_names_what_is_bad(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.at("CodeLlama")
        await seen.press("v")
        await seen.screen(VerifyDialog)
        assert seen.calls("verify") == [("/models/codellama",)]
        seen.app.push_event(VerifyProgress("/models/other", 9, 10, "late"))
        seen.app.push_event(VerifyProgress("/models/codellama", 5 * 10**9, 20 * 10**9, "hash of output.safetensors"))
        await seen.chat.settle()
        assert "25%" in seen.app.screen.query_one("#bar", Row).plain
        assert "hash of output.safetensors" in seen.app.screen.query_one("#what", Row).plain
        bad = TensorFault("model.layers.3.mlp.up_proj.q_scale_max", "2 x NaN among 100 values")
        files = (
            FileCheck("output.safetensors", 5, "damaged", "expected 01"),
            FileCheck("config.json", 1, "ok", "SUMS"),
        )
        seen.app.push_event(verified("/models/codellama", faults=(bad,), files=files))
        await seen.chat.settle()
        found = seen.text("#findings")
        assert "✗ 2 things are wrong" in found and "model.layers.3.mlp.up_proj.q_scale_max  2 x NaN" in found
        assert "✗ output.safetensors  expected 01" in found and "✓ config.json  hash as in SUMS" in found
        await seen.press("escape")
        assert isinstance(seen.app.screen, ModelsScreen) and seen.calls("stop_verify") == []


async def test_verify_is_stopped_by_escape_or_ends_without_a_result(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("v")
        await seen.screen(VerifyDialog)
        await seen.press("escape")
        assert seen.calls("stop_verify") == [()] and isinstance(seen.app.screen, ModelsScreen)
        seen.app.push_event(VerifyEnded("/models/nano-chat"))
        await seen.press("v")
        await seen.screen(VerifyDialog)
        seen.app.push_event(VerifyEnded("/models/nano-chat", "cannot be read", "Look at it"))
        await seen.chat.settle()
        assert "cannot be read Look at it" in seen.text("#findings")


async def test_removing_asks_first(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.at("CodeLlama")
        await seen.press("x")
        assert seen.calls("plan_removal") == [("/models/codellama", "/models/nano-chat")]
        plan = removal("/models/codellama", "CodeLlama-34B-Instruct")
        seen.app.push_event(plan)
        await seen.screen(RemoveDialog)
        assert "2 files, 19.8 GB are deleted from the app's own folder" in seen.text(".text")
        await seen.press("enter")  # the first choice leaves it alone
        assert seen.calls("remove") == []
        seen.app.push_event(plan)
        await seen.screen(RemoveDialog)
        await seen.press("down", "enter")
        assert seen.calls("remove") == [("/models/codellama",)]
        await until(lambda: len(seen.rows) == 4)
        assert "Deleted CodeLlama-34B-Instruct: 19.8 GB freed" in seen.status


async def test_a_folder_of_a_person_must_be_named(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.at("Qwen")
        await seen.press("x")
        seen.app.push_event(removal("/models/qwen", "Qwen2.5-32B-Instruct", kind="directory", note="1 folder stays"))
        await seen.screen(RemoveDialog)
        assert "1 folder stays." in seen.text(".text")
        await seen.press("enter")
        await seen.press(*"Qwen", "enter")
        assert isinstance(seen.app.screen, RemoveDialog) and seen.calls("remove") == []
        assert "not its name" in seen.app.screen.query_one("#hint", Row).plain
        seen.app.screen.query_one(Input).value = "Qwen2.5-32B-Instruct"
        await seen.press("enter")
        assert seen.calls("remove") == [("/models/qwen",)]


async def test_downloads_that_wait_for_somebody_are_counted(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        seen.app.push_event(DownloadsListed((PartialDownload("one", "ann/one", "main", 5, 10),)))
        await seen.chat.settle()
        assert "Downloads 1" in seen.app.screen.query_one(PlaceTabs).plain
        seen.app.push_event(DownloadFinished("one", "ann/one", "main", "/models/one", 10))
        await seen.chat.settle()
        assert "Downloads 1" not in seen.app.screen.query_one(PlaceTabs).plain


async def test_unloading_says_when_the_memory_is_free(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("u")
        await until(lambda: "nano-chat is unloaded, its memory is free" in seen.status)


async def test_a_refusal_is_told(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.press("x")
        seen.app.push_event(removal("/models/nano-chat", "nano-chat", refused="It is loaded; unload it first"))
        await seen.chat.settle()
        assert "nano-chat: It is loaded; unload it first" in seen.status


async def test_a_float_model_leads_to_the_converter(make_app: MakeApp) -> None:
    async with models(make_app, convert_factory=FakeConvert) as seen:
        await seen.press("c")
        assert "quantized already" in seen.status
        await seen.at("Qwen")
        await seen.press("c")
        await seen.screen(WizardScreen)


async def test_a_model_for_which_the_gpu_is_too_small_is_shown_where_the_loader_puts_it(make_app: MakeApp) -> None:
    def small(post: Callable[..., None]) -> FakeModels:
        fake = FakeModels(post)
        fake.models = [replace(model, fits="cpu") for model in fake.models]
        return fake

    async with models(make_app, models_factory=small) as seen:
        assert any(row.rstrip().endswith("cpu") for row in seen.rows)
        await seen.press("j")
        await seen.chat.settle()
        assert "it would run on the processor" in seen.text("#details")


async def test_tabs_and_rows_answer_to_the_mouse(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        await seen.pilot.click("#tabs", offset=(26, 0))
        await seen.screen(HubScreen)
        await seen.pilot.click("#tabs", offset=(44, 0))
        await seen.screen(DownloadsScreen)
        await seen.pilot.click("#tabs", offset=(5, 0))
        await seen.screen(ModelsScreen)
        await seen.pilot.click("#list", offset=(10, 3))
        await until(lambda: seen.chat.service.loads[-1][0] == MODELS[3].path)


async def test_every_screen_keeps_to_its_budget_of_widgets(make_app: MakeApp) -> None:
    many = tuple(replace(MODELS[1], name=f"m{number}", path=f"/m/{number}", used=NOW) for number in range(500))

    def crowded(post: Callable[..., None]) -> FakeModels:
        fake = FakeModels(post)
        fake.models = many
        return fake

    async with models(make_app, size=(120, 40), models_factory=crowded) as seen:
        assert len(seen.rows) == 500
        assert len(list(seen.app.screen.walk_children())) <= 100


async def test_leaving_closes_the_service(make_app: MakeApp) -> None:
    async with models(make_app) as seen:
        fake = seen.fake
    seen.app.close(0.1)
    assert fake.closed
