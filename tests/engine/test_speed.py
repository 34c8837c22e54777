"""Speed measurements: what is timed, what is counted, and how they end early."""

from __future__ import annotations

import pytest
import torch
from support.fake_model import FakeModel, FakeTime

from exl2_tui.core import speed
from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError, ContextError
from exl2_tui.core.events import SpeedProgress
from exl2_tui.core.ops import capabilities, native


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.LARGEST_BUFFER, "cpu", 64 << 20)


def test_times_match_a_model_of_known_speed(small_buffer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime()
    monkeypatch.setattr(speed, "time", clock)
    model = FakeModel(seconds_per_token=0.002, clock=clock)
    heard: list[SpeedProgress] = []
    report = speed.measure(
        model,
        10_000,
        prompts=(20, 50),
        depths=(0, 30),
        new_tokens=10,
        repeats=1,
        on_progress=heard.append,
        cancel=CancelToken(),
    )
    assert [p.tokens for p in report.prompt] == [20, 50]
    assert [p.seconds for p in report.prompt] == pytest.approx([0.002 * 20, 0.002 * 50], rel=0.01)
    assert [d.depth for d in report.decode] == [0, 30]
    assert [d.seconds for d in report.decode] == pytest.approx([0.002, 0.002], rel=0.01)
    one_token = 4 * 8  # fp16 keys and values of one head of 8, one layer
    assert [d.bytes_per_token for d in report.decode] == [10_000 + 5 * one_token, 10_000 + 35 * one_token]
    first = report.decode[0]
    assert first.bandwidth_fraction == pytest.approx(first.bytes_per_token / first.seconds / report.bandwidth)
    assert heard[0].what == "memory bandwidth" and heard[1].what == "prompt of 20 tokens"
    assert [e.done for e in heard] == [0, 1, 2, 3, 4, 5] and heard[0].total == 5
    assert report.peak_memory > 50 << 20


@pytest.mark.parametrize(("count", "threads"), [(1, 1), (1000, 2), (100_003, 3)])
def test_reading_memory_reads_all_of_it(count: int, threads: int) -> None:
    buffer = torch.randint(-3, 4, (count,)).float()  # whole numbers: the order of summation does not show
    for isa in capabilities().isas:
        assert native.ops().read_memory(buffer, threads, native.isa_code(isa)) == buffer.sum()


def test_bandwidth_of_a_given_buffer(small_buffer: None) -> None:
    buffer = speed.read_buffer()
    assert buffer.nbytes == 64 << 20 and float(buffer.sum(dtype=torch.float64)) == buffer.numel()
    assert 0 < speed.read_bandwidth(passes=2, threads=1, buffer=buffer) < 1e13


def test_too_long_and_cancelled(small_buffer: None) -> None:
    with pytest.raises(ContextError, match=r"600 tokens of context.* 512"):
        speed.measure(FakeModel(), 1, prompts=(600,))
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        speed.measure(FakeModel(), 1, prompts=(8,), depths=(), cancel=cancel)


def test_bytes_per_token_leave_out_the_embedding(nano_chat, nano_chat_exl2) -> None:  # type: ignore[no-untyped-def]
    linears = 8 * (384 * 384 * 2 + 384 * 128 * 2 + 3 * 384 * 640)
    head = 8192 * 384
    config = ModelConfig.from_dir(nano_chat)
    with Checkpoint.open(nano_chat) as checkpoint:
        norms = 2 * 17 * 384
        stored = 2 * (linears + head) + norms
        assert speed.weight_bytes_per_token(checkpoint, config, exact=True) == stored
        assert speed.weight_bytes_per_token(checkpoint, config, "cuda") == stored
        assert speed.weight_bytes_per_token(checkpoint, config) == stored - 2 * (linears + head) // 8  # 14 of 16 bits
        assert speed.weight_bytes_per_token(checkpoint, config, "reference") == 4 * (linears + head)
    with Checkpoint.open(nano_chat_exl2) as checkpoint:
        stored = speed.weight_bytes_per_token(checkpoint, ModelConfig.from_dir(nano_chat_exl2))
        # 4.0 bits per weight, 6 for the head
        assert stored == pytest.approx(linears * 4 / 8 + head * 6 / 8, rel=0.05)
