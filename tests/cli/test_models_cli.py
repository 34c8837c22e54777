"""`exl2-tui models`: memory, verifying, deleting, and the Hub against a server of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_cli import run
from tests.library.fake_hub import FakeHub, FakeRepo
from tests.support.models import write_random_model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.close()


def test_the_list_tells_memory_at_the_context_that_was_asked(home: Path) -> None:
    write_random_model(home / "models" / "mine")
    rows = json.loads(run(home, "models", "list", "--json", "--context", "4096", "--cache", "q8").stdout)
    mine = next(row for row in rows if row["name"] == "mine")
    small = json.loads(run(home, "models", "list", "--json", "--context", "256").stdout)
    assert mine["source"] == "own" and mine["fits"] == "yes"
    assert mine["memory"] > next(row["memory"] for row in small if row["name"] == "mine")
    shown = run(home, "models")
    assert "mine" in shown.stdout and "needs" in shown.stdout and "fits" in shown.stdout
    assert "free on the disk" in shown.stderr


def test_a_damaged_model_is_named_and_then_deleted(home: Path) -> None:
    model = write_random_model(home / "models" / "mine", tokenizer=True)
    assert "Nothing is wrong with it" in run(home, "models", "verify", "mine").stdout
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-2:] = b"\x00\x7e"  # a NaN in half precision
    (model / "model.safetensors").write_bytes(data)
    result = run(home, "models", "verify", "mine", "--json", status=1)
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["event"] == "ModelVerified" and "1 x NaN" in last["faults"][0]["fault"]
    assert "damaged" in result.stderr
    refused = run(home, "models", "delete", "mine", status=1)
    assert "nothing was deleted" in refused.stderr and "model.safetensors" in refused.stderr and model.is_dir()
    assert (
        "built-in model belongs to the program" in run(home, "models", "delete", "built-in", "--yes", status=1).stderr
    )
    link = home / "link"
    link.symlink_to(model)
    assert "Only the link goes" in run(home, "models", "delete", link, "--yes").stderr
    assert not link.is_symlink() and (model / "config.json").is_file()
    assert "freed" in run(home, "models", "delete", "mine", "--yes").stderr
    assert not model.exists()


def test_search_and_download(home: Path, server: FakeHub, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "source", tokenizer=True)
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    server.add(FakeRepo("o/tiny-exl2", {"main": {"README.md": b"hi"}, "4.0bpw": files}, ["exl2"], downloads=42))
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
    found = json.loads(run(home, "models", "search", "tiny", "--json", variables=variables).stdout)
    assert [(row["repo"], row["downloads"]) for row in found["models"]] == [("o/tiny-exl2", 42)]
    main = run(home, "models", "download", "o/tiny-exl2", status=1, variables=variables)
    assert "o/tiny-exl2@REVISION" in main.stderr and "4.0bpw" in main.stderr and "no config.json" in main.stderr
    server.cut_after["model.safetensors"] = [100_000]
    done = run(home, "models", "download", "o/tiny-exl2@4.0bpw", "--json", variables=variables)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "DownloadPlan" and events[0]["fits"] == "yes"
    assert events[-1]["event"] == "DownloadFinished"
    target = home / "models" / "tiny-exl2-4.0bpw"
    assert events[-1]["path"] == str(target)
    assert (target / "model.safetensors").read_bytes() == files["model.safetensors"]
