"""Removing models: exactly what was told goes, links are not followed, shared blobs stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from exl2_tui.core.errors import JobError, NotFoundError
from exl2_tui.core.library.catalog import Library, built_in_path
from exl2_tui.core.library.removal import plan_removal, remove
from tests.support.models import write_random_model


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "own").mkdir()
    return Library([tmp_path / "added"], own=tmp_path / "own")


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def test_a_model_of_the_app_s_own_folder_goes_whole_but_links_are_not_followed(
    library: Library, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("keep me")
    model = write_random_model(tmp_path / "own" / "mine")
    (model / "sub").mkdir()
    (model / "sub" / "more.txt").write_text("12345")
    (model / "link-to-folder").symlink_to(outside)
    (model / "link-to-file").symlink_to(outside / "precious.txt")
    write_random_model(tmp_path / "own" / "other")
    plan = plan_removal(library, model, "mine")
    assert (plan.kind, plan.refused, plan.freed) == ("own", "", size_of(model))
    assert plan.files == ("config.json", "link-to-file", "link-to-folder", "model.safetensors", "sub/more.txt")
    done = remove(library, plan)
    assert (done.freed, done.problem) == (plan.freed, "")
    assert not model.exists() and (tmp_path / "own" / "other").is_dir()
    assert (outside / "precious.txt").read_text() == "keep me"


def test_a_folder_of_a_person_loses_its_files_only(library: Library, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "added" / "theirs")
    (model / "notes").mkdir()
    (model / "notes" / "diary.txt").write_text("mine")
    plan = plan_removal(library, model, "theirs")
    assert (plan.kind, plan.kept) == ("directory", 1)
    assert plan.files == ("config.json", "model.safetensors")
    remove(library, plan)
    assert [path.name for path in model.iterdir()] == ["notes"]
    assert (model / "notes" / "diary.txt").read_text() == "mine"


def test_of_a_link_only_the_link_goes(library: Library, tmp_path: Path) -> None:
    real = write_random_model(tmp_path / "elsewhere" / "real")
    for folder in ("added", "own"):
        (tmp_path / folder).mkdir(exist_ok=True)
        link = tmp_path / folder / "linked"
        link.symlink_to(real)
        plan = plan_removal(library, link, "linked")
        assert (plan.kind, plan.files, plan.freed) == ("directory", ("linked",), 0)
        assert str(real) in plan.note
        remove(library, plan)
        assert not link.is_symlink() and (real / "config.json").is_file()


def test_hard_links_free_nothing(library: Library, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "own" / "mine")
    (tmp_path / "second-name").hardlink_to(model / "model.safetensors")
    assert plan_removal(library, model, "mine").freed == (model / "config.json").stat().st_size


def test_what_is_refused(library: Library, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "own" / "mine")
    for path, loaded in ((built_in_path(), None), (model, model), (model, tmp_path / "own" / "." / "mine")):
        plan = plan_removal(library, path, "x", loaded)
        assert plan.refused
        with pytest.raises(JobError):
            remove(library, plan, loaded)
    assert (model / "config.json").is_file() and (built_in_path() / "config.json").is_file()
    with pytest.raises(NotFoundError):
        plan_removal(library, tmp_path / "nowhere", "x")


def test_a_directory_that_changed_since_the_question_is_left_alone(library: Library, tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "own" / "mine")
    plan = plan_removal(library, model, "mine")
    (model / "new.txt").write_text("arrived meanwhile")
    with pytest.raises(JobError, match="changed"):
        remove(library, plan)
    assert (model / "config.json").is_file()


def test_a_folder_swapped_for_a_link_is_not_entered(library: Library, tmp_path: Path) -> None:
    """The plan is the same by names and sizes, but the way to a file leads elsewhere now."""
    model = write_random_model(tmp_path / "own" / "mine")
    (model / "sub").mkdir()
    (model / "sub" / "a.txt").write_text("x")
    plan = plan_removal(library, model, "mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("x")
    (model / "sub" / "a.txt").unlink()
    (model / "sub").rmdir()
    (model / "sub").symlink_to(outside)
    with pytest.raises(JobError):
        remove(library, plan)
    assert (outside / "a.txt").read_text() == "x"


def cached(hub: Path, model: Path, revision: str, changed: str = "") -> Path:
    """A revision in the cache; the file `changed` gets a blob of its own, the others are shared."""
    repository = hub / "models--o--m"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    for file in model.iterdir():
        blob = repository / "blobs" / (file.name + (revision if file.name == changed else ""))
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_plain_directory_in_the_cache_is_a_directory(library: Library, tmp_path: Path, hub: Path) -> None:
    model = write_random_model(hub / "put-here-by-hand")
    cached(hub, write_random_model(tmp_path / "source"), "aaaa")
    plan = plan_removal(library, model, "put-here-by-hand")
    assert (plan.kind, plan.root, len(plan.files)) == ("directory", str(model), 2)
    remove(library, plan)
    assert not model.exists() and (hub / "models--o--m" / "snapshots" / "aaaa" / "config.json").is_file()


def test_shared_blobs_of_the_cache_stay_until_the_last_revision_goes(
    library: Library, tmp_path: Path, hub: Path
) -> None:
    model = write_random_model(tmp_path / "source")
    first = cached(hub, model, "aaaa", "config.json")
    second = cached(hub, model, "bbbb", "config.json")
    repository = hub / "models--o--m"
    (repository / "refs" / "main").write_text("aaaa")
    (repository / "refs" / "old").write_text("bbbb")
    (hub / ".locks" / "models--o--m").mkdir(parents=True)
    plan = plan_removal(library, first, "o/m@aaaa")
    assert plan.kind == "hub" and plan.kept == 1
    assert plan.files == (
        "blobs/config.jsonaaaa",
        "refs/main",
        "snapshots/aaaa/config.json",
        "snapshots/aaaa/model.safetensors",
    )
    assert plan.freed == (model / "config.json").stat().st_size
    remove(library, plan)
    assert not first.exists()
    assert (second / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (second / "config.json").is_file() and (repository / "refs" / "old").is_file()
    last = plan_removal(library, second, "o/m")
    assert last.freed == size_of(model) and last.kept == 0
    remove(library, last)
    assert not repository.exists() and not (hub / ".locks" / "models--o--m").exists()
