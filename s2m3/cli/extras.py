"""The error of a command whose extra isn't installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from broker.protocol.errors import S2M3Error

_OURS = frozenset({"broker", "edge_agent", "orchestrator", "s2m3"})


@contextmanager
def imports_of(extra: str, needs: str) -> Iterator[None]:
    """A block that imports what an extra installs; ``needs`` begins the sentence, as in "the HTTP door needs".

    Raises:
        S2M3Error: a package can't be found.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _OURS:
            raise
        text = f"{needs} {package.replace('_', '-')}, which isn't installed: pip install 's2m3[{extra}]'"
        raise S2M3Error(text) from error
