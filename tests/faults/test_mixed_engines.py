"""A real site of two engines: one agent runs torch, one runs ONNX exports, and either answers when the other dies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.export.compare import same_answer
from s2m3.export.write import export
from s2m3.reference.pictures import REQUESTS, DemoRequest
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

START_S = 3 * PATIENCE_S
ANSWER_S = 2 * PATIENCE_S
TOLERANCE = 1e-4  # of a score: two engines sum in different orders
TASK = load_task("pocket/classify")
PICTURE: DemoRequest = next(each for each in REQUESTS if each.task == TASK.task)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    models = tmp_path_factory.mktemp("models")
    report = export("pocket/classify", models, "float32", lambda _: None, most=1)
    assert report["ok"], report
    agents = [
        AgentConfig(id="torch", memory=64 * 2**20, engine="torch"),
        AgentConfig(id="onnx", memory=64 * 2**20, engine="onnx", models=str(models)),
    ]
    with Site("mosquitto", agents) as site:
        site.serve([TASK], START_S)
        yield site


def stood_by(seen: Observer) -> bool:
    """Whether the modules are on one device, and loaded as standbys on the other."""
    roles = {name: {each.role for each in said.modules} for name, said in seen.assignments.items()}
    ready = {
        name: [held.state for held in heard.modules.values()] == ["ready"] * len(TASK.modules)
        for name, heard in seen.heartbeats.items()
    }
    return sorted(map(sorted, roles.values())) == [["active"], ["standby"]] and ready == {"torch": True, "onnx": True}


def answered(site: Site) -> tuple[dict[str, Any], set[str]]:
    """The answer to the picture, and the devices that computed it."""
    response = site.client.request(TASK.task, PICTURE.inputs, deadline_s=ANSWER_S)
    assert response.ok, response
    assert response.result.answer is not None
    return dict(response.result.answer), {timing.device for timing in response.result.timings}


def test_when_one_engine_dies_the_other_gives_the_same_answer(site: Site) -> None:
    site.require(stood_by, START_S, "no standby on the other engine")
    site.observer.look()
    born = {name: state.profile for name, state in site.observer.devices.items()}
    assert {name: profile.engines[0] for name, profile in born.items() if profile} == {"torch": "torch", "onnx": "onnx"}
    assert born["onnx"] is not None
    assert born["onnx"].exports.keys() == {module.key for module in TASK.modules.values()}
    first, (victim,) = answered(site)
    asked = [site.client.submit(TASK.task, PICTURE.inputs, deadline_s=ANSWER_S) for _ in range(3)]
    site.kill(victim)
    assert all(each.result(ANSWER_S + 5).ok for each in asked), "none is lost"
    second, (heir,) = answered(site)
    assert {victim, heir} == {"torch", "onnx"}
    assert first["label"] == second["label"] == PICTURE.expected
    assert same_answer(first, second)
    assert second["score"] == pytest.approx(first["score"], abs=TOLERANCE)
    both = site.observer.heartbeats[heir].modules.values()
    assert all(held.state == "ready" for held in both)
