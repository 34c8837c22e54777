"""Every error the core raises on purpose.

An error tells a person three things: what is wrong (`message`), where (`file`, `tensor`) and what to do (`hint`).
Standard library only, so that every layer may import it.
"""

from __future__ import annotations

from pathlib import Path


class Exl2Error(Exception):
    """Base of all expected errors; anything else that escapes the core is a bug.

    message: one sentence without a trailing full stop. file/tensor: what it is about. hint: the remedy, one sentence.
    """

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        tensor: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.hint = hint

    def __str__(self) -> str:
        where = [part for part in (self.file, self.tensor and f"tensor {self.tensor}") if part]
        text = f"{', '.join(where)}: {self.message}" if where else self.message
        return f"{text}. {self.hint}" if self.hint else text


class CheckpointError(Exl2Error):
    """A model file is malformed, incomplete or contradicts its config."""


class ConfigError(Exl2Error):
    """A config.json or settings value is missing, of the wrong type or out of range."""


class UnsupportedError(Exl2Error):
    """Well-formed, but nothing this program can run: an unknown layout, architecture, dtype or option."""


class TokenizerError(Exl2Error):
    """A tokenizer file is missing or malformed."""


class PromptError(Exl2Error):
    """A prompt mode is unknown or a chat template failed, took too long or produced too much."""


class ShapeError(Exl2Error):
    """Tensors handed to an op do not fit each other."""


class DtypeError(Exl2Error):
    """A tensor handed to an op has a dtype the op does not take."""


class ExtensionError(Exl2Error):
    """The compiled library is missing, too old or cannot run on this machine."""


class MemoryLimitError(Exl2Error):
    """A model, cache or job does not fit into the memory or disk there is."""


class NotFoundError(Exl2Error):
    """A model, job, chat or file that was named does not exist."""


class ContextError(Exl2Error):
    """A prompt, message or row of text is longer than the context."""


class GenerationError(Exl2Error):
    """A model computed something no token can be chosen from."""


class QuantizationError(Exl2Error):
    """A layer cannot be quantized, or a finished model is broken."""


class JobError(Exl2Error):
    """A conversion job cannot be opened, locked, resumed or written."""


class HubError(Exl2Error):
    """The Hugging Face Hub cannot be reached, refuses, or answers something that cannot be trusted."""


class CancelledError(Exl2Error):
    """The caller's cancel token was set; nothing is wrong."""

    def __init__(self, message: str = "cancelled") -> None:
        super().__init__(message)
