"""Verifying: every kind of damage is found and named, and a sound model has none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint.checksums import SUMS_FILE, write_sums
from exl2_tui.core.errors import CancelledError
from exl2_tui.core.library.catalog import built_in_path
from exl2_tui.core.library.verify import verify
from exl2_tui.core.model_events import ModelVerified, VerifyProgress
from tests.library.fake_hub import git_sha1
from tests.support.models import write_random_model


def result(path: Path) -> ModelVerified:
    *progress, last = verify(path, path.name, CancelToken())
    assert isinstance(last, ModelVerified)
    done = [event.done for event in progress if isinstance(event, VerifyProgress)]
    assert done == sorted(done) and len(done) == len(progress)
    totals = {event.total for event in progress if isinstance(event, VerifyProgress)}
    assert len(totals) <= 1 and (not last.tensors or totals == {done[-1]})
    return last


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "tiny", tokenizer=True)


def change(path: Path, name: str, edit: object) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    edit(tensors, name)  # type: ignore[operator]
    save_file(tensors, file, metadata={"format": "pt"})


def test_the_built_in_model_is_as_it_was_made() -> None:
    found = result(built_in_path())
    assert found.sound and {file.name for file in found.files if file.verdict != "ok"} <= {"README.md"}
    assert any(file.name.endswith(".safetensors") for file in found.files)


def test_a_sound_model_says_that_there_is_no_hash(model: Path, nano_chat_exl2: Path) -> None:
    found = result(model)
    assert found.sound and found.faults == ()
    assert {file.verdict for file in found.files} == {"unknown"}
    tensors = load_file(model / "model.safetensors")
    assert (found.tensors, found.values) == (len(tensors), sum(tensor.numel() for tensor in tensors.values()))
    assert result(nano_chat_exl2).sound


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model.layers.1.mlp.up_proj.weight", float("nan"), "1 x NaN among 6,144 values"),
        ("model.norm.weight", float("-inf"), "1 x -infinity among 64 values"),
    ],
)
def test_numbers_that_are_none_are_named(model: Path, name: str, value: float, said: str) -> None:
    def edit(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name].view(-1)[-1] = value

    change(model, name, edit)
    found = result(model)
    assert not found.sound
    assert [(fault.tensor, fault.fault) for fault in found.faults] == [(name, said)]


def test_a_scale_that_is_infinite_is_found(nano_chat_exl2: Path, tmp_path: Path) -> None:
    for file in nano_chat_exl2.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    tensors = load_file(nano_chat_exl2 / "output.safetensors")
    name = "model.layers.3.mlp.down_proj.q_scale_max"
    tensors[name][1] = float("inf")
    save_file(tensors, tmp_path / "output.safetensors")
    assert name in [fault.tensor for fault in result(tmp_path).faults]


def test_shapes_and_missing_tensors_are_named(model: Path) -> None:
    change(model, "model.layers.0.mlp.gate_proj.weight", lambda t, n: t.update({n: t[n][:50].clone()}))
    change(model, "model.layers.1.self_attn.k_proj.weight", lambda t, n: t.pop(n))
    change(model, "model.embed_tokens.weight", lambda t, n: t.update({n: t[n][:, :32].clone()}))
    faults = {fault.tensor: fault.fault for fault in result(model).faults}
    assert faults["model.layers.1.self_attn.k_proj.weight"] == "is missing"
    assert "expected shape" in faults["model.layers.0.mlp.gate_proj.weight"]
    assert "expected shape" in faults["model.embed_tokens.weight"]
    assert len(faults) == 3


def test_a_file_that_cannot_be_opened_is_a_fault(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-10])
    (fault,) = result(model).faults
    assert "data offsets" in fault.fault or "file of" in fault.fault


def test_a_tokenizer_that_cannot_be_read_is_a_fault(model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (model / name).write_bytes(b"{")
    (fault,) = result(model).faults
    assert "tokenizer" in fault.fault


def test_checksums_beside_the_model(model: Path) -> None:
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in model.iterdir()}
    write_sums(model, {**sums, "gone.json": "0" * 64}, "made by a test")
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    (model / "extra.txt").write_text("not listed")
    found = {file.name: file for file in result(model).files}
    assert SUMS_FILE not in found
    assert found["model.safetensors"].verdict == "ok" and found["model.safetensors"].note == SUMS_FILE
    assert found["config.json"].verdict == "damaged" and sums["config.json"][:12] in found["config.json"].note
    assert found["gone.json"].verdict == "damaged"
    assert found["extra.txt"].verdict == "unknown"


def test_blobs_of_the_cache_are_named_by_their_hash(model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / "abc"
    blobs = tmp_path / "models--o--m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in model.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        name = hashlib.sha256(data).hexdigest() if large else git_sha1(data)
        (blobs / name).write_bytes(data)
        (snapshot / file.name).symlink_to(Path("../../blobs") / name)
    assert {file.verdict for file in result(snapshot).files} == {"ok"}
    weights = (snapshot / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    bad = [file.name for file in result(snapshot).files if file.verdict == "damaged"]
    assert bad == ["model.safetensors"]


def test_cancelling_ends_it_in_hashes_and_in_tensors(model: Path) -> None:
    for hashed in (False, True):
        if hashed:
            write_sums(model, {"model.safetensors": "0" * 64})
        cancel = CancelToken()
        events = verify(model, "tiny", cancel)
        assert isinstance(next(events), VerifyProgress)
        cancel.cancel()
        with pytest.raises(CancelledError):
            list(events)


def test_a_hostile_file_cannot_flood_the_result(tmp_path: Path) -> None:
    model = write_random_model(tmp_path, num_hidden_layers=80, hidden_size=16, intermediate_size=16, head_dim=4)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 17, "hidden_size": 20}))
    faults = result(model).faults
    assert len(faults) == 501 and faults[-1].fault.startswith("and ")
