"""Text to token ids and back. Knows files and vocabularies, nothing of models or chats."""

from exl2_tui.core.tokenizer.stream import StreamDecoder
from exl2_tui.core.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDecoder", "Tokenizer"]
