"""The running site as files: what `s2m3 plan` and `s2m3 replay` read of it.

Owns what is written of a site: its devices as they measured themselves and their links, its tasks with the memory that
their modules really occupy, and a scenario that plays both. Reads an observer's picture; opens no file.
"""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from broker.cost_model import runnable
from broker.protocol.engines import ENGINES
from broker.protocol.errors import BadFile
from broker.protocol.messages import DeviceProfile, Heartbeat
from broker.protocol.specs import DeviceId, DeviceSpec, FleetSpec, InputSpec, ModuleKey, ModuleName, TaskName, TaskSpec
from edge_agent.modules.inputs import png_file
from orchestrator.placement.planner_input import with_measured_footprints
from s2m3.testbed.observer import Observer
from s2m3.testbed.replay.library import demo_requests
from s2m3.testbed.replay.scenario import FleetDevice, Scenario

FLEET, TASKS, SCENARIO, REQUESTS = "fleet.yaml", "tasks", "scenario.yaml", "requests"
MADE_UP = 3  # requests of a task whose inputs nobody gave
SOURCE = "sensors"  # where requests start: not a device
DURATION_S, DEADLINE_S = 20.0, 10.0  # of the load
RATES_PER_S = (2.0, 20.0)  # the least and the most: a load that shows something, and that one machine can play
MINUTE_S = 60.0
WIDTH, HEIGHT = 320, 240  # of a made-up picture
SOUND_S, SOUND_HZ = 1, 16_000  # of a made-up sound
MAX_NAME = 64  # characters of a module that is renamed
_DIGITS = 6  # of a measured number


@dataclass(frozen=True)
class Exported:
    """A site's files by their names in the folder, and what a person must know about them."""

    files: Mapping[str, bytes]
    devices: Sequence[DeviceId]
    tasks: Sequence[str]
    left_out: Mapping[DeviceId, str]  # devices -> why
    made_up: Sequence[str]  # tasks with made-up requests
    not_played: Sequence[str] = ()  # tasks that the scenario leaves out


def export(
    seen: Observer,
    specs: Sequence[TaskSpec],
    *,
    title: str,
    models: Path | None,
    per_minute: int,
    unserved: Collection[TaskName] = (),
) -> Exported:
    """The files of a site.

    Args:
        seen: the site.
        specs: its tasks.
        title: a line that says which site it is, and when.
        models: the models directory of the machine that will replay it.
        per_minute: the requests of all tasks in the last minute.
        unserved: tasks that the site doesn't serve. A replay waits for all of its tasks, so the scenario has only the
            others, if there are any.

    Raises:
        BadFile: there is no device, or no task.
    """
    left_out = {name: why for name in seen.devices if (why := _why_left_out(seen, name)) is not None}
    names = [name for name in sorted(seen.devices) if name not in left_out]
    if not names:
        known = ", ".join(f"{name}: {why}" for name, why in left_out.items())
        problem = f"the site has no device to export{f' ({known})' if known else ''}"
        raise BadFile(file="fleet export", problem=problem, fix="start an agent")
    if not specs:
        raise BadFile(file="fleet export", problem="no task is deployed", fix="deploy one: `s2m3 deploy TASK`")
    specs = _told_apart([_with_source(spec, names) for spec in specs])
    tasks = with_measured_footprints(specs, _footprints(seen, names))
    devices = [_device(seen, name, tasks) for name in names]
    rate_per_s = min(max(round(per_minute / MINUTE_S, 1), RATES_PER_S[0]), RATES_PER_S[1])
    made_up = [task for task in tasks if not demo_requests(task)]
    played = [task for task in tasks if task.task not in unserved] or tasks
    files = {
        FLEET: _yaml(f"{title}\n{_FLEET_HEAD}", _fleet(devices)),
        SCENARIO: _yaml(
            f"{title}\n{_SCENARIO_HEAD}",
            _scenario(devices, played, [task for task in made_up if task in played], rate_per_s, models)
            | _interval(seen, names),
        ),
    }
    files |= {f"{TASKS}/{task.task}.yaml": _yaml(_TASK_HEAD, _content(task)) for task in tasks}
    for task in made_up:
        files |= {f"{REQUESTS}/{task.task}/{name}": content for name, content in _requests(task.inputs).items()}
    not_played = [task.task for task in tasks if task not in played]
    return Exported(files, names, [task.task for task in tasks], left_out, [task.task for task in made_up], not_played)


_FLEET_HEAD = (
    "Devices as they measured themselves; compute_s has the seconds of one pass. `sensors` holds nothing: requests\n"
    "start there, at the broker's side of all links. Tasks are in tasks/."
)
_SCENARIO_HEAD = (
    "The same devices as agents of one machine, with their memory, speed and links. See s2m3/scenarios/README.md for\n"
    "all fields, and for the folder of requests."
)
_TASK_HEAD = "As deployed; memory_bytes is what a device measured, where that is more."


def _why_left_out(seen: Observer, name: DeviceId) -> str | None:
    state = seen.devices[name]
    if state.status == "offline":
        return "it is offline"
    if state.profile is None:
        return "it published no profile"
    return None if name in seen.heartbeats else "it sent no heartbeat"


def _with_source(task: TaskSpec, names: Sequence[DeviceId]) -> TaskSpec:
    """A task whose requests start at a device of these, or where all others do."""
    return task if task.source is None or task.source in names else task.model_copy(update={"source": None})


def _told_apart(tasks: Sequence[TaskSpec]) -> list[TaskSpec]:
    """The tasks with one name for one module: one that is called as another task's module gets its task's name, too."""
    first: dict[ModuleName, ModuleKey] = {}
    found = []
    for task in tasks:
        names = {
            name: name if first.setdefault(name, module.key) == module.key else f"{name}@{task.task}"[-MAX_NAME:]
            for name, module in task.modules.items()
        }
        nodes = {name: node.model_copy(update={"module": names[node.module]}) for name, node in task.nodes.items()}
        modules = {names[name]: module for name, module in task.modules.items()}
        found.append(task.model_copy(update={"nodes": nodes, "modules": modules}))
    return found


def _footprints(seen: Observer, names: Sequence[DeviceId]) -> dict[ModuleKey, int]:
    """The bytes that modules occupy where they serve, by the key of the weights that run there; none of an export."""
    found: dict[ModuleKey, int] = {}
    for name in names:
        held = seen.heartbeats[name].modules
        assignment = seen.assignments.get(name)
        for each in assignment.modules if assignment else ():
            form = runnable(each.spec, _profile(seen, name))
            is_ready = each.spec.key in held and held[each.spec.key].state == "ready"
            if each.role == "active" and is_ready and form is not None and form.key is not None:
                measured_bytes = max(held[each.spec.key].memory_bytes, form.memory_bytes)
                found[form.key] = max(found.get(form.key, 0), measured_bytes)
    return found


def _profile(seen: Observer, name: DeviceId) -> DeviceProfile:
    profile = seen.devices[name].profile
    if profile is None:
        raise ValueError(f"{name} published no profile: leave it out")
    return profile


def _device(seen: Observer, name: DeviceId, tasks: Sequence[TaskSpec]) -> DeviceSpec:
    state, profile, heartbeat = seen.devices[name], _profile(seen, name), seen.heartbeats[name]
    modules = {module: spec.key for task in tasks for module, spec in task.modules.items()}
    held_bytes = {key: held.memory_bytes for key, held in heartbeat.modules.items()}
    of_tasks = sorted(set(modules.values()) & profile.exports.keys())
    exports = {key: max(profile.exports[key], held_bytes.get(key, 0)) for key in of_tasks}
    return DeviceSpec(
        id=name,
        memory_bytes=profile.memory_bytes,
        compute_flops_per_s=_rounded(profile.compute_flops_per_s),
        bandwidth_bits_per_s=_rounded(profile.bandwidth_bits_per_s),
        latency_s=_rounded(profile.latency_s),
        compute_s=_measured(heartbeat, modules),
        tasks=state.tasks,
        availability=state.availability,
        engines=tuple(engine for engine in profile.engines if engine in ENGINES),
        exports=exports,
    )


def _measured(heartbeat: Heartbeat, modules: Mapping[ModuleName, ModuleKey]) -> dict[str, float]:
    """The measured seconds of a pass, by the modules' names."""
    by_key = {key: seconds for key, seconds in heartbeat.cached.items() if seconds}
    by_key |= {key: held.compute_s for key, held in heartbeat.modules.items() if held.compute_s}
    return {name: _rounded(by_key[key]) for name, key in sorted(modules.items()) if key in by_key}


def _fleet(devices: Sequence[DeviceSpec]) -> dict[str, Any]:
    taken = {device.id for device in devices}
    source = next(name for name in (SOURCE, *(f"{SOURCE}-{n}" for n in range(2, 10_000))) if name not in taken)
    outside = {
        "id": source,
        "memory_bytes": 1,
        "compute_flops_per_s": 1.0,
        "bandwidth_bits_per_s": 1e21,  # the most that a file may say: to send takes no time
        "latency_s": 0.0,
        "tasks": [],
    }
    listed = [device.model_dump(mode="json", exclude_defaults=True) for device in devices]
    made = {"source": source, "devices": [*listed, outside]}
    FleetSpec.model_validate(made)
    return made


def _interval(seen: Observer, names: Sequence[DeviceId]) -> dict[str, float]:
    """The longest interval between a device's heartbeats, as the scenario has it; nothing if it is the usual one."""
    usual_s: float = Scenario.model_fields["heartbeat_interval_s"].default
    expected_s = seen.leader.heartbeat_interval_s if seen.leader else usual_s
    longest_s = max(seen.devices[name].heartbeat_interval_s or expected_s for name in names)
    return {} if longest_s == usual_s else {"heartbeat_interval_s": longest_s}


def _scenario(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    made_up: Sequence[TaskSpec],
    rate_per_s: float,
    models: Path | None,
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "this site under its load",
        "fleet": [_agent(device) for device in devices],
        "tasks": [f"{TASKS}/{task.task}.yaml" for task in tasks],
        "load": {"rate_per_s": rate_per_s, "duration_s": DURATION_S, "deadline_s": DEADLINE_S},
    }
    if made_up:
        made["requests"] = {task.task: f"{REQUESTS}/{task.task}" for task in made_up}
    if models is not None:
        made["models"] = str(models)
    Scenario.model_validate(made)
    return made


def _agent(device: DeviceSpec) -> dict[str, Any]:
    agent = FleetDevice(
        id=device.id,
        memory=device.memory_bytes,
        compute_flops_per_s=device.compute_flops_per_s,
        bandwidth_bits_per_s=device.bandwidth_bits_per_s,
        latency_s=device.latency_s,
        availability=device.availability,
        engine="torch" if "torch" in device.engines else "onnx",
        tasks=device.tasks or None,
    )
    return agent.model_dump(mode="json", exclude_defaults=True)


def _content(task: TaskSpec) -> dict[str, Any]:
    return task.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def _yaml(head: str, content: Mapping[str, Any]) -> bytes:
    lines = "".join(f"# {line}\n" for line in head.splitlines())
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, default_flow_style=None, width=140)
    return (lines + text).encode()


def _rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


# --- made-up requests ---


def _requests(inputs: Mapping[str, InputSpec]) -> dict[str, bytes]:
    """Requests that any task of these inputs can read; inputs with a default are left out."""
    make = {"image": (_picture, "png"), "audio": (_sound, "wav"), "text": (_text, "txt")}
    wanted = {name: spec.kind for name, spec in inputs.items() if spec.default is None}
    return {
        f"made-up-{number}.{name}.{make[kind][1]}": make[kind][0](number)
        for number in range(1, MADE_UP + 1)
        for name, kind in wanted.items()
    }


def _text(number: int) -> bytes:
    return f"{('a door', 'a street at night', 'a cat on a table')[number - 1]}\n".encode()


def _picture(number: int) -> bytes:
    """A PNG of three colours that run into each other."""
    rows = np.linspace(0, 255, HEIGHT)[:, None, None]
    columns = np.linspace(0, 255, WIDTH)[None, :, None]
    mixed = rows * np.array([1, 0, 0.5]) + columns * np.array([0, 1, 0.5])
    pixels = np.roll(mixed, number, axis=2).astype(np.uint8)  # (height, width, 3)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return png_file.MAGIC + b"".join(png_file.chunk(kind, data) for kind, data in chunks)


def _sound(number: int) -> bytes:
    """A WAV of one tone."""
    at_s = np.arange(SOUND_S * SOUND_HZ) / SOUND_HZ
    tone = (8_000 * np.sin(2 * np.pi * 220 * number * at_s)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SOUND_HZ)
        sound.writeframes(tone.tobytes())
    return file.getvalue()
