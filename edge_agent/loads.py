"""The threads that load modules, and their deadlines: each load makes progress or ends.

Owns one thread a load. One load at a time reads and measures; it lets the next one go while it waits for the network,
and when it stands still. So no load blocks another module's. A load that makes no progress, or takes longer than its
bytes allow, fails with the reason, and the orchestrator tries another device. Its thread can't be ended: it is left
behind, and until it ends its module isn't loaded here again.

``watch`` is called often, with the time in which the process ran: time in which it stood still doesn't count.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import structlog

from broker.protocol.codec import load_digest
from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import AssignedModule, HeldModule
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import ModuleKey
from edge_agent import events
from edge_agent.device.pass_note import PassNote, survive_full_stack
from edge_agent.modules.weights import stored
from edge_agent.modules.weights.progress import Progress, reporting_to
from edge_agent.runtime.store import Store

LOAD_S = 120.0  # for any load, and longer by its bytes: for the imports of a family, and passes to measure
MIN_BYTES_PER_S = 64 * 1024  # a slow mobile link; less counts as standing still
MIN_CPU_SHARE = 0.02  # of a processor, for a load that computes
STILL_S = 30.0  # without progress: then the load has failed
YIELD_S = 3.0  # without progress: then the next load may begin

log = structlog.get_logger()


class Pace:
    """Whether bytes or processor seconds grow fast enough over a window of time. Pure."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._from: tuple[float, int, float] | None = None

    def restart(self) -> None:
        """Begin a new window."""
        self._from = None

    def stands_still(self, awake_s: float, size_bytes: int, cpu_s: float) -> bool:
        """Take in the present figures; True when a whole window brought too little."""
        if self._from is None:
            self._from = awake_s, size_bytes, cpu_s
            return False
        from_s, from_bytes, from_cpu_s = self._from
        enough_bytes = size_bytes - from_bytes >= MIN_BYTES_PER_S * self._window_s
        is_done = size_bytes < from_bytes  # a download has its final name
        if enough_bytes or is_done or cpu_s - from_cpu_s >= MIN_CPU_SHARE * self._window_s:
            self._from = awake_s, size_bytes, cpu_s
            return False
        return awake_s - from_s >= self._window_s


def deadline_s(size_bytes: int) -> float:
    """The longest time of a load of this size, however steadily it goes on."""
    return LOAD_S + size_bytes / MIN_BYTES_PER_S


@dataclass(eq=False)
class _Loading:
    """One load and its thread."""

    assigned: AssignedModule
    progress: Progress = field(default_factory=Progress)
    thread: threading.Thread | None = None
    waiting: bool = True  # for its turn
    idle: bool = False  # it stands still at the moment
    given_up: bool = False
    stack: list[object] = field(default_factory=list)  # for the handler of a crash
    began_s: float | None = None
    seen_s: float = 0.0
    still: Pace = field(default_factory=lambda: Pace(STILL_S))
    short: Pace = field(default_factory=lambda: Pace(YIELD_S))

    def problem(self, awake_s: float) -> str:
        """Take in the present progress, and return why the load has failed; empty while it may go on."""
        if self.waiting or self.progress.held_back:
            self.still.restart()
            self.short.restart()
            if self.began_s is not None:
                self.began_s += awake_s - self.seen_s
            self.seen_s = awake_s
            return ""
        self.seen_s = awake_s
        self.began_s = awake_s if self.began_s is None else self.began_s
        fetched_bytes = self.progress.fetched_bytes + self.progress.growing_bytes
        size_bytes, cpu_s = fetched_bytes + _read_bytes(self.thread), _cpu_s(self.thread)
        self.idle = self.short.stands_still(awake_s, size_bytes, cpu_s)
        if self.progress.stopped and self.idle:
            return self.progress.stopped
        if self.still.stands_still(awake_s, size_bytes, cpu_s):
            got = f"{show_bytes(size_bytes)} in {awake_s - self.began_s:.0f} s"
            return f"its load stands still ({got}, nothing in the last {STILL_S:.0f} s): check the disk or the network"
        limit_s = deadline_s(max(self.assigned.spec.memory_bytes, self.progress.expected_bytes))
        return f"its load takes longer than {limit_s:.0f} s" if awake_s - self.began_s > limit_s else ""


class _Turns:
    """Which load reads and measures now. One that waits for the network, or stands still, lets the next one go."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: _Loading | None = None

    def take(self, loading: _Loading) -> None:
        with self._changed:
            loading.waiting = True
            self._changed.wait_for(lambda: self._holder is None or self._holder.idle or loading.progress.stopped)
            if self._holder is not None:
                self._holder.progress.disturbed = loading.progress.disturbed = True
            self._holder, loading.waiting = loading, False

    def give(self, loading: _Loading) -> None:
        with self._changed:
            if self._holder is loading:
                self._holder = None
            self._changed.notify_all()

    def look(self) -> None:
        """Let the waiting loads see whether the present one stands still."""
        with self._changed:
            self._changed.notify_all()


class Loads:
    """Loads and unloads modules; its threads call ``report`` with the events of loads."""

    def __init__(
        self, device: str, store: Store, *, report: Callable[[events.Event], object], note: PassNote | None = None
    ) -> None:
        self._device, self._store, self._report, self._note = device, store, report, note or PassNote()
        self._lock = threading.Lock()
        self._running: dict[ModuleKey, _Loading] = {}
        self._next: dict[ModuleKey, AssignedModule] = {}  # to be loaded when the present load of this key has ended
        self._stuck: dict[ModuleKey, threading.Thread] = {}  # left behind
        self._turns = _Turns()
        self._tidying: SimpleQueue[Callable[[], object]] = SimpleQueue()
        threading.Thread(target=self._tidy, name=f"agent[{device}].tidy", daemon=True).start()
        self._log = log.bind(device=device)

    def load(self, assigned: AssignedModule) -> None:
        """Load a module in a thread of its own, after a load of the same module that goes on."""
        with self._lock:
            if assigned.spec.key in self._running:
                self._next[assigned.spec.key] = assigned
            else:
                self._begin(assigned)

    def unload(self, unload: events.Unload) -> None:
        """Unload a module, and stop its load."""
        key = unload.key
        compute_s = self._store.release(key)
        with self._lock:
            self._next.pop(key, None)
            if loading := self._running.get(key):
                loading.progress.stopped = f"{loading.assigned.module} was unloaded while it was loading"
        self._turns.look()
        self._tidying.put(partial(self._settle, unload, compute_s))

    def watch(self, awake_s: float) -> None:
        """Give up loads that stand still or take too long."""
        with self._lock:
            problems = {loading: loading.problem(awake_s) for loading in self._running.values()}
        self._turns.look()
        for loading, problem in problems.items():
            if problem:
                self._give_up(loading, problem)

    def _begin(self, assigned: AssignedModule) -> None:
        """Start the thread of a load; the lock is held."""
        key = assigned.spec.key
        stuck = self._stuck.get(key)
        if stuck is not None and stuck.is_alive():
            self._refuse(assigned, "an earlier load of it still stands still here: restart the agent")
            return
        loading = self._running[key] = _Loading(assigned)
        loading.progress = Progress(
            partial(self._turns.give, loading),
            partial(self._turns.take, loading),
            limit_bytes=assigned.spec.download_limit_bytes,
        )
        name = f"agent[{self._device}].load[{assigned.module}]"
        loading.thread = threading.Thread(target=self._load, args=(loading,), name=name, daemon=True)
        try:
            loading.thread.start()
        except RuntimeError as error:  # no memory for its stack
            del self._running[key]
            self._refuse(assigned, f"its load can't begin ({error}): stop other programs here, or place it elsewhere")

    def _refuse(self, assigned: AssignedModule, why: str) -> None:
        reason = f"{assigned.module}: {why}"
        self._store.refuse(assigned, reason)
        self._log.error("module_refused", module=assigned.module, error=reason)
        self._report(events.ModuleFailed(assigned.spec.key, reason))

    def _load(self, loading: _Loading) -> None:
        assigned = loading.assigned
        survive_full_stack(loading.stack)
        stored.hold(assigned.spec)
        self._turns.take(loading)
        event: events.Event
        try:
            held = self._loaded(loading)
        except Exception as error:  # noqa: BLE001 - each load ends in an event
            event = events.ModuleFailed(assigned.spec.key, str(error))
            if not loading.given_up and not loading.progress.stopped:
                self._log.error("module_refused", module=assigned.module, error=str(error))
        else:
            measured = held.model_dump(include={"memory_bytes", "load_s", "compute_s"})
            self._log.info("module_ready", module=assigned.module, **measured)
            event = events.ModuleReady(assigned.spec.key, held.compute_s, self._store.batched(assigned.spec.key))
        finally:
            self._turns.give(loading)
        with self._lock:
            is_ours = self._end(loading)
        if is_ours:
            self._report(event)
        self._tidying.put(self._store.tidy)
        self._tidying.put(partial(self._let_go, assigned.spec.key))

    def _loaded(self, loading: _Loading) -> HeldModule:
        if loading.progress.stopped:
            raise ModuleRefused(loading.progress.stopped)
        with reporting_to(loading.progress), self._note.loading(load_digest(loading.assigned.spec.key)):
            held = self._store.load(loading.assigned)
        if loading.progress.stopped and not loading.given_up:
            self._store.release(loading.assigned.spec.key)  # it was unloaded before the store knew of it
        return held

    def _end(self, loading: _Loading) -> bool:
        """Remove a load and begin the next one of its module; returns whether its end is news. The lock is held."""
        key = loading.assigned.spec.key
        if loading.given_up:
            return False
        del self._running[key]
        if (following := self._next.pop(key, None)) is not None:
            self._begin(following)
        return not loading.progress.stopped

    def _give_up(self, loading: _Loading, problem: str) -> None:
        key, module = loading.assigned.spec.key, loading.assigned.module
        with self._lock:
            if self._running.get(key) is not loading:
                return  # it has just ended
            was_stopped, loading.given_up = bool(loading.progress.stopped), True
            loading.progress.stopped = problem
            self._store.abandon(key, f"{module}: {problem}")
            del self._running[key]
            if loading.thread is not None:
                self._stuck[key] = loading.thread
            following = self._next.pop(key, None)
        self._turns.give(loading)
        self._log.error("load_given_up", module=module, error=problem)
        if not was_stopped:
            self._report(events.ModuleFailed(key, f"{module}: {problem}"))
        if following is not None:
            self.load(following)

    def _settle(self, unload: events.Unload, compute_s: float | None) -> None:
        self._store.settle(unload.key, compute_s)
        self._let_go(unload.key)
        self._log.info("module_unloaded", key=unload.key)
        self._report(events.ModuleUnloaded(unload.module))

    def _let_go(self, key: ModuleKey) -> None:
        """Let the weights of a module be removed from the disk, unless it was assigned again."""
        with self._lock:
            if not (key in self._running or key in self._next or key in self._store.held()):
                stored.let_go(key)

    def _tidy(self) -> None:
        while True:
            try:
                self._tidying.get()()
            except Exception:  # noqa: BLE001 - the next one may succeed
                self._log.exception("tidying_failed")


def _cpu_s(thread: threading.Thread | None) -> float:
    """The processor seconds of a thread; 0 where the system doesn't say."""
    if thread is None or thread.native_id is None:
        return 0.0
    with suppress(OSError, ValueError, IndexError):
        after_name = Path(f"/proc/self/task/{thread.native_id}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        user, system = after_name.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _read_bytes(thread: threading.Thread | None) -> int:
    """The bytes that a thread has read; 0 where the system doesn't say."""
    if thread is None or thread.native_id is None:
        return 0
    with suppress(OSError, ValueError):
        lines = Path(f"/proc/self/task/{thread.native_id}/io").read_text(encoding="ascii").splitlines()
        counts = dict(line.split(": ") for line in lines)
        return int(counts["rchar"]) + int(counts["read_bytes"])
    return 0
