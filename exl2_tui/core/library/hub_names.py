"""Names from the Hub: they come from strangers and become paths here, so everything but the plain ones is refused."""

from __future__ import annotations

import re

from exl2_tui.core.errors import HubError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,119}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # files of these names cannot be made everywhere


def is_repo(name: object) -> bool:
    """owner/name of plain letters, digits, dots, dashes and underscores."""
    if not isinstance(name, str) or name.count("/") != 1:
        return False
    return all(_PART.fullmatch(part) and ".." not in part and "--" not in part for part in name.split("/"))


def require_repo(name: str) -> str:
    """Raises HubError for anything that is no name of a repository."""
    if not is_repo(name):
        raise HubError(
            f"{ascii(name)[:80]} is no repository name", hint="Write owner/name, as on the page of the repository"
        )
    return name


def is_revision(name: object) -> bool:
    """A branch, tag or commit that can stand in a path: no "..", no empty part."""
    if not isinstance(name, str) or not _REVISION.fullmatch(name) or ".." in name:
        return False
    return all(part and not part.startswith(".") for part in name.split("/"))


def require_revision(name: str) -> str:
    """Raises HubError for anything that is no name of a revision."""
    if not is_revision(name):
        raise HubError(f"{ascii(name)[:80]} is no revision name", hint="Give a branch, a tag or a commit")
    return name


def is_commit(name: object) -> bool:
    return isinstance(name, str) and _COMMIT.fullmatch(name) is not None


def is_file(name: object) -> bool:
    """The name of a file at the top of a repository that may be written under the same name here."""
    return (
        isinstance(name, str)
        and _FILE.fullmatch(name) is not None
        and ".." not in name
        and not name.endswith(".")
        and _DEVICES.fullmatch(name) is None
    )


def folder_name(repo: str, revision: str, *, with_owner: bool = False) -> str:
    """Where a download lands: the repository's name, and the revision if it is not the main branch."""
    owner, name = repo.split("/")
    name = f"{owner}--{name}" if with_owner else name
    return name if revision == "main" else f"{name}-{revision.replace('/', '-')}"
