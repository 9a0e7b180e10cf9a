"""The time of the orchestrator's loop: that of the messages it has read."""

from __future__ import annotations

import pytest

from orchestrator.clock import LoopClock


class Time:
    """The real time, which a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr("orchestrator.clock.time", time)
    return time


def test_while_messages_wait_the_time_is_that_of_the_one_that_is_read(real: Time) -> None:
    clock = LoopClock(1.0)
    real.now_s = 104.0
    clock.read(101.0)
    assert clock.now_s == 101.0
    clock.read(102.5)
    assert clock.now_s == 102.5
    clock.catch_up()
    assert clock.now_s == 104.0


def test_the_time_never_goes_back(real: Time) -> None:
    clock = LoopClock(1.0)
    real.now_s = 104.0
    clock.catch_up()
    clock.read(103.0)  # it came before the process stood still, and was read after it
    assert clock.now_s == 104.0


def test_a_step_that_takes_longer_than_it_may_is_a_pause_and_a_wait_is_not(real: Time) -> None:
    clock = LoopClock(1.0)
    real.now_s += 0.9
    assert not clock.has_paused()
    real.now_s += 30.9
    assert not clock.has_paused(30.0)
    real.now_s += 31.1
    assert clock.has_paused(30.0)
    assert not clock.has_paused()
    real.now_s += 30.9
    assert clock.has_paused(30.0, 0.5)
