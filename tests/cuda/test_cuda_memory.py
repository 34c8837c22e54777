"""Out of GPU memory becomes an error that says what to change. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

from exl2_tui.core.errors import MemoryLimitError
from exl2_tui.core.model.cuda.model import memory_errors


def test_out_of_memory_names_the_remedy() -> None:
    with pytest.raises(MemoryLimitError) as raised, memory_errors("this model"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "this model" in raised.value.message
    assert "smaller context" in (raised.value.hint or "")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_errors("this model"):
        raise RuntimeError("something else")
