"""Requests of one's own in a replay: the answers before any fault, and how a response is judged by them."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.client import Response
from broker.protocol.errors import BadFile
from broker.protocol.messages import ErrorBody, Result
from s2m3.testbed.proxy import LinkShape
from s2m3.testbed.replay import run, stage
from s2m3.testbed.replay.library import Request, load_scenario
from s2m3.testbed.replay.recording import Outcome, Recording
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.requests import FolderRequest, Wanted
from s2m3.testbed.replay.scenario import Expect, FleetDevice, Scenario
from s2m3.testbed.site import SiteFailed
from tests.builders import assignment, module

SCENARIO = Scenario.model_validate(
    {
        "name": "own",
        "fleet": [{"id": "gw-a"}, {"id": "gw-b"}],
        "tasks": ["look.yaml"],
        "load": {"rate_per_s": 1, "duration_s": 10, "deadline_s": 1},
    }
)


def response(answer: Any = None, code: str | None = None, revision: str | None = None) -> Response:
    error = ErrorBody.model_validate({"code": code, "message": "so it is"}) if code else None
    return Response(Result(request="r", task="look", answer=answer, error=error, revision=revision), 0.1, 1)


def request(name: str, folder: Path) -> FolderRequest:
    (folder / f"{name}.txt").write_text(name)
    return FolderRequest("look", "folder", name, (("text", folder / f"{name}.txt"),))


def test_what_the_site_answers_before_any_fault_is_wanted(tmp_path: Path) -> None:
    def ask(_: str, inputs: Any, **__: float) -> Response:
        return response({"label": inputs["text"].data.decode()})

    here = cast("Any", SimpleNamespace(client=SimpleNamespace(request=ask)))
    asked = [request(f"r-{number}", tmp_path) for number in range(10)]
    found = run._unfailed(asked, here)
    assert [found[each].answer for each in asked] == [{"label": each.name} for each in asked]


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        ("bad_input", BadFile, r"^folder/r: look doesn't answer it, without any failure: bad_input: so it is; correct"),
        ("too_large", BadFile, "too_large"),
        ("no_route", SiteFailed, "folder/r: look doesn't answer it, without any failure: no_route: so it is"),
    ],
)
def test_a_request_that_is_refused_without_a_fault_is_a_wrong_file_or_a_site_that_fails(
    tmp_path: Path, code: str, kind: type[Exception], sentence: str
) -> None:
    here = cast("Any", SimpleNamespace(client=SimpleNamespace(request=lambda *_, **__: response(code=code))))
    with pytest.raises(kind, match=sentence):
        run._unfailed([request("r", tmp_path)], here)


def test_an_answer_is_judged_by_its_revision_and_a_wrong_one_is_told(tmp_path: Path) -> None:
    asked: Request = request("r", tmp_path)
    first, later = {asked: Wanted(text="a")}, {"0123456789ab": {asked: Wanted(text="b")}}
    outcomes: list[Outcome] = []
    for answer, revision in (("a", None), ("b", None), ("b", "0123456789ab"), ("a", "0123456789ab")):
        future: Future[Response] = Future()
        future.set_result(response({"label": answer}, revision=revision))
        outcomes.append(run._outcome((asked, 0.0, future), SCENARIO, first, later))
    assert [each.ending for each in outcomes] == ["right", "wrong", "right", "wrong"]
    found = report(Recording("own", 0, 0.0, 9.0, outcomes, [], [], 0), Expect(served_at_end=False))
    assert list(found.why_not) == [
        "wrong: 2, expected at most 0; the first: look: folder/r: {'label': 'b'}, expected 'a'"
    ]


def test_a_device_has_the_link_and_the_speed_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_own_flops_per_s", {"torch": 4e9, "onnx": 1e9}.__getitem__)
    slow = FleetDevice(id="gw-a", compute_flops_per_s=1e9, bandwidth_bits_per_s=2e7, latency_s=0.01)
    assert stage._speed_of(slow) == 0.25
    assert stage._speed_of(slow.model_copy(update={"engine": "onnx"})) == 1.0
    assert stage._speed_of(slow.model_copy(update={"compute_flops_per_s": 1e12})) == 1.0, "no faster than this machine"
    assert stage._speed_of(FleetDevice(id="gw-a", speed=0.5)) == 0.5
    assert stage._link_of(slow) == LinkShape(delay_s=0.01, up_bits_per_s=2e7, down_bits_per_s=2e7)
    assert stage._link_of(FleetDevice(id="gw-a")) == LinkShape()


def test_agents_get_the_weights_of_the_scenario_and_the_others_their_own() -> None:
    weights = {"models": "/srv/models", "weights": {"hub": ["mine"]}, "downloads": {"limit": "1GiB"}}
    made = stage.Stage(load_scenario("slow-device").changed(**weights))
    for config in made._configs():
        assert (config.models, config.weights.hub, config.downloads.limit) == ("/srv/models", ("mine",), 2**30)
    for config in stage.Stage(load_scenario("slow-device"))._configs():
        assert (config.models, config.weights.hub, config.bandwidth_bits_per_s) == (None, ("catalogue",), None)


def test_a_device_that_joins_has_settled_when_it_is_ready_or_got_nothing_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    heartbeats: dict[str, Any] = {}
    given: dict[str, Any] = {}
    ready: set[str] = set()
    seen = cast("Any", SimpleNamespace(heartbeats=heartbeats, assignments=given, ready=lambda _: ready))
    joined_s: dict[str, float] = {}
    assert run._have_settled(seen, frozenset(), joined_s)
    assert not run._have_settled(seen, {"gw-c"}, joined_s), "it isn't there"
    heartbeats["gw-c"] = None
    assert not run._have_settled(seen, {"gw-c"}, joined_s), "it may get modules"
    given["gw-c"] = assignment(module("m"))
    assert not run._have_settled(seen, {"gw-c"}, joined_s), "it loads them"
    ready.add(module("m").key)
    assert run._have_settled(seen, {"gw-c"}, joined_s)
    given.clear()
    now_s[0] += run.GIVEN_S
    assert run._have_settled(seen, {"gw-c"}, joined_s), "it gets none"


def test_scenarios_with_a_device_that_joins_share_no_site() -> None:
    made = stage.Stage(load_scenario("slow-device"))
    assert made.fits(load_scenario("slow-device"))
    joining = load_scenario("device-joins")
    assert not stage.Stage(joining).fits(joining)
