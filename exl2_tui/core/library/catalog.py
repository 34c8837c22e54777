"""Finding model directories and turning a name into a path."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import Exl2Error, NotFoundError
from exl2_tui.core.events import ModelInfo, ModelSource
from exl2_tui.core.library.machine import Machine
from exl2_tui.core.library.scan_store import Examined, ScanStore, fingerprint
from exl2_tui.core.library.usage import last_used, mark_used

SCAN_FILE = "scan.json"
USED_FILE = "used.json"
BUILT_IN = "built-in"
# A person adds ~/models, sometimes ~; models lie a folder or two down. The limits keep a slip from scanning a disk.
MAX_DEPTH = 3
MAX_ENTRIES = 20_000


def built_in_path() -> Path:
    """The directory of the model that ships with the package. Raises NotFoundError if it is missing."""
    root = Path(__file__).resolve().parents[2] / "builtin"
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if is_model(path):
            return path
    raise NotFoundError("the built-in model is missing from this installation", file=root, hint="Reinstall exl2-tui")


def hub_cache() -> Path:
    """Where the Hugging Face libraries keep downloads, by their own environment variables."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(home) / "hub"


def is_model(path: Path) -> bool:
    """True if the directory has a config.json and at least one safetensors file."""
    try:
        return (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    except OSError:
        return False


class Library:
    """The models in the package, in the app's folder, in directories a person added, and in the Hugging Face cache.

    directories: roots to search, each a model itself or a folder of models. last: the model used last, "" if there is
    none. own: the app's folder. state: where scans and times of use are kept; None keeps nothing between calls.
    """

    def __init__(
        self, directories: Sequence[Path], last: str = "", *, own: Path | None = None, state: Path | None = None
    ) -> None:
        self.directories = tuple(directories)
        self.last = last
        self.own = own
        self._state = state

    def list(
        self,
        cancel: CancelToken | None = None,
        *,
        context: int | None = None,
        cache: str = "fp16",
        machine: Machine | None = None,
        on_read: Callable[[str], None] | None = None,
    ) -> tuple[ModelInfo, ...]:
        """Every model found, built-in first, then by name. Reads headers only, of changed directories only.

        machine: with it each model has its memory at this context (None: its own) and cache kind, and whether it fits.
        on_read: told the name of each model whose headers are read. Raises CancelledError.
        """
        store = ScanStore(self._state / SCAN_FILE) if self._state is not None else None
        used = last_used(self._state / USED_FILE) if self._state is not None else {}
        models = []
        paths = set()
        for name, path, source in self._paths(cancel):
            if cancel is not None:
                cancel.check()
            found = self._examined(store, name, path, source, on_read)
            paths.add(str(path))
            info = replace(found.info, used=used.get(str(path.resolve()), 0.0))
            if machine is not None and found.footprint is not None:
                memory, fits = machine.plan(found.footprint, context, cache)
                info = replace(info, memory=memory.total, fits=fits)
            models.append(info)
        if store is not None:
            with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
                store.save(paths)
        return tuple(sorted(models, key=lambda model: (model.source != "built-in", model.name.lower())))

    def mark_used(self, path: Path) -> None:
        """Remembers that a model was loaded now."""
        if self._state is not None:
            with contextlib.suppress(OSError):  # not worth an error beside a model that is ready
                mark_used(self._state / USED_FILE, path)

    def source_of(self, path: Path) -> ModelSource:
        """Which of the places a model directory is in."""
        real = path.resolve()
        with contextlib.suppress(NotFoundError):
            if real == built_in_path().resolve():
                return "built-in"
        if self.own is not None and real.is_relative_to(self.own.resolve()):
            return "own"
        return "hub" if real.is_relative_to(hub_cache().resolve()) else "directory"

    @staticmethod
    def _examined(
        store: ScanStore | None, name: str, path: Path, source: ModelSource, on_read: Callable[[str], None] | None
    ) -> Examined:
        mark = ""
        if store is not None:
            with contextlib.suppress(OSError):
                mark = fingerprint(path)
            known = store.get(path, mark) if mark else None
            if known is not None:
                return replace(known, info=replace(known.info, name=name, source=source))
        from exl2_tui.core.library.describe import examine  # imports torch, which a known model needs not

        found = examine(path, name, source)
        if on_read is not None:
            on_read(name)
        if store is not None and mark:
            store.put(path, mark, found)
        return found

    def resolve(self, model: str) -> Path:
        """The directory that `model` means: a path, "built-in", a name from `list`, or an unambiguous part of one.

        "" means the model used last, if it is still there, else the built-in one.
        Raises NotFoundError, naming close matches, if nothing or more than one thing fits.
        """
        if not model:
            with contextlib.suppress(NotFoundError):
                return self.resolve(self.last or BUILT_IN)
        if model in ("", BUILT_IN):
            return built_in_path()
        path = Path(model).expanduser()
        if path.is_dir():
            return path.resolve()
        if path.is_file() and path.suffix == ".safetensors":
            return path.parent.resolve()
        found = {name: location for name, location, _ in self._paths(None)}
        wanted = model.lower()
        exact = [location for name, location in found.items() if name.lower() == wanted]
        partial = [(name, location) for name, location in found.items() if wanted in name.lower()]
        if exact:
            return exact[0]
        if len(partial) == 1:
            return partial[0][1]
        if partial:
            names = ", ".join(sorted(name for name, _ in partial)[:5])
            raise NotFoundError(f"the model name {model!r} fits {len(partial)} models: {names}", hint="Give more of it")
        close = difflib.get_close_matches(model, list(found), n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(close)}?" if close else "See `exl2-tui models` for the names there are"
        raise NotFoundError(f"no model directory and no model name {model!r}", hint=hint)

    def _paths(self, cancel: CancelToken | None) -> Iterator[tuple[str, Path, ModelSource]]:
        seen: set[Path] = set()
        for name, path, source in self._candidates(cancel):
            try:
                real = path.resolve()
            except OSError:
                continue
            if real not in seen:
                seen.add(real)
                yield name, path, source

    def _candidates(self, cancel: CancelToken | None) -> Iterator[tuple[str, Path, ModelSource]]:
        try:
            path = built_in_path()
            yield path.name, path, "built-in"
        except Exl2Error:
            pass
        for path in find_models(self.own, cancel) if self.own is not None else ():
            yield path.name, path, "own"
        for root in self.directories:
            for path in find_models(root, cancel):
                yield path.name, path, "directory"
        for repository in sorted(hub_cache().glob("models--*--*")):
            name = repository.name.removeprefix("models--").replace("--", "/")
            snapshots = sorted(p for p in (repository / "snapshots").glob("*") if is_model(p))
            for snapshot in snapshots:
                yield (name if len(snapshots) == 1 else f"{name}@{snapshot.name[:7]}"), snapshot, "hub"


def find_models(root: Path, cancel: CancelToken | None = None) -> Iterator[Path]:
    """Model directories at or below `root`, at most MAX_DEPTH folders down; hidden folders are skipped."""
    budget = MAX_ENTRIES
    stack = [(root.expanduser(), 0)]
    while stack:
        if cancel is not None:
            cancel.check()
        path, depth = stack.pop()
        if is_model(path):
            yield path
            continue
        if depth == MAX_DEPTH:
            continue
        try:
            with os.scandir(path) as entries:
                children = [e for e in entries if not e.name.startswith(".") and e.is_dir()]
        except OSError:
            continue
        budget -= len(children)
        if budget < 0:
            return
        stack.extend((Path(e.path), depth + 1) for e in sorted(children, key=lambda e: e.name, reverse=True))
