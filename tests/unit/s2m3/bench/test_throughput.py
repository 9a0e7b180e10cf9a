"""The load generator of the throughput bench without a site: the counts, and when requests are sent."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, cast

from broker.client import Client, Response
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, Result
from s2m3.bench.throughput import Outcome, offer, saturate


def answered(latency_s: float) -> Response:
    return Response(Result(request="r", task="t", answer={"label": "a"}), latency_s, 1)


def failed(code: ErrorCode) -> Response:
    return Response(Result(request="r", task="t", error=ErrorBody(code=code, message="m")), 0.1, 1)


class Sensor:
    """Answers nothing until everything was sent."""

    def __init__(self, wanted: int, response: Response) -> None:
        self.sent: list[str] = []
        self._futures: list[Future[Response]] = []
        self._wanted, self._response = wanted, response

    def submit(self, task: str, inputs: Mapping[str, Any], *, deadline_s: float) -> Future[Response]:
        assert inputs == {}
        assert deadline_s > 0
        self.sent.append(task)
        self._futures.append(Future())
        if len(self.sent) >= self._wanted:
            for future in self._futures:
                future.set_result(self._response)
            self._futures.clear()
        return self._futures[-1] if self._futures else _done(self._response)


def _done(response: Response) -> Future[Response]:
    future: Future[Response] = Future()
    future.set_result(response)
    return future


def test_only_answers_before_the_deadline_are_goodput() -> None:
    outcome = Outcome()
    for response in (answered(0.5), answered(1.5), failed(ErrorCode.OVERLOADED), failed(ErrorCode.OVERLOADED)):
        outcome.count(response, deadline_s=1.0)
    assert (outcome.offered, outcome.in_time, outcome.late) == (4, 1, 1)
    assert outcome.errors == {"overloaded": 2}
    assert outcome.latency_s == [0.5]


def test_an_open_loop_sends_at_its_rates_though_nothing_is_answered() -> None:
    sensor = Sensor(6, answered(0.1))
    rates = {"a": 200.0, "b": 100.0}
    outcomes = offer(cast("Client", sensor), rates, {"a": {}, "b": {}}, seconds=0.02, deadline_s=1.0)
    assert (outcomes["a"].in_time, outcomes["b"].in_time) == (4, 2)
    assert sensor.sent[:3] == ["a", "b", "a"]


def test_a_closed_loop_takes_the_tasks_in_turn_and_counts_answers_only() -> None:
    sensor = Sensor(4, failed(ErrorCode.OVERLOADED))
    assert saturate(cast("Client", sensor), [("a", {}), ("b", {})], seconds=0.2, in_flight=4) == 0
    assert sensor.sent[:4] == ["a", "b", "a", "b"]
