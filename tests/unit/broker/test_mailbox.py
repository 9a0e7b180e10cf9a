"""The mailbox keeps its bounds, and control never waits behind data."""

from __future__ import annotations

import threading

import pytest

from broker.transport import mailbox as module
from broker.transport.mailbox import MAX_CONTROL_EVENTS, MAX_DATA_EVENTS, MAX_REQUESTS, Mailbox
from tests.patience import PATIENCE_S


def test_control_overtakes_data_and_both_keep_their_order() -> None:
    mailbox: Mailbox[str] = Mailbox()
    for event in ("data 1", "data 2"):
        assert mailbox.put_data(event, 10)
    for event in ("control 1", "control 2"):
        assert mailbox.put_control(event)
    assert [mailbox.get(0) for _ in range(5)] == ["control 1", "control 2", "data 1", "data 2", None]


def test_all_waiting_control_events_are_taken_together_and_data_one_by_one() -> None:
    mailbox: Mailbox[str] = Mailbox()
    for event in ("data 1", "data 2"):
        assert mailbox.put_data(event, 10)
    assert mailbox.put_control("control 1")
    mailbox.put_own("own")
    assert mailbox.put_control("control 2")
    assert [mailbox.get_all(0) for _ in range(4)] == [["own", "control 1", "control 2"], ["data 1"], ["data 2"], []]


def test_data_beyond_its_bytes_is_refused_and_counted_and_room_comes_back() -> None:
    mailbox: Mailbox[str] = Mailbox(max_data_bytes=100)
    assert mailbox.put_data("a", 60)
    assert not mailbox.put_data("b", 41)
    assert mailbox.put_data("c", 40)
    assert mailbox.dropped == 1
    assert mailbox.get(0) == "a"
    assert mailbox.put_data("d", 60)
    assert [mailbox.get(0), mailbox.get(0)] == ["c", "d"]


def test_data_beyond_its_number_is_refused_and_control_still_has_room() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert all(mailbox.put_data(number, 0) for number in range(MAX_DATA_EVENTS))
    assert not mailbox.put_data(-1, 0)
    assert mailbox.put_control(7)
    assert mailbox.get(0) == 7


def test_even_control_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CONTROL_EVENTS >= 1_000
    monkeypatch.setattr(module, "MAX_CONTROL_EVENTS", 2)
    mailbox: Mailbox[int] = Mailbox()
    assert [mailbox.put_control(number) for number in range(3)] == [True, True, False]
    assert mailbox.dropped == 1


def test_a_process_s_own_events_always_have_room_and_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONTROL_EVENTS", 1)
    mailbox: Mailbox[str] = Mailbox(max_data_bytes=1)
    assert mailbox.put_request("request", 1)
    assert mailbox.put_data("data", 1)
    assert mailbox.put_control("control")
    assert not mailbox.put_control("one more")
    assert mailbox.put_control("the link is up", certain=True)
    for number in range(20_000):
        mailbox.put_own(str(number))
    assert [mailbox.get(0) for _ in range(20_000)] == [str(number) for number in range(20_000)]
    assert [mailbox.get(0) for _ in range(5)] == ["control", "the link is up", "data", "request", None]


def test_requests_take_no_room_from_data() -> None:
    mailbox: Mailbox[int] = Mailbox()
    assert all(mailbox.put_request(number, 0) for number in range(MAX_REQUESTS // 2))
    assert not mailbox.put_request(-1, 0)
    assert all(mailbox.put_data(number, 0) for number in range(MAX_DATA_EVENTS))
    assert mailbox.dropped == 1
    assert [mailbox.get(0) for _ in range(MAX_DATA_EVENTS + 1)][-2:] == [MAX_DATA_EVENTS - 1, 0]
    assert mailbox.put_request(-1, 0)


def test_get_wakes_when_something_comes() -> None:
    mailbox: Mailbox[str] = Mailbox()
    got: list[str | None] = []
    waiting = threading.Thread(target=lambda: got.append(mailbox.get(10)))
    waiting.start()
    mailbox.put_data("late", 1)
    waiting.join(PATIENCE_S)
    assert got == ["late"]


def test_get_gives_none_when_the_time_is_over() -> None:
    assert Mailbox[str]().get(0.001) is None


def test_nothing_is_lost_between_many_threads() -> None:
    mailbox: Mailbox[int] = Mailbox()
    writers = [
        threading.Thread(target=lambda base=base: [mailbox.put_control(base + n) for n in range(100)])
        for base in range(0, 400, 100)
    ]
    for writer in writers:
        writer.start()
    got = [mailbox.get(10) for _ in range(400)]
    for writer in writers:
        writer.join()
    assert sorted(number for number in got if number is not None) == list(range(400))


def test_control_events_are_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 messages of 1 MiB would be ten times the memory of a small box."""
    monkeypatch.setattr(module, "MAX_WAITING_CONTROL_BYTES", 100)
    mailbox: Mailbox[str] = Mailbox()
    assert mailbox.put_control("large", 90)
    assert not mailbox.put_control("too much", 11)
    assert mailbox.put_control("small", 10)
    assert mailbox.put_control("the link is down", certain=True)
    assert mailbox.get_all(0.0) == ["large", "small", "the link is down"]
    assert mailbox.put_control("again", 100)
    assert mailbox.dropped == 1


def test_clients_take_turns_and_one_that_floods_leaves_room_for_the_others() -> None:
    mailbox: Mailbox[str] = Mailbox()
    flood = [mailbox.put_request(f"greedy {number}", 1, client="greedy") for number in range(3 * MAX_REQUESTS)]
    assert sum(flood) == MAX_REQUESTS // 2
    modest = [mailbox.put_request(f"modest {number}", 1, client="modest") for number in range(20)]
    assert all(modest)
    taken = [str(mailbox.get(0.0)) for _ in range(40)]
    assert taken == [f"{client} {number}" for number in range(20) for client in ("greedy", "modest")]
    assert mailbox.put_request("greedy again", 1, client="greedy")


def test_a_client_with_large_requests_leaves_bytes_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUEST_BYTES", 100)
    mailbox: Mailbox[str] = Mailbox()
    assert [mailbox.put_request("g", 10, client="greedy") for _ in range(9)].count(True) == 5
    assert mailbox.put_request("m", 20, client="modest")
    for _ in range(6):
        mailbox.get(0.0)
    assert mailbox.get(0.0) is None
    assert mailbox.put_request("g", 50, client="greedy")
