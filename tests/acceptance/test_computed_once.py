"""A real site whose agent keeps outputs: equal work is computed once, with the answers of agents that compute it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.client import Response
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site

MIB = 2**20
KEEPS = AgentConfig.model_validate({"id": "gw-a", "memory": "64MiB", "cache": "1MiB"})
COMPUTES = AgentConfig.model_validate({"id": "gw-b", "memory": "64MiB"})


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    """A device that keeps outputs, beside one that doesn't, as no agent of a testbed does by itself."""
    tasks = [load_task("pocket/classify"), load_task("pocket/vision")]
    own = [
        task.model_copy(update={"task": f"{task.task}-{device}", "devices": (device,)})
        for task in tasks
        for device in ("gw-a", "gw-b")
    ]
    with Site("embedded", [KEEPS, COMPUTES], spares=False) as site:
        site.serve(own)
        yield site


def ask(site: Site, task: str) -> Response:
    response = site.client.request(task, {"image": picture("coffee.png").raw}, deadline_s=60)
    assert response.ok, response
    return response


def test_a_frame_of_two_tasks_is_encoded_once_where_outputs_are_kept(running: Site) -> None:
    cached = {
        device: [
            [timing.cached for timing in ask(running, f"{task}-{device}").result.timings]
            for task in ("classify", "vision", "classify")
        ]
        for device in ("gw-a", "gw-b")
    }
    assert cached == {
        "gw-a": [[False, False], [True], [True, True]],
        "gw-b": [[False, False], [False], [False, False]],
    }


def test_a_cached_answer_is_that_of_a_device_that_computes(running: Site) -> None:
    for task in ("classify", "vision"):
        ask(running, f"{task}-gw-a")
        cached, computed = ask(running, f"{task}-gw-a"), ask(running, f"{task}-gw-b")
        assert all(timing.cached for timing in cached.result.timings)
        assert cached.result.answer == computed.result.answer
        assert {name: array.tobytes() for name, array in cached.tensors.items()} == {
            name: array.tobytes() for name, array in computed.tensors.items()
        }


def test_the_cache_is_a_part_of_the_devices_memory(running: Site) -> None:
    running.observer.look()
    heard = {name: (seen.memory_bytes, seen.output_cache) for name, seen in running.observer.heartbeats.items()}
    assert heard["gw-a"][0] == 63 * MIB
    kept = heard["gw-a"][1]
    assert kept is not None
    assert kept.limit_bytes == MIB
    assert heard["gw-b"] == (64 * MIB, None)
