"""The bench of batches without a site: its counts, and when batches pay."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from broker.client import Response
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, Result
from edge_agent.config import AgentConfig
from s2m3.bench import batch
from s2m3.catalogue import load_task
from s2m3.testbed.site import SiteFailed

TASK = load_task("pocket/classify")


def answered(label: str, score: float) -> Response:
    return Response(Result(request="r", task="t", answer={"label": label, "score": score}), 0.5, 1)


def failed() -> Response:
    return Response(Result(request="r", task="t", error=ErrorBody(code=ErrorCode.OVERLOADED, message="m")), 0.5, 1)


class Camera:
    """A client of a site: requests that are alone get one response, those under way another one."""

    def __init__(self, alone: Response, under_way: Response) -> None:
        self._alone, self._under_way = alone, under_way

    def request(self, _task: str, _inputs: Mapping[str, Any], *, deadline_s: float) -> Response:
        assert deadline_s > 0
        return self._alone

    def submit(self, _task: str, _inputs: Mapping[str, Any], *, deadline_s: float) -> Future[Response]:
        assert deadline_s > 0
        future: Future[Response] = Future()
        future.set_result(self._under_way)
        return future


def measured(monkeypatch: pytest.MonkeyPatch, alone: Response, *under_way: Response) -> dict[str, Any]:
    """A report where requests under way get these responses: without batches, and with them."""
    cameras = [Camera(alone, each) for each in under_way]
    agents: list[AgentConfig] = []

    def site(_broker: str, configs: list[AgentConfig], *, spares: bool) -> AbstractContextManager[Any]:
        assert not spares
        agents.extend(configs)
        seen = SimpleNamespace(devices={})
        return nullcontext(SimpleNamespace(observer=seen, connection=None, serve=lambda _: None))

    monkeypatch.setattr(batch, "Site", site)
    monkeypatch.setattr(batch, "Client", lambda _: nullcontext(cameras.pop(0)))
    monkeypatch.setattr(batch, "WARM_UP_S", 0.0)
    found = batch.measure(
        TASK, {"accelerator": "cpu"}, batch=4, in_flight=2, seconds=0.05, broker="mosquitto", progress=lambda _: None
    )
    assert [(each.batch, each.cache, each.accelerator) for each in agents] == [(1, 0, "cpu"), (4, 0, "cpu")]
    return found


def test_the_answers_in_batches_are_compared_with_those_to_requests_that_were_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = measured(monkeypatch, answered("cat", 0.5), answered("cat", 0.5), answered("cat", 0.625))["batched"]
    assert found["same_answers"] == found["answers"] > 0
    assert found["largest_score_difference"] == 0.125
    found = measured(monkeypatch, answered("cat", 0.5), answered("cat", 0.5), answered("dog", 0.5))
    assert (found["batched"]["same_answers"], found["ok"]) == (0, False)


def test_batches_whose_requests_fail_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "GOAL", 0.0)
    assert measured(monkeypatch, answered("cat", 0.5), answered("cat", 0.5), answered("cat", 0.5))["ok"]
    found = measured(monkeypatch, answered("cat", 0.5), answered("cat", 0.5), failed())
    assert found["batched"]["errors"]["overloaded"] > 0
    assert (found["batched"]["answers"], found["batched"]["largest_score_difference"], found["ok"]) == (0, None, False)


def test_a_request_that_fails_alone_ends_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SiteFailed, match="alone failed"):
        measured(monkeypatch, failed(), failed(), failed())
