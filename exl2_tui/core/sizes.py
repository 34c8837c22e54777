"""Sizes as people read them: one unit everywhere, in the app, on the command line and in errors."""

from __future__ import annotations


def size_of(count: int) -> str:
    """Bytes in decimal units, as disks and GPUs are sold: 24_400_000 is "24.4 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.1f} MB" if unit == "MB" and value < 99.5 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.0f} GB" if value >= 99.5 else f"{value:.1f} GB"
