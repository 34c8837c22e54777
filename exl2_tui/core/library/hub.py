"""The Hugging Face Hub as this program needs it: searching, revisions, files with sizes and hashes, bytes.

Talks through the library huggingface_hub (its session, addresses and access tokens), which is an extra. Everything that
comes back is from strangers: it is checked and cut here, and only plain names pass (`hub_names.py`).
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.errors import ExtensionError, HubError
from exl2_tui.core.library.hub_names import is_commit, is_file, is_repo, is_revision, require_repo, require_revision
from exl2_tui.core.library.remote import model_of
from exl2_tui.core.model_events import HubModel, RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SEARCH_LIMIT = 100
MOST_REVISIONS = 60
MOST_FILES = 5000
TIMEOUT_SECONDS = 15.0
WATCH_SECONDS = 0.05
INSTALL = "Install it where exl2-tui is: pip install huggingface_hub"
PAGE = "https://huggingface.co"
EXPAND = ["config", "safetensors", "downloads", "likes", "lastModified", "gated", "tags"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RepoState:
    """One revision of a repository: the commit it is at, and every file at its top."""

    repo: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    others: int  # files in folders, or whose names or sizes are not acceptable


class Hub:
    """A connection to the Hub. Raises ExtensionError where huggingface_hub is not installed.

    endpoint: of a mirror; "" takes HF_ENDPOINT, else the Hub itself. Methods raise HubError with a remedy.
    """

    def __init__(self, endpoint: str = "") -> None:
        library = _library()
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or library.constants.ENDPOINT).rstrip("/")
        self._library = library
        self._api: HfApi = library.HfApi(endpoint=self._endpoint)

    def search(self, words: str) -> tuple[tuple[HubModel, ...], int]:
        """Repositories that this program can load, by downloads, and how many others were left out."""
        self._reach()
        listed = self._ask("", lambda: list(self._listed(words)))
        found = {}  # by name: a list that changes between two of its pages names a model twice
        for item in listed[:SEARCH_LIMIT]:
            model = model_of(item) if is_repo(getattr(item, "id", None)) else None
            if model is not None:
                found[model.repo] = model
        return tuple(found.values()), len(listed) - len(found)

    def _reach(self) -> None:
        """Raises at once where there is no network: the library's search would try again for half a minute."""
        url = f"{self._endpoint}/api/models"
        headers = self._library.utils.build_hf_headers()
        with self._explained("", ""):
            session = self._library.utils.get_session()
            answer = session.get(url, params={"limit": 1}, headers=headers, timeout=TIMEOUT_SECONDS)
            self._library.utils.hf_raise_for_status(answer)

    def _listed(self, words: str) -> Iterable[Any]:
        expand: Any = EXPAND
        return self._api.list_models(search=words, sort="downloads", limit=SEARCH_LIMIT, expand=expand)

    def revisions(self, repo: str) -> tuple[str, ...]:
        """Branches, main first, then tags."""
        refs = self._ask(repo, lambda: self._api.list_repo_refs(require_repo(repo)))
        names = [ref.name for ref in (*refs.branches, *refs.tags) if is_revision(ref.name)]
        ordered = sorted(dict.fromkeys(names), key=lambda name: name != "main")
        return tuple(ordered[:MOST_REVISIONS])

    def state(self, repo: str, revision: str) -> RepoState:
        """The files of a revision with sizes and hashes."""
        require_repo(repo)
        require_revision(revision)
        info = self._ask(
            repo,
            lambda: self._api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS),
            revision,
        )
        if not is_commit(info.sha):
            raise HubError(f"the Hub names no commit for revision {revision} of {repo}", hint="Try again later")
        siblings = info.siblings or []
        if len(siblings) > MOST_FILES:
            raise HubError(f"{repo} has {len(siblings)} files; more than {MOST_FILES} are not looked at")
        files = tuple(file for file in map(_remote_file, siblings) if file is not None)
        return RepoState(repo, revision, str(info.sha), files, len(siblings) - len(files))

    def read_small(self, state: RepoState, name: str, limit: int) -> bytes:
        """A small file. Raises HubError if it is larger than `limit`."""
        data = b""
        with self.stream(state.repo, state.commit, name) as response:
            for piece in response.pieces:
                data += piece
                if len(data) > limit:
                    raise HubError(f"{name} of {state.repo} is larger than {limit} bytes")
        return data

    @contextmanager
    def stream(
        self, repo: str, commit: str, name: str, start: int = 0, cancel: CancelToken | None = None
    ) -> Iterator[Response]:
        """The bytes of a file from `start` on, as they arrive. A cancelled token ends a read that waits, too."""
        url = self._library.hf_hub_url(repo, name, revision=commit, endpoint=self._endpoint)
        headers = {**self._library.utils.build_hf_headers(), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        session = self._library.utils.get_session()
        request = session.stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS)
        with self._explained(repo, name), request as response:
            if response.status_code >= 400:
                response.read()
            self._library.utils.hf_raise_for_status(response)
            with _ends_with(cancel, response):
                yield Response(response.status_code, response.headers, response.iter_bytes())

    def _ask(self, repo: str, question: Callable[[], T], revision: str = "") -> T:
        with self._explained(repo, revision):
            try:
                return question()
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                if isinstance(error, OSError | self._library.errors.HFValidationError):
                    raise
                raise HubError(
                    f"the answer of the Hub is not understood: {type(error).__name__}",
                    hint="Try again later; a mirror in HF_ENDPOINT must speak the Hub's API",
                ) from error

    @contextmanager
    def _explained(self, repo: str, what: str) -> Iterator[None]:
        """Turns what the library raises into a HubError that says what to do."""
        errors = self._library.errors
        try:
            yield
        except errors.OfflineModeIsEnabled as error:
            raise HubError("offline mode is on, so the Hub is not asked", hint="Unset HF_HUB_OFFLINE") from error
        except errors.GatedRepoError as error:
            raise HubError(
                f"{repo} is gated: its owner gives access to people who ask for it",
                hint=f"Accept the terms at {PAGE}/{repo}, then log in with `hf auth login` or set HF_TOKEN",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise HubError(
                f"{repo} has no revision {what}", hint="`exl2-tui models search` and the page show its branches"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise HubError(
                f"there is no repository {repo}, or it is private",
                hint="Check the name; for a private one log in with `hf auth login` or set HF_TOKEN",
            ) from error
        except errors.EntryNotFoundError as error:
            raise HubError(f"{repo} has no file {what}", hint="The repository changed; look it up again") from error
        except errors.HfHubHTTPError as error:
            raise _refused(error, repo) from error
        except errors.HFValidationError as error:
            raise HubError(f"{ascii(repo)[:80]} is no repository name", hint="Write owner/name") from error
        except errors.HTTPError as error:  # connecting, waiting, a connection cut off
            raise UnreachableError(
                f"the Hub at {self._endpoint} cannot be reached: {_reason(error)}",
                hint="Check the network connection" + ("; a download goes on where it stopped" if repo else ""),
            ) from error


class UnreachableError(HubError):
    """Worth another try: the network, not the Hub's answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer whose bytes are still to come."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]


def _library() -> Any:
    """huggingface_hub with the modules used here, silent: its warnings carry texts of strangers to the terminal."""
    os.environ["HF_HUB_VERBOSITY"] = "critical"  # read whenever one of its modules is imported
    try:
        library = importlib.import_module("huggingface_hub")
        for module in ("constants", "errors", "utils"):
            importlib.import_module(f"huggingface_hub.{module}")
    except ImportError as error:
        raise ExtensionError(
            "searching and downloading need the library huggingface_hub, which is not installed", hint=INSTALL
        ) from error
    library.utils.logging.set_verbosity(logging.CRITICAL)
    return library


def _remote_file(sibling: Any) -> RemoteFile | None:
    """A file at the top of the repository, None for one that is elsewhere or that is not described well enough."""
    name, size = getattr(sibling, "rfilename", None), getattr(sibling, "size", None)
    if not isinstance(name, str) or not is_file(name) or type(size) is not int or not 0 <= size < 1 << 46:
        return None
    sha256 = getattr(getattr(sibling, "lfs", None), "sha256", None)
    git = getattr(sibling, "blob_id", None)
    if isinstance(sha256, str) and len(sha256) == 64 and is_commit(sha256):
        return RemoteFile(name, size, sha256=sha256)
    if isinstance(git, str) and len(git) == 40 and is_commit(git):
        return RemoteFile(name, size, git_sha1=git)
    return None


def _refused(error: Any, repo: str) -> HubError:
    """By status alone: the text of the answer is a stranger's."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return HubError(
            f"the Hub refuses access to {repo or 'this'} ({status})",
            hint="Log in with `hf auth login` or set HF_TOKEN; an old token may have expired",
        )
    if status == 429:
        return UnreachableError("the Hub asks for patience: too many requests", hint="Wait some minutes, then go on")
    if status == 416:
        return HubError(f"a file of {repo} is shorter than what is already here", hint="Start the download anew")
    if status >= 500:
        return UnreachableError(f"the Hub has a problem of its own ({status})", hint="Try again in some minutes")
    return HubError(f"the Hub refuses the request ({status or 'no status'})", hint="Check the repository's page")


def _reason(error: BaseException) -> str:
    """The system's words for a failed connection, short."""
    words = {"ConnectError": "no connection", "ReadTimeout": "no answer", "ConnectTimeout": "no answer"}
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    detail = deepest.strerror if isinstance(deepest, OSError) else None
    return detail or words.get(type(error).__name__, "the connection was cut off")


@contextmanager
def _ends_with(cancel: CancelToken | None, response: Any) -> Iterator[None]:
    """While it lasts, a cancelled token cuts the connection, so that a read which waits for bytes ends at once."""
    if cancel is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if cancel.cancelled:
                stream = response.extensions.get("network_stream")
                link = stream.get_extra_info("socket") if stream is not None else None
                if link is not None:
                    try:
                        link.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        return  # it is closed already
                return

    watcher = threading.Thread(target=watch, name="exl2-hub-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
