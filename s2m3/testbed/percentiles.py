"""The one percentile of every report: nearest rank.

Owns the definition. It gives a value that was measured, never one between two measurements. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` (from 0 to 100) percent don't exceed; None without any values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]


def percentiles(values: Sequence[float], *shares: int) -> dict[str, float | None]:
    """Several of them, by the names that reports give them: ``p50``, ``p95``."""
    return {f"p{share}": percentile(values, share) for share in shares}
