"""The way of messages out of an agent: an answer without room waits, and its request is not over before."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol import codec
from broker.protocol.codec import RawInput, decode, decode_tensors
from broker.protocol.errors import ErrorCode, MessageTooLarge, QueueFull
from broker.protocol.messages import NodeDone, Result
from broker.transport.port import Outgoing
from edge_agent import events, sender, wire
from edge_agent.sender import Sender
from tests.builders import PREFIX, done, node_inputs

MESSAGE = node_inputs()


def answer(request: str = "r-1", deadline_s: float = 1e9) -> events.Reply:
    result = Result(request=request, task="t", answer={"label": request})
    return events.Reply(f"{PREFIX}/clients/c/results/{request}", b"1", result, deadline_s)


def done_of(request: str = "r-1") -> events.Send:
    return events.Send("gw-b", done(MESSAGE).model_copy(update={"request": request}), {}, 1e9)


class Connection:
    """A data connection that may be full, or take no large message."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.full = False
        self.limit_bytes = 10**6

    def publish(self, message: Outgoing) -> None:
        if self.full:
            raise QueueFull("full")
        if message.packet_bytes > self.limit_bytes:
            raise MessageTooLarge(topic=message.topic, size_bytes=message.packet_bytes, limit_bytes=self.limit_bytes)
        self.sent.append(message)

    @property
    def said(self) -> list[str]:
        """The requests, in order, that were answered (a), refused (their code) or told to be done (d)."""
        said = []
        for message in self.sent:
            if "/results/" in message.topic:
                result = decode(Result, message.payload)
                said.append(f"{result.error.code if result.error else 'a'} {result.request}")
            else:
                told, _ = decode_tensors(message.payload)
                assert isinstance(told, NodeDone)
                said.append(f"d {told.request}")
        return said


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def sending(connection: Connection) -> Sender:
    return Sender("gw-a", PREFIX, connection.publish, report=lambda _: None)


def test_inputs_that_are_taken_are_packed_once_and_no_failure_is_made_of_them(
    connection: Connection, sending: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counting(owner: object, name: str) -> None:
        really = getattr(owner, name)

        def call(*args: Any, **named: Any) -> Any:
            made.append(name)
            return really(*args, **named)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((codec, "pack"), (codec, "unpack"), (wire, "failure"), (sender, "failure")):
        counting(owner, name)
    sending.send(events.Send("gw-b", MESSAGE, {"image": RawInput(b"x", "image/jpeg")}, 1e9))
    assert (len(connection.sent), made) == (1, ["pack"])
    connection.limit_bytes = 1
    sending.send(events.Send("gw-b", MESSAGE, {"image": RawInput(b"x", "image/jpeg")}, 1e9))
    assert made == ["pack", "pack", "failure"]


def test_a_request_is_done_only_after_its_answer_was_handed_over(connection: Connection, sending: Sender) -> None:
    connection.full = True
    sending.reply(answer("r-1"))
    connection.full = False
    sending.send(done_of("r-1"))
    sending.send(done_of("r-2"))
    sending.reply(answer("r-3"))  # answers keep their order
    assert connection.said == ["d r-2"]
    sending.retry(0.0)
    assert connection.said == ["d r-2", "a r-1", "d r-1", "a r-3"]
    assert not sending.dropped


def test_kept_answers_are_tried_until_nobody_waits_for_them(connection: Connection, sending: Sender) -> None:
    connection.full = True
    sending.reply(answer("r-1", deadline_s=10.0))
    sending.send(done_of("r-1"))
    sending.reply(answer("r-2", deadline_s=1e6))
    sending.retry(11.0)
    connection.full = False
    sending.retry(100.0)
    assert connection.said == ["d r-1", "a r-2"]
    assert sending.dropped == {"result_not_sent": 1}


def test_when_too_many_answers_are_kept_the_next_ends_in_an_error(
    connection: Connection, sending: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "MAX_KEPT", 1)
    connection.full = True
    sending.reply(answer("r-1"))
    connection.full = False  # for small messages, which have room of their own
    sending.reply(answer("r-2"))
    assert connection.said == [f"{ErrorCode.OVERLOADED} r-2"]


def test_an_answer_that_is_too_large_ends_in_an_error(connection: Connection, sending: Sender) -> None:
    connection.limit_bytes = 1_000
    large = answer().result.model_copy(update={"answer": {"label": "x" * 2_000}})
    sending.reply(events.Reply(answer().reply_to, b"1", large, 1e9))
    assert connection.said == [f"{ErrorCode.TOO_LARGE} r-1"]
