"""What is chosen on machines with a GPU that this one does not have: the device query is faked, the models are real."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from support.models import write_random_model

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import ConfigError, ExtensionError, MemoryLimitError, UnsupportedError
from exl2_tui.core.model import loader
from exl2_tui.core.model.causal_lm import CausalLM
from exl2_tui.core.model.cuda import library
from exl2_tui.core.requests import LoadOptions

GB = 10**9


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Two Hopper GPUs with 8 GB free each and no compiled library; change the list to change what is free."""
    free = [8 * GB, 8 * GB]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 80 * GB))
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_C_cuda.so")
    monkeypatch.setattr(library, "_load", cache(library._load.__wrapped__))
    return free


def with_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_load", lambda: None)
    monkeypatch.setattr(library, "_has_step", lambda _: True)


def plan(folder: Path, options: LoadOptions) -> loader.LoadPlan:
    with Checkpoint.open(folder) as checkpoint:
        return loader.plan_load(checkpoint, ModelConfig.from_dir(folder), options)


def test_a_missing_library_is_named_with_the_remedy(gpus: list[int]) -> None:
    assert "were not built" in (library.unavailable() or "")
    assert "pip install" in (library.unavailable() or "")


def test_an_unreadable_library_is_named(gpus: list[int]) -> None:
    library.LIBRARY.write_bytes(b"no library")
    assert "cannot be loaded" in (library.unavailable() or "")


def test_a_library_for_other_gpus_is_named(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with_library(monkeypatch)
    asked = []

    def nothing_for_the_second(index: int) -> bool:
        asked.append(index)
        if index == 1:
            raise RuntimeError("the decode step: no kernel image is available for execution on the device\nat ...")
        return False

    monkeypatch.setattr(library, "_has_step", nothing_for_the_second)
    assert library.unavailable() is None and library.unavailable(torch.device("cuda:0")) is None
    reason = library.unavailable(torch.device("cuda:1")) or ""
    assert "not compiled for this GPU (the decode step: no kernel image" in reason and "EXL2_TUI_CUDA=1" in reason
    assert "at ..." not in reason and asked == [0, 0, 1]


def test_an_old_gpu_is_named_with_what_it_has(gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with_library(monkeypatch)
    assert library.unavailable() is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 5))
    assert library.unavailable() is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 0))
    assert "7.0" in (library.unavailable() or "") and "7.5" in (library.unavailable() or "")
    with pytest.raises(ExtensionError, match="too old"):
        library.require()


def test_auto_takes_the_gpu_when_its_kernels_are_there(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_library(monkeypatch)
    found = plan(write_random_model(tmp_path / "model"), LoadOptions())
    assert found.backend == "cuda" and found.reason == ""
    assert set(found.devices) == {torch.device("cuda:0")}


def test_auto_stays_on_the_cpu_without_kernels_and_says_so(gpus: list[int], tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    with Checkpoint.open(folder) as checkpoint:
        model = loader.load_model(checkpoint, ModelConfig.from_dir(folder), LoadOptions())
    assert model.device == torch.device("cpu")
    assert "the GPU is not used: the CUDA kernels were not built" in model.kernels


def test_auto_leaves_a_full_gpu_alone_and_says_so(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_library(monkeypatch)
    gpus[0] = 1000
    assert "does not fit" in plan(write_random_model(tmp_path / "model"), LoadOptions()).reason


def test_the_device_cuda_falls_back_to_the_reference_and_says_so(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_random_model(tmp_path / "model")
    options = LoadOptions(device="cuda:1")
    found = plan(folder, options)
    assert found.backend == "gpu-reference" and set(found.devices) == {torch.device("cuda:1")}
    assert "were not built" in found.reason

    loads = []

    def load(source: object, config: object, devices: object, dtype: torch.dtype) -> CausalLM:
        loads.append((devices, dtype))
        return CausalLM.__new__(CausalLM)

    monkeypatch.setattr(CausalLM, "load", load)
    with Checkpoint.open(folder) as checkpoint:
        model = loader.load_model(checkpoint, ModelConfig.from_dir(folder), options)
    assert loads == [((torch.device("cuda:1"),) * 2, torch.float16)]
    assert model.kernels.startswith("reference (torch): the CUDA kernels were not built")


def test_the_reference_needs_room_for_decoded_weights(gpus: list[int], tmp_path: Path) -> None:
    gpus[0] = 1000
    folder = write_random_model(tmp_path / "model")
    with Checkpoint.open(folder) as checkpoint, pytest.raises(MemoryLimitError):
        loader.load_model(checkpoint, ModelConfig.from_dir(folder), LoadOptions(device="cuda"))


@pytest.mark.parametrize("options", [{"gpu_split": "auto"}, {"gpu_split": "1,1"}])
def test_a_split_needs_a_gpu(options: dict[str, str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ExtensionError, match="no GPU can be used"):
        plan(write_random_model(tmp_path), LoadOptions(**options))  # type: ignore[arg-type]


def test_a_split_fills_the_gpus_in_turn(gpus: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_library(monkeypatch)
    folder = write_random_model(tmp_path / "model", num_hidden_layers=6)
    everything = plan(folder, LoadOptions(gpu_split="auto", context=64))
    assert everything.backend == "cuda" and everything.devices == (torch.device("cuda:0"),) * 6
    scratch = everything.estimate.scratch
    layers = (everything.estimate.total - scratch) / 6
    gpus[:] = [int((scratch + 3.5 * layers) / 0.9)] * 2
    shared = plan(folder, LoadOptions(gpu_split="auto", context=64))
    numbers = [device.index for device in shared.devices]
    assert numbers == sorted(numbers) and set(numbers) == {0, 1}
    gpus[:] = [8 * GB] * 2
    second = plan(folder, LoadOptions(gpu_split="0,1.5", context=64))
    assert {device.index for device in second.devices} == {1}


def test_a_context_nobody_asked_for_gives_way(gpus: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_library(monkeypatch)
    folder = write_random_model(tmp_path / "model", num_hidden_layers=4, max_position_embeddings=1 << 15)
    long = plan(folder, LoadOptions(gpu_split="auto"))
    gpus[:] = [(long.estimate.scratch + long.estimate.cache // 4 + long.estimate.weights) * 10 // 9] * 2
    short = plan(folder, LoadOptions(gpu_split="auto"))
    assert short.estimate.context < long.estimate.context
    with pytest.raises(MemoryLimitError, match="do not fit on the GPUs") as caught:
        plan(folder, LoadOptions(gpu_split="auto", context=long.estimate.context))
    assert "--gpu-split" in (caught.value.hint or "")


def test_splits_that_cannot_be(gpus: list[int], tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="this machine has 2"):
        plan(folder, LoadOptions(gpu_split="1,1,1"))
    with pytest.raises(UnsupportedError, match=r"q8.*kernels, which cannot be used"):
        plan(folder, LoadOptions(gpu_split="auto", cache="q8"))
    for wrong in ("8,", "eight", "-1", "0,0", "nan", "inf"):
        with pytest.raises(ConfigError, match="gpu_split"):
            LoadOptions(gpu_split=wrong)
    with pytest.raises(ConfigError, match="the device is"):
        LoadOptions(gpu_split="auto", device="cuda:1")
