"""One file per model family: its parts, their shapes, and how each runs."""
