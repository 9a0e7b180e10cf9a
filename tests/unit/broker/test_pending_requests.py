"""When a sensor's requests are sent, sent again, or given up; the clock is the test's."""

from __future__ import annotations

import pytest

from broker.pending_requests import (
    FIRST_RETRY_S,
    LONGEST_RETRY_S,
    RETURN_WAIT_S,
    ROUTE_WAIT_S,
    SOON_S,
    Asking,
    Question,
)
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, Route
from broker.transport.port import Outgoing

PREFIX = "s2m3/v1"
START_S = 1000.0


def route(group: int = 1, epoch: int = 1, *, front_door: tuple[str, ...] = ("gw-a",), why: str | None = None) -> Route:
    return Route(task="classify", epoch=epoch, generation=1, group=group, front_door=front_door, unavailable=why)


def question(request: str = "r1", *, now_s: float = START_S, deadline_s: float = 1000.0) -> Question:
    return Question(request, "classify", b"x", "image/jpeg", now_s, now_s + deadline_s)


@pytest.fixture
def asking() -> Asking:
    """One question that waits, a link, and no route yet."""
    made = Asking(PREFIX, "camera", "mqtt://broker:1883")
    made.link_up(START_S)
    made.ask(question(), START_S)
    return made


@pytest.fixture
def sent(asking: Asking) -> Asking:
    """One question that was sent at the start."""
    asking.follow("classify", route(), START_S)
    assert isinstance(asking.step("r1", START_S), Outgoing)
    return asking


def due_s(asking: Asking) -> float:
    found = asking.next_s()
    assert found is not None
    return found


def code_of(step: Outgoing | ErrorBody | None) -> ErrorCode | None:
    return step.code if isinstance(step, ErrorBody) else None


def test_a_question_is_sent_when_its_route_comes(asking: Asking) -> None:
    assert asking.step("r1", START_S) is None
    asking.follow("classify", route(), START_S + 0.1)
    message = asking.step("r1", START_S + 0.1)
    assert isinstance(message, Outgoing)
    assert message.topic == "s2m3/v1/tasks/classify/requests"
    assert message.response_topic == "s2m3/v1/clients/camera/results/r1"
    assert (message.correlation, message.token, message.expiry_s) == (b"r1", "r1", 1000)


def test_silence_is_met_by_retries_that_grow_rarer(sent: Asking) -> None:
    gaps_s = []
    now_s = START_S
    for _ in range(5):
        gaps_s.append(due_s(sent) - now_s)
        assert sent.step("r1", due_s(sent) - 0.001) is None
        now_s = due_s(sent)
        assert isinstance(sent.step("r1", now_s), Outgoing)
    assert gaps_s == [FIRST_RETRY_S, 2.0, 4.0, LONGEST_RETRY_S, LONGEST_RETRY_S]


def test_a_first_retry_beyond_the_longest_is_kept() -> None:
    asking = Asking(PREFIX, "camera", "mqtt://broker:1883", first_retry_s=60.0)
    asking.link_up(START_S)
    asking.ask(question(), START_S)
    asking.follow("classify", route(), START_S)
    asking.step("r1", START_S)
    assert due_s(asking) == START_S + 60.0


def test_nobody_subscribing_is_met_by_a_quick_retry_however_often(sent: Asking) -> None:
    now_s = START_S
    for _ in range(1100):  # two to the power of this is beyond a float
        sent.undelivered("r1", now_s)
        assert due_s(sent) == now_s + SOON_S
        now_s = due_s(sent)
        assert isinstance(sent.step("r1", now_s), Outgoing)


def test_only_the_undelivered_one_is_hurried(sent: Asking) -> None:
    sent.ask(question("r2"), START_S)
    sent.step("r2", START_S)
    sent.undelivered("r1", START_S)
    assert sent.step("r2", START_S + SOON_S) is None
    assert isinstance(sent.step("r1", START_S + SOON_S), Outgoing)


@pytest.mark.parametrize("new", [route(group=2), route(group=1, epoch=2)])
def test_a_new_front_door_gets_what_waits_soon(sent: Asking, new: Route) -> None:
    sent.follow("classify", new, START_S + 0.2)
    assert sent.step("r1", START_S + 0.2) is None
    assert due_s(sent) == START_S + 0.2 + SOON_S
    assert isinstance(sent.step("r1", START_S + 0.2 + SOON_S), Outgoing)


def test_the_same_front_door_again_hurries_nothing(sent: Asking) -> None:
    sent.follow("classify", route(), START_S + 0.2)
    assert due_s(sent) == START_S + FIRST_RETRY_S


def test_without_a_front_door_nothing_is_sent_until_there_is_one(asking: Asking) -> None:
    asking.follow("classify", route(group=0, front_door=()), START_S)
    for after_s in (0.0, 10.0, 100.0):
        assert asking.step("r1", START_S + after_s) is None
    asking.follow("classify", route(group=0), START_S + 101.0)
    assert isinstance(asking.step("r1", START_S + 101.0 + SOON_S), Outgoing)


def test_what_the_transport_did_not_take_is_tried_again_soon_and_is_no_attempt(asking: Asking) -> None:
    asking.follow("classify", route(), START_S)
    asking.step("r1", START_S)
    asking.not_sent("r1", START_S)
    assert due_s(asking) == START_S + SOON_S
    ended = asking.end("r1")
    assert ended is not None
    assert ended.attempts == 0


def test_no_route_in_time_means_that_there_is_no_such_task(asking: Asking) -> None:
    assert asking.step("r1", START_S) is None
    assert due_s(asking) == START_S + ROUTE_WAIT_S
    assert code_of(asking.step("r1", START_S + ROUTE_WAIT_S)) == ErrorCode.NO_ROUTE


def test_the_wait_for_a_route_begins_with_the_link() -> None:
    asking = Asking(PREFIX, "camera", "mqtt://broker:1883")
    asking.ask(question(), START_S)
    assert asking.step("r1", START_S + 2.0) is None
    asking.link_up(START_S + 3.0)
    assert asking.step("r1", START_S + 3.0) is None
    assert due_s(asking) == START_S + 3.0 + ROUTE_WAIT_S


def test_a_route_that_is_cleared_ends_what_waits_at_its_next_turn(sent: Asking) -> None:
    sent.follow("classify", None, START_S + 0.1)
    assert sent.step("r1", START_S + 0.1) is None  # an answer may be on its way
    assert code_of(sent.step("r1", START_S + FIRST_RETRY_S)) == ErrorCode.NO_ROUTE


def test_an_unavailable_task_ends_what_waits_at_once(sent: Asking) -> None:
    sent.follow("classify", route(why="no device fits m", front_door=()), START_S + 0.1)
    step = sent.step("r1", START_S + 0.1)
    assert step == ErrorBody(code=ErrorCode.NO_ROUTE, message="no device fits m")


def test_a_route_that_is_not_said_again_on_the_new_link_is_dropped(sent: Asking) -> None:
    sent.link_down()
    sent.link_up(START_S + 10.0)
    sent.forget(START_S + 10.0)
    assert isinstance(sent.step("r1", START_S + 10.0), Outgoing)  # until then it may be sent to
    assert due_s(sent) == START_S + 10.0 + ROUTE_WAIT_S
    sent.forget(START_S + 10.0 + ROUTE_WAIT_S)
    assert sent.step("r1", START_S + 10.0 + ROUTE_WAIT_S) is None
    assert due_s(sent) == START_S + 10.0 + RETURN_WAIT_S
    assert code_of(sent.step("r1", START_S + 10.0 + RETURN_WAIT_S)) == ErrorCode.NO_ROUTE


def test_a_dropped_route_that_nobody_asks_for_is_watched_until_it_could_be_there_again(sent: Asking) -> None:
    sent.end("r1")
    assert sent.tidy(START_S) == {"classify"}
    sent.link_down()
    sent.link_up(START_S + 10.0)
    assert due_s(sent) == START_S + 10.0 + ROUTE_WAIT_S
    sent.forget(due_s(sent))
    assert sent.tidy(START_S + 10.0 + ROUTE_WAIT_S) == {"classify"}
    assert due_s(sent) == START_S + 10.0 + RETURN_WAIT_S
    assert sent.tidy(due_s(sent)) == set()
    assert sent.next_s() is None


def test_who_asks_after_the_broker_lost_its_memory_waits_for_the_route_as_those_do_who_asked_before(
    sent: Asking,
) -> None:
    sent.end("r1")
    sent.link_down()
    sent.link_up(START_S + 10.0)
    sent.forget(START_S + 10.0 + ROUTE_WAIT_S)
    sent.tidy(START_S + 10.0 + ROUTE_WAIT_S)
    sent.ask(question("r2", now_s=START_S + 12.0), START_S + 12.0)
    assert sent.step("r2", START_S + 12.0) is None
    assert sent.step("r2", START_S + 14.0) is None
    sent.follow("classify", route(), START_S + 15.0)
    assert isinstance(sent.step("r2", START_S + 15.0), Outgoing)


def test_a_second_outage_before_the_route_is_there_again_changes_nothing_of_that(sent: Asking) -> None:
    sent.end("r1")
    sent.link_down()
    sent.link_up(START_S + 10.0)
    sent.forget(START_S + 10.0 + ROUTE_WAIT_S)
    sent.link_down()
    assert sent.next_s() is None
    assert sent.tidy(START_S + 10.0 + RETURN_WAIT_S) == {"classify"}
    sent.link_up(START_S + 20.0)
    assert due_s(sent) == START_S + 20.0 + RETURN_WAIT_S


@pytest.mark.parametrize("ahead", [False, True])
def test_a_route_that_is_said_again_stays_even_if_it_comes_ahead_of_the_link(sent: Asking, ahead: bool) -> None:  # noqa: FBT001 - a parameter
    sent.link_down()
    if ahead:
        sent.follow("classify", route(), START_S + 10.0)
    sent.link_up(START_S + 10.0)
    if not ahead:
        sent.follow("classify", route(), START_S + 10.0)
    sent.forget(START_S + 20.0)
    assert isinstance(sent.step("r1", START_S + 20.0), Outgoing)


def test_a_broker_that_lost_its_memory_costs_no_request(sent: Asking) -> None:
    sent.link_down()
    sent.link_up(START_S + 10.0)
    sent.forget(START_S + 12.0)
    assert sent.step("r1", START_S + 12.0) is None
    sent.follow("classify", route(), START_S + 15.0)  # the orchestrator reconnected
    assert isinstance(sent.step("r1", START_S + 15.0), Outgoing)


def test_a_route_of_an_older_term_changes_nothing(asking: Asking) -> None:
    asking.follow("classify", route(epoch=2), START_S)
    asking.follow("classify", route(epoch=1, front_door=(), why="so says somebody of long ago"), START_S)
    assert isinstance(asking.step("r1", START_S), Outgoing)


def test_what_was_unavailable_on_an_old_link_ends_nothing(asking: Asking) -> None:
    why = route(why="no device fits m", front_door=())
    asking.follow("classify", why, START_S)
    asking.link_down()
    assert asking.step("r1", START_S + 1.0) is None
    asking.link_up(START_S + 10.0)
    assert asking.step("r1", START_S + 10.0) is None
    asking.follow("classify", why, START_S + 10.1)
    assert code_of(asking.step("r1", START_S + 10.1)) == ErrorCode.NO_ROUTE


def test_what_waits_is_sent_again_at_once_when_the_link_is_back(sent: Asking) -> None:
    sent.link_down()
    assert sent.step("r1", START_S + 1.0) is None
    sent.link_up(START_S + 1.1)
    assert isinstance(sent.step("r1", START_S + 1.1), Outgoing)


@pytest.mark.parametrize(
    ("last", "watched"),
    [(route(), True), (route(front_door=()), True), (route(why="no device fits m"), False), (None, False)],
)
def test_after_the_last_request_only_a_task_that_is_served_is_watched(
    asking: Asking,
    last: Route | None,
    watched: bool,  # noqa: FBT001 - a parameter
) -> None:
    asking.ask(question("r2"), START_S)
    asking.follow("classify", last, START_S)
    asking.end("r1")
    assert asking.tidy(START_S) == {"classify"}
    asking.end("r2")
    assert asking.tidy(START_S) == ({"classify"} if watched else set())


def test_a_route_of_a_task_that_nobody_watches_is_not_kept(asking: Asking) -> None:
    asking.follow("other", route(), START_S)
    assert asking.tidy(START_S) == {"classify"}


@pytest.mark.parametrize(
    ("known", "link", "sentence"),
    [
        (route(), False, "no connection to the broker at mqtt://broker:1883"),
        (None, True, "route had not arrived"),
        (route(front_door=()), True, "still being loaded"),
        (route(), True, "no answer in time"),
    ],
)
def test_the_deadline_ends_it_and_says_why(known: Route | None, link: bool, sentence: str) -> None:  # noqa: FBT001 - a parameter
    asking = Asking(PREFIX, "camera", "mqtt://broker:1883")
    asking.link_up(START_S)
    asking.ask(question(deadline_s=0.5), START_S)
    if known:
        asking.follow("classify", known, START_S)
    if not link:
        asking.link_down()
    asking.step("r1", START_S)
    assert due_s(asking) <= START_S + 0.5
    step = asking.step("r1", START_S + 0.5)
    assert isinstance(step, ErrorBody)
    assert step.code == ErrorCode.DEADLINE_EXCEEDED
    assert sentence in step.message


def test_what_ended_is_not_ended_again(asking: Asking) -> None:
    assert asking.end("r1") is not None
    assert asking.end("r1") is None
    asking.undelivered("r1", START_S)
    assert asking.waiting == ()


def test_not_yet_is_no_answer_and_asks_again_when_it_says(sent: Asking) -> None:
    sent.told_to_wait("r1", 0.4, START_S + 0.1)
    assert due_s(sent) == START_S + 0.5
    sent.told_to_wait("r1", 60.0, START_S + 0.1)  # a retry that comes first stays
    assert isinstance(sent.step("r1", START_S + 0.5), Outgoing)
