"""Before a download: which files, how large, is there room, will the model fit into memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from exl2_tui.core.checkpoint.checksums import SUMS_FILE
from exl2_tui.core.errors import Exl2Error
from exl2_tui.core.json_keys import MAX_CONFIG_BYTES
from exl2_tui.core.library.hub import Hub, RepoState
from exl2_tui.core.library.hub_names import folder_name
from exl2_tui.core.library.machine import Machine
from exl2_tui.core.library.remote import bits_in_name, needed_files, read_config, remote_footprint, what_is_missing
from exl2_tui.core.model_events import DownloadPlan, HubRevision, RemoteFile
from exl2_tui.core.sizes import size_of

PARTIAL = ".downloads"  # hidden, so that no scan takes an unfinished model for one
PART = ".part"
MARGIN = 64 << 20  # bytes that stay free on the disk
BRANCH_HINT = "Choose another revision: EXL2 repositories keep each bitrate on a branch of its own"


def plan_download(
    hub: Hub, repo: str, revision: str, own: Path, machine: Machine, context: int | None, cache: str
) -> DownloadPlan:
    """What a download of this revision would bring. Raises HubError; what keeps it from being one is its problem."""
    state = hub.state(repo, revision)
    files = needed_files(state.files)
    folder = target_folder(own, state)
    base = DownloadPlan(
        repo=repo,
        revision=revision,
        commit=state.commit,
        folder=str(folder),
        files=files,
        ready=ready_bytes(partial_folder(own, folder.name), files),
        free_disk=free_space(own),
        available=machine.available,
    )
    missing = what_is_missing(files)
    if missing:
        hint = BRANCH_HINT if "safetensors" in missing or "config" in missing else "Tell the owner of the repository"
        return replace(base, problem=missing, hint=hint)
    if folder.exists():
        return replace(base, problem=f"it is here already: {folder}", hint="Delete it first to download it anew")
    try:
        config, text = read_config(hub.read_small(state, "config.json", MAX_CONFIG_BYTES))
    except Exl2Error as error:
        return replace(base, problem=error.message, hint=error.hint or "")
    tensors = sum(file.size for file in files if file.name.endswith(".safetensors"))
    memory, fits = machine.plan(remote_footprint(config, tensors, text), context, cache)
    plan = replace(
        base,
        family=config.architecture.removesuffix("ForCausalLM"),
        format=text,
        context=memory.context,
        memory=memory.total,
        available=memory.available,
        fits=fits,
    )
    missing_room = plan.total - plan.ready + MARGIN - plan.free_disk
    if missing_room > 0:
        return replace(
            plan,
            problem=f"the disk has {size_of(plan.free_disk)} free, "
            f"the download needs {size_of(plan.total - plan.ready)}",
            hint=f"Free {size_of(missing_room)}, for example by deleting a model",
        )
    return plan


def look_at_revision(
    hub: Hub, repo: str, revision: str, machine: Machine, context: int | None, cache: str
) -> HubRevision:
    """One row of the list of revisions; whatever is wrong with it is told in it."""
    try:
        state = hub.state(repo, revision)
        files = needed_files(state.files)
        size = sum(file.size for file in files)
        missing = what_is_missing(files)
        if missing:
            return HubRevision(revision, size, bits_in_name(revision), "unknown", missing)
        config, text = read_config(hub.read_small(state, "config.json", MAX_CONFIG_BYTES))
    except Exl2Error as error:
        return HubRevision(revision, 0, bits_in_name(revision), "unknown", error.message)
    tensors = sum(file.size for file in files if file.name.endswith(".safetensors"))
    _, fits = machine.plan(remote_footprint(config, tensors, text), context, cache)
    bits = bits_in_name(text) or bits_in_name(revision)
    return HubRevision(revision, size, bits, fits)


def target_folder(own: Path, state: RepoState) -> Path:
    """Where it will lie; with the owner's name in front if another repository's model has the plain name."""
    plain = own / folder_name(state.repo, state.revision)
    if plain.exists() and not is_from(plain, state.repo):
        return own / folder_name(state.repo, state.revision, with_owner=True)
    return plain


def origin_line(repo: str, revision: str, commit: str) -> str:
    """The comment in SHA256SUMS that says where a model came from."""
    return f"from the Hugging Face Hub: {repo} revision {revision} commit {commit}"


def is_from(folder: Path, repo: str) -> bool:
    """True if this folder was downloaded from `repo`."""
    try:
        with (folder / SUMS_FILE).open(encoding="utf-8", errors="replace") as stream:
            return f"Hub: {repo} revision " in stream.readline(1000)
    except OSError:
        return False


def partial_folder(own: Path, name: str) -> Path:
    """Where the files of a download lie until all are here."""
    return own / PARTIAL / name


def ready_bytes(partial: Path, files: tuple[RemoteFile, ...]) -> int:
    """Bytes that an earlier try left."""
    ready = 0
    for file in files:
        whole, part = partial / file.name, partial / (file.name + PART)
        if whole.is_file():
            ready += file.size
        elif part.is_file():
            ready += min(file.size, part.stat().st_size)
    return ready


def free_space(folder: Path) -> int:
    """Bytes free on the disk that `folder` is on, or will be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free
