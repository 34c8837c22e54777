"""Conversations as token ids: prompt modes and the chat templates of models. Knows tokenizers, nothing of models."""

from exl2_tui.core.prompts.chat import encode_chat
from exl2_tui.core.prompts.encoded import EncodedPrompt, Segment
from exl2_tui.core.prompts.modes import PromptMode, get, names

__all__ = ["EncodedPrompt", "PromptMode", "Segment", "encode_chat", "get", "names"]
