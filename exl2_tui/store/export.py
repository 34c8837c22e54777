"""A chat as a file: Markdown of the branch in view for people, JSON of the whole tree for programs."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from pathlib import Path
from typing import Any

from exl2_tui.store.tree import Chat
from exl2_tui.text import one_line

FORMAT = 1


def to_markdown(chat: Chat) -> str:
    """Title, system prompt and the branch in view."""
    parts = [f"# {one_line(chat.title) or 'Chat'}"]
    if chat.system.strip():
        parts.append(f"**System**\n\n{chat.system.strip()}")
    for turn in chat.path():
        who = "You" if turn.role == "user" else one_line(turn.model) or "Assistant"
        parts.append(f"**{who}**\n\n{turn.text.strip()}")
    return "\n\n".join(parts) + "\n"


def to_json(chat: Chat) -> str:
    """Every turn with its parent, so that versions survive; `head` is the last turn of the branch in view."""
    turns: list[dict[str, Any]] = []
    for turn in chat.turns.values():
        record = dataclasses.asdict(turn)
        record.pop("token_ids")
        turns.append(record)
    document = {
        "format": FORMAT,
        "id": chat.id,
        "title": chat.title,
        "mode": chat.mode,
        "system": chat.system,
        "created": chat.created,
        "updated": chat.updated,
        "head": chat.head,
        "turns": turns,
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def export(chat: Chat, directory: Path) -> tuple[Path, Path]:
    """Writes both files and returns their paths; an existing file is never replaced. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w\-]+", "-", one_line(chat.title).lower()).strip("-")[:48] or "chat"
    day = datetime.datetime.fromtimestamp(chat.updated, datetime.timezone.utc).strftime("%Y-%m-%d")
    markdown, document = to_markdown(chat), to_json(chat)
    number = 1
    while True:
        stem = f"{day}-{name}" + (f"-{number}" if number > 1 else "")
        paths = directory / f"{stem}.md", directory / f"{stem}.json"
        number += 1
        if paths[0].exists() or paths[1].exists():
            continue
        with paths[0].open("x", encoding="utf-8", errors="replace") as file:
            file.write(markdown)
        with paths[1].open("x", encoding="utf-8", errors="replace") as file:
            file.write(document)
        return paths
