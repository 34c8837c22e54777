"""Keys in texts: a hint names an action, and what a person reads is the key that the action has now."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.dom import DOMNode

from exl2_tui.keymap import with_keys

if TYPE_CHECKING:
    from exl2_tui.app import Exl2App


def keys_of(node: DOMNode) -> dict[str, str]:
    """The person's own keys by name, as `keymap.with_keys` takes them."""
    return cast("Exl2App", node.app).key_overrides


def hint(node: DOMNode, text: str) -> str:
    """A text of ours in which "{chat.new}" stands for a key. Outside text is added behind it, never put into it."""
    return with_keys(text, keys_of(node))
