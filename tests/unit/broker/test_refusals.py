"""Refused control messages are read again."""

from __future__ import annotations

from broker.transport.refusals import Refusals


def test_without_a_refusal_nothing_is_read_again() -> None:
    assert Refusals(1.0).look(100.0) == (False, False)


def test_they_are_read_again_once_after_a_time_without_a_refusal() -> None:
    refusals = Refusals(1.0)
    refusals.note(10.0)
    assert refusals.look(10.1) == (True, False)
    refusals.note(10.5)
    assert refusals.look(11.2) == (True, False)
    assert refusals.look(11.5) == (False, True)
    assert refusals.look(20.0) == (False, False)


def test_readings_that_are_not_urgent_wait_for_each_other() -> None:
    refusals = Refusals(1.0, between_s=30.0)
    refusals.note(10.0)
    assert refusals.look(11.0, urgent=False) == (True, True)
    refusals.note(12.0)
    assert refusals.look(40.9, urgent=False) == (True, False)
    assert refusals.look(40.9) == (False, True)
    refusals.note(50.0)
    assert refusals.look(70.8, urgent=False) == (True, False)
    assert refusals.look(70.9, urgent=False) == (False, True)
