"""The panics of libraries in Rust, raised as errors.

A panic's exception isn't an ``Exception``: it would end the thread that loads or computes, and nobody would hear of it.
Python's own ones of this kind count the same there: only the main thread may end the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from broker.protocol.errors import first_line


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for what isn't an Exception; a decorator, too."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"a library panicked: {first_line(error)}") from error
