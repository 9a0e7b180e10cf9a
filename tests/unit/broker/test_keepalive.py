"""Two pings in each keepalive; dead after twice the keepalive without activity."""

from __future__ import annotations

import pytest

from broker.transport.keepalive import Keepalive


def test_it_pings_twice_in_each_keepalive() -> None:
    keepalive = Keepalive(active_s=0, pinged_s=0)
    pings = [tenth / 10 for tenth in range(61) if keepalive.ping_due(tenth / 10, keepalive_s=2)]
    assert pings == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_it_is_dead_after_twice_the_keepalive_of_silence() -> None:
    keepalive = Keepalive(active_s=0, pinged_s=0)
    assert not keepalive.is_dead(5.9, keepalive_s=3)
    assert keepalive.is_dead(6.0, keepalive_s=3)


def test_any_activity_counts() -> None:
    keepalive = Keepalive(active_s=0, pinged_s=0)
    keepalive.active_s = 4.0
    assert not keepalive.is_dead(9.9, keepalive_s=3)
    assert keepalive.is_dead(10.0, keepalive_s=3)


@pytest.mark.parametrize("keepalive_s", [0, 1])
def test_a_keepalive_of_zero_counts_as_one_second(keepalive_s: int) -> None:
    keepalive = Keepalive(active_s=0, pinged_s=0)
    assert not keepalive.ping_due(0.4, keepalive_s)
    assert not keepalive.is_dead(1.9, keepalive_s)
    assert keepalive.is_dead(2.0, keepalive_s)
