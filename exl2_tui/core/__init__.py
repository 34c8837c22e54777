"""The library below the app and the command line: it never prints, never asks and imports no user interface."""

import warnings

# torch says so on stderr at its first tensor where NumPy is not installed; nothing here uses NumPy.
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
