"""The library below the app and the command line: it never prints, never asks and imports no user interface."""
