"""`exl2-tui` that stops itself in the middle of a conversion: python -m tests.e2e.stopping STAGE COUNT [ARGUMENTS]

When the journal says for the COUNT-th time that a step of STAGE is safe, the whole process stops (SIGSTOP) until it is
sent SIGCONT: a small model would be finished before a busy test has looked.
"""

from __future__ import annotations

import os
import signal
import sys

from exl2_tui import job_journal
from exl2_tui.__main__ import main
from exl2_tui.core.events import Event
from exl2_tui.core.job_events import Checkpointed


def stop_at(stage: str, count: int) -> None:
    """Stops this process at a checkpoint, once."""
    write, left = job_journal._Journal.write, count

    def written(self: job_journal._Journal, event: Event) -> None:
        nonlocal left
        write(self, event)
        if isinstance(event, Checkpointed) and event.stage == stage:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGSTOP)

    job_journal._Journal.write = written  # type: ignore[method-assign]


if __name__ == "__main__":
    stop_at(sys.argv[1], int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    main()
