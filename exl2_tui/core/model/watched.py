"""Progress and cancelling while a model is loaded, for every implementation alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from exl2_tui.core.cancel import CancelToken
from exl2_tui.core.checkpoint import TensorPlace
from exl2_tui.core.formats import LinearWeight
from exl2_tui.core.model.estimate import MeasurableSource, TensorSize

Progress = Callable[[int, int, str], None]  # bytes done, bytes in total, tensor just finished


class WatchedSource:
    """A checkpoint that reports each tensor as it is released and stops when cancelled.

    used: the tensors that will be read as a whole.
    """

    def __init__(
        self,
        source: MeasurableSource,
        used: Iterable[str],
        on_progress: Progress | None,
        cancel: CancelToken | None,
    ) -> None:
        self.source = source
        self.pending = {name: source.info(name).nbytes for name in used}
        self.total = sum(self.pending.values())
        self.done = 0
        self.on_progress = on_progress
        self.cancel = cancel

    @property
    def names(self) -> Iterable[str]:
        return self.source.names

    def __contains__(self, name: object) -> bool:
        return name in self.source

    def info(self, name: str) -> TensorSize:
        return self.source.info(name)

    def place(self, name: str) -> TensorPlace | None:
        self._check()
        return self.source.place(name)

    def linear_kind(self, prefix: str) -> str | None:
        return self.source.linear_kind(prefix)

    def tensor(self, name: str) -> Tensor:
        self._check()
        return self.source.tensor(name)

    def linear(self, prefix: str, in_features: int, out_features: int, bias: bool | None) -> LinearWeight:
        self._check()
        return self.source.linear(prefix, in_features, out_features, bias)

    def release(self, name: str) -> None:
        """The tensor has been copied. One that is read twice (a tied embedding) counts once."""
        self.source.release(name)
        self.done += self.pending.pop(name, 0)
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, name)
        self._check()

    def _check(self) -> None:
        if self.cancel is not None:
            self.cancel.check()
