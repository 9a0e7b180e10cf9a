"""The demo: a whole site on this machine, a camera with real photographs, every answer checked, one device killed.

Owns the order of what is shown. Everything printed was measured or published in this run; nothing is computed here that
the system should have computed. The ``Report`` has the same as one document.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from broker.client import Response
from broker.protocol.messages import AssignedModule
from broker.transport.connection import Connection
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.export.compare import TOLERANCE
from s2m3.reference.pictures import REQUESTS, DemoRequest
from s2m3.testbed import NO_CACHE
from s2m3.testbed.engines import Engine, exported, is_equal
from s2m3.testbed.observer import Observer, named
from s2m3.testbed.replay.library import Answer, answers
from s2m3.testbed.replay.timeline import Injected, look_at
from s2m3.testbed.site import Site, SiteFailed

TASKS = ("pocket/classify", "pocket/zero-shot", "pocket/vqa")
LARGEST = "pocket/vqa"  # has all modules of these
AGENTS = (  # three gateways: a fast small one, a slower large one, the slowest
    AgentConfig.model_validate({"id": "gw-a", "memory": "48MiB"}),
    AgentConfig.model_validate({"id": "gw-b", "memory": "160MiB", "speed": 0.5}),
    AgentConfig.model_validate({"id": "gw-c", "memory": "128MiB", "speed": 0.25}),
)
DEADLINE_S = 30.0
RATE_PER_S = 10.0  # of the camera, while a device is killed
BEFORE_KILL, AT_ONCE, AFTER_KILL = 8, 3, 13  # requests; those at once are in flight when it dies


@dataclass
class Report:
    """The findings of the demo; becomes the JSON document."""

    placement: dict[str, list[str]] = field(default_factory=dict)
    standby: dict[str, list[str]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    placement_after: dict[str, list[str]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    requests: list[dict[str, object]] = field(default_factory=list)
    failure: dict[str, object] = field(default_factory=dict)
    ok: bool = False


def run_demo(
    broker: str | Connection,
    console: Console,
    engine: Engine = "torch",
    *,
    dashboard: bool = False,
    then: Callable[[Site, Report], None] | None = None,
) -> Report:
    """Run all steps; the report says whether they held.

    Args:
        broker: ``embedded``, ``mosquitto``, or the connection to a running one.
        console: where the steps are printed.
        engine: of the agents. The unsplit models run on torch.
        dashboard: whether a page shows the site from the beginning.
        then: called before the site ends.

    Raises:
        NotConnected: the running broker doesn't answer.
        SiteFailed: the site doesn't serve its tasks.
    """
    name = broker if isinstance(broker, str) else broker.url
    agents = [each.model_copy(update={"engine": engine}) for each in AGENTS]
    if engine == "onnx":
        models = str(exported([LARGEST], console.print))
        agents = [each.model_copy(update={"models": models}) for each in agents]
    console.print(f"starting a broker ({name}), an orchestrator and {len(AGENTS)} agents; {NO_CACHE} ...")
    with Site(broker, agents, name="demo") as site:
        if dashboard:
            site.start_dashboard()
            console.print(f"a page shows all of it: {site.page}")
        report = _Demo(site, console, engine).run()
        if then is not None:
            then(site, report)
        return report


class _Demo:
    """One run, step by step."""

    def __init__(self, site: Site, console: Console, engine: Engine) -> None:
        self._site = site
        self._console = console
        self._engine = engine
        self._report = Report()
        self._specs = [load_task(name) for name in TASKS]

    def run(self) -> Report:
        expected = self._unsplit_answers()
        self._site.serve(self._specs)
        self._show_placement()
        equal = self._ask_everything(expected)
        survived = self._kill_and_go_on(expected)
        self._report.ok = equal and survived
        held = {
            "torch": "every answer equals the unsplit models', no request was lost",
            "onnx": f"every answer is that of the unsplit models, scores within {TOLERANCE}; no request was lost",
        }
        verdict = held[self._engine] if self._report.ok else "it does NOT hold"
        self._console.print(f"\n[bold]{verdict}[/bold]")
        return self._report

    def _unsplit_answers(self) -> dict[DemoRequest, Answer]:
        self._console.print("meanwhile: the same requests on the unsplit models, in this one process ...")
        modules = [module for spec in self._specs for module in spec.modules.values()]
        self._report.memory_bytes["unshared"] = sum(module.memory_bytes for module in modules)
        return answers(REQUESTS)

    def _show_placement(self) -> None:
        table = _table("placement", "module", "device", "MiB", "used by", "why there")
        shared = footprint = 0
        for device, assigned in self._assigned("active"):
            users = [s.task for s in self._specs if any(m.key == assigned.spec.key for m in s.modules.values())]
            self._report.placement.setdefault(assigned.module, []).append(device)
            self._report.why[assigned.module] = assigned.why
            shared += assigned.spec.memory_bytes
            held = self._site.observer.heartbeats[device].modules.get(assigned.spec.key)
            footprint += held.memory_bytes if held else assigned.spec.memory_bytes
            size = f"{assigned.spec.memory_bytes / 2**20:.1f}"
            table.add_row(assigned.module, device, size, ", ".join(users), assigned.why)
        unshared = self._report.memory_bytes["unshared"]
        self._report.memory_bytes |= {"shared": shared, "footprint": footprint}
        self._console.print(table)
        self._console.print(
            f"memory held for {len(self._specs)} tasks: {shared / 2**20:.1f} MiB of weights, {unshared / 2**20:.1f} if "
            f"each task held its own: {100 * (1 - shared / unshared):.0f} % saved; they really occupy "
            f"{footprint / 2**20:.1f} MiB, as the devices measured it"
        )
        for device, assigned in self._assigned("standby"):
            self._report.standby.setdefault(assigned.module, []).append(device)
        if self._report.standby:
            spare = (f"{module} on {', '.join(devices)}" for module, devices in self._report.standby.items())
            self._console.print(f"standby copies in memory left over: {'; '.join(spare)}")
        self._console.print()

    def _assigned(self, role: str) -> Iterator[tuple[str, AssignedModule]]:
        """The modules assigned in a role, with their device, ordered by device."""
        for device, assignment in sorted(self._site.observer.assignments.items()):
            for assigned in assignment.modules:
                if assigned.role == role:
                    yield device, assigned

    def _ask_everything(self, expected: Mapping[DemoRequest, Answer]) -> bool:
        asked = track(REQUESTS, "requests on real photographs", console=self._console)
        responses = [self._site.client.request(r.task, r.inputs, deadline_s=DEADLINE_S) for r in asked]
        table = _table("answers", "picture", "task", "answer", "score", "ms", "path", "equal")
        for request, response in zip(REQUESTS, responses, strict=True):
            wanted = expected[request]
            row = _row(request, response, equal=is_equal(self._engine, response, wanted))
            self._report.requests.append(row)
            score = f"{row['score']:.3f}" if row["score"] is not None else ""
            milliseconds = f"{1000 * response.latency_s:.0f}"
            path, equal = " > ".join(_devices(response)), "yes" if row["equal"] else "NO"
            table.add_row(request.picture, request.task, str(row["answer"]), score, milliseconds, path, equal)
            if not row["equal"]:
                self._console.print(
                    f"not equal: {request.picture}, {request.task}: {response.result}, expected {wanted}"
                )
        self._console.print(table)
        return all(bool(row["equal"]) for row in self._report.requests)

    def _kill_and_go_on(self, expected: Mapping[DemoRequest, Answer]) -> bool:
        observer, victim = self._site.observer, self._vision_holder()
        self._console.print(
            f"\nkilling {victim}, which holds the shared vision encoder, while requests are in flight ..."
        )
        sent: list[tuple[DemoRequest, Future[Response]]] = []
        killed_s, in_flight = 0.0, 0
        for number in track(range(BEFORE_KILL + AT_ONCE + AFTER_KILL), "requests", console=self._console):
            if number == BEFORE_KILL + AT_ONCE:
                killed_s = time.monotonic()  # before it is gone: the broker may tell of it before the system does
                self._site.kill(victim)
                in_flight = sum(not future.done() for _, future in sent)
            request = REQUESTS[number % len(REQUESTS)]
            future = self._site.client.submit(request.task, request.inputs, deadline_s=DEADLINE_S)
            sent.append((request, future))
            if not BEFORE_KILL <= number < BEFORE_KILL + AT_ONCE:
                time.sleep(1 / RATE_PER_S)
        responses = [(request, future.result(DEADLINE_S + 5)) for request, future in sent]

        def all_replaced(seen: Observer) -> bool:
            return all(route.complete and victim not in named(route) for route in seen.routes.values())

        replaced = observer.wait_for(all_replaced, DEADLINE_S)
        observer.wait_for(
            lambda _: victim not in dict(self._assigned("active")), DEADLINE_S
        )  # assignments follow routes
        seen = look_at(Injected(killed_s, "kill", victim), observer.sightings)
        lost = sum(not response.ok for _, response in responses)
        wrong = sum(
            response.ok and not is_equal(self._engine, response, expected[request]) for request, response in responses
        )
        self._report.failure = {
            "killed": victim,
            "in_flight": in_flight,
            "sent": len(responses),
            "detected_after_s": seen.detected_s and seen.detected_s - killed_s,
            "replaced_after_s": seen.replaced_s and seen.replaced_s - killed_s,
            "lost": lost,
            "wrong": wrong,
            "retried": sum(response.attempts > 1 for _, response in responses),
            "slowest_s": max(response.latency_s for _, response in responses),
        }
        self._show_failure()
        return replaced and lost == 0 and wrong == 0

    def _vision_holder(self) -> str:
        for device, assigned in self._assigned("active"):
            if assigned.spec.family == "efficientnet.encoder":
                return device
        raise SiteFailed("no device is assigned the vision encoder")

    def _show_failure(self) -> None:
        found = self._report.failure
        for name, text in (("detected_after_s", "detected"), ("replaced_after_s", "every task served again")):
            seconds = found[name]
            self._console.print(f"  {text} after {seconds:.3f} s" if isinstance(seconds, float) else f"  NOT {text}")
        self._console.print(
            f"  {found['sent']} requests, {found['in_flight']} in flight at the kill, {found['retried']} sent again, "
            f"{found['lost']} lost, {found['wrong']} wrong; the slowest took {found['slowest_s']:.2f} s"
        )
        table = _table("placement after the failure", "module", "device")
        for device, assigned in self._assigned("active"):
            self._report.placement_after.setdefault(assigned.module, []).append(device)
            table.add_row(assigned.module, device)
        self._console.print(table)


def _table(title: str, *columns: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def _row(request: DemoRequest, response: Response, *, equal: bool) -> dict[str, object]:
    answer = response.result.answer or {}
    error = response.result.error
    return {
        "task": request.task,
        "picture": request.picture,
        "answer": answer.get("label", answer.get("answer")) if error is None else f"{error.code}: {error.message}",
        "score": answer.get("score"),
        "latency_s": response.latency_s,
        "path": _devices(response),
        "equal": equal,
    }


def _devices(response: Response) -> list[str]:
    """The devices a request travelled through, in order."""
    return [device for device, _ in groupby(timing.device for timing in response.result.timings)]
