"""Pending requests: sent, resent or given up, at times of the test's own clock."""

from __future__ import annotations

import pytest

from broker.given_inputs import Given, read_given
from broker.pending_requests import (
    FIRST_RETRY_S,
    LONGEST_RETRY_S,
    RETURN_WAIT_S,
    ROUTE_WAIT_S,
    SLOW_WAIT_S,
    SOON_S,
    PendingRequest,
    PendingRequests,
)
from broker.protocol.errors import ErrorCode, NotConnected
from broker.protocol.messages import MAX_EPOCH_JUMP, MAX_FENCE, ErrorBody, Route
from broker.protocol.specs import InputSpec
from broker.protocol.tensors import unpack
from broker.protocol.topics import CLIENT_REQUESTS, TASK_REQUESTS
from broker.transport.port import Outgoing

PREFIX = "s2m3/v1"
START_S = 1000.0
ROUTE = f"{PREFIX}/tasks/classify/route"


def bare_route(
    group: int = 1, epoch: int = 1, *, front_door: tuple[str, ...] = ("gw-a",), why: str | None = None
) -> Route:
    return Route(task="classify", epoch=epoch, generation=1, group=group, front_door=front_door, unavailable=why)


def request(name: str = "r1", *, now_s: float = START_S, deadline_s: float = 1000.0) -> PendingRequest:
    return PendingRequest(name, "classify", b"x", "image/jpeg", now_s, now_s + deadline_s)


@pytest.fixture
def pending() -> PendingRequests:
    """One request that waits, a link, and no route yet."""
    made = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    made.on_link_up(START_S)
    made.add(request(), START_S)
    return made


@pytest.fixture
def sent(pending: PendingRequests) -> PendingRequests:
    """One request that was sent at the start."""
    pending.on_route("classify", bare_route(), START_S)
    assert isinstance(pending.step("r1", START_S), Outgoing)
    return pending


def due_s(pending: PendingRequests) -> float:
    found = pending.next_deadline_s()
    assert found is not None
    return found


def code_of(step: Outgoing | ErrorBody | None) -> ErrorCode | None:
    return step.code if isinstance(step, ErrorBody) else None


def test_a_request_is_sent_when_its_route_comes(pending: PendingRequests) -> None:
    assert pending.step("r1", START_S) is None
    pending.on_route("classify", bare_route(), START_S + 0.1)
    message = pending.step("r1", START_S + 0.1)
    assert isinstance(message, Outgoing)
    assert message.topic == "s2m3/v1/tasks/classify/requests/camera/r1"
    assert message.response_topic == "s2m3/v1/clients/camera/results/r1"
    assert (message.correlation, message.token, message.expiry_s) == (b"r1", "r1", 1000)


def test_a_request_without_an_answer_is_resent_with_growing_delays(sent: PendingRequests) -> None:
    gaps_s = []
    now_s = START_S
    for _ in range(5):
        gaps_s.append(due_s(sent) - now_s)
        assert sent.step("r1", due_s(sent) - 0.001) is None
        now_s = due_s(sent)
        assert isinstance(sent.step("r1", now_s), Outgoing)
    assert gaps_s == [FIRST_RETRY_S, 2.0, 4.0, LONGEST_RETRY_S, LONGEST_RETRY_S]


def test_an_overloaded_device_ends_a_request_only_if_no_other_one_has_a_copy(sent: PendingRequests) -> None:
    second_s = due_s(sent)
    sent.step("r1", second_s)
    assert not sent.is_overloaded("r1", 30.0, second_s), "another device may compute the first"
    assert due_s(sent) == second_s + 30.0, "no copy before the time that the device says"
    assert sent.is_overloaded("r1", 30.0, second_s)


def test_a_copy_that_nobody_got_is_not_waited_for(sent: PendingRequests) -> None:
    sent.on_undelivered("r1", NAMED, START_S)
    sent.step("r1", due_s(sent))
    assert sent.is_overloaded("r1", 1.0, due_s(sent))


def test_a_first_retry_beyond_the_longest_is_kept() -> None:
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883", first_retry_s=60.0)
    pending.on_link_up(START_S)
    pending.add(request(), START_S)
    pending.on_route("classify", bare_route(), START_S)
    pending.step("r1", START_S)
    assert due_s(pending) == START_S + 60.0


def test_an_undelivered_request_is_resent_soon_each_time(sent: PendingRequests) -> None:
    now_s = START_S
    for _ in range(1100):  # two to the power of this is beyond a float
        sent.on_undelivered("r1", NAMED, now_s)
        assert due_s(sent) == now_s + SOON_S
        now_s = due_s(sent)
        assert isinstance(sent.step("r1", now_s), Outgoing)


def topic_of(step: Outgoing | ErrorBody | None) -> str:
    assert isinstance(step, Outgoing)
    return step.topic


@pytest.mark.parametrize("undelivered", [True, False], ids=["no front door reads it", "an access rule forbids it"])
def test_a_request_goes_to_its_other_topic_when_the_broker_refuses_one(
    sent: PendingRequests, *, undelivered: bool
) -> None:
    named, plain = f"{PREFIX}/tasks/classify/requests/camera/r1", f"{PREFIX}/tasks/classify/requests"
    if undelivered:
        sent.on_undelivered("r1", NAMED, START_S)
    sent.on_topic_refused(named, START_S)
    assert due_s(sent) == START_S + SOON_S
    assert topic_of(sent.step("r1", due_s(sent))) == plain
    sent.add(request("r2"), START_S)
    assert topic_of(sent.step("r2", START_S)) == plain, "it is remembered"
    sent.on_topic_refused(plain, START_S)
    assert due_s(sent) > START_S + SOON_S, "a broker that forbids both is not asked all the time"
    assert topic_of(sent.step("r2", due_s(sent))) == named.replace("r1", "r2")


def test_only_the_undelivered_request_is_expedited(sent: PendingRequests) -> None:
    sent.add(request("r2"), START_S)
    sent.step("r2", START_S)
    sent.on_undelivered("r1", NAMED, START_S)
    assert sent.step("r2", START_S + SOON_S) is None
    assert isinstance(sent.step("r1", START_S + SOON_S), Outgoing)


@pytest.mark.parametrize("new", [bare_route(group=2), bare_route(group=1, epoch=2)])
def test_a_new_front_door_gets_the_waiting_requests_soon(sent: PendingRequests, new: Route) -> None:
    sent.on_route("classify", new, START_S + 0.2)
    assert sent.step("r1", START_S + 0.2) is None
    assert due_s(sent) == START_S + 0.2 + SOON_S
    assert isinstance(sent.step("r1", START_S + 0.2 + SOON_S), Outgoing)


def test_the_same_front_door_again_expedites_nothing(sent: PendingRequests) -> None:
    sent.on_route("classify", bare_route(), START_S + 0.2)
    assert due_s(sent) == START_S + FIRST_RETRY_S


def test_without_a_front_door_nothing_is_sent_until_there_is_one(pending: PendingRequests) -> None:
    pending.on_route("classify", bare_route(group=0, front_door=()), START_S)
    for after_s in (0.0, 10.0, 100.0):
        assert pending.step("r1", START_S + after_s) is None
    pending.on_route("classify", bare_route(group=0), START_S + 101.0)
    assert isinstance(pending.step("r1", START_S + 101.0 + SOON_S), Outgoing)


def test_a_refused_message_is_sent_again_soon_and_does_not_count_as_an_attempt(pending: PendingRequests) -> None:
    pending.on_route("classify", bare_route(), START_S)
    pending.step("r1", START_S)
    pending.on_not_sent("r1", START_S)
    assert due_s(pending) == START_S + SOON_S
    ended = pending.remove("r1")
    assert ended is not None
    assert ended.attempts == 0


def test_no_route_in_time_means_that_there_is_no_such_task(pending: PendingRequests) -> None:
    assert pending.step("r1", START_S) is None
    pending.on_subscribed(ROUTE, START_S + 0.1)
    assert due_s(pending) == START_S + 0.1 + ROUTE_WAIT_S
    assert code_of(pending.step("r1", due_s(pending))) == ErrorCode.NO_ROUTE


def test_a_broker_that_is_slow_to_answer_the_subscription_hides_no_task(pending: PendingRequests) -> None:
    assert pending.step("r1", START_S) is None
    assert pending.step("r1", START_S + 2.0) is None
    pending.on_subscribed(ROUTE, START_S + 2.0)
    pending.on_route("classify", bare_route(), START_S + 2.1)
    assert isinstance(pending.step("r1", START_S + 2.1), Outgoing)


def test_a_broker_that_never_answers_the_subscription_ends_the_wait_all_the_same(pending: PendingRequests) -> None:
    assert pending.step("r1", START_S) is None
    assert due_s(pending) == START_S + SLOW_WAIT_S
    assert code_of(pending.step("r1", START_S + SLOW_WAIT_S)) == ErrorCode.NO_ROUTE


def test_the_wait_for_a_route_begins_with_the_link() -> None:
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    pending.add(request(), START_S)
    assert pending.step("r1", START_S + 2.0) is None
    pending.on_link_up(START_S + 3.0)
    assert pending.step("r1", START_S + 3.0) is None
    assert due_s(pending) == START_S + 3.0 + ROUTE_WAIT_S


def test_a_cleared_route_ends_requests_at_their_next_turn(sent: PendingRequests) -> None:
    sent.on_route("classify", None, START_S + 0.1)
    assert sent.step("r1", START_S + 0.1) is None  # an answer may be on its way
    assert code_of(sent.step("r1", START_S + FIRST_RETRY_S)) == ErrorCode.NO_ROUTE


def test_an_unavailable_task_ends_requests_at_once(sent: PendingRequests) -> None:
    sent.on_route("classify", bare_route(why="no device fits m", front_door=()), START_S + 0.1)
    step = sent.step("r1", START_S + 0.1)
    assert step == ErrorBody(code=ErrorCode.NO_ROUTE, message="no device fits m")


def test_a_route_that_the_broker_does_not_publish_again_on_the_new_link_is_dropped(sent: PendingRequests) -> None:
    sent.on_link_down("it is down", is_final=False)
    sent.on_link_up(START_S + 10.0)
    sent.drop_unconfirmed_routes(START_S + 10.0)
    assert isinstance(sent.step("r1", START_S + 10.0), Outgoing)  # until then it may be sent to
    assert due_s(sent) == START_S + 10.0 + ROUTE_WAIT_S
    sent.drop_unconfirmed_routes(START_S + 10.0 + ROUTE_WAIT_S)
    assert sent.step("r1", START_S + 10.0 + ROUTE_WAIT_S) is None
    assert due_s(sent) == START_S + 10.0 + RETURN_WAIT_S
    assert code_of(sent.step("r1", START_S + 10.0 + RETURN_WAIT_S)) == ErrorCode.NO_ROUTE


def test_a_dropped_route_without_requests_is_watched_until_it_could_be_back(sent: PendingRequests) -> None:
    sent.remove("r1")
    assert sent.prune_watches(START_S) == {"classify"}
    sent.on_link_down("it is down", is_final=False)
    sent.on_link_up(START_S + 10.0)
    assert due_s(sent) == START_S + 10.0 + ROUTE_WAIT_S
    sent.drop_unconfirmed_routes(due_s(sent))
    assert sent.prune_watches(START_S + 10.0 + ROUTE_WAIT_S) == {"classify"}
    assert due_s(sent) == START_S + 10.0 + RETURN_WAIT_S
    assert sent.prune_watches(due_s(sent)) == set()
    assert sent.next_deadline_s() is None


def test_a_request_after_the_broker_lost_its_memory_waits_for_the_route_as_earlier_requests_do(
    sent: PendingRequests,
) -> None:
    sent.remove("r1")
    sent.on_link_down("it is down", is_final=False)
    sent.on_link_up(START_S + 10.0)
    sent.drop_unconfirmed_routes(START_S + 10.0 + ROUTE_WAIT_S)
    sent.prune_watches(START_S + 10.0 + ROUTE_WAIT_S)
    sent.add(request("r2", now_s=START_S + 12.0), START_S + 12.0)
    assert sent.step("r2", START_S + 12.0) is None
    assert sent.step("r2", START_S + 14.0) is None
    sent.on_route("classify", bare_route(), START_S + 15.0)
    assert isinstance(sent.step("r2", START_S + 15.0), Outgoing)


def test_a_second_outage_before_the_route_is_back_does_not_shorten_the_wait(sent: PendingRequests) -> None:
    sent.remove("r1")
    sent.on_link_down("it is down", is_final=False)
    sent.on_link_up(START_S + 10.0)
    sent.drop_unconfirmed_routes(START_S + 10.0 + ROUTE_WAIT_S)
    sent.on_link_down("it is down", is_final=False)
    assert sent.next_deadline_s() is None
    assert sent.prune_watches(START_S + 10.0 + RETURN_WAIT_S) == {"classify"}
    sent.on_link_up(START_S + 20.0)
    assert due_s(sent) == START_S + 20.0 + RETURN_WAIT_S


@pytest.mark.parametrize("ahead", [False, True])
def test_a_route_that_is_published_again_stays_even_ahead_of_the_link(sent: PendingRequests, *, ahead: bool) -> None:
    sent.on_link_down("it is down", is_final=False)
    if ahead:
        sent.on_route("classify", bare_route(), START_S + 10.0)
    sent.on_link_up(START_S + 10.0)
    if not ahead:
        sent.on_route("classify", bare_route(), START_S + 10.0)
    sent.drop_unconfirmed_routes(START_S + 20.0)
    assert isinstance(sent.step("r1", START_S + 20.0), Outgoing)


def test_a_broker_that_lost_its_memory_costs_no_request(sent: PendingRequests) -> None:
    sent.on_link_down("it is down", is_final=False)
    sent.on_link_up(START_S + 10.0)
    sent.drop_unconfirmed_routes(START_S + 12.0)
    assert sent.step("r1", START_S + 12.0) is None
    sent.on_route("classify", bare_route(), START_S + 15.0)  # the orchestrator reconnected
    assert isinstance(sent.step("r1", START_S + 15.0), Outgoing)


def test_a_route_of_an_older_term_changes_nothing(pending: PendingRequests) -> None:
    pending.on_route("classify", bare_route(epoch=2), START_S)
    pending.on_route("classify", bare_route(epoch=1, front_door=(), why="from an old term"), START_S)
    assert isinstance(pending.step("r1", START_S), Outgoing)


def test_a_lie_that_a_task_is_unavailable_ends_with_the_leaders_route(pending: PendingRequests) -> None:
    pending.on_route("classify", bare_route(epoch=1000, front_door=(), why="a lie"), START_S)
    pending.on_route("classify", bare_route(epoch=1), START_S)
    assert isinstance(pending.step("r1", START_S), Outgoing)


@pytest.mark.parametrize("known", [True, False])
def test_a_route_of_a_term_that_no_leader_can_have_come_to_changes_nothing(
    pending: PendingRequests, *, known: bool
) -> None:
    if known:
        pending.on_route("classify", bare_route(epoch=2), START_S)
    for epoch in (MAX_EPOCH_JUMP + 3, MAX_FENCE):
        pending.on_route("classify", bare_route(epoch=epoch, front_door=(), why="a lie"), START_S)
    pending.on_route("classify", bare_route(epoch=3), START_S)
    assert isinstance(pending.step("r1", START_S), Outgoing)


@pytest.mark.parametrize("cleared", [True, False])
def test_a_leader_that_a_lie_drove_beyond_a_million_terms_is_followed(
    pending: PendingRequests, *, cleared: bool
) -> None:
    """Also by a client that starts then, or whose route a stranger cleared."""
    far = bare_route(epoch=MAX_EPOCH_JUMP + 1)
    if cleared:
        pending.on_route("classify", bare_route(epoch=1), START_S)
        pending.on_route("classify", far, START_S)
        pending.on_route("classify", None, START_S)
    pending.on_route("classify", far, START_S)
    assert isinstance(pending.step("r1", START_S), Outgoing)


def test_a_task_that_was_unavailable_on_an_old_link_ends_no_request(pending: PendingRequests) -> None:
    why = bare_route(why="no device fits m", front_door=())
    pending.on_route("classify", why, START_S)
    pending.on_link_down("it is down", is_final=False)
    assert pending.step("r1", START_S + 1.0) is None
    pending.on_link_up(START_S + 10.0)
    assert pending.step("r1", START_S + 10.0) is None
    pending.on_route("classify", why, START_S + 10.1)
    assert code_of(pending.step("r1", START_S + 10.1)) == ErrorCode.NO_ROUTE


def test_requests_are_resent_at_once_when_the_link_is_back(sent: PendingRequests) -> None:
    sent.on_link_down("it is down", is_final=False)
    assert sent.step("r1", START_S + 1.0) is None
    sent.on_link_up(START_S + 1.1)
    assert isinstance(sent.step("r1", START_S + 1.1), Outgoing)


@pytest.mark.parametrize(
    ("last", "watched"),
    [
        (bare_route(), True),
        (bare_route(front_door=()), True),
        (bare_route(why="no device fits m"), False),
        (None, False),
    ],
)
def test_after_the_last_request_only_a_task_that_is_served_is_watched(
    pending: PendingRequests,
    last: Route | None,
    watched: bool,  # noqa: FBT001 - a parameter
) -> None:
    pending.add(request("r2"), START_S)
    pending.on_route("classify", last, START_S)
    pending.remove("r1")
    assert pending.prune_watches(START_S) == {"classify"}
    pending.remove("r2")
    assert pending.prune_watches(START_S) == ({"classify"} if watched else set())


def test_a_route_of_a_task_that_is_not_watched_is_not_kept(pending: PendingRequests) -> None:
    pending.on_route("other", bare_route(), START_S)
    assert pending.prune_watches(START_S) == {"classify"}


@pytest.mark.parametrize(
    ("known", "link", "sentence"),
    [
        (bare_route(), False, "no connection to the broker: it is down"),
        (None, True, "route had not arrived"),
        (bare_route(front_door=()), True, "still being loaded"),
        (bare_route(), True, "no answer in time"),
    ],
)
def test_the_deadline_ends_a_request_with_the_reason(known: Route | None, link: bool, sentence: str) -> None:  # noqa: FBT001 - a parameter
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    pending.on_link_up(START_S)
    pending.add(request(deadline_s=0.5), START_S)
    if known:
        pending.on_route("classify", known, START_S)
    if not link:
        pending.on_link_down("it is down", is_final=False)
    pending.step("r1", START_S)
    assert due_s(pending) <= START_S + 0.5
    step = pending.step("r1", START_S + 0.5)
    assert isinstance(step, ErrorBody)
    assert step.code == ErrorCode.DEADLINE_EXCEEDED
    assert sentence in step.message


def test_a_removed_request_is_not_removed_again(pending: PendingRequests) -> None:
    assert pending.remove("r1") is not None
    assert pending.remove("r1") is None
    pending.on_undelivered("r1", NAMED, START_S)
    assert pending.ids == ()


def test_a_request_is_resent_when_the_answer_says_that_the_task_is_not_served_yet(sent: PendingRequests) -> None:
    sent.retry_after("r1", 0.4, START_S + 0.1)
    assert due_s(sent) == START_S + 0.5
    sent.retry_after("r1", 60.0, START_S + 0.1)  # a retry that comes first stays
    assert isinstance(sent.step("r1", START_S + 0.5), Outgoing)


NAMED = "s2m3/v1/tasks/classify/requests/camera/r1"
PLAIN = "s2m3/v1/tasks/classify/requests"
REASONS = ("Not authorized", "Quota exceeded", "Topic name invalid")


@pytest.mark.parametrize("reason", REASONS)
def test_a_request_that_the_broker_refuses_on_both_topics_ends_at_once(sent: PendingRequests, reason: str) -> None:
    sent.on_denied(NAMED, reason, "r1", START_S)
    again = sent.step("r1", START_S)
    assert isinstance(again, Outgoing)
    assert again.topic == PLAIN
    sent.on_denied(PLAIN, reason, "r1", START_S)
    assert sent.step("r1", START_S) == ErrorBody(
        code=ErrorCode.NO_ROUTE, message=f"the broker refused {NAMED}: {reason}"
    )


def test_a_client_whose_answers_the_broker_forbids_has_no_requests_until_the_next_link(sent: PendingRequests) -> None:
    sent.on_denied("s2m3/v1/clients/camera/results/+", "Not authorized", None, START_S)
    step = sent.step("r1", START_S)
    assert isinstance(step, ErrorBody)
    assert step.message == (
        "the broker refused s2m3/v1/clients/camera/results/+: Not authorized; without it this client can't read its "
        "answers: allow it"
    )
    sent.on_link_down("it is down", is_final=False)
    sent.on_link_up(START_S)
    assert isinstance(sent.step("r1", START_S), Outgoing)


def test_a_client_that_may_not_read_the_route_sends_without_it(pending: PendingRequests) -> None:
    pending.on_denied("s2m3/v1/tasks/classify/route", "Not authorized", None, START_S)
    assert isinstance(pending.step("r1", START_S), Outgoing)
    assert due_s(pending) == START_S + FIRST_RETRY_S
    late = pending.step("r1", START_S + 1000.0)
    assert code_of(late) == ErrorCode.DEADLINE_EXCEEDED


def test_a_final_reason_ends_every_request_at_once_until_the_link_is_up_again() -> None:
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    pending.add(request(), START_S)
    pending.on_link_down("wrong password", is_final=True)
    step = pending.step("r1", START_S)
    assert isinstance(step, ErrorBody)
    assert (step.code, step.message) == (ErrorCode.NO_ROUTE, "wrong password")
    pending.on_link_up(START_S)
    assert not isinstance(pending.step("r1", START_S), ErrorBody)


def test_without_an_attempt_the_reason_is_that_the_broker_has_not_answered() -> None:
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    pending.add(request(deadline_s=0.5), START_S)
    step = pending.step("r1", START_S + 0.5)
    assert isinstance(step, ErrorBody)
    assert "the broker at mqtt://broker:1883 has not answered yet" in step.message


# --- asked requests ---

GIVEN = read_given(b"\xff\xd8\xff picture")


def asked(name: str = "r1", *, given: Given = GIVEN, deadline_s: float = 1000.0) -> PendingRequest:
    return PendingRequest(name, "classify", b"", "", START_S, START_S + deadline_s, given=given)


def ended(pending: PendingRequests, request: str = "r1") -> PendingRequest:
    found = pending.remove(request)
    assert found is not None
    return found


def test_an_asked_request_ends_at_the_first_failed_attempt_and_others_wait() -> None:
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    pending.add(asked(), START_S)
    pending.add(request("r2"), START_S)
    assert pending.step("r1", START_S) is None
    pending.on_link_down("nothing listens", is_final=False, is_absent=True)
    step = pending.step("r1", START_S)
    assert isinstance(step, ErrorBody)
    assert pending.step("r2", START_S) is None
    failure = ended(pending).failure
    assert isinstance(failure, NotConnected)
    assert str(failure) == step.message == "nothing listens"
    assert failure.is_absent


@pytest.mark.parametrize("is_taken", [False, True])
def test_an_asked_request_outlives_a_lost_link_unless_another_client_has_the_id(*, is_taken: bool) -> None:
    pending = PendingRequests(PREFIX, "camera", "mqtt://broker:1883")
    pending.on_link_up(START_S)
    pending.add(asked(), START_S)
    pending.on_link_down("it is down", is_final=False, is_taken=is_taken)
    assert isinstance(pending.step("r1", START_S), ErrorBody) == is_taken


def test_an_asked_request_names_its_inputs_as_the_route_does_and_keeps_its_bytes(pending: PendingRequests) -> None:
    pending.add(asked("r2", given=read_given(b"a picture", "a cat")), START_S)
    inputs = {"photo": InputSpec(kind="image", bytes=10), "caption": InputSpec(kind="text", bytes=10)}
    pending.on_route("classify", bare_route().model_copy(update={"inputs": inputs}), START_S)
    first = pending.step("r2", START_S)
    assert isinstance(first, Outgoing)
    assert set(unpack(first.payload)[0]) == {"photo", "caption"}
    pending.on_route("classify", bare_route(group=2), START_S)
    again = pending.step("r2", START_S + LONGEST_RETRY_S)
    assert isinstance(again, Outgoing)
    assert again.payload == first.payload


def test_an_asked_request_is_sent_without_a_route_and_ends_when_nobody_takes_it(pending: PendingRequests) -> None:
    """Mosquitto with a file of rules lets a client subscribe to a route that it may not read."""
    pending.add(asked("r2"), START_S)
    pending.on_subscribed(ROUTE, START_S)
    now_s = START_S + ROUTE_WAIT_S
    for topic in (CLIENT_REQUESTS, TASK_REQUESTS):
        message = pending.step("r2", now_s)
        assert isinstance(message, Outgoing)
        assert topic.match(PREFIX, message.topic) is not None
        pending.on_undelivered("r2", message.topic, now_s)
        pending.on_topic_refused(message.topic, now_s)
        now_s += SOON_S
    step = pending.step("r2", now_s)
    assert isinstance(step, ErrorBody)
    assert (step.code, step.message[:26]) == (ErrorCode.NO_ROUTE, "no task is called classify")


def test_a_silence_without_any_answer_before_names_the_rule_that_may_hide_them(sent: PendingRequests) -> None:
    late = sent.step("r1", START_S + 1000.0)
    assert isinstance(late, ErrorBody)
    assert "an access rule of the broker may hide s2m3/v1/clients/camera/results/+ from it" in late.message
    sent.answered = True
    late = sent.step("r1", START_S + 1000.0)
    assert isinstance(late, ErrorBody)
    assert late.message == "no answer in time; allow more time or add devices"
