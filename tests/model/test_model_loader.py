"""Loading: the plan, progress, cancelling, memory while loading, and what is refused before it starts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import random_config, write_random_exl2_model, write_random_model

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import (
    CancelledError,
    CheckpointError,
    ConfigError,
    Exl2Error,
    ExtensionError,
    MemoryLimitError,
)
from exl2_tui.core.model.estimate import estimate, require_fit
from exl2_tui.core.model.footprint import DEFAULT_CONTEXT_LIMIT, MemoryEstimate
from exl2_tui.core.model.layout import EMBEDDING
from exl2_tui.core.model.loader import load_model, plan_load
from exl2_tui.core.model.memory import available_memory
from exl2_tui.core.ops.native import capabilities
from exl2_tui.core.requests import LoadOptions


@pytest.mark.parametrize("tied", [False, True])
def test_progress_counts_every_byte_once(tied: bool, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, "Phi3ForCausalLM", tie_word_embeddings=tied, shards=2)
    seen: list[tuple[int, int, str]] = []
    with Checkpoint.open(folder) as checkpoint:
        config = ModelConfig.from_dir(folder)
        model = load_model(checkpoint, config, on_progress=lambda *step: seen.append(step))
        read = [name for name in checkpoint.names if name != EMBEDDING or tied or not capabilities().native]
        total = sum(checkpoint.info(name).nbytes for name in read)
        assert {name for _, _, name in seen} == set(read)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1] == total
    assert model.forward([5, 6, 7], model.new_cache(8)).shape == (256,)
    model.close()


def test_cancel_stops_at_the_next_tensor(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, num_hidden_layers=8)
    token, seen = CancelToken(), []

    def cancel_after_three(done: int, total: int, tensor: str) -> None:
        seen.append(tensor)
        if len(seen) == 3:
            token.cancel()

    with Checkpoint.open(folder) as checkpoint, pytest.raises(CancelledError):
        load_model(checkpoint, ModelConfig.from_dir(folder), None, cancel_after_three, token)
    assert len(seen) == 3


def test_missing_tensors_stop_the_plan(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path)
    with Checkpoint.open(folder) as checkpoint:
        config = ModelConfig.from_dict({**checkpoint.config, "num_hidden_layers": 3})
        with pytest.raises(CheckpointError, match="9 tensors are missing"):
            plan_load(checkpoint, config, LoadOptions())


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError) as caught:
        plan_load(checkpoint, ModelConfig.from_dir(folder), LoadOptions())
    assert "tensors are missing" in caught.value.message
    assert "model-00002-of-00003.safetensors" in (caught.value.hint or "")


@pytest.mark.parametrize("device", ["npu", "cuda:", "cuda:-1", "gpu"])
def test_unknown_device(device: str, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(ConfigError, match=device):
        plan_load(checkpoint, ModelConfig.from_dir(folder), LoadOptions(device=device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_says_why(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path)
    with Checkpoint.open(folder) as checkpoint, pytest.raises(ExtensionError, match="no GPU can be used"):
        plan_load(checkpoint, ModelConfig.from_dir(folder), LoadOptions(device="cuda"))


def test_a_context_that_cannot_fit_is_refused_with_a_remedy(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path)
    with Checkpoint.open(folder) as checkpoint:
        with pytest.raises(MemoryLimitError) as caught:
            plan_load(checkpoint, ModelConfig.from_dir(folder), LoadOptions(context=1 << 40))
        assert "smaller context" in (caught.value.hint or "") and "q8" in (caught.value.hint or "")


def test_estimates(nano_chat: Path, nano_chat_exl2: Path) -> None:
    embedding = 8192 * 384 * 2
    for folder, packed, narrowed in (
        (nano_chat, 24_394_752 + embedding, 24_379_392 // 8),  # 14 of 16 bits
        (nano_chat_exl2, 13_482_752, 0),
    ):
        with Checkpoint.open(folder) as checkpoint:
            config = ModelConfig.from_dir(folder)
            found = estimate(checkpoint, config, available=10**9)
            assert found.weights == pytest.approx(packed - embedding - narrowed, rel=0.005)  # rows stay in the file
            exact = estimate(checkpoint, config, available=10**9, exact=True).weights
            assert exact == found.weights + narrowed
            assert estimate(checkpoint, config, backend="cuda", available=10**9).weights == exact + embedding
            assert found.context == 1024 and found.fits == "yes"
            assert found.cache == 1024 * 8 * 2 * 64 * 2 * 2
            assert estimate(checkpoint, config, cache="q8", available=10**9).cache == found.cache * 17 // 32
            dense = estimate(checkpoint, config, backend="reference", available=10**9)
            assert dense.weights == pytest.approx(
                4 * 12.2e6 + (4 * 8192 * 384 if folder == nano_chat_exl2 else 0), rel=0.01
            )


def test_default_context_shrinks_to_what_fits(nano_chat: Path) -> None:
    with Checkpoint.open(nano_chat) as checkpoint:
        config = ModelConfig.from_dict({**checkpoint.config, "max_position_embeddings": 1 << 20})
        assert estimate(checkpoint, config, available=10**12).context == DEFAULT_CONTEXT_LIMIT
        small = estimate(checkpoint, config, available=120_000_000)
        assert 4096 < small.context < 32768 and small.context % 256 == 0 and small.fits == "yes"
        more = MemoryEstimate(small.context + 256, small.weights, small.cache + 256 * 4096, small.scratch, 120_000_000)
        assert more.fits == "tight"
        none = estimate(checkpoint, config, available=10_000_000)
        assert none.fits == "no"
        with pytest.raises(MemoryLimitError, match="fewer bits"):
            require_fit(none, "fp16", "nano-chat")


def test_what_the_system_says() -> None:
    found = available_memory()
    assert found is not None and 1 << 20 < found < 1 << 50


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 16000 kB\nMemFree: 100 kB\nMemAvailable:   8000 kB\n"}
CGROUP2 = {
    "proc/self/cgroup": "0::/box/inner\n",
    "sys/fs/cgroup/box/memory.max": "5000000\n",
    "sys/fs/cgroup/box/memory.current": "2000000\n",
    "sys/fs/cgroup/box/memory.stat": "anon 1\ninactive_file 500000\n",
    "sys/fs/cgroup/box/inner/memory.max": "max\n",
    "sys/fs/cgroup/box/inner/memory.current": "1000000\n",
}
CGROUP1 = {
    "proc/self/cgroup": "4:cpu,cpuacct:/x\n3:memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 250000\n",
}
UNLIMITED1 = {**CGROUP1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MEMINFO, 8_192_000),
        ({**MEMINFO, **CGROUP2}, 3_500_000),
        (CGROUP2, 3_500_000),
        ({**MEMINFO, **CGROUP1}, 3_250_000),
        ({**MEMINFO, **UNLIMITED1}, 8_192_000),
        ({**MEMINFO, "proc/self/cgroup": "nonsense\n\n:::\n3:memory\n"}, 8_192_000),
    ],
)
def test_limits_of_containers(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, files)) == expected


def test_mutated_configs_of_a_real_directory(tmp_path: Path) -> None:
    """A typed error or a model that runs, whatever config.json says about the same tensors; no memory for fantasies."""
    rng = random.Random(11)
    folder = write_random_model(tmp_path, num_hidden_layers=1)
    strange = [
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        64,
        96,
        1 << 20,
        10**18,
        1e308,
        0.5,
        float("nan"),
        "",
        "x" * 1000,
        [],
        [1],
        {},
    ]
    strange += [
        {"type": kind, "factor": 2, "short_factor": [1] * 8} for kind in ("dynamic", "yarn", "longrope", "llama3")
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ran = 0
    for _ in range(400):
        raw = random_config(num_hidden_layers=1, rope_scaling=None, partial_rotary_factor=1.0)
        for _ in range(rng.randint(1, 2)):
            raw[rng.choice(list(raw))] = rng.choice(strange)
        (folder / "config.json").write_text(json.dumps(raw))
        with contextlib.suppress(Exl2Error), Checkpoint.open(folder) as checkpoint:
            config = ModelConfig.from_dir(folder)
            plan = plan_load(checkpoint, config, LoadOptions())
            model = load_model(checkpoint, config, plan=plan)
            model.forward([1], model.new_cache(plan.estimate.context))
            ran += 1
    assert 20 < ran < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024


PEAK = """
import sys
from pathlib import Path
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.model.loader import load_model

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def load(folder):
    with Checkpoint.open(folder) as checkpoint:
        return load_model(checkpoint, ModelConfig.from_dir(folder))

load(Path(sys.argv[1]))  # the code itself takes memory when it first runs
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = load(Path(sys.argv[2]))
print(model.weight_bytes, status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("kernels", "stored"),
    [("native", "float16"), ("native", "exl2"), ("reference", "float16"), ("reference", "float32")],
)
def test_peak_memory_stays_near_the_loaded_size(kernels: str, stored: str, tmp_path: Path) -> None:
    if kernels == "native" and not capabilities().native:
        pytest.skip("the kernels are not built")
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 8192, "head_dim": 64}
    if stored == "exl2":
        tiny = write_random_exl2_model(tmp_path / "tiny")
        folder = write_random_exl2_model(
            tmp_path / "large", widths=(4,), **{**shape, "num_hidden_layers": 5, "vocab_size": 2048}
        )
    else:
        tiny = write_random_model(tmp_path / "tiny", dtype=stored)
        folder = write_random_model(tmp_path / "large", dtype=stored, **shape)
    command = [sys.executable, "-c", PEAK, str(tiny), str(folder)]
    environment = {**os.environ, "EXL2_TUI_KERNELS": kernels}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    loaded, peak = map(int, run.stdout.split())
    assert loaded > 9e6
    print(f"{kernels} {stored}: loaded {loaded / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB")
    assert peak < 1.2 * loaded + 8e6, f"{peak / loaded:.2f} of the loaded size"
