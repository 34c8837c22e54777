"""A model directory as data: strict safetensors reading and writing, and which linear layer is EXL2, GPTQ or float."""

from __future__ import annotations

from exl2_tui.core.checkpoint.checkpoint import Checkpoint
from exl2_tui.core.checkpoint.header import TensorInfo
from exl2_tui.core.checkpoint.place import TensorPlace
from exl2_tui.core.checkpoint.safetensors import SafetensorsFile, TensorSource, open_file, write_file

__all__ = ["Checkpoint", "SafetensorsFile", "TensorInfo", "TensorPlace", "TensorSource", "open_file", "write_file"]
