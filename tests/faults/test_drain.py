"""Real processes: a device is drained under load, then the other can't be, because nothing else is left."""

from __future__ import annotations

import json

import pytest

from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.reference.pictures import REQUESTS
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

START_S = 3 * PATIENCE_S
ANSWER_S = 2 * PATIENCE_S
ASKED = next(request for request in REQUESTS if request.task == "classify")


def test_a_drained_device_hands_over_without_an_error_and_the_last_one_goes_on_serving(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = [AgentConfig.model_validate({"id": name, "memory": "160MiB"}) for name in ("gw-a", "gw-b")]
    with Site("mosquitto", configs) as site:
        seen, camera = site.observer, site.client
        site.serve([load_task("pocket/classify")])
        (first,) = seen.routes["classify"].front_door
        (other,) = {"gw-a", "gw-b"} - {first}

        # 1. drained while requests are on their way: all are answered, and the other device serves
        futures = [camera.submit(ASKED.task, ASKED.inputs, deadline_s=ANSWER_S) for _ in range(4)]
        assert main(["drain", first, "--broker", site.url, "--timeout", "60", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["drained"]
        assert report["moved"]
        assert {tuple(there) for there in report["moved"].values()} == {(other,)}
        assert [future.result(ANSWER_S + 5).ok for future in futures] == [True] * len(futures)
        assert camera.request(ASKED.task, ASKED.inputs, deadline_s=ANSWER_S).ok

        # 2. the last one can't be drained: it says why, and serves
        assert main(["drain", other, "--broker", site.url, "--timeout", "60"]) == 1
        assert "goes on serving, for nothing else fits" in capsys.readouterr().out
        assert camera.request(ASKED.task, ASKED.inputs, deadline_s=ANSWER_S).ok

        # 3. the first one is back in service: the other is emptied now
        assert main(["drain", first, "--undo", "--broker", site.url]) == 0
        assert seen.wait_for(lambda seen: seen.routes["classify"].front_door == (first,), START_S), seen.routes
        assert seen.routes["classify"].complete
