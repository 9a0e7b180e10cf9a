"""Ends of connections by another client with the same id differ from all others."""

from __future__ import annotations

from broker.transport.id_takeover import SHORT_S, SIGNS, TakeoverWatch

ID = "s2m3.devices.gw-a.control"


def test_ends_without_a_reason_soon_after_each_beginning_are_a_takeover() -> None:
    watch = TakeoverWatch(ID)
    told = [watch.on_end(lasted_s=1.0, has_reason=False) for _ in range(SIGNS)]
    assert told[:-1] == [""] * (SIGNS - 1)
    assert f"{ID} seems to be in use elsewhere" in told[-1]
    assert f"ended {SIGNS} connections" in told[-1]


def test_the_first_connection_of_them_may_be_an_old_one() -> None:
    watch = TakeoverWatch(ID)
    told = [watch.on_end(lasted_s=lasted_s, has_reason=False) for lasted_s in (3600.0, 4.0, 4.0)]
    assert told[:2] == ["", ""]
    assert told[2]


def test_a_broker_that_is_away_in_between_or_gives_a_reason_is_no_takeover() -> None:
    watch = TakeoverWatch(ID)
    for _ in range(5):
        assert not watch.on_end(lasted_s=1.0, has_reason=False)
        assert not watch.on_end(lasted_s=None, has_reason=True)  # an attempt that failed
        assert not watch.on_end(lasted_s=1.0, has_reason=False)
        assert not watch.on_end(lasted_s=1.0, has_reason=True)


def test_connections_that_last_are_no_takeover() -> None:
    watch = TakeoverWatch(ID)
    assert not any(watch.on_end(lasted_s=SHORT_S + 1.0, has_reason=False) for _ in range(5))
