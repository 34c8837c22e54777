"""How much memory this process may still take, asked of the system. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

UNLIMITED = 1 << 60  # cgroup v1 writes a huge number where there is no limit


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be allocated before the system swaps or kills, None if it does not tell.

    On Linux the smallest of what the machine has and what every control group (container) above this process leaves;
    file pages that can be dropped count as free. root: where proc and sys are, for tests.
    """
    limits = list(_cgroup_rooms(root))
    machine = _meminfo(root / "proc/meminfo").get("MemAvailable")
    if machine is None and not limits:
        return _physical_memory()
    return max(0, min([*limits, *([machine] if machine is not None else [])]))


def _meminfo(file: Path) -> dict[str, int]:
    """Bytes by name."""
    sizes = {}
    for line in _lines(file):
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            sizes[name] = int(number[0]) * 1024
    return sizes


def _cgroup_rooms(root: Path) -> list[int]:
    """What is left under every memory limit that applies, in bytes."""
    rooms = []
    base = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if controllers == "":
            tree, limit, usage, dropped = base, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            tree, dropped = base / "memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = PurePosixPath("/") / path.lstrip("/")
        for ancestor in (group, *group.parents):  # a container sees its own group as the root of the tree
            folder = tree / str(ancestor).lstrip("/")
            bound, used = _number(folder / limit), _number(folder / usage)
            if bound is not None and used is not None and bound < UNLIMITED:
                rooms.append(bound - used + _statistic(folder / "memory.stat", dropped))
    return rooms


def _statistic(file: Path, name: str) -> int:
    for line in _lines(file):
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)[:1]).strip()
    return int(text) if text.isdigit() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _physical_memory() -> int | None:
    """Three quarters of the memory built in, where the system does not say what is free (macOS)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    except (AttributeError, OSError, ValueError):
        return None
