"""The files of a site: they are read as they were written, and have what the devices measured."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from broker.files import load_spec
from broker.protocol.messages import AssignedModule, Assignment, HeldModule
from broker.protocol.specs import FleetSpec, InputSpec, NodeSpec, TaskSpec
from s2m3.bench.placement.solve import read, solve
from s2m3.catalogue import load_task
from s2m3.testbed.observer import Observer
from s2m3.testbed.replay.library import load_scenario, requests_for
from s2m3.testbed.site_export import Exported, export
from tests.builders import chain, heartbeat, leader, module, offline, online, profile

MIB = 2**20
SEE, SAY = module("see", 10 * MIB), module("say", 5 * MIB)
LOOK = chain("look", SEE, SAY)


def ready(**measured: Any) -> dict[str, HeldModule]:
    """Modules that are ready, by their names: (bytes, seconds)."""
    specs = {"see": SEE, "say": SAY}
    return {
        specs[name].key: HeldModule(module=name, state="ready", memory_bytes=size, compute_s=seconds)
        for name, (size, seconds) in measured.items()
    }


def assigned(role: Any = "active", **modules: Any) -> Assignment:
    told = tuple(AssignedModule(module=name, spec=spec, role=role) for name, spec in modules.items())
    return Assignment(epoch=1, generation=1, modules=told)


class Site(Observer):
    """An observer that has seen a site, without a broker."""

    def __init__(self) -> None:  # no connection
        self.devices = {
            "gw-a": online(1, profile(64 * MIB, compute_flops_per_s=1.23456789e9)),
            "gw-b": online(1, profile(32 * MIB)).model_copy(update={"tasks": ("look",), "availability": "sometimes"}),
            "gw-off": offline(),
            "gw-new": online(),
        }
        self.heartbeats = {
            "gw-a": heartbeat(modules=ready(see=(12 * MIB, 0.25)), cached={SAY.key: 0.5}),
            "gw-b": heartbeat(modules=ready(see=(30 * MIB, 0.75), say=(4 * MIB, 0.125))),
        }
        self.leader = leader(1)
        self.assignments = {"gw-a": assigned(see=SEE), "gw-b": assigned("standby", see=SEE)}


def written(tmp_path: Path, exported: Exported) -> Path:
    for name, content in exported.files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "site"


def exported(*specs: TaskSpec, per_minute: int = 0, models: Path | None = None) -> Exported:
    return export(Site(), specs or (LOOK,), title="A site.", models=models, per_minute=per_minute)


def test_devices_have_what_they_measured_and_those_that_are_away_are_left_out(tmp_path: Path) -> None:
    found = exported()
    assert list(found.devices) == ["gw-a", "gw-b"]
    assert dict(found.left_out) == {"gw-off": "it is offline", "gw-new": "it sent no heartbeat"}
    fleet = load_spec(written(tmp_path, found) / "fleet.yaml", FleetSpec)
    first, second, source = fleet.devices
    assert (first.id, first.memory_bytes, first.compute_flops_per_s) == ("gw-a", 64 * MIB, 1.23457e9)
    assert first.compute_s == {"see": 0.25, "say": 0.5}, "of what is in memory, and of what was"
    assert (second.tasks, second.availability, second.latency_s) == (("look",), "sometimes", 0.001)
    assert (fleet.source, source.id, source.tasks) == ("sensors", "sensors", ()), "requests start at the broker's side"


def test_a_device_called_as_the_source_keeps_its_name(tmp_path: Path) -> None:
    site = Site()
    site.devices["sensors"], site.heartbeats["sensors"] = site.devices.pop("gw-a"), site.heartbeats.pop("gw-a")
    made = export(site, [LOOK], title="A site.", models=None, per_minute=0)
    assert load_spec(written(tmp_path, made) / "fleet.yaml", FleetSpec).source == "sensors-2"


def test_tasks_have_the_memory_that_is_measured_where_they_are_served(tmp_path: Path) -> None:
    task = load_spec(written(tmp_path, exported()) / "tasks" / "look.yaml", TaskSpec)
    assert task.modules["see"].memory_bytes == 12 * MIB, "not what a standby copy elsewhere occupies"
    assert task.modules["say"].memory_bytes == 5 * MIB, "never less than the task's"
    assert {name: spec.key for name, spec in task.modules.items()} == {"see": SEE.key, "say": SAY.key}


def test_modules_of_one_name_are_told_apart_and_a_source_that_is_away_is_left_out(tmp_path: Path) -> None:
    other = chain("other", module("see", 3 * MIB, source={"pip": "weights", "part": "elsewhere"}), source="gw-off")
    other = other.model_copy(update={"modules": {"see": next(iter(other.modules.values()))}})
    nodes = {name: node.model_copy(update={"module": "see"}) for name, node in other.nodes.items()}
    site = written(tmp_path, exported(LOOK, other.model_copy(update={"nodes": nodes})))
    devices, tasks = read(site / "fleet.yaml", [site / "tasks"])
    assert [sorted(task.modules) for task in tasks] == [["say", "see"], ["see@other"]]
    assert {task.source for task in tasks} == {"sensors"}
    assert solve("refined", devices, tasks).placement is not None


def test_the_plan_of_the_files_reads_them_and_puts_nothing_at_the_source(tmp_path: Path) -> None:
    site = written(tmp_path, exported())
    devices, tasks = read(site / "fleet.yaml", [site / "tasks"])
    placement = solve("refined", devices, tasks).placement
    assert placement is not None
    assert set(placement.where.values()) <= {"gw-a", "gw-b"}
    devices, tasks = read(site / "fleet.yaml", [site / "tasks"], ["gw-a"], ["gw-b"])
    assert [device.id for device in devices] == ["gw-b", "sensors", "gw-b-2"]


def test_the_scenario_has_the_same_devices_and_the_measured_load(tmp_path: Path) -> None:
    site = written(tmp_path, exported(per_minute=300, models=tmp_path))
    scenario = load_scenario(str(site / "scenario.yaml"))
    first, second = scenario.fleet
    assert (first.memory, first.compute_flops_per_s, first.latency_s) == (64 * MIB, 1.23457e9, 0.001)
    assert (second.tasks, second.availability, second.bandwidth_bits_per_s) == (("look",), "sometimes", 1e8)
    assert scenario.tasks == (str(site / "tasks" / "look.yaml"),)
    assert (scenario.load.rate_per_s, scenario.models) == (5.0, str(tmp_path))
    (requests,) = requests_for(scenario).values()
    assert len(requests) == 3


def test_a_task_that_the_site_does_not_serve_is_planned_and_not_played(tmp_path: Path) -> None:
    other = chain("other", module("huge", 10**12))
    for unserved, played in (["other"], ["look"]), (["other", "look"], ["look", "other"]):
        found = export(Site(), [LOOK, other], title="A site.", models=None, per_minute=0, unserved=unserved)
        assert list(found.tasks) == ["look", "other"]
        scenario = load_scenario(str(written(tmp_path, found) / "scenario.yaml"))
        assert [Path(task).stem for task in scenario.tasks] == played
        assert sorted(Path(each).name for each in scenario.requests.values()) == played
        assert list(found.not_played) == [task for task in found.tasks if task not in played]


def test_the_scenario_has_the_longest_interval_of_heartbeats(tmp_path: Path) -> None:
    site = Site()
    site.leader = leader(1).model_copy(update={"heartbeat_interval_s": 2.0})
    site.devices["gw-b"] = site.devices["gw-b"].model_copy(update={"heartbeat_interval_s": 5.0})
    made = export(site, [LOOK], title="A site.", models=None, per_minute=0)
    assert load_scenario(str(written(tmp_path, made) / "scenario.yaml")).heartbeat_interval_s == 5.0
    del site.devices["gw-b"]
    made = export(site, [LOOK], title="A site.", models=None, per_minute=0)
    assert load_scenario(str(written(tmp_path, made) / "scenario.yaml")).heartbeat_interval_s == 2.0, "the leader's"


@pytest.mark.parametrize(("per_minute", "rate_per_s"), [(0, 2.0), (600, 10.0), (10**6, 20.0)])
def test_the_load_is_one_that_a_machine_can_play(tmp_path: Path, per_minute: int, rate_per_s: float) -> None:
    site = written(tmp_path, exported(per_minute=per_minute))
    assert load_scenario(str(site / "scenario.yaml")).load.rate_per_s == rate_per_s


def test_made_up_requests_are_files_that_can_be_read_and_tasks_of_the_demo_need_none(tmp_path: Path) -> None:
    kinds = {"image": "image", "question": "text", "voice": "audio", "captions": "text"}
    inputs = {name: InputSpec.model_validate({"kind": kind, "bytes": 100}) for name, kind in kinds.items()}
    inputs["captions"] = inputs["captions"].model_copy(update={"default": "a cat"})
    node = NodeSpec(module="see", needs=tuple(inputs))
    many = TaskSpec(task="many", inputs=inputs, nodes={"n": node}, output="n", modules={"see": SEE})
    made = exported(many, load_task("pocket/classify"))
    assert list(made.made_up) == ["many"]
    site = written(tmp_path, made)
    scenario = load_scenario(str(site / "scenario.yaml"))
    requests = requests_for(scenario)
    assert {task: len(each) for task, each in requests.items()} == {"many": 3, "classify": 4}
    for request in requests["many"]:
        assert set(request.inputs) == {"image", "question", "voice"}
    folder = site / "requests" / "many"
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    assert len({picture.tobytes() for picture in pictures}) == 3
    with wave.open(str(folder / "made-up-1.voice.wav"), "rb") as sound:
        assert sound.getnframes() == 16_000


def test_a_task_called_as_one_of_the_demo_that_is_another_one_has_none_of_its_requests() -> None:
    assert list(exported(chain("classify", SEE, SAY)).made_up) == ["classify"]
