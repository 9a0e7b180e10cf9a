"""Which plan replaces a known one."""

from __future__ import annotations

import pytest

from broker.epochs import LARGEST_EPOCH, LARGEST_REPEATED, is_stale
from broker.protocol.messages import MAX_EPOCH_JUMP

FAR = MAX_EPOCH_JUMP + 1


@pytest.mark.parametrize(
    ("plan", "known", "stale"),
    [
        ((1, 2), None, False),
        ((1, 2), (1, 2), False),
        ((1, 1), (1, 2), True),
        ((2, 1), (1, 2), False),
        ((2 + FAR, 1), (1, 2), True),
        ((FAR, 1), None, False),
        ((LARGEST_EPOCH + 1, 1), None, True),
        ((LARGEST_EPOCH + 1, 1), (LARGEST_EPOCH, 1), True),
        ((LARGEST_REPEATED + 1, 1), (LARGEST_REPEATED, 1), False),  # the term after a lie
        ((3, 1), (FAR, 1), False),
        ((3 * FAR, 1), (FAR, 1), False),
    ],
)
def test_an_older_plan_and_one_of_an_impossible_term_are_stale(
    plan: tuple[int, int], known: tuple[int, int] | None, *, stale: bool
) -> None:
    assert is_stale(plan, known) is stale
