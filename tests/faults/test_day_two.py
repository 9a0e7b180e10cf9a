"""Real processes at a real Mosquitto: agents and orchestrator are replaced under load, and devices forgotten.

The tests share one site, in this order. One device sends its heartbeats at an interval of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.reports import Standing
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import ORCHESTRATOR, Site
from tests.patience import PATIENCE_S
from tests.steady_load import SteadyLoad

START_S = 3 * PATIENCE_S
EXPORT: dict[str, Any] = {
    "module": "other/encoder",
    "family": "other.encoder",
    "memory_bytes": 100,
    "opset": 20,
    "uses": {
        "": {
            "file": "model.onnx",
            "sha256": "0" * 64,
            "inputs": {"pixels": [None, 3, 224, 224]},
            "outputs": ["features"],
            "steps": {"kind": "steps"},
            "largest_difference": 1e-5,
        }
    },
}
SLOW_S = 4.0  # between heartbeats of gw-b: dead after 3.25 s by the orchestrator's own option


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def site(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    models = tmp_path_factory.mktemp("models")
    own: dict[str, dict[str, Any]] = {
        "gw-a": {},
        "gw-b": {"heartbeat_interval_s": SLOW_S},
        "onnx": {"engine": "onnx", "models": str(models)},  # it has nothing that the task could use
    }
    configs = [AgentConfig.model_validate({"id": name, "memory": "160MiB"} | more) for name, more in own.items()]
    with Site("mosquitto", configs, logs=logs) as site:
        site.serve([load_task("pocket/classify")])
        yield site


def is_there(seen: Observer, device: str, *standings: str) -> bool:
    """Whether a device is online, and has one of these standings: not late, and not on probation."""
    standing, state = seen.standings.get(device), seen.devices.get(device)
    wanted = standings or ("online",)
    return standing is not None and standing.standing in wanted and state is not None and state.status == "online"


def epoch_of(seen: Observer) -> int:
    return seen.leader.epoch if seen.leader else 0


def encoder_of(seen: Observer) -> list[str]:
    """The devices that run the encoder."""
    return [each.device for each in seen.routes["classify"].nodes["image-encoder"].devices]


def other_of(device: str) -> str:
    return {"gw-a": "gw-b", "gw-b": "gw-a"}[device]


def restart(site: Site, name: str) -> None:
    """End a process, and start it again, as an upgrade does."""
    seen = site.observer
    site.end(name)
    site.require(lambda seen: name not in seen.devices or seen.devices[name].status == "offline", START_S, "no end")
    site.start(name)
    if name == ORCHESTRATOR:
        epoch = epoch_of(seen)
        site.require(lambda seen: seen.leads and epoch_of(seen) > epoch, START_S, "no new leader")
    else:
        site.require(
            lambda seen: seen.has_heartbeats() and is_there(seen, name, "online", "drained"),
            START_S,
            f"{name} isn't back",
        )


def test_every_agent_and_the_orchestrator_are_replaced_under_load_without_a_lost_request(
    site: Site,
) -> None:
    with SteadyLoad(site.client) as load:
        for device in site.devices:
            assert main(["drain", device, "--broker", site.url, "--timeout", "120"]) == 0
            restart(site, device)
            assert main(["drain", device, "--undo", "--broker", site.url]) == 0
            site.require(partial(is_there, device=device), START_S, f"{device} isn't in service")
            load.wait_for_answers(5)
        restart(site, ORCHESTRATOR)
        load.wait_for_answers(5)
    assert load.failures == []
    words = {each.message.standing for each in site.observer.sightings if isinstance(each.message, Standing)}
    assert "probation" not in words, "the end of a drained device isn't a failure"


@pytest.mark.long  # the ordinary run drains each device before
def test_every_agent_is_replaced_twice_under_load_without_a_drain_and_no_request_is_lost(site: Site) -> None:
    with SteadyLoad(site.client, at_once=3) as load:
        for device in (*site.devices, *site.devices):
            restart(site, device)
            load.wait_for_answers(10)
    assert load.failures == []


def test_a_heartbeat_interval_of_a_devices_own_counts_and_is_shown(
    site: Site, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = site.observer
    sequence = seen.heartbeats["gw-b"].seq
    start = len(seen.sightings)
    site.require(lambda seen: seen.heartbeats["gw-b"].seq >= sequence + 3, START_S, "no heartbeats")
    told = [each.message for each in seen.sightings[start:] if isinstance(each.message, Standing)]
    assert not [each for each in told if each.standing in {"suspect", "dead"}]
    assert main(["status", "--broker", site.url]) == 0
    assert "heartbeat every 4 s" in " ".join(capsys.readouterr().out.split())
    for name in ("gw-b", ORCHESTRATOR):
        assert "heartbeat_interval_differs" in (logs / f"{name}.log").read_text(encoding="utf-8"), name
    assert "heartbeat_interval_differs" not in (logs / "gw-a.log").read_text(encoding="utf-8")


def test_a_device_that_is_gone_is_forgotten_and_one_that_comes_back_is_new(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = site.observer
    start = len(seen.sightings)
    assert main(["forget", "gw-a", "--broker", site.url]) == 1
    assert "is online" in capsys.readouterr().out
    assert main(["forget", "gw-x", "--broker", site.url]) == 2
    assert "no such device is known; known devices: gw-a, gw-b, onnx" in capsys.readouterr().err

    site.kill("gw-a")
    site.require(lambda seen: seen.standings["gw-a"].standing == "dead", START_S, "not dead")
    assert main(["forget", "gw-a", "--broker", site.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"device": "gw-a", "forgotten": True, "why": None}
    assert seen.wait_for(lambda seen: not seen.knows("gw-a"), START_S)
    assert main(["status", "--broker", site.url, "--json"]) in {0, 1}
    assert "gw-a" not in json.loads(capsys.readouterr().out)["devices"]

    site.start("gw-a")
    site.require(lambda seen: is_there(seen, "gw-a"), START_S, "gw-a isn't back")
    words = [each.message.standing for each in seen.sightings[start:] if isinstance(each.message, Standing)]
    assert "probation" not in words


def test_another_memory_and_another_models_directory_count_from_the_next_start_and_are_told(
    site: Site, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = site.observer
    # 1. a device with less memory than its modules need: they move, and no request is lost
    home = seen.routes["classify"].front_door[0]
    site.reconfigure(home, memory="8MiB")
    with SteadyLoad(site.client) as load:
        restart(site, home)
        site.require(lambda seen: encoder_of(seen) == [other_of(home)], START_S, "its modules don't move")
        load.wait_for_answers(5)
    assert load.failures == []
    state = seen.devices[home]
    assert state.profile
    assert state.profile.memory_bytes == 8 * 2**20
    assert state.about
    assert state.about.changed == ("memory: 8 MiB, was 160 MiB",)

    # 2. another models directory: its exports are those that the device offers
    key = "pip:other#encoder:float32"  # which no task needs
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "export.json").write_text(json.dumps(EXPORT | {"key": key}), encoding="utf-8")
    site.reconfigure("onnx", models=str(tmp_path))
    restart(site, "onnx")
    state = seen.devices["onnx"]
    assert state.profile
    assert state.profile.exports == {key: 100}
    assert state.about
    assert state.about.changed == ("models: another directory",)
    assert "models_directory_changed" in (logs / "onnx.log").read_text(encoding="utf-8")
    assert main(["status", "--broker", site.url]) in {0, 1}
    shown = " ".join(capsys.readouterr().out.split())
    assert "models: another" in shown
