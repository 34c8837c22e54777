"""`python -m exl2_tui` and the `exl2-tui` command."""

import gc
import sys

from exl2_tui.terminal import can_draw, open_missing_streams


def main() -> None:
    """Runs the command line. Without arguments in a terminal it is the application, and nothing else is imported."""
    open_missing_streams()
    if len(sys.argv) == 1 and can_draw():
        gc.disable()  # of what is loaded for the first frame nothing is garbage; the app enables it again
        from exl2_tui.app import run

        run()
    else:
        try:
            from exl2_tui.cli import main as command_line
        except KeyboardInterrupt:  # while it is still being loaded
            sys.exit(130)
        command_line()


if __name__ == "__main__":
    main()
