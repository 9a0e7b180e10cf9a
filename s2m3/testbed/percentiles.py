"""The one percentile of every report: nearest rank.

Owns the definition. It gives a value that was measured, never one between two measurements. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """Returns the nearest-rank percentile: the smallest value that at least ``share`` percent don't exceed.

    Args:
        values: The measurements, in any order.
        share: From 0 to 100; 0 gives the smallest value, 100 the largest.

    Returns:
        One of the values; None without any values.
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]
