"""benchmarks/gpu_vs_exllamav2.py as far as it runs without a GPU: files, both sides of the loop, results, planning."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.formats import GptqWeight
from exl2_tui.core.model.layout import layer_linears

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_vs_exllamav2
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gpu_vs_exllamav2


@pytest.mark.parametrize("name", ["tiny:exl2:4", "tiny:exl2:2.5", "tiny:gptq", "tiny:gptq-act"])
def test_files_are_real_models(benchmark: ModuleType, name: str, tmp_path: Path) -> None:
    case = benchmark.Case.parse(name)
    assert str(case) == name
    path = benchmark.write_model(tmp_path / "one", case, CPU)
    again = benchmark.write_model(tmp_path / "two", case, CPU)
    assert all((again / file.name).read_bytes() == file.read_bytes() for file in path.iterdir())
    stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert 0.8 < case.weight_bytes / stored < 1.2
    config = ModelConfig.from_dir(path)
    with Checkpoint.open(path) as checkpoint:
        for spec in layer_linears(config, 1):
            weight = checkpoint.linear(spec.prefix, spec.in_features, spec.out_features, spec.bias)
            assert weight.kind == case.format.partition("-")[0]
            values = weight.dequantize().float()
            assert torch.isfinite(values).all() and 1e-3 < values.std() < 1
            if isinstance(weight, GptqWeight):
                assert (weight.perm is not None) == (case.format == "gptq-act")


def test_both_sides_are_measured_and_the_rest_is_kept(benchmark: ModuleType, tmp_path: Path) -> None:
    engines = {"ours": benchmark.Ours, "exllamav2": benchmark.Ours}
    case = benchmark.Case.parse("tiny:exl2:4")
    row = benchmark.run_case(case, tmp_path / "models", CPU, 4e10, 2, engines)
    assert not any((tmp_path / "models").iterdir())  # gigabytes are not left behind
    for side in ("ours", "exllamav2"):
        assert all(row[side][job] > 0 for job in ("decode", "decode_deep", "prompt"))
    assert row["distance"] < 1e-6
    assert 0 < row["read_bytes"] < case.weight_bytes
    results = tmp_path / "results.json"
    assert benchmark.read_results(results) == []
    benchmark.write_results(results, [row])
    assert benchmark.read_results(results) == [row]
    head, _, line = benchmark.table([row]).splitlines()
    assert head.count("|") == line.count("|") and "tiny:exl2:4" in line


def test_a_failure_leaves_no_files(benchmark: ModuleType, tmp_path: Path) -> None:
    def broken(path: Path, device: torch.device) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        benchmark.run_case(benchmark.Case.parse("tiny:gptq"), tmp_path / "m", CPU, 1e9, 1, {"ours": broken})
    assert not any((tmp_path / "m").iterdir())


def test_what_is_left_out_and_why(benchmark: ModuleType) -> None:
    case = benchmark.Case.parse("70B:exl2:2.5")
    assert 20e9 < case.weight_bytes < 24e9
    assert benchmark.reason_to_skip(case, set(), 600, 80 << 30) == ""
    assert benchmark.reason_to_skip(case, {str(case)}, 600, 80 << 30) == "done before"
    assert "do not fit" in benchmark.reason_to_skip(case, set(), 600, 48 << 30)
    assert "are left" in benchmark.reason_to_skip(case, set(), 60, 80 << 30)
    whole = sum(benchmark.expected_seconds(benchmark.Case.parse(name)) for name in benchmark.DEFAULT)
    assert whole < 540  # one call of ten minutes


@pytest.mark.parametrize("wrong", ["9B:exl2:4", "7B:exl2", "7B:gptq:4", "7B", "7B:awq", "7B:exl2:four"])
def test_a_case_that_does_not_exist(benchmark: ModuleType, wrong: str) -> None:
    with pytest.raises(ValueError):
        benchmark.Case.parse(wrong)
    with pytest.raises(SystemExit):
        benchmark.parse([wrong])


def test_all_cases_by_default(benchmark: ModuleType) -> None:
    assert [str(case) for case in benchmark.parse([]).cases] == list(benchmark.DEFAULT)
    options = benchmark.parse(["7B:gptq", "--seconds", "60"])
    assert [str(case) for case in options.cases] == ["7B:gptq"] and options.seconds == 60


def test_the_quantizers_kernels_are_timed_against_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_quant

    found = gpu_quant.compare(128, 64, CPU, passes=1, repeats=1)
    assert found["kernels"] > 0 and found["torch"] > 0 and found["equal"] > 0.98
    assert gpu_quant.kernels.is_native.__name__ == "is_native"  # put back
