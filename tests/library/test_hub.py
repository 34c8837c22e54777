"""The Hub: what is found, what is refused, and what the real huggingface_hub says against a server that lies."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import ExtensionError, HubError
from exl2_tui.core.library.hub import Hub
from exl2_tui.core.library.hub_names import folder_name, is_file, is_repo, is_revision
from exl2_tui.core.library.machine import Machine
from exl2_tui.core.library.plan import look_at_revision, plan_download
from exl2_tui.core.library.remote import bits_in_name, remote_footprint
from exl2_tui.core.model.estimate import footprint
from exl2_tui.core.model_events import DownloadPlan
from tests.library.fake_hub import FakeHub, FakeRepo
from tests.support.models import write_random_model

ROOM = Machine("native", 10**9)
LLAMA = {"architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    model = write_random_model(tmp_path_factory.mktemp("model"), shards=2)
    return {file.name: file.read_bytes() for file in model.iterdir()}


def plan(
    server: FakeHub, own: Path, repo: str = "o/m", revision: str = "main", machine: Machine = ROOM
) -> DownloadPlan:
    return plan_download(Hub(), repo, revision, own, machine, None, "fp16")


def test_search_shows_what_can_be_loaded(server: FakeHub) -> None:
    gptq = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    awq = {**LLAMA, "quantization_config": {"quant_method": "awq"}}
    for name, tags, config, parameters in (
        ("llama-exl2", ["exl2"], {}, {}),
        ("llama-gptq", ["safetensors"], gptq, {"I32": 1000, "F16": 10}),
        ("llama-float", ["safetensors"], LLAMA, {"BF16": 8000}),
        ("llama-gguf", ["gguf"], {}, {}),
        ("llama-awq", ["safetensors"], awq, {}),
        ("llama-mamba", ["safetensors"], {"architectures": ["MambaForCausalLM"]}, {}),
        ("llama-pickled", [], LLAMA, {}),
    ):
        server.add(FakeRepo(f"o/{name}", {"main": {}}, tags, config, parameters, downloads=len(name)))
    server.add(FakeRepo("other/thing-exl2", {"main": {}}, ["exl2"]))
    found, skipped = Hub().search("llama")
    assert {(model.repo, model.kind, model.size) for model in found} == {
        ("o/llama-exl2", "EXL2", 0),
        ("o/llama-gptq", "GPTQ", 4020),
        ("o/llama-float", "float", 16000),
    }
    assert skipped == 4
    assert found[0].updated == "2026-01-02" and found[0].likes == 3
    assert server.unknown == []


def test_a_search_goes_over_pages_and_names_a_model_once(server: FakeHub) -> None:
    for number in range(5):
        server.add(FakeRepo(f"o/m{number}-exl2", {"main": {}}, ["exl2"], downloads=10 - number))
    server.repos["again"] = server.repos["o/m3-exl2"]  # it moved down the list between two pages
    server.page_size = 2
    found, skipped = Hub().search("exl2")
    assert [model.repo for model in found] == [f"o/m{number}-exl2" for number in range(5)]
    assert server.asked["search"] == 4 and skipped == 1  # one to see whether the Hub is there, three pages
    assert server.unknown == []


def test_a_repository_that_was_renamed_is_found(server: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    server.add(FakeRepo("new/m", {"main": files}))
    server.moved["old/m"] = "new/m"
    found = plan(server, tmp_path, "old/m")
    assert found.problem == "" and found.total == sum(map(len, files.values()))
    assert Hub().revisions("old/m") == ("main",)


def test_a_gated_repository_shows_its_files_and_says_how_to_get_them(
    server: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(FakeRepo("o/m", {"main": files}, gated="auto"))
    found = plan(server, tmp_path)
    assert (
        "gated" in found.problem and "Accept the terms" in found.hint and found.total == sum(map(len, files.values()))
    )
    assert "gated" in look_at_revision(Hub(), "o/m", "main", ROOM, None, "fp16").problem
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_with_access")
    assert plan(server, tmp_path).problem == ""


def test_hostile_search_results_are_dropped_or_tamed(server: FakeHub) -> None:
    for name in ("../../etc", "o/../x", "o/\x1b[2Jm-exl2", "o/m exl2", "o/" + "m" * 200, "exl2"):
        server.repos[name] = FakeRepo(name, {"main": {}}, ["exl2"])
    weird = server.add(FakeRepo("o/weird-exl2", {"main": {}}, ["exl2"]))
    weird.downloads = -5
    weird.config = {"architectures": ["\x1b[2J"], "quantization_config": "no object"}
    weird.parameters = {"F16": -1, "\x1b": 5}
    found, skipped = Hub().search("")
    assert [(model.repo, model.downloads, model.family) for model in found] == [("o/weird-exl2", 0, "")]
    assert skipped == 6


def test_revisions_are_looked_at_one_by_one(server: FakeHub, files: dict[str, bytes]) -> None:
    server.add(FakeRepo("o/m", {"4.0bpw": files, "main": {"README.md": b"see branches"}, "6_5": files}))
    server.repos["o/m"].revisions["bad..name"] = files
    hub = Hub()
    assert hub.revisions("o/m") == ("main", "4.0bpw", "6_5")
    rows = [look_at_revision(hub, "o/m", name, ROOM, None, "fp16") for name in hub.revisions("o/m")]
    assert [(row.bits, row.fits) for row in rows] == [(0.0, "unknown"), (4.0, "yes"), (6.5, "yes")]
    assert "config.json" in rows[0].problem
    assert rows[1].size == sum(map(len, files.values()))
    assert look_at_revision(hub, "o/m", "4.0bpw", Machine("native", 1000), None, "fp16").fits == "no"


def test_the_plan_lists_what_a_model_needs_and_no_pickles(
    server: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    unwanted = {
        "pytorch_model.bin": b"x" * 2000,
        "model.pt": b"x",
        "consolidated.safetensors": b"x" * 3000,
        "adapter_model.safetensors": b"x" * 3000,
        "run.py": b"import os",
        "original/params.json": b"{}",
        "training_args.bin": b"x",
    }
    wanted = {**files, "tokenizer.json": b"{}", "README.md": b"hi", "LICENSE": b"free"}
    server.add(FakeRepo("o/m", {"main": {**wanted, **unwanted}}))
    found = plan(server, tmp_path / "own")
    assert found.problem == "" and {file.name for file in found.files} == wanted.keys()
    assert found.total == sum(map(len, wanted.values())) and found.ready == 0
    assert (found.family, found.format, found.fits) == ("Llama", "fp16", "yes")
    assert found.folder == str(tmp_path / "own" / "m")
    assert all(file.sha256 or file.git_sha1 for file in found.files)


def test_memory_from_the_config_is_that_of_the_model_itself(
    nano_chat: Path, nano_chat_exl2: Path, small_chat: Path
) -> None:
    from exl2_tui.core.checkpoint import Checkpoint
    from exl2_tui.core.config import ModelConfig

    for folder, stored in ((nano_chat, "fp16"), (nano_chat_exl2, "EXL2 4 bpw"), (small_chat, "fp16")):
        with Checkpoint.open(folder) as checkpoint:
            config = ModelConfig.from_dir(folder)
            here = footprint(checkpoint, config)
        tensors = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        there = remote_footprint(config, tensors, stored)
        for backend in ("native", "cuda"):
            expected, told = (one.at(1024, "fp16", backend, None).total for one in (here, there))
            assert told == pytest.approx(expected, rel=0.01)


def test_what_keeps_a_revision_from_being_downloaded(
    server: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = next(name for name in files if name.endswith("00002-of-00002.safetensors"))
    mamba = json.dumps({"architectures": ["MambaForCausalLM"]}).encode()
    awq = json.dumps({**json.loads(files["config.json"]), "quantization_config": {"quant_method": "awq"}}).encode()
    server.add(
        FakeRepo(
            "o/m",
            {
                "no-config": {name: data for name, data in files.items() if name != "config.json"},
                "no-shard": {name: data for name, data in files.items() if name != shard},
                "pickled": {"config.json": files["config.json"], "pytorch_model.bin": b"x" * 2000},
                "mamba": {**files, "config.json": mamba},
                "awq": {**files, "config.json": awq},
                "deep": {**files, "config.json": b"[" * 100_000},
                "case": {**files, "README.md": b"a", "readme.md": b"b"},
                "main": files,
            },
        )
    )
    own = tmp_path / "own"
    for revision, said in (
        ("no-config", "no config.json"),
        ("no-shard", "missing"),
        ("pickled", "no *.safetensors"),
        ("mamba", "MambaForCausalLM"),
        ("awq", "awq"),
        ("deep", "not valid JSON"),
        ("case", "upper and lower case"),
    ):
        assert said in plan(server, own, revision=revision).problem, revision
    assert plan(server, own).problem == ""
    monkeypatch.setattr("exl2_tui.core.library.plan.free_space", lambda folder: 1000)
    full = plan(server, own)
    assert "disk" in full.problem and "Free" in full.hint


def test_hostile_file_lists_never_become_paths(server: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    repo = server.add(FakeRepo("o/m", {"main": files}))
    good = repo.described("main")
    names = [
        "../up.safetensors",
        "/etc/x.safetensors",
        "a/../../b.safetensors",
        "\x1b[2J.safetensors",
        "..",
        "CON.json",
    ]
    names += ["a\\b.safetensors", ".hidden.safetensors", "x" * 300 + ".safetensors", "sub/model.safetensors"]
    bad = [{"rfilename": name, "size": 5, "blobId": "0" * 40} for name in names]
    bad += [
        {"rfilename": "no-size.safetensors", "blobId": "0" * 40},
        {"rfilename": "minus.safetensors", "size": -1, "blobId": "0" * 40},
        {"rfilename": "no-hash.safetensors", "size": 5},
        {"rfilename": "odd-hash.safetensors", "size": 5, "blobId": "../../x"},
    ]
    repo.siblings = good + bad
    found = plan(server, tmp_path)
    assert {file.name for file in found.files} == files.keys()


@pytest.mark.parametrize(
    ("status", "said", "remedy"),
    [
        ((403, "GatedRepo"), "gated", "Accept the terms"),
        ((401, "RepoNotFound"), "no repository", "log in"),
        ((404, "RepoNotFound"), "no repository", "Check the name"),
        ((403, ""), "refuses access", "HF_TOKEN"),
        ((429, ""), "patience", "Wait"),
        ((503, ""), "problem of its own", "Try again"),
    ],
)
def test_refusals_say_what_to_do(
    server: FakeHub, tmp_path: Path, status: tuple[int, str], said: str, remedy: str
) -> None:
    server.add(FakeRepo("o/m", {"main": {}}, status=status))
    with pytest.raises(HubError) as caught:
        plan(server, tmp_path)
    assert said in caught.value.message and remedy in (caught.value.hint or "")
    assert "\x1b" not in str(caught.value)


def test_unknown_repositories_revisions_and_names(server: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    server.add(FakeRepo("o/m", {"main": files}))
    with pytest.raises(HubError, match="no repository o/other"):
        plan(server, tmp_path, "o/other")
    with pytest.raises(HubError, match="no revision 9bpw"):
        plan(server, tmp_path, revision="9bpw")
    for repo in ("../m", "o/m/x", "", "o/..", "o/m\n"):
        with pytest.raises(HubError, match="no repository name"):
            plan(server, tmp_path, repo)
    with pytest.raises(HubError, match="no revision name"):
        plan(server, tmp_path, revision="../main")
    assert all("other" in path or "9bpw" in path for path in server.unknown)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    dead = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", dead.url)
    dead.close()
    for ask in (lambda: Hub().search("x"), lambda: Hub().revisions("o/m"), lambda: Hub().state("o/m", "main")):
        with pytest.raises(HubError, match="cannot be reached") as caught:
            ask()
        assert "network" in (caught.value.hint or "")
    with pytest.raises(HubError) as caught:
        Hub().search("x")
    assert "download" not in (caught.value.hint or "")  # nobody was downloading
    assert capfd.readouterr() == ("", "")  # the library's own words stay off the terminal


def test_an_answer_that_is_nonsense(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(FakeRepo("o/m", {"main": {}}))
    monkeypatch.setattr(FakeRepo, "commit", lambda self, revision: "../../evil")
    with pytest.raises(HubError, match="no commit"):
        Hub().state("o/m", "main")
    monkeypatch.setattr(FakeRepo, "described", lambda self, revision: "no list")
    with pytest.raises(HubError, match="not understood"):
        Hub().state("o/m", "main")


def test_offline_mode_is_named(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode") as caught:
        Hub().search("x")
    assert "HF_HUB_OFFLINE" in (caught.value.hint or "")


def test_without_the_library_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExtensionError) as caught:
        Hub()
    assert "pip install" in (caught.value.hint or "")


def test_a_small_file_that_is_large_is_not_swallowed(server: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    server.add(FakeRepo("o/m", {"main": {**files, "config.json": b" " * (5 << 20)}}))
    assert "larger than" in plan(server, tmp_path).problem


def test_a_waiting_read_ends_when_cancelled(server: FakeHub, files: dict[str, bytes]) -> None:
    server.add(FakeRepo("o/m", {"main": {"big.safetensors": b"x" * 100_000}}))
    server.stall.set()
    hub, cancel = Hub(), CancelToken()
    state = hub.state("o/m", "main")
    with pytest.raises(HubError), hub.stream("o/m", state.commit, "big.safetensors", cancel=cancel) as response:
        for _ in response.pieces:
            if server.stalled.is_set():
                cancel.cancel()  # the server says nothing more, so only the cut connection ends the loop


def test_names() -> None:
    assert is_repo("TheBloke/Llama-2-7B_v1.1-GPTQ") and not any(
        map(is_repo, ("a", "a/b/c", "a/..", "é/b", "a/b--c", None))
    )
    assert is_revision("4.0bpw") and is_revision("gptq-4bit-32g-actorder_True") and is_revision("refs/pr/3")
    assert not any(map(is_revision, ("", "a//b", "../a", "a/.b", "-x", "a b", "x" * 200)))
    assert is_file("model-00001-of-00002.safetensors") and not any(
        map(is_file, ("a/b", "..", ".x", "nul", "a.", "\x1b"))
    )
    assert folder_name("o/m", "main") == "m" and folder_name("o/m", "a/b") == "m-a-b"
    assert folder_name("o/m", "4.0bpw", with_owner=True) == "o--m-4.0bpw"
    for name, bits in {
        "4.0bpw": 4,
        "6_5": 6.5,
        "3.75bpw-h8": 3.75,
        "gptq-4bit-32g": 4,
        "main": 0,
        "v1.1": 0,
        "b8": 0,
    }.items():
        assert bits_in_name(name) == bits, name
