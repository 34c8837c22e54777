"""How the Convert screens look: both sizes, dark, light, without colour. Update with --snapshot-update, then look."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Input

from exl2_tui.core.events import ModelsListed
from exl2_tui.core.job_events import Checkpointed, FieldNote
from tests.tui import convert_fakes as fake
from tests.tui.conftest import MakeApp
from tests.tui.convert_driver import MODELS, ConvertDriver
from tests.tui.convert_fakes import FakeConvert
from tests.tui.driver import rested, until
from tests.tui.looks import compare, every_size, one_python

pytestmark = one_python

Scene = Callable[[ConvertDriver], Awaitable[None]]
HOME = "/data/ann/exl2"


async def empty(place: ConvertDriver) -> None:
    await place.open()


async def listed(place: ConvertDriver) -> None:
    await place.open()
    place.service.listed = (
        fake.info(f"{HOME}/small", status="finished", stage="done", done=25, name="small-chat"),
        fake.info(f"{HOME}/mistral", name="Mistral-7B-Instruct-v0.3"),
        fake.info(f"{HOME}/qwen", status="elsewhere", stage="quantize", done=20, name="Qwen2.5-7B-Instruct"),
        fake.info(f"{HOME}/broken", status="damaged", name="nobody"),
    )
    await place.pilot.press("g")


async def source(place: ConvertDriver) -> None:
    await place.wizard("")
    place.app.push_event(ModelsListed(MODELS))
    await place.settle()


async def target(place: ConvertDriver) -> None:
    await place.wizard()
    await place.pilot.press("enter")
    place.service.notes = (
        FieldNote("work", "error", "Needs 88.0 GB here, 61.0 GB free. Pick another disk."),
        FieldNote("output", "ok", "It will be made"),
    )
    place.app.screen.query_one("#work", Input).value = f"{HOME}/jobs/nano-chat-4bpw"
    place.app.screen.query_one("#output", Input).value = f"{HOME}/models/nano-chat-exl2-4bpw"
    await place.checked()


async def check(place: ConvertDriver) -> None:
    await target_folders(place)
    await place.pilot.press("enter")


async def target_folders(place: ConvertDriver) -> None:
    await place.wizard()
    await place.pilot.press("enter")
    place.app.screen.query_one("#work", Input).value = f"{HOME}/jobs/nano-chat-4bpw"
    place.app.screen.query_one("#output", Input).value = f"{HOME}/models/nano-chat-exl2-4bpw"
    await place.checked()


async def measuring(place: ConvertDriver) -> None:
    await target_folders(place)
    await place.pilot.press("enter", "enter")
    await until(lambda: place.service.started)
    job = place.service.started[-1].work
    place.service.post(fake.opened(job))
    place.service.play(fake.calibrated(job))
    for event in fake.measured(job, 13):
        if isinstance(event, Checkpointed):
            await place.settle()
            place.clock.now += 2.0
        place.service.post(event)


async def quantizing(place: ConvertDriver) -> None:
    await measuring(place)
    job = place.service.started[-1].work
    place.service.play(fake.measured(job))
    place.service.play(fake.quantized(job, 7))
    await place.settle()
    await place.pilot.press("right", "right")


async def finished(place: ConvertDriver) -> None:
    await quantizing(place)
    job = place.service.started[-1].work
    place.service.play(fake.quantized(job))
    place.service.play(fake.judged(job))


async def log(place: ConvertDriver) -> None:
    await quantizing(place)
    await place.pilot.press("l")


async def worst(place: ConvertDriver) -> None:
    await quantizing(place)
    await place.pilot.press("e")


async def paused(place: ConvertDriver) -> None:
    await quantizing(place)
    await place.pilot.press("p")
    place.service.post(fake.ended(place.service.started[-1].work))


async def cancel(place: ConvertDriver) -> None:
    await quantizing(place)
    await place.pilot.press("x")


async def failed(place: ConvertDriver) -> None:
    await quantizing(place)
    job = place.service.started[-1].work
    place.service.post(fake.ended(job, "the disk is full", "Free some space."))


async def quitting(place: ConvertDriver) -> None:
    await quantizing(place)
    await place.pilot.press("ctrl+q")


SCENES = [
    *(empty, listed, source, target, check, measuring, quantizing, log, worst, paused, cancel),
    *(finished, failed, quitting),
]


@every_size
@pytest.mark.parametrize("scene", SCENES, ids=[scene.__name__ for scene in SCENES])
async def test_look(
    scene: Scene,
    size: tuple[int, int],
    make_app: MakeApp,
    snapshot: SnapshotAssertion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "UTC")  # the log says when
    time.tzset()
    async with make_app(convert_factory=FakeConvert).run_test(size=size) as pilot:
        place = ConvertDriver(pilot)
        await scene(place)
        await place.settle()
        await rested(place.app)
        await place.settle()
        await compare(pilot, snapshot)
