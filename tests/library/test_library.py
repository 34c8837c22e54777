"""Finding, naming and describing models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import CancelledError, NotFoundError
from exl2_tui.core.library.catalog import MAX_DEPTH, Library, built_in_path, find_models
from exl2_tui.core.library.describe import describe, describe_layers
from tests.support.gptq_writer import write_gptq_model
from tests.support.models import write_random_model


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    hub = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    write_random_model(root / "llama-tiny")
    write_random_model(root / "team" / "qwen-tiny", "Qwen2ForCausalLM")
    write_random_model(root / "team" / "qwen-tiny-2", "Qwen2ForCausalLM")
    (root / ".hidden").mkdir()
    write_random_model(root / ".hidden" / "secret")
    return root


def test_models_are_found_at_any_depth_but_not_in_hidden_folders(folder: Path) -> None:
    names = [model.name for model in Library([folder]).list()]
    assert names == [built_in_path().name, "llama-tiny", "qwen-tiny", "qwen-tiny-2"]


def test_a_directory_named_twice_is_listed_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    models = Library([folder, folder / "team", tmp_path / "link"]).list()
    assert len({model.path for model in models}) == len(models) == 4


def test_folders_beyond_the_depth_are_left_alone(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefg"[: MAX_DEPTH + 1])
    write_random_model(deep)
    assert list(find_models(tmp_path)) == []
    assert list(find_models(deep.parent)) == [deep]


def test_the_hub_cache_gives_repository_names(no_hub: Path) -> None:
    write_random_model(no_hub / "models--someone--llama" / "snapshots" / "0123456789abcdef")
    for revision in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        write_random_model(no_hub / "models--someone--twice" / "snapshots" / revision)
    found = {model.name: model.source for model in Library([]).list()}
    assert found.pop(built_in_path().name) == "built-in"
    assert found == {"someone/llama": "hub", "someone/twice@aaaaaaa": "hub", "someone/twice@bbbbbbb": "hub"}
    assert Library([]).resolve("someone/llama").name == "0123456789abcdef"


def test_names_paths_and_parts_of_names_are_understood(folder: Path) -> None:
    library = Library([folder])
    assert library.resolve("built-in") == built_in_path()
    assert library.resolve("") == built_in_path()
    assert library.resolve(str(folder / "llama-tiny")) == folder / "llama-tiny"
    assert library.resolve(str(folder / "llama-tiny" / "model.safetensors")) == folder / "llama-tiny"
    assert library.resolve("LLAMA") == folder / "llama-tiny"
    assert library.resolve("qwen-tiny") == folder / "team" / "qwen-tiny"
    with pytest.raises(NotFoundError, match="fits 2 models: qwen-tiny, qwen-tiny-2"):
        library.resolve("qwen")
    with pytest.raises(NotFoundError) as caught:
        library.resolve("lama-tini")
    assert caught.value.hint == "Did you mean llama-tiny?"


def test_the_model_used_last_is_the_default_by_path_or_name(folder: Path) -> None:
    assert Library([folder], last="llama-tiny").resolve("") == folder / "llama-tiny"
    assert Library([], last=str(folder / "llama-tiny")).resolve("") == folder / "llama-tiny"
    assert Library([], last="/nowhere/gone").resolve("") == built_in_path()


def test_a_damaged_model_is_listed_with_what_is_wrong(folder: Path) -> None:
    config = folder / "llama-tiny" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps({**fields, "architectures": ["MambaForCausalLM"]}))
    (folder / "team" / "qwen-tiny" / "model.safetensors").write_bytes(b"\xff" * 100)
    models = {model.name: model for model in Library([folder]).list()}
    assert "MambaForCausalLM" in models["llama-tiny"].problem
    assert models["llama-tiny"].size_bytes > 0
    assert models["qwen-tiny"].problem
    assert models["qwen-tiny-2"].problem == ""


def test_listing_stops_when_cancelled(folder: Path) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        Library([folder]).list(cancel)


def test_formats_and_bits_are_told_from_the_headers(nano_chat: Path, nano_chat_exl2: Path, tmp_path: Path) -> None:
    original = describe(nano_chat)
    assert (original.format, original.bits_per_weight, original.context) == ("fp16", 16.0, 1024)
    exl2 = describe(nano_chat_exl2)
    assert exl2.format == "EXL2 4.00 bpw"
    gptq = tmp_path / "gptq"
    write_gptq_model(nano_chat, gptq, bits=4, group_size=128, desc_act=True)
    assert describe(gptq).format.startswith("GPTQ 4.")
    details = describe_layers(gptq)
    assert {linear.recipe for linear in details.linears if linear.kind == "gptq"} == {
        "4 bits in groups of 128, act-order"
    }


def test_every_layer_is_listed_in_model_order_with_its_recipe(nano_chat_exl2: Path) -> None:
    details = describe_layers(nano_chat_exl2)
    names = [linear.name for linear in details.linears]
    assert len(names) == 8 * 7 + 1
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "lm_head"
    shapes = [(linear.in_features, linear.out_features) for linear in details.linears]
    assert shapes[-1] == (details.hidden_size, details.vocab_size) == (384, 8192)
    average = sum(linear.bits_per_weight * k * n for linear, (k, n) in zip(details.linears[:-1], shapes, strict=False))
    assert average / sum(k * n for k, n in shapes[:-1]) == pytest.approx(4.0, abs=0.02)
    assert all("groups of" in linear.recipe for linear in details.linears)
