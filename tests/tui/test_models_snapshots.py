"""What the Models place looks like at both sizes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from syrupy.assertion import SnapshotAssertion

from exl2_tui.core.model_events import FileCheck, HubSearched, TensorFault, VerifyProgress
from exl2_tui.settings import Settings
from tests.tui.conftest import MakeApp
from tests.tui.driver import ChatDriver, until
from tests.tui.looks import compare, every_size, one_python
from tests.tui.model_fakes import FakeModels, verified
from tests.tui.models_driver import ModelsDriver, removal

pytestmark = one_python

Scene = Callable[[ModelsDriver], Awaitable[None]]


async def info(seen: ModelsDriver) -> None:
    await seen.at("CodeLlama")
    await seen.press("i")


async def too_large(seen: ModelsDriver) -> None:
    await seen.press("plus", "plus", "plus", "plus", "t")
    await seen.at("Qwen")


async def loading(seen: ModelsDriver) -> None:
    await seen.at("CodeLlama")
    await seen.press("l")
    seen.chat.service.progress(9_000_000)


async def verifying(seen: ModelsDriver) -> None:
    await seen.at("CodeLlama")
    await seen.press("v")
    seen.app.push_event(VerifyProgress("/models/codellama", 5 * 10**9, 20 * 10**9, "hash of output.safetensors"))


async def damaged(seen: ModelsDriver) -> None:
    await verifying(seen)
    faults = (
        TensorFault("model.layers.3.mlp.up_proj.q_scale_max", "2 x NaN among 1,376 values"),
        TensorFault("model.layers.40.self_attn.k_proj", "expected shape [1024, 8192], found [1024, 4096]"),
    )
    files = (
        FileCheck("config.json", 900, "ok", "SHA256SUMS"),
        FileCheck("notes.txt", 900, "unknown", "no hash to compare with"),
        FileCheck("output-00002-of-00003.safetensors", 900, "damaged", "expected 0123456789ab…, found ba9876543210…"),
    )
    seen.app.push_event(verified("/models/codellama", faults=faults, files=files))


async def sound(seen: ModelsDriver) -> None:
    await verifying(seen)
    seen.app.push_event(verified("/models/codellama"))


async def remove(seen: ModelsDriver) -> None:
    await seen.at("CodeLlama")
    seen.app.push_event(removal("/models/codellama", "CodeLlama-34B-Instruct"))


async def remove_by_name(seen: ModelsDriver) -> None:
    await seen.at("Qwen")
    note = "1 folder stays: only the files of the model go"
    seen.app.push_event(removal("/models/qwen", "Qwen2.5-32B-Instruct", kind="directory", note=note))


async def filtered(seen: ModelsDriver) -> None:
    """Nothing has these words."""
    await seen.press("slash", *"zzz")


async def add_folder(seen: ModelsDriver) -> None:
    await seen.press("a")


async def hub_first(seen: ModelsDriver) -> None:
    await seen.press("h")


async def downloads_none(seen: ModelsDriver) -> None:
    seen.fake.partial = ()
    await seen.press("d")


async def discard(seen: ModelsDriver) -> None:
    await downloads(seen)
    await seen.press("home", "p", "x")


async def hub_results(seen: ModelsDriver) -> None:
    await seen.press("h")
    await seen.press(*"llama", "enter")


async def hub_revisions(seen: ModelsDriver) -> None:
    await hub_results(seen)
    await seen.press("enter")


async def hub_plan(seen: ModelsDriver) -> None:
    await hub_revisions(seen)
    await seen.press("enter")


async def hub_offline(seen: ModelsDriver) -> None:
    await seen.press("h")
    seen.fake.answering = False
    await seen.press(*"llama", "enter")
    seen.app.push_event(
        HubSearched(
            seen.app.models._token,
            "llama",
            (),
            0,
            "the Hub at https://huggingface.co cannot be reached: Temporary failure in name resolution",
            "Check the network connection; a download goes on where it stopped",
        )
    )


async def downloads(seen: ModelsDriver) -> None:
    await hub_plan(seen)
    await seen.press("enter")
    seen.fake.finish("TinyLlama-1.1B-Chat-exl2")
    seen.fake.fail("the disk is full", "Free some space", "Mixtral-8x7B-exl2-3.5bpw")
    seen.fake.progress(0.48)


SCENES = [
    *(info, too_large, loading, verifying, damaged, sound, remove, remove_by_name),
    *(filtered, add_folder, hub_first, hub_results, hub_revisions, hub_plan, hub_offline),
    *(downloads, downloads_none, discard),
]


@every_size
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
async def test_look(scene: Scene, size: tuple[int, int], make_app: MakeApp, snapshot: SnapshotAssertion) -> None:
    async with make_app(Settings(), models_factory=FakeModels).run_test(size=size) as pilot:
        chat = ChatDriver(pilot)
        await chat.start()
        await pilot.press("f3")
        seen = ModelsDriver(chat)
        await until(lambda: seen.app.models.state.listed is not None)
        await chat.settle()
        await scene(seen)
        await chat.settle()
        await chat.settle()
        await compare(pilot, snapshot)
