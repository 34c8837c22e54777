"""Weights of linear layers as files store them: EXL2, GPTQ and plain floats. Knows nothing of files or models."""

from __future__ import annotations

from typing import TypeAlias

from exl2_tui.core.formats.dense import DenseWeight
from exl2_tui.core.formats.exl2 import Exl2Weight, Group
from exl2_tui.core.formats.gptq import GptqWeight

LinearWeight: TypeAlias = Exl2Weight | GptqWeight | DenseWeight

__all__ = ["DenseWeight", "Exl2Weight", "GptqWeight", "Group", "LinearWeight"]
