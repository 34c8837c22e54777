"""A conversion holds one block at a time: models larger than the memory it may use convert."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import convert, finished, request
from tiny import make_tiny

from exl2_tui.core.checkpoint import open_file, write_file
from exl2_tui.core.job_events import Checkpointed
from exl2_tui.core.quant.job import ConvertJob
from exl2_tui.core.quant.measurement import MeasuredOption, Measurement
from exl2_tui.core.quant.recipe import classic_attention_options, classic_mlp_options
from exl2_tui.core.quant.source import SourceModel

LAYERS, HIDDEN, FFN = 24, 256, 512


def sharded_float32(target: Path) -> Path:
    """A model of 57 MB with a file per layer, as large models come in many files."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items()})

    make_tiny(target, layers=LAYERS, hidden=HIDDEN, ffn=FFN, change=widen)
    file = open_file(target / "model.safetensors")
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name in file.tensors:
        shard = name.split(".")[2] if ".layers." in name else "rest"
        layers.setdefault(shard, {})[name] = file.tensor(name)
    for shard, tensors in layers.items():
        write_file(target / f"model-{shard}.safetensors", dict(tensors))
    (target / "model.safetensors").unlink()
    return target


def invented_measurement(model: SourceModel, file: Path) -> Path:
    """Options with plausible errors: what matters here is only that measuring is skipped."""
    shapes = {spec.prefix: (spec.in_features, spec.out_features) for spec in model.decoder_linears()}
    found = Measurement()
    for layer in range(LAYERS):
        for half, options in (("self_attn", classic_attention_options()), ("mlp", classic_mlp_options())):
            key = f"model.layers.{layer}.{half}"
            costs = [sum(p.total_bits(*shapes[f"{key}.{name}"]) for name, p in o.items()) for o in options]
            listed = zip(options, costs, strict=True)
            found.halves[key] = [MeasuredOption(option, cost, 1e5 / cost) for option, cost in listed]
    file.write_text(json.dumps(found.to_json(LAYERS)))
    return file


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from Linux's /proc")
def test_a_model_larger_than_the_address_space_left_converts(tmp_path: Path) -> None:
    sharded_float32(tmp_path / "model")
    make_tiny(tmp_path / "tiny")
    # In a process of its own: this one's heap may hold any amount of free memory that no limit takes away.
    path = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def convert_in_little_room(folder: Path) -> None:
    """Converts folder/model in two thirds of the address space that its weights alone would take."""
    source = folder / "model"
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    model = SourceModel(source, torch.device("cpu"))
    measurement = invented_measurement(model, folder / "measurement.json")
    model.close()
    asked = request(source, folder / "work", recipe="classic", measurement=str(measurement), rows=2, length=32)
    # The rows are made before, since small models may write some themselves and are held whole for that; a tiny job
    # loads what is loaded only once.
    job = ConvertJob.open(asked)
    next(event for event in job.run() if isinstance(event, Checkpointed))
    job.close()
    convert(request(folder / "tiny", folder / "first", recipe="classic"))
    gc.collect()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + weights * 2 // 3
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with pytest.raises(RuntimeError):
        torch.empty(weights, dtype=torch.uint8)
    finished(convert(asked))


if __name__ == "__main__":
    convert_in_little_room(Path(sys.argv[1]))
