"""An accelerator, measured: passes, answers against the CPU, and throughput at saturation, batched and not.

    python benchmarks/engines/gpu.py OUT [--device cuda] [--seconds 5] [--model openai/clip-vit-base-patch16]

Writes OUT/gpu.json and OUT/gpu.md. Weights are random, in the published configuration: no figure here depends on what a
model has learnt. The requests of the throughput go through an agent's own rules, fair queue, store, compute thread,
steps and engine, in one process without a broker. Each has an input of its own, so no cache answers it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from PIL import Image

from broker.protocol.codec import RawInput, encode_request
from broker.protocol.messages import AssignedModule, Assignment, Route, RouteDevice, RouteNode
from broker.protocol.specs import InputSpec, ModuleSpec, Source
from edge_agent import events, modules
from edge_agent.config import AgentConfig
from edge_agent.decide import decide
from edge_agent.device.calibration import Calibration
from edge_agent.device.footprint import resident_bytes
from edge_agent.device.measurements import Measurements
from edge_agent.device.pass_note import PassNote
from edge_agent.device.profile import compute_flops_per_s, profile
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from edge_agent.runtime.accelerator import Accelerator, chosen
from edge_agent.runtime.engines import engine
from edge_agent.runtime.runner import Runner
from edge_agent.runtime.store import Store
from edge_agent.state import AgentState
from edge_agent.workers import Workers
from s2m3.reference import random_weights, zoo

BATCHES = (1, 8, 32, 64)
IN_FLIGHT = 128  # requests at saturation
CLIENTS = 8
WARM_UP_S = 1.5
DEADLINE_S = 60
GOAL = 1.3  # times the throughput of batch 1
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}  # of the largest number of the CPU's float32 output


def pictures() -> Iterator[RawInput]:
    """Pictures of 640 x 480 pixels; the files all differ."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(32):
        small = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        made = io.BytesIO()
        Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(made, "JPEG", quality=90)
        files.append(made.getvalue())
    for number in itertools.count():
        comment = f"{number:012d}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        file = files[number % len(files)]
        yield RawInput(file[:2] + segment + file[2:], "image/jpeg")


def captions() -> Iterator[RawInput]:
    """Four captions; no two requests have the same."""
    for number in itertools.count():
        lines = [f"a photo of cup {number:08d}", "a photo of a cat", "a horse in the picture", "what is this"]
        yield RawInput("\n".join(lines).encode(), "text/plain")


INPUTS: dict[str, Callable[[], Iterator[RawInput]]] = {"vision": pictures, "text": captions}


class Device:
    """One agent's rules, store and compute thread, with one module and one task, without a broker."""

    def __init__(self, spec: ModuleSpec, kind: str, *, on: Accelerator | None, batch: int, threads: int) -> None:
        self.kind, self.spec = kind, spec
        self.runner = Runner(threads=threads, batch=batch, device=on.device if on else "cpu")
        calibration = Calibration(Measurements(), flops_per_s=1e12, runner=self.runner, accelerator=on)
        self.store = Store(64 * 1024**3, calibration=calibration)
        self.queue: SimpleQueue[events.Event] = SimpleQueue()
        config = AgentConfig(id="gw-a")
        self.workers = Workers(config, self.store, self.runner, report=self.queue.put, note=PassNote())
        self.state = AgentState("gw-a", "s2m3/v1", batch)
        self.replies: list[events.Reply] = []
        self._numbers = itertools.count()
        need = "image" if kind == "vision" else "text"
        self._need = need
        node = RouteNode(
            module="m/x",
            key=spec.key,
            needs=(need,),
            output_bytes=4,
            devices=(RouteDevice(device="gw-a", compute_s=0.001, latency_s=0.0, bandwidth_bits_per_s=1e12),),
        )
        route = Route(
            task="t",
            epoch=1,
            generation=1,
            group=1,
            inputs={need: InputSpec.model_validate({"kind": need, "bytes": 1000})},
            nodes={"node": node},
            output="node",
            front_door=("gw-a",),
        )
        self.handle(Assignment(epoch=1, generation=1, modules=(AssignedModule(module="m/x", spec=spec),)))
        self.handle(route)
        while spec.key not in self.state.ready:
            event = self.queue.get(timeout=300)
            if isinstance(event, events.ModuleFailed):
                raise SystemExit(f"the module can't be loaded: {event.why}")
            self.handle(event)

    def handle(self, event: events.Event) -> None:
        """Let the rules decide, and perform what concerns the workers."""
        for action in decide(self.state, event, time.monotonic()):
            if isinstance(action, events.Load | events.Unload | events.Run):
                self.workers.submit(action)
            elif isinstance(action, events.Reply):
                self.replies.append(action)

    def ask(self, value: RawInput) -> None:
        """Send one request."""
        number = next(self._numbers)
        payload, content_type = encode_request({self._need: value})
        client = f"camera-{number % CLIENTS}"
        reply_to = f"s2m3/v1/clients/{client}/results/{number}"
        self.handle(events.Requested("t", payload, content_type, reply_to, f"{number}".encode(), DEADLINE_S, client))

    def saturate(self, seconds: float) -> dict[str, Any]:
        """Keep so many requests under way, and count those that are answered in the time after the warm-up."""
        values = INPUTS[self.kind]()
        for _ in range(IN_FLIGHT):
            self.ask(next(values))
        began_s = time.monotonic() + WARM_UP_S
        answered = errors = nodes = passes = 0.0
        while (now_s := time.monotonic()) < began_s + seconds:
            event = self.queue.get(timeout=60)
            if isinstance(event, events.Ran) and now_s >= began_s:
                nodes, passes = nodes + 1, passes + 1 / event.batch
            self.replies.clear()
            self.handle(event)
            for reply in self.replies[:]:
                errors += reply.result.error is not None
                answered += now_s >= began_s and reply.result.error is None
                self.ask(next(values))
        return {
            "per_s": round(answered / seconds, 1),
            "errors": int(errors),
            "mean_batch": round(nodes / max(passes, 1.0), 1),
        }

    def close(self) -> None:
        """Wait for the compute thread, and give the module up."""
        self.workers.close()
        self.store.unload(self.spec.key)


def pass_seconds(device: Device) -> dict[str, float]:
    """The seconds of passes of so many requests, their arrays prepared, copies to and from the device included."""
    found = {}
    with device.store.use(device.spec.key) as module:
        chosen_pass = module.passes[None]
        run = engine(module.engine).forward
        prepared = chosen_pass.steps.prepare([next(INPUTS[device.kind]())]).arrays
        for batch in BATCHES:
            arrays = {name: np.concatenate([array] * batch) for name, array in prepared.items()}
            took_s = []
            for _ in range(13):
                began_s = time.perf_counter()
                run(module, chosen_pass, arrays)
                took_s.append(time.perf_counter() - began_s)
            found[str(batch)] = round(statistics.median(took_s[3:]), 6)
        steps_s = []
        for value in itertools.islice(INPUTS[device.kind](), 12):
            began_s = time.perf_counter()
            chosen_pass.steps.prepare([value])
            steps_s.append(time.perf_counter() - began_s)
        found["prepare"] = round(statistics.median(steps_s), 6)
    return found


def outputs(spec: ModuleSpec, kind: str, device: str, batch: int) -> list[np.ndarray[Any, Any]]:
    """The outputs of a module for eight requests, computed together as far as the batch allows."""
    runner = Runner(batch=batch, device=device)
    module = runner.placed(modules.load(spec))
    many = [[value] for value in itertools.islice(INPUTS[kind](), 8)]
    found: dict[int, np.ndarray[Any, Any]] = {}
    for ended in runner.run_all(module, many):
        for each in ended:
            if isinstance(each.result, Exception):
                raise each.result
            found[each.index] = np.concatenate([array.ravel() for array in each.result.tensors.values()])
    return [found[index] for index in range(len(many))]


def compared(ours: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]], tolerance: float) -> dict[str, Any]:
    """The largest difference of two lists of arrays, as a share of the largest number, and the least cosine."""
    largest = max(float(np.abs(one).max()) for one in theirs)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) / largest
    cosine = min(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(ours, theirs, strict=True))
    return {"difference": difference, "cosine": cosine, "tolerance": tolerance, "ok": difference <= tolerance}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    on = None if arguments.device == "cpu" else chosen(arguments.device)
    began_s = time.perf_counter()
    flops_per_s = compute_flops_per_s(device=on.device if on else "cpu")
    offered = profile(AgentConfig(id="gw-a"), flops_per_s, accelerator=on)
    name = on.name if on else platform.processor() or platform.machine()
    report: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": arguments.model,
        "profile": {"flops_per_s": offered.compute_flops_per_s, "memory_bytes": offered.memory_bytes},
        "profile_s": round(time.perf_counter() - began_s, 2),
        "in_flight": IN_FLIGHT,
        "batch": arguments.batch,
        "rows": [],
    }
    for kind in arguments.kinds:
        for dtype in arguments.dtypes:
            spec = spec_of(arguments.model, kind, dtype)
            row: dict[str, Any] = {"part": kind, "dtype": dtype, "spec_bytes": spec.memory_bytes}
            exact = outputs(spec.model_copy(update={"dtype": "float32", "memory_bytes": 2**40}), kind, "cpu", 1)
            ours = on.device if on else "cpu"
            for label, batch in (("alone", 1), ("batched", 8)):
                row[label] = compared(outputs(spec, kind, ours, batch), exact, TOLERANCES[dtype])
            for threads in arguments.threads:
                for batch in (1, arguments.batch):
                    began_s = time.perf_counter()
                    device = Device(spec, kind, on=on, batch=batch, threads=threads)
                    if "pass_s" not in row:
                        row["load_s"] = round(time.perf_counter() - began_s, 2)
                        row["held_bytes"] = device.store.used_bytes
                        row["pass_s"] = pass_seconds(device)
                    row[f"threads {threads}, batch {batch}"] = device.saturate(arguments.seconds)
                    row["host_bytes"] = resident_bytes()
                    device.close()
                alone, together = (row[f"threads {threads}, batch {each}"]["per_s"] for each in (1, arguments.batch))
                row[f"threads {threads}, ratio"] = round(together / max(alone, 0.1), 2)
            report["rows"].append(row)
            sys.stdout.write(json.dumps(row) + "\n")
    ratios = [value for row in report["rows"] for key, value in row.items() if key.endswith("ratio")]
    checks = [row[label]["ok"] for row in report["rows"] for label in ("alone", "batched")]
    failed = sum(value["errors"] for row in report["rows"] for key, value in row.items() if ", batch" in key)
    report |= {"least_ratio": min(ratios), "goal": GOAL, "errors": failed}
    report["ok"] = min(ratios) >= GOAL and all(checks) and not failed
    return report


def spec_of(model: str, kind: str, dtype: str) -> ModuleSpec:
    """The spec of one of the model's towers."""
    count = model_parts.count(zoo.part(f"clip.{kind}", kind), zoo.published(model).config, dtype=dtype)
    return ModuleSpec(
        family=f"clip.{kind}",
        source=Source(hub=model, part=kind),
        dtype=dtype,
        memory_bytes=count.memory_bytes,
        flops=count.flops,
        output_bytes=count.output_bytes,
    )


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['device']}, torch {report['torch']}, {report['model']} with random weights.",
        f"{report['in_flight']} requests in flight. Passes include the copies to and from the device.",
        "",
        "| part, dtype | prepare | pass of 1 | of 8 | of 32 | of 64 | difference to CPU: alone, batched | held MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        took = row["pass_s"]
        cells = " | ".join(f"{1000 * took[name]:.2f} ms" for name in ("prepare", *map(str, BATCHES)))
        differences = f"{row['alone']['difference']:.1e}; {row['batched']['difference']:.1e}"
        lines.append(f"| {row['part']}, {row['dtype']} | {cells} | {differences} | {row['held_bytes'] / 1e6:.0f} |")
    lines += ["", f"| part, dtype | threads | batch 1 | batch {report['batch']} | mean batch | ratio |"]
    lines.append("|---|" + "---:|" * 5)
    for row in report["rows"]:
        for key in [key for key in row if key.endswith(", ratio")]:
            threads = key.split()[1].rstrip(",")
            one, many = (row[f"threads {threads}, batch {each}"] for each in (1, report["batch"]))
            lines.append(
                f"| {row['part']}, {row['dtype']} | {threads} | {one['per_s']}/s | {many['per_s']}/s | "
                f"{many['mean_batch']} | {row[key]} |"
            )
    verdict = "holds" if report["ok"] else "does not hold"
    lines += ["", f"Goal: at least {report['goal']} times the throughput of batch 1 in each row, no error: {verdict}."]
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any], out: Path) -> None:
    """Write both files."""
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(page(report), encoding="utf-8")


def main() -> int:
    """Measure, write both files; 0 if the goal is reached and the answers are within the tolerance, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--kinds", nargs="+", choices=tuple(INPUTS), default=list(INPUTS))
    parser.add_argument("--dtypes", nargs="+", choices=tuple(TOLERANCES), default=list(TOLERANCES))
    parser.add_argument("--model", default="openai/clip-vit-base-patch16")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same kind, to try this program")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    changes = {"config.json": {"vision_config": tiny, "text_config": tiny}} if arguments.tiny else None
    with tempfile.TemporaryDirectory() as directory:
        os.environ[DIRECTORY_VARIABLE] = directory
        random_weights.write(zoo.published(arguments.model), Path(directory), changes=changes)
        report = measure(arguments)
        write(report, arguments.out)
    sys.stdout.write(page(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
