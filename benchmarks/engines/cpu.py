"""An agent with torch and agents with ONNX Runtime side by side: seconds, memory and start, in one run.

    python benchmarks/engines/cpu.py [--exports DIR] [--json FILE]

Each side is a whole site with one agent, which serves pocket/zero-shot with its real weights. A site with torch and one
with ONNX Runtime are up together and are asked in turn, so that other load on the machine touches both; then the same
with MiniLM in int8. Two agents with ONNX Runtime are never up together: they would share the pages of its library, and
each would seem smaller. ``DIR`` holds exports of this task, or gets them; by default it is that of ``s2m3 demo --engine
onnx``. Ends with 1 if a goal isn't reached, or an answer differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from edge_agent.config import AgentConfig
from s2m3.bench import machine
from s2m3.bench.memory.processes import memory_of
from s2m3.bench.requests import requests
from s2m3.catalogue import load_task
from s2m3.testbed.engines import Engine, exported, is_same
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.site import Site, SiteFailed

TASK = "pocket/zero-shot"
TEXT = "minilm/text"  # the module that int8 makes smaller
DEVICE = "gw-a"
STARTS = 3  # of each agent; the median counts
IDLE_S = 3.0  # from its last start to the measure of its memory without a module
WARM_UP, ROUNDS, EACH = 5, 10, 10  # requests before, blocks, requests of a block
START_S, DEADLINE_S = 120.0, 30.0
MB = 1_000_000
GOALS = {
    "p50, share of torch's": 0.5,
    "USS after 100 requests, MB": 260.0,
    "the same, MiniLM in int8, MB": 200.0,
    "USS without a module, MB": 65.0,
    "start to online, s": 1.0,
}


@dataclass
class Side:
    """One site, and what was measured on it."""

    name: str
    engine: Engine
    site: Site
    online_s: float
    empty_bytes: int
    took_s: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    used_bytes: int = 0

    def ask(self, task: TaskSpec, inputs: dict[str, RawInput]) -> None:
        """Ask once; the inputs repeat, and the agent keeps no output."""
        began_s = time.perf_counter()
        response = self.site.client.request(task.task, inputs, deadline_s=DEADLINE_S)
        self.took_s.append(time.perf_counter() - began_s)
        if not response.ok:
            raise SiteFailed(f"{self.name}: {response.result.error}")
        self.answers.append(response.result.answer)


def started(stack: ExitStack, name: str, engine: Engine, models: Path | None, task: TaskSpec) -> Side:
    """A site that serves the task."""
    config = AgentConfig(id=DEVICE, engine=engine, models=str(models.resolve()) if models else None)
    site = stack.enter_context(Site("mosquitto", [config], spares=False, absent=[DEVICE]))
    site.require(lambda seen: seen.leads, START_S, "no orchestrator leads")
    took_s: list[float] = []
    for number in range(STARTS):
        if number:
            site.end(DEVICE)
            site.require(lambda seen: not seen.has_heartbeats([DEVICE]), START_S, f"{name} didn't end")
        began_s = time.monotonic()
        site.start_agent(DEVICE)
        site.require(lambda seen: seen.has_heartbeats([DEVICE]), START_S, f"{name} wasn't online")
        took_s.append(time.monotonic() - began_s)
    time.sleep(IDLE_S)
    side = Side(name, engine, site, median(took_s), memory_of(site.pid(DEVICE)).uss_bytes)
    site.serve([task], START_S)
    return side


def with_int8(directory: Path, to: Path) -> Path:
    """A copy of exports in which MiniLM is int8."""
    shutil.copytree(directory, to)
    shutil.rmtree(to / TEXT.replace("/", "--"))
    command = [sys.executable, "-m", "s2m3", "models", "export", TEXT, "--to", str(to), "--precision", "int8"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return to


def pair(name: str, models: Path, task: TaskSpec) -> tuple[Side, Side]:
    """Torch and an agent with these exports, asked in turn."""
    given = requests(task)
    with ExitStack() as stack:
        sides = started(stack, "torch", "torch", None, task), started(stack, name, "onnx", models, task)
        for side in sides:
            for number in range(WARM_UP):
                side.ask(task, given[number % len(given)])
            side.took_s.clear()
            side.answers.clear()
        for block in range(ROUNDS):
            for side in sides:
                for number in range(EACH):
                    side.ask(task, given[(block * EACH + number) % len(given)])
        for side in sides:
            side.used_bytes = memory_of(side.site.pid(DEVICE)).uss_bytes
    return sides


def measured(directory: Path | None) -> dict[str, Any]:
    """The report."""
    task = load_task(TASK)
    float32 = exported([TASK], lambda text: print(text, file=sys.stderr), directory)
    with tempfile.TemporaryDirectory() as copied:
        int8 = with_int8(float32, Path(copied) / "exports")
        return report(*pair("ONNX Runtime", float32, task), *pair("ONNX Runtime, MiniLM in int8", int8, task))


def report(torch: Side, onnx: Side, again: Side, int8: Side) -> dict[str, Any]:
    """The figures of all sides, and whether the goals are reached; ``again`` is torch beside int8."""
    found = [percentile(onnx.took_s, 50) / percentile(torch.took_s, 50), onnx.used_bytes / MB, int8.used_bytes / MB]
    found += [onnx.empty_bytes / MB, onnx.online_s]
    same = all(is_same("onnx", *both) for both in zip(onnx.answers, torch.answers, strict=True))
    labels = all(one["label"] == other["label"] for one, other in zip(int8.answers, again.answers, strict=True))
    goals = {name: {"goal": goal, "found": each} for (name, goal), each in zip(GOALS.items(), found, strict=True)}
    return {
        "machine": machine.description_for_memory(),
        "sides": {
            f"{side.name}{', again' if side is again else ''}": {
                "online_s": side.online_s,
                "empty_uss_bytes": side.empty_bytes,
                "used_uss_bytes": side.used_bytes,
                "p50_s": percentile(side.took_s, 50),
                "p95_s": percentile(side.took_s, 95),
            }
            for side in (torch, onnx, again, int8)
        },
        "goals": goals,
        "answers_equal": same,
        "int8_labels_equal": labels,
        "ok": same and labels and all(each["found"] <= each["goal"] for each in goals.values()),
    }


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--exports", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    found = measured(arguments.exports)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("| | start to online, s | USS without a module, MB | after 100 requests, MB | p50, ms | p95, ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, each in found["sides"].items():
        memory = f"{each['empty_uss_bytes'] / MB:.0f} | {each['used_uss_bytes'] / MB:.0f}"
        print(f"| {name} | {each['online_s']:.2f} | {memory} | {1e3 * each['p50_s']:.1f} | {1e3 * each['p95_s']:.1f} |")
    for name, each in found["goals"].items():
        verdict = "holds" if each["found"] <= each["goal"] else "does NOT hold"
        print(f"{name}: {each['found']:.2f}, at most {each['goal']:g} wanted: {verdict}")
    print(f"answers equal: {found['answers_equal']}; labels with int8: {found['int8_labels_equal']}")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
