"""Two pings a keepalive; dead after twice the keepalive without a sign of life."""

from __future__ import annotations

import pytest

from broker.transport.keepalive import Pulse


def test_it_pings_twice_in_each_keepalive() -> None:
    pulse = Pulse(heard_s=0, pinged_s=0)
    pings = [tenth / 10 for tenth in range(61) if pulse.wants_ping(tenth / 10, keepalive_s=2)]
    assert pings == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_it_is_dead_after_twice_the_keepalive_of_silence() -> None:
    pulse = Pulse(heard_s=0, pinged_s=0)
    assert not pulse.is_dead(5.9, keepalive_s=3)
    assert pulse.is_dead(6.0, keepalive_s=3)


def test_any_sign_of_life_counts() -> None:
    pulse = Pulse(heard_s=0, pinged_s=0)
    pulse.hear(4.0)
    assert not pulse.is_dead(9.9, keepalive_s=3)
    assert pulse.is_dead(10.0, keepalive_s=3)


@pytest.mark.parametrize("keepalive_s", [0, 1])
def test_a_keepalive_of_none_is_one_second(keepalive_s: int) -> None:
    pulse = Pulse(heard_s=0, pinged_s=0)
    assert not pulse.wants_ping(0.4, keepalive_s)
    assert not pulse.is_dead(1.9, keepalive_s)
    assert pulse.is_dead(2.0, keepalive_s)
