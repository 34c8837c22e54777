"""`python -m exl2_tui` and the `exl2-tui` command."""

from exl2_tui.cli import main

if __name__ == "__main__":
    main()
