"""Injects the faults of a scenario, each at its time or at the event that it waits for.

Owns one thread, and how each kind of fault is done to a process, a link or the broker. Records what it did, when, and
to which target; judges nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

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
    """Carries out the faults of one scenario on a site."""

    def __init__(self, stage: Stage, scenario: Scenario) -> None:
        self.done: list[Injected] = []
        self.troubles: list[str] = []
        self._stage = stage
        self._scenario = scenario
        self._numbers = itertools.count()
        self._pending: dict[int, tuple[float, Act]] = {}  # when, what; of a fault that waits for its event: to give up
        self._changed = threading.Condition()
        self._stopping = False
        self._killed: list[str] = []
        self._helpers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)

    def start(self, began_s: float) -> None:
        """Begin; times of faults count from ``began_s``."""
        for fault in self._scenario.timeline():
            self._later(began_s + fault.at_s, partial(self._arm if fault.when else self._act, fault))
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether all faults were injected and are over, or gave up waiting."""
        with self._changed:
            return not self._pending and not any(helper.is_alive() for helper in self._helpers)

    def stop(self) -> None:
        """Inject nothing more, and end the faults that last."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        for helper in self._helpers:
            helper.join()
        if self._pending:
            self.troubles.append("the load was over before all faults were")

    # --- the thread ---

    def _later(self, due_s: float, act: Act) -> int:
        with self._changed:
            number = next(self._numbers)
            self._pending[number] = (due_s, act)
            self._changed.notify_all()
        return number

    def _run(self) -> None:
        while act := self._next():
            self._try(act)

    def _next(self) -> Act | None:
        """The next action that is due; None at the end."""
        with self._changed:
            while not self._stopping:
                if not self._pending:
                    self._changed.wait()
                    continue
                number = min(self._pending, key=lambda each: self._pending[each][0])
                due_s, act = self._pending[number]
                early_s = due_s - time.monotonic()
                if early_s <= 0:
                    del self._pending[number]
                    return act
                self._changed.wait(early_s)
        return None

    def _try(self, act: Act) -> None:
        """Do it; a failure is recorded, and the faults after it are injected all the same."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the fault was not injected
            with self._changed:
                self.troubles.append(f"{type(error).__name__}: {error}")

    def _arm(self, fault: Fault) -> None:
        """Let the fault come when its event does."""
        when = fault.when or When()
        if when.online == KILLED:
            when = When(online=self._whom(KILLED))
        number = self._later(time.monotonic() + PATIENCE_S, partial(self._give_up, fault))

        def spring() -> None:
            with self._changed:
                if number in self._pending:
                    self._pending[number] = (0.0, partial(self._act, fault))
                    self._changed.notify_all()

        self._stage.tripwire.arm(when, spring)

    def _give_up(self, fault: Fault) -> None:
        sentence = (
            f"{fault.kind} {fault.target} at {fault.at_s:g} s waited {PATIENCE_S:g} s for an event that never came"
        )
        with self._changed:
            self.troubles.append(sentence)

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
                (site.start_orchestrator if target in self._orchestrators else site.start_agent)(target)
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
        if target != KILLED and ":" not in target:
            return target
        found = self._killed[-1:] if target == KILLED else self._fitting(target)
        if not found:
            raise SiteFailed(f"no device is {target} when the fault is due")
        return found[0]

    def _fitting(self, target: str) -> Sequence[str]:
        """The devices that now are what the target says, by the routes and assignments."""
        seen, name = self._stage.observer, target.partition(":")[2]
        routes, assignments = dict(seen.routes), dict(seen.assignments)  # another thread changes them
        if target.startswith(FRONT_DOOR):
            return routes[name].front_door if name in routes else ()
        if target.startswith(MODULE):
            nodes = [node for route in routes.values() for node in route.nodes.values() if node.module == name]
            return [device.device for node in nodes for device in node.devices]
        held = [(device, m.module, m.role) for device, all_ in assignments.items() for m in all_.modules]
        if target.startswith(STANDBY):
            return [device for device, module, role in held if (module, role) == (name, "standby")]
        holders = {device for device, module, _ in held if module == name}
        return [device for device in self._stage.site.devices if device not in holders]

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

        def unlimit() -> None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_DATA, before)

        self._ends(fault, unlimit)

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
            names = sorted(spec.task for spec in self._stage.specs)
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


def _data_bytes(pid: int) -> int:
    """The bytes that the kernel counts against RLIMIT_DATA: private writable memory."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - a kernel's file
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
