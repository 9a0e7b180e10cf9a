"""Injects the faults of a scenario, each at its time or at the event that it waits for.

Owns one thread, and how each kind of fault is done to a process, a link or the broker. Records what it did, when, and
to which target; judges nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable

from broker.protocol.errors import TransportError
from broker.transport.connect import connect
from broker.transport.port import LinkEvent, LinkUp
from s2m3.testbed.replay.hostile import STRANGER, Hostile
from s2m3.testbed.replay.scenario import (
    BROKER,
    FRONT_DOOR,
    KILLED,
    MODULE,
    ORCHESTRATOR,
    STANDBY,
    WITHOUT,
    Fault,
    Scenario,
    When,
)
from s2m3.testbed.replay.stage import Stage
from s2m3.testbed.replay.timeline import Injected
from s2m3.testbed.site import SiteFailed

SLICE_S = 0.05  # of a slowed process: in each it runs for 1/factor and stands for the rest
PATIENCE_S = 60.0  # for the event that a fault waits for
HOSTILE_PAUSE_S = 0.002  # between two hostile messages: faster than any camera, slower than a full queue
CONNECT_S = 5.0

Act = Callable[[], None]


class Injector:
    """Carries out the faults of one scenario.

    Args:
        stage: the site.
        scenario: whose faults.
    """

    def __init__(self, stage: Stage, scenario: Scenario) -> None:
        self.done: list[Injected] = []
        self.troubles: list[str] = []
        self._stage = stage
        self._scenario = scenario
        self._queue: list[tuple[float, int, Act]] = []  # when, order, what
        self._order = itertools.count()
        self._armed: dict[int, tuple[float, Fault]] = {}  # waits for its event -> until when
        self._changed = threading.Condition()
        self._stopping = False
        self._killed: list[str] = []
        self._helpers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)

    def start(self, began_s: float) -> None:
        """Begin; times of faults count from ``began_s``."""
        for fault in self._scenario.timeline():
            self._later(began_s + fault.at_s, self._begin(fault))
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether all faults were injected and are over, or gave up waiting."""
        with self._changed:
            return not self._queue and not self._armed and not any(helper.is_alive() for helper in self._helpers)

    def stop(self) -> None:
        """Inject nothing more, and end the faults that last."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        for helper in self._helpers:
            helper.join()
        if self._queue or self._armed:
            self.troubles.append("the load was over before all faults were")

    # --- the thread ---

    def _later(self, due_s: float, act: Act) -> None:
        with self._changed:
            heapq.heappush(self._queue, (due_s, next(self._order), act))
            self._changed.notify_all()

    def _run(self) -> None:
        while act := self._next():
            self._try(act)

    def _next(self) -> Act | None:
        """The next action that is due; None at the end."""
        with self._changed:
            while not self._stopping:
                now_s = time.monotonic()
                for number, (until_s, fault) in list(self._armed.items()):
                    if now_s > until_s:
                        del self._armed[number]
                        self.troubles.append(f"{_say(fault)} waited {PATIENCE_S:g} s for an event that never came")
                if self._queue and self._queue[0][0] <= now_s:
                    return heapq.heappop(self._queue)[2]
                times = [self._queue[0][0]] if self._queue else []
                times += [until_s for until_s, _ in self._armed.values()]
                self._changed.wait(max(0.0, min(times) - now_s) if times else None)
        return None

    def _try(self, act: Act) -> None:
        """Do it; a failure is recorded, and the faults after it are injected all the same."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the fault was not injected
            with self._changed:
                self.troubles.append(f"{type(error).__name__}: {error}")

    def _begin(self, fault: Fault) -> Act:
        def now() -> None:
            self._act(fault)

        def armed() -> None:
            when = fault.when or When()
            if when.online == KILLED:
                when = When(online=self._whom(KILLED))
            number = next(self._order)
            with self._changed:
                self._armed[number] = (time.monotonic() + PATIENCE_S, fault)

            def sprung() -> None:
                with self._changed:
                    waits = self._armed.pop(number, None)
                if waits is not None:
                    self._later(0.0, now)

            self._stage.tripwire.arm(when, sprung)

        return armed if fault.when else now

    # --- faults ---

    def _act(self, fault: Fault) -> None:
        if fault.kind == "start" and fault.target == KILLED:
            whom = [name for name in dict.fromkeys(self._killed) if name not in self._stage.site.running]
            if not whom:
                raise SiteFailed("no killed device is down when it should start")
        else:
            whom = [self._whom(fault.target)]
        for target in whom:
            named = ORCHESTRATOR if target in self._orchestrators else target
            self.done.append(Injected(time.monotonic(), fault.kind, named, fault.for_s))
            self._befall(target, fault)

    def _befall(self, target: str, fault: Fault) -> None:
        site = self._stage.site
        match fault.kind:
            case "kill":
                self._kill(target)
            case "start":
                self._start(target)
            case "pause":
                site.pause(target)
                self._ends(fault, lambda: site.resume(target))
                self._led(target)
            case "partition":
                self._partition(target, fault)
            case "slow":
                self._helper(lambda: self._slow(target, fault.factor or 1.0, fault.for_s or 0.0))
            case "restart":
                self._restart(target, fault)
            case "hostile":
                self._helper(lambda: self._hostile(target, fault.messages or 0))
            case "squeeze":
                self._squeeze(target, fault)
            case "drain" | "undrain":
                self._stage.observer.set_drain(target, drain=fault.kind == "drain")

    def _kill(self, target: str) -> None:
        """Kill it at once; the wait until it is gone must not delay the next fault."""
        os.kill(self._stage.site.pid(target), signal.SIGKILL)
        self._killed.append(target)
        self._led(target)
        self._helper(lambda: self._stage.site.kill(target))

    def _start(self, target: str) -> None:
        if target in self._orchestrators:
            self._stage.site.start_orchestrator(target)
        else:
            self._stage.site.start_agent(target)

    def _restart(self, target: str, fault: Fault) -> None:
        site = self._stage.site
        if target == BROKER:
            (site.end_broker if fault.gently else site.kill_broker)()
            self._ends(fault, site.start_broker)
        else:
            (site.end if fault.gently else site.kill)(target)
            self._ends(fault, lambda: site.start_orchestrator(target))
            self._led(target)

    @property
    def _orchestrators(self) -> set[str]:
        return {self._stage.leader, *self._stage.others}

    def _whom(self, target: str) -> str:
        """The process behind a target, now.

        Raises:
            SiteFailed: there is no such process.
        """
        if target == ORCHESTRATOR:
            return self._stage.leader
        if target == KILLED:
            found = self._killed[-1:]
        elif target.startswith(FRONT_DOOR):
            route = self._stage.observer.routes.get(target.removeprefix(FRONT_DOOR))
            found = list(route.front_door) if route else []
        elif target.startswith(MODULE):
            found = self._serving(target.removeprefix(MODULE))
        elif target.startswith(STANDBY):
            found = self._standing_by(target.removeprefix(STANDBY))
        elif target.startswith(WITHOUT):
            found = self._holding_none(target.removeprefix(WITHOUT))
        else:
            return target
        if not found:
            raise SiteFailed(f"no device is {target} when the fault is due")
        return found[0]

    def _serving(self, module: str) -> list[str]:
        routes = dict(self._stage.observer.routes).values()
        nodes = [node for route in routes for node in route.nodes.values() if node.module == module]
        return [device.device for node in nodes for device in node.devices]

    def _standing_by(self, module: str) -> list[str]:
        assignments = dict(self._stage.observer.assignments).items()
        return [name for name, held in assignments for m in held.modules if (m.module, m.role) == (module, "standby")]

    def _holding_none(self, module: str) -> list[str]:
        assignments = dict(self._stage.observer.assignments)
        holders = {name for name, held in assignments.items() if any(m.module == module for m in held.modules)}
        return [name for name in self._stage.site.devices if name not in holders]

    def _led(self, target: str) -> None:
        """Note that a standby leads from now on, if the target was the leader and there is a standby."""
        if target == self._stage.leader and self._stage.others:
            self._stage.leader, self._stage.others = self._stage.others[0], (target,)

    def _ends(self, fault: Fault, end: Act) -> None:
        if fault.for_s is None:
            end()
        else:
            self._later(time.monotonic() + fault.for_s, end)

    def _partition(self, target: str, fault: Fault) -> None:
        proxy = self._stage.site.proxy(target)
        proxy.cut()
        if fault.disconnect:
            proxy.disconnect()
        self._ends(fault, proxy.restore)
        self._led(target)

    def _squeeze(self, target: str, fault: Fault) -> None:
        """Let the process have no more private memory than it has now and this much."""
        pid = self._stage.site.pid(target)
        before = resource.prlimit(pid, resource.RLIMIT_DATA)
        limit = _data_bytes(pid) + (fault.memory or 0)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, before[1]))
        self._ends(fault, lambda: _unlimit(pid, before))

    # --- faults that last, each in a thread ---

    def _helper(self, work: Act) -> None:
        thread = threading.Thread(target=self._try, args=(work,), name="fault", daemon=True)
        with self._changed:
            self._helpers = [helper for helper in self._helpers if helper.is_alive()] + [thread]
        thread.start()

    def _slow(self, target: str, factor: float, for_s: float) -> None:
        pid, until_s = self._stage.site.pid(target), time.monotonic() + for_s
        with contextlib.suppress(ProcessLookupError):  # killed meanwhile
            try:
                while time.monotonic() < until_s and not self._stopping:
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(SLICE_S * (1 - 1 / factor))
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(SLICE_S / factor)
            finally:
                os.kill(pid, signal.SIGCONT)

    def _hostile(self, target: str, messages: int) -> None:
        site, up = self._stage.site, threading.Event()

        def inbox(event: LinkEvent) -> None:
            if isinstance(event, LinkUp):
                up.set()

        stranger = connect(site.url, client_id=STRANGER, inbox=inbox)
        stranger.start()
        try:
            if not up.wait(CONNECT_S):
                raise SiteFailed("the hostile client could not connect")
            names = [spec.task for spec in self._stage.specs]
            makes = Hostile(self._stage.observer.prefix, target, names, self._scenario.seed)
            sent = 0
            while sent < messages and not self._stopping:
                try:
                    stranger.publish(makes.next(self._stage.tripwire.recent))
                    sent += 1
                except TransportError:  # its own queue is full, or the broker threw it out
                    pass
                time.sleep(HOSTILE_PAUSE_S)
        finally:
            stranger.close()


def _say(fault: Fault) -> str:
    return f"{fault.kind} {fault.target} at {fault.at_s:g} s"


def _data_bytes(pid: int) -> int:
    """The bytes that the kernel counts against RLIMIT_DATA: private writable memory."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - a kernel's file
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


def _unlimit(pid: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, limits)
