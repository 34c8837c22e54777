"""Removing a model: first a plan that says what would go, then exactly that.

Links are deleted, never followed. A directory that is not the app's own loses its files, never its folders. In the
Hugging Face cache a blob goes only if no other revision uses it.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

from exl2_tui.core.errors import JobError, NotFoundError
from exl2_tui.core.library.catalog import Library, hub_cache
from exl2_tui.core.model_events import ModelRemoved, RemovalKind, RemovalPlan


def plan_removal(library: Library, path: Path, name: str, loaded: Path | None = None) -> RemovalPlan:
    """What removing `path` would delete. loaded: the model in use. Raises NotFoundError if it is not there."""
    if not path.exists() and not path.is_symlink():
        raise NotFoundError("there is no such model directory", file=path, hint="Rescan the library")
    source = library.source_of(path)
    kind: RemovalKind = "own" if source == "own" else "hub" if source == "hub" else "directory"
    plan = RemovalPlan(str(path), name, kind, str(path), (), 0)
    if source == "built-in":
        return replace(plan, refused="The built-in model belongs to the program; it goes with it")
    if loaded is not None and path.resolve() == loaded.resolve():
        return replace(plan, refused="It is loaded; unload it first")
    if path.is_symlink():
        note = f"Only the link goes; the files stay in {path.resolve()}"
        return replace(plan, kind="directory", root=str(path.parent), files=(path.name,), note=note)
    if source == "hub" and path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return _hub_plan(plan, path)
    if source == "own" and library.own is not None and path.resolve() != library.own.resolve():
        files = _all_files(path)
        return replace(plan, files=tuple(sorted(files)), freed=sum(files.values()))
    files = {entry.name: _freed(entry) for entry in path.iterdir() if not _is_folder(entry)}
    kept = sum(1 for entry in path.iterdir() if _is_folder(entry))
    note = f"{_stay(kept, 'folder')}: only the files of the model go" if kept else ""
    return replace(plan, kind="directory", files=tuple(sorted(files)), freed=sum(files.values()), kept=kept, note=note)


def remove(library: Library, plan: RemovalPlan, loaded: Path | None = None) -> ModelRemoved:
    """Deletes what the plan says. Raises JobError if it is refused, or if the directory changed since the plan."""
    now = plan_removal(library, Path(plan.path), plan.name, loaded)
    if now.refused:
        raise JobError(now.refused, file=plan.path)
    if now != plan:
        raise JobError(
            "the directory changed since you were asked, nothing was deleted", file=plan.path, hint="Ask again"
        )
    root = Path(plan.root)
    problem = next(filter(None, [_unlink(root, name) for name in plan.files]), "")
    if not Path(plan.path).is_symlink():
        _remove_empty(Path(plan.path) if plan.kind != "hub" else root, folders=plan.kind != "directory")
    if plan.kind == "hub":
        _tidy_hub(root)
    return ModelRemoved(plan.path, plan.name, plan.freed, problem)


def _hub_plan(plan: RemovalPlan, snapshot: Path) -> RemovalPlan:
    """A revision in the cache: its links, the blobs only it uses, and refs that name it."""
    repository = snapshot.parents[1]
    own = _blobs(snapshot)
    others: set[Path] = set()
    for other in snapshot.parent.iterdir():
        if other != snapshot and other.is_dir() and not other.is_symlink():
            others |= _blobs(other)
    doomed = {blob for blob in own - others if blob.is_relative_to(repository.resolve())}
    files = {str(Path("snapshots") / snapshot.name / file): size for file, size in _all_files(snapshot).items()}
    files.update({str(Path("blobs") / blob.name): _freed(blob) for blob in doomed})
    refs = repository / "refs"
    for ref in _all_files(refs) if refs.is_dir() else {}:
        if (refs / ref).read_text(errors="replace").strip() == snapshot.name:
            files[str(Path("refs") / ref)] = 0
    kept = len(own & others)
    note = f"{_stay(kept, 'file')}: other revisions use them" if kept else ""
    return replace(
        plan, root=str(repository), files=tuple(sorted(files)), freed=sum(files.values()), kept=kept, note=note
    )


def _blobs(snapshot: Path) -> set[Path]:
    """The blobs a snapshot's links point to."""
    return {(snapshot / file).resolve() for file in _all_files(snapshot) if (snapshot / file).is_symlink()}


def _all_files(root: Path) -> dict[str, int]:
    """Files and links below `root`, by relative name, with the bytes that deleting each frees."""
    found = {}
    for folder, folders, names in os.walk(root, followlinks=False):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*names, *links):
            found[str((here / name).relative_to(root))] = _freed(here / name)
    return found


def _freed(file: Path) -> int:
    """Bytes: none for a link, nor for a file that has another name elsewhere."""
    status = file.lstat()
    return status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


def _stay(count: int, what: str) -> str:
    return f"1 {what} stays" if count == 1 else f"{count} {what}s stay"


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _unlink(root: Path, name: str) -> str:
    """Deletes root/name, where no folder on the way below root may be a link. Returns what went wrong, or ""."""
    try:
        _unlink_below(root, Path(name).parts)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return ""


def _unlink_below(root: Path, parts: tuple[str, ...]) -> None:
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        os.unlink(parts[-1], dir_fd=handle)
    finally:
        os.close(handle)


def _remove_empty(path: Path, *, folders: bool) -> None:
    """Removes `path` if it is empty, with `folders` empty ones inside it first."""
    if folders:
        for folder, _, _ in os.walk(path, topdown=False, followlinks=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()
    elif path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _tidy_hub(repository: Path) -> None:
    """Of a repository without revisions nothing needs to stay, locks included."""
    snapshots = repository / "snapshots"
    if snapshots.is_dir() and any(snapshots.iterdir()):
        return
    if repository.is_dir() and not any(_all_files(repository)):
        shutil.rmtree(repository, ignore_errors=True)
    locks = hub_cache() / ".locks" / repository.name
    if not repository.exists() and locks.is_dir() and not locks.is_symlink():
        shutil.rmtree(locks, ignore_errors=True)
