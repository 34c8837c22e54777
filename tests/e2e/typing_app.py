"""The app with a model that only pretends, slow enough to be interrupted: python -m tests.e2e.typing_app [LIMIT]

LIMIT: no file may become larger than so many bytes; writing more fails, as on a full disk.
"""

from __future__ import annotations

import resource
import sys

from exl2_tui.app import run
from tests.tui.fakes import TypingService

ANSWER = " ".join(f"word{number}" for number in range(40_000))  # of minutes

if __name__ == "__main__":
    if len(sys.argv) > 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
    run("pretender", service_factory=lambda post: TypingService(post, [ANSWER], speed=150.0))
