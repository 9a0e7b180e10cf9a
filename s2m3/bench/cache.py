"""Equal work computed once: one frame to four tasks that share an encoder, with constant texts: ``s2m3 bench cache``.

Owns the two sites, the frames and the counts. Each site is one device with all tasks; the first one keeps no outputs,
the second one does. A frame is sent to the four tasks in the same moment, and the next one when all four have answered.
No frame comes twice, so whatever a frame shares, its own requests share. Then further frames go to one task alone.

What a node cost is what its device measured (``timings``); what was computed at all, and not taken from the cache,
is counted from the same timings.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from PIL import Image

from broker.client import Client, Response
from broker.protocol.codec import RawInput
from broker.protocol.messages import Timing
from broker.protocol.specs import ModuleName, NodeName, TaskName, TaskSpec
from broker.transport.connection import Connection
from edge_agent.config import AgentConfig
from s2m3.bench.requests import text_input
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.observer import Observer
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.site import Site, SiteFailed

TASKS = ("classify", "zero-shot", "vqa", "vision")
SHARED = "efficientnet-lite0/encoder"
TEXTS = {
    "text": text_input("a cup of coffee", "a glass of water", "a plate of pasta"),
    "question": text_input("What is in the cup?"),
    "answers": text_input("coffee", "water", "milk"),
}
"""The camera's constant texts."""
TEXT_ENCODER = "minilm/text"
ALONE = "zero-shot"
"""The task that is asked alone, too, for comparison."""
HEARTBEAT_S = 5.0  # until one has the last counts
WARM_UP = 3  # frames
DEADLINE_S = 60.0
GOAL = 1.2  # encodings of one frame, in seconds of one encoding
DEVICE = "gw-a"
SIDE = 480


def frames(count: int) -> list[RawInput]:
    """Pictures of one camera, no two alike: JPEG files of one photograph that moves."""
    with Image.open(io.BytesIO(picture("coffee.png").raw.data)) as photograph:
        pixels = np.asarray(photograph.convert("RGB").resize((SIDE * 4 // 3, SIDE)))
    found = []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(np.roll(pixels, number, axis=1)).save(file, "jpeg", quality=90)
        found.append(RawInput(file.getvalue(), "image/jpeg"))
    return found


def measure(
    *, count: int, cache_bytes: int, broker: str | Connection, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The report of both sites, and whether the goals hold.

    Args:
        count: frames, beside those of the warm-up.
        cache_bytes: of the device that keeps outputs.
        broker: ``mosquitto``, ``embedded`` or a running one.
        progress: shows what is done now.

    Raises:
        SiteFailed: the tasks aren't served, or a request failed.
    """
    sent = frames(WARM_UP + 2 * count)
    shown, alone = sent[: WARM_UP + count], sent[WARM_UP + count :]
    progress("measuring without a cache")
    without = _site(shown, alone, 0, broker)
    progress("measuring with a cache")
    with_cache = _site(shown, alone, cache_bytes, broker)
    one_s, others_s = with_cache["one_encoding_s"], with_cache["other_nodes_s"]
    goals = {
        "compute_at_most_1.2_encodings_and_the_rest": with_cache["compute_s"] <= GOAL * one_s + others_s,
        "each_frame_encoded_once": with_cache["computed"][SHARED] == len(shown),
        "each_text_encoded_once": with_cache["computed"][TEXT_ENCODER] == len(TEXTS),
    }
    settings = {"frames": count, "warm_up": WARM_UP, "cache_bytes": cache_bytes, "tasks": list(TASKS)}
    return {
        "settings": settings,
        "without_cache": without,
        "with_cache": with_cache,
        "goals": goals,
        "ok": all(goals.values()),
    }


def _site(
    shown: Sequence[RawInput], alone: Sequence[RawInput], cache_bytes: int, broker: str | Connection
) -> dict[str, Any]:
    """The counts and the costs of all frames in one site: of those for all tasks, and the seconds of those for one."""
    specs = {task: load_task(f"pocket/{task}") for task in TASKS}
    with Site(broker, [AgentConfig(id=DEVICE, cache=cache_bytes)], spares=False) as site:
        site.serve(list(specs.values()))
        taken = [_ask(site.client, specs, frame) for frame in shown]
        nodes = [(_module_of(specs, task, timing.node), timing) for _, got in taken for task, timing in got]
        site.wait_for(lambda seen: _has_run(seen, len(nodes)), HEARTBEAT_S)
        kept = site.observer.heartbeats[DEVICE].output_cache
        alone_s = [_ask(site.client, {ALONE: specs[ALONE]}, frame)[0] for frame in alone]
    modules = sorted({module for module, _ in nodes})
    counted = [_costs(specs, got) | {"seconds": seconds} for seconds, got in taken[WARM_UP:]]
    encodings = [timing for module, timing in nodes if module == SHARED]
    return {
        "nodes": {name: sum(module == name for module, _ in nodes) for name in modules},
        "computed": {name: sum(module == name and not t.cached for module, t in nodes) for name in modules},
        "one_encoding_s": percentile([each.compute_s for each in encodings if not each.cached], 50),
        "one_hit_s": percentile([each.compute_s for each in encodings if each.cached], 50),
        **{name: percentile([each[name] for each in counted], 50) for name in counted[0]},
        "seconds_of_one_task": percentile(alone_s, 50),
        "kept": kept.model_dump() if kept else None,
    }


def _has_run(seen: Observer, nodes: int) -> bool:
    """Whether a heartbeat counts so many nodes."""
    kept = seen.heartbeats[DEVICE].output_cache
    return kept is None or kept.hits + kept.computed >= nodes


def _ask(client: Client, specs: Mapping[TaskName, TaskSpec], frame: RawInput) -> tuple[float, list[tuple[str, Timing]]]:
    """The seconds until all tasks have answered about a frame, and what their nodes cost."""
    began_s = time.monotonic()
    asked: dict[TaskName, Future[Response]] = {}
    for task, spec in specs.items():
        inputs = {name: TEXTS.get(name, frame) for name in spec.inputs}
        asked[task] = client.submit(task, inputs, deadline_s=DEADLINE_S)
    responses = {task: future.result(2 * DEADLINE_S) for task, future in asked.items()}
    seconds = time.monotonic() - began_s
    for task, response in responses.items():
        if not response.ok:
            raise SiteFailed(f"{task}: a request failed: {response.result.error}")
    return seconds, [(task, timing) for task, each in responses.items() for timing in each.result.timings]


def _costs(specs: Mapping[TaskName, TaskSpec], taken: Sequence[tuple[TaskName, Timing]]) -> dict[str, float]:
    """The compute seconds of one frame: of all its nodes, and of those that aren't the shared encoder's."""
    others = [timing for task, timing in taken if _module_of(specs, task, timing.node) != SHARED]
    return {
        "compute_s": sum(timing.compute_s for _, timing in taken),
        "other_nodes_s": sum(timing.compute_s for timing in others),
    }


def _module_of(specs: Mapping[TaskName, TaskSpec], task: TaskName, node: NodeName) -> ModuleName:
    return specs[task].nodes[node].module
