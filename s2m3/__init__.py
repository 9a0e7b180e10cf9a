"""The face: command line, demo."""
