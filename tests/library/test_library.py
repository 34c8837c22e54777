"""Finding, naming and describing models."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import Checkpoint
from exl2_tui.core.config import ModelConfig
from exl2_tui.core.errors import CancelledError, NotFoundError
from exl2_tui.core.events import ModelInfo
from exl2_tui.core.library.catalog import MAX_DEPTH, Library, built_in_path, find_models
from exl2_tui.core.library.describe import describe, describe_layers
from exl2_tui.core.library.details import details
from exl2_tui.core.library.machine import Machine, this_machine
from exl2_tui.core.model.estimate import estimate
from exl2_tui.core.model.loader import plan_load
from exl2_tui.core.requests import LoadOptions
from tests.support.gptq_writer import write_gptq_model
from tests.support.models import write_random_model

CPU = LoadOptions(device="cpu")


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


def test_a_second_scan_reads_only_what_changed(folder: Path, tmp_path: Path) -> None:
    read: list[str] = []

    def scan() -> dict[str, ModelInfo]:
        read.clear()
        library = Library([folder], own=tmp_path / "own", state=tmp_path / "state")
        return {model.name: model for model in library.list(on_read=read.append)}

    first = scan()
    assert set(read) == {built_in_path().name, "llama-tiny", "qwen-tiny", "qwen-tiny-2"}
    assert scan() == first and read == []
    config = folder / "llama-tiny" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 512}))
    assert scan()["llama-tiny"].context == 512 and read == ["llama-tiny"]
    (folder / "team" / "qwen-tiny" / "model.safetensors").unlink()
    assert "qwen-tiny" not in scan()
    (tmp_path / "state" / "scan.json").write_text('{"format": "2 0", "models": {"x": 1}}')
    assert set(scan()) == {built_in_path().name, "llama-tiny", "qwen-tiny-2"} and len(read) == 3


def test_a_damaged_entry_of_the_cache_is_read_again(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = Library([folder], state=state).list()
    table = json.loads((state / "scan.json").read_text())
    for number, entry in enumerate(table["models"].values()):
        entry["info"] = [
            None,
            {"name": "x"},
            {**entry["info"], "context": "long"},
            {**entry["info"], "source": "moon"},
        ][number]
    (state / "scan.json").write_text(json.dumps(table))
    assert Library([folder], state=state).list() == first


def test_known_models_are_listed_without_torch(folder: Path, tmp_path: Path) -> None:
    Library([folder], state=tmp_path / "state").list()
    program = (
        "import sys; from pathlib import Path\n"
        "from exl2_tui.core.library.catalog import Library\n"
        "from exl2_tui.core.library.machine import Machine\n"
        f"found = Library([Path({str(folder)!r})], state=Path({str(tmp_path / 'state')!r}))"
        ".list(machine=Machine('native', 1 << 40))\n"
        "assert len(found) == 4 and all(model.memory for model in found)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_model_says_what_it_takes_and_whether_that_fits(nano_chat: Path) -> None:
    library = Library([nano_chat])
    with Checkpoint.open(nano_chat) as checkpoint:
        config = ModelConfig.from_dir(nano_chat)
        for context, cache in ((None, "fp16"), (4096, "q8")):
            expected = estimate(checkpoint, config, context, cache, available=10**9)
            found = library.list(context=context, cache=cache, machine=Machine("native", 10**9))[1]
            assert (found.memory, found.fits) == (expected.total, "yes")
    needs = found.memory
    assert library.list(context=4096, cache="q8", machine=Machine("native", needs))[1].fits == "tight"
    assert library.list(context=4096, cache="q8", machine=Machine("native", needs - 1))[1].fits == "no"
    assert library.list(context=4096, machine=Machine("native", None))[1].fits == "unknown"


def test_where_the_gpu_is_too_small_the_list_says_what_the_loader_does_instead(nano_chat: Path) -> None:
    library = Library([nano_chat])

    def found(gpu: int, processor: int | None) -> ModelInfo:
        machine = Machine("cuda", gpu, Machine("native", processor))
        return library.list(context=2048, machine=machine)[1]

    room = 10**10
    alone = library.list(context=2048, machine=Machine("native", room))[1]
    assert found(room, room).fits == "yes" and found(room, room).memory != alone.memory
    assert (found(10**6, room).fits, found(10**6, room).memory) == ("cpu", alone.memory)
    assert found(10**6, None).fits == "cpu"
    assert found(10**6, 10**6).fits == "no" and found(10**6, 10**6).memory != alone.memory
    assert library.list(context=2048, machine=Machine("cuda", 10**6))[1].fits == "no"  # the GPU was asked for


def test_what_is_found_without_torch_is_what_the_loader_plans(nano_chat: Path) -> None:
    with Checkpoint.open(nano_chat) as checkpoint:
        assert this_machine(CPU).backend == plan_load(checkpoint, ModelConfig.from_dir(nano_chat), CPU).backend


def test_the_app_s_own_folder_and_the_time_of_use(tmp_path: Path) -> None:
    own = tmp_path / "own"
    write_random_model(own / "got-it")
    write_random_model(own / ".downloads" / "half")
    library = Library([own], own=own, state=tmp_path / "state")
    assert [(model.name, model.source, model.used) for model in library.list()[1:]] == [("got-it", "own", 0.0)]
    before = time.time()
    library.mark_used(own / "got-it")
    assert before <= library.list()[1].used <= time.time()
    assert library.source_of(own / "got-it") == "own"


def test_details_are_those_of_the_model(nano_chat_exl2: Path, tmp_path: Path) -> None:
    found = details(nano_chat_exl2, Machine("native", 10**9), 4096)
    assert (found.problem, found.layers, found.heads, found.kv_heads) == ("", 8, 6, 2)
    assert (found.mode, found.rope) == ("auto", "base 10,000")
    assert [row.context for row in found.memory] == [1024, 1024, 4096, 4096]
    assert found.memory[1].cache == found.memory[0].cache * 17 // 32
    assert found.memory[0].total == describe_at(nano_chat_exl2, 1024)
    assert len(found.linears) == 57 and {linear.kind for linear in found.linears} == {"exl2"}
    write_random_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    assert "MambaForCausalLM" in details(tmp_path, Machine("native", None)).problem


def describe_at(path: Path, context: int) -> int:
    with Checkpoint.open(path) as checkpoint:
        return estimate(checkpoint, ModelConfig.from_dir(path), context, available=10**9).total
