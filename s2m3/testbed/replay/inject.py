"""Injects the faults of a scenario, each at its time or at the event that it waits for.

Owns one thread, and how each kind of fault is done to a process, a link or the broker. Records what it did, when, and
to which target; judges nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sched
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from broker.protocol.errors import ErrorCode, TransportError
from broker.protocol.media import kind_of
from broker.protocol.sizes import show_bytes
from s2m3.testbed.faulty_agent import DEADLY
from s2m3.testbed.replay.hostile import Hostile
from s2m3.testbed.replay.library import requests_for, revised
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
from s2m3.testbed.replay.stage import Stage, connected
from s2m3.testbed.replay.timeline import Injected
from s2m3.testbed.site import SiteFailed

SLICE_S = 0.05  # of a slowed process: in each it runs for 1/factor and stands for the rest
PATIENCE_S = 60.0  # for the event that a fault waits for
HOSTILE_PAUSE_S = 0.002  # between two hostile messages: faster than any camera, slower than a full queue

Act = Callable[[], None]


class Injector:
    """Carries out the faults of one scenario on a site."""

    def __init__(self, stage: Stage, scenario: Scenario) -> None:
        self.done: list[Injected] = []
        self.troubles: list[str] = []
        self._stage = stage
        self._scenario = scenario
        self._schedule = sched.scheduler(time.monotonic)  # of a fault that waits for its event: to give up
        self._wakeup = threading.Event()
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
        return self._schedule.empty() and not any(helper.is_alive() for helper in self._helpers)

    def stop(self) -> None:
        """Inject nothing more, and end the faults that last."""
        self._stopping = True
        self._wakeup.set()
        self._thread.join()
        for helper in self._helpers:
            helper.join()
        if not self._schedule.empty():
            self.troubles.append("the load was over before all faults were")

    # --- the thread ---

    def _later(self, due_s: float, act: Act) -> sched.Event:
        event = self._schedule.enterabs(due_s, 0, self._try, (act,))
        self._wakeup.set()
        return event

    def _run(self) -> None:
        while not self._stopping:
            self._wakeup.wait(self._schedule.run(blocking=False))
            self._wakeup.clear()

    def _try(self, act: Act) -> None:
        """Do it; a failure is recorded, and the faults after it are injected all the same."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the fault was not injected
            self.troubles.append(f"{type(error).__name__}: {error}")

    def _arm(self, fault: Fault) -> None:
        """Let the fault come when its event does."""
        when = fault.when or When()
        if when.online == KILLED:
            when = When(online=self._whom(KILLED))
        vain = f"{fault.kind} {fault.target} at {fault.at_s:g} s waited {PATIENCE_S:g} s for an event that never came"
        giving_up = self._later(time.monotonic() + PATIENCE_S, lambda: self.troubles.append(vain))

        def spring() -> None:
            with contextlib.suppress(ValueError):  # it gave up before
                self._schedule.cancel(giving_up)
                self._later(0.0, partial(self._act, fault))

        self._stage.tripwire.arm(when, spring)

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
            self.done.append(Injected(time.monotonic(), fault.kind, named, fault.for_s, self._how(fault)))
            self._befall(target, fault)

    def _how(self, fault: Fault) -> str:
        """Words for the report beside the fault's kind; of a task the revision that is deployed."""
        if fault.kind in {"deploy", "rollback"}:
            return revised(self._stage.first[fault.target], fault).revision
        parts = {
            "slow": f"1/{fault.factor or 1:g} of its time",
            "hostile": f"{fault.messages} messages",
            "squeeze": f"{show_bytes(fault.memory or 0)} more than it had",
        }
        return parts.get(fault.kind, "gently" if fault.gently else "")

    def _befall(self, target: str, fault: Fault) -> None:
        site = self._stage.site
        match fault.kind:
            case "kill":
                self._kill(target)
            case "start" | "join":
                (site.start_orchestrator if target in self._orchestrators else site.start_agent)(target)
            case "switch_off":
                self._switch_off(target, fault)
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
            case "drain" | "undrain":
                self._stage.observer.set_drain(target, drain=fault.kind == "drain")
            case _:
                self._befall_inside(target, fault)

    def _befall_inside(self, target: str, fault: Fault) -> None:
        """The faults after which a process lives and its connections stand."""
        match fault.kind:
            case "squeeze":
                self._squeeze(target, fault)
            case "hang" | "stall":
                self._stage.site.fail_inside(target, fault.kind)
            case "fill":
                self._stage.site.fail_inside(target, fault.kind)
                self._ends(fault, lambda: self._stage.site.end_inside(target, "fill"))
            case "crash":
                self._helper(lambda: self._crash(target))
            case "deploy" | "rollback":
                self._stage.deploy(revised(self._stage.first[target], fault))

    def _crash(self, task: str) -> None:
        """Send a deadly request, the same each time, and see that its sensor gets the error."""
        inputs = next(iter(requests_for(self._scenario)[task])).inputs
        name = next(name for name, raw in inputs.items() if kind_of(raw.content_type) == "image")
        inputs = {**inputs, name: replace(inputs[name], data=inputs[name].data + DEADLY)}
        deadline_s = self._scenario.load.deadline_s
        response = self._stage.client.request(task, inputs, deadline_s=deadline_s)
        error = response.result.error
        if error is None or error.code != ErrorCode.MODULE_FAILED:
            self.troubles.append(f"the deadly request for {task} ended with {error or 'an answer'}")

    def _kill(self, target: str) -> None:
        """Kill it at once; the wait until it is gone must not delay the next fault."""
        os.kill(self._stage.site.pid(target), signal.SIGKILL)
        self._killed.append(target)
        self._led(target)
        self._helper(lambda: self._stage.site.kill(target))

    def _switch_off(self, target: str, fault: Fault) -> None:
        """End it; the wait until it is gone must not delay its start, nor the next fault."""

        def off_and_on() -> None:
            (self._stage.site.end if fault.gently else self._stage.site.kill)(target)
            if fault.for_s is not None:
                self._later(time.monotonic() + fault.for_s, lambda: self._stage.site.start_agent(target))

        self._helper(off_and_on)

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
        names = sorted(spec.task for spec in self._stage.specs)
        makes = Hostile(self._stage.observer.prefix, target, names, self._scenario.seed)
        sent = 0
        with connected(self._stage.site.connection, lambda _: None) as stranger:
            while sent < messages and not self._stopping:
                with contextlib.suppress(TransportError):  # its own queue is full, or the broker threw it out
                    stranger.publish(makes.next(self._stage.tripwire.recent))
                    sent += 1
                time.sleep(HOSTILE_PAUSE_S)


def _data_bytes(pid: int) -> int:
    """The bytes that the kernel counts against RLIMIT_DATA: private writable memory."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - a kernel's file
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024
