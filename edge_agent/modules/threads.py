"""The threads of a forward pass, for this whole process and all of its engines.

Owns the number. An engine takes it when it makes a session or loads a model; torch has it for the process.
"""

from __future__ import annotations

import os
import sys


class _InForce:
    """The number of this process."""

    count: int | None = None


def limit(count: int) -> None:
    """Set the threads of a pass: torch's now, if it is imported; those of other engines from now on."""
    _InForce.count = count
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)


def limit_torch() -> None:
    """Set torch's threads, which was imported just now; as they are, if nobody stated a number."""
    if _InForce.count is not None:
        limit(_InForce.count)


def count() -> int:
    """The threads of a pass: those that were stated, or else torch's where it is imported, or else the processors."""
    if _InForce.count is not None:
        return _InForce.count
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count() or 1
