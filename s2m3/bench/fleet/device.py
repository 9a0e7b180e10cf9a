"""One simulated device: what it would hold and report as a real agent. Pure; the clock and the sessions come in.

Owns the device's modules: it obeys the newest assignment, "loads" a module by reporting it as loading and, a stated
time later, as ready, and fills in the heartbeat that an agent would send. Doesn't know the broker, and runs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from broker.protocol.messages import (
    About,
    Assignment,
    DeviceProfile,
    DeviceState,
    Heartbeat,
    HeldModule,
    OutputCacheUse,
)
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleSpec

CHANGING = 0.01  # of the values in a heartbeat change each second
DRIFT = 0.05  # a measured time is that of the device's speed, give or take this share

_ABOUT = About(
    version="0.1.0", host="simulated", machine="aarch64", cpu="simulated", python="3.11.7", engines=("torch",)
)
_CACHE = OutputCacheUse(limit_bytes=2**24, used_bytes=2**23, outputs=1_000, hits=100_000, computed=1_000_000)


class SimulatedDevice:
    """A device that has no module yet.

    Args:
        spec: its memory, speed and link.
        load_s: the time from the assignment of a module until it is ready.
        cached: modules that it held before; their weights are on its disk, with the seconds of a pass.
    """

    def __init__(
        self, spec: DeviceSpec, *, load_s: float, cached: Mapping[ModuleKey, ModuleSpec] | None = None
    ) -> None:
        self.spec = spec
        self.modules: dict[ModuleKey, HeldModule] = {}
        self.begun_loads = 0
        self.abandoned_loads = 0  # modules that an assignment took away before they were ready
        self._chance = random.Random(f"{spec.id}/0")  # noqa: S311 - no secret; equal measured times in each run
        self._load_s = load_s
        self._cached = {key: self._measured_s(module) for key, module in (cached or {}).items()}
        self._ready_at_s: dict[ModuleKey, float] = {}
        self._specs: dict[ModuleKey, ModuleSpec] = {}
        self._heartbeat = Heartbeat(
            session=0, seq=0, epoch=0, generation=0, memory_bytes=spec.memory_bytes, output_cache=_CACHE
        )

    @property
    def id(self) -> DeviceId:
        """The device's id."""
        return self.spec.id

    def begin_session(self, session: int) -> None:
        """Begin a new session, as after a lost connection: the modules stay, and so does the assignment."""
        self._heartbeat = self._heartbeat.model_copy(update={"session": session, "seq": 0})

    @property
    def birth(self) -> DeviceState:
        """The birth of the session."""
        spec = self.spec
        profile = DeviceProfile(
            memory_bytes=spec.memory_bytes,
            compute_flops_per_s=spec.compute_flops_per_s,
            bandwidth_bits_per_s=spec.bandwidth_bits_per_s,
            latency_s=spec.latency_s,
        )
        return DeviceState(status="online", session=self._heartbeat.session, profile=profile, about=_ABOUT)

    def lose_power(self) -> None:
        """End and begin again: nothing is in memory, the weights stay on the disk."""
        self._drop(list(self.modules))
        self._heartbeat = self._heartbeat.model_copy(update={"epoch": 0, "generation": 0, "progress": 0})

    def obey(self, assignment: Assignment, now_s: float) -> bool:
        """Drop and begin to load what the assignment says, unless it is older; returns whether anything changes."""
        current = self._heartbeat
        if (assignment.epoch, assignment.generation) < (current.epoch, current.generation):
            return False
        wanted = {assigned.spec.key: assigned for assigned in assignment.modules}
        gone = [key for key in self.modules if key not in wanted]
        self.abandoned_loads += sum(self.modules[key].state == "loading" for key in gone)
        self._drop(gone)
        new = [key for key in wanted if key not in self.modules]
        self.begun_loads += len(new)
        for key in new:
            spec = self._specs[key] = wanted[key].spec
            name = wanted[key].module
            self.modules[key] = HeldModule(module=name, state="loading", memory_bytes=spec.memory_bytes)
            self._ready_at_s[key] = now_s + self._load_s
            self._cached.pop(key, None)
        fence = {"epoch": assignment.epoch, "generation": assignment.generation}
        self._heartbeat = current.model_copy(update=fence)
        return bool(gone or new) or (current.epoch, current.generation) != tuple(fence.values())

    @property
    def next_load_s(self) -> float | None:
        """The time at which the next module is ready; None while nothing loads."""
        return min(self._ready_at_s.values(), default=None)

    def finish_loads(self, now_s: float) -> bool:
        """Report modules as ready whose time has come; returns whether there are any."""
        done = [key for key, at_s in self._ready_at_s.items() if at_s <= now_s]
        for key in done:
            del self._ready_at_s[key]
            update = {"state": "ready", "load_s": self._load_s, "compute_s": self._measured_s(self._specs[key])}
            self.modules[key] = self.modules[key].model_copy(update=update)
        return bool(done)

    def is_ready(self, key: ModuleKey) -> bool:
        """Whether it reports a module as ready."""
        return key in self.modules and self.modules[key].state == "ready"

    def next_heartbeat(self) -> Heartbeat:
        """The next heartbeat of the session; a share ``CHANGING`` of the measured values differs from the last one."""
        for key, held in self.modules.items():
            if held.state == "ready" and self._chance.random() < CHANGING:
                measured = {"compute_s": self._measured_s(self._specs[key])}
                self.modules[key] = held.model_copy(update=measured)
        last = self._heartbeat
        update = {
            "seq": last.seq + 1,
            "progress": last.progress + 3,  # an idle agent's loop turns two or three times a second
            "modules": dict(self.modules),
            "cached": dict(self._cached),
            "memory_used_bytes": sum(held.memory_bytes for held in self.modules.values()),
        }
        self._heartbeat = last.model_copy(update=update)
        return self._heartbeat

    def _measured_s(self, module: ModuleSpec) -> float:
        planned_s = module.flops / self.spec.compute_flops_per_s
        return planned_s * (1 + self._chance.uniform(-DRIFT, DRIFT))

    def _drop(self, keys: list[ModuleKey]) -> None:
        for key in keys:
            held = self.modules.pop(key)
            self._ready_at_s.pop(key, None)
            if held.compute_s is not None:
                self._cached[key] = held.compute_s
