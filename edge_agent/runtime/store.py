"""The modules that this device holds in memory: each once, within the memory budget, while an assignment names it.

Owns the budget and the reference counts. Knows no family. Thread-safe: the loader's thread loads, the compute thread
uses, the heartbeat's thread reads.

Invariants:
- The bytes of all modules loading, ready or leaving never exceed the budget. They are an earlier measurement's, or the
  spec's, until the module is loaded and measured (``calibration``). One that turns out too large is dropped at once.
- Equal keys are one module: loading twice holds it once.
- A module in use stays in memory. Unloading waits for the last use, and frees its bytes then.
- A failed module stays listed with its reason, at no bytes, until it is unloaded or loaded again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import structlog

from broker.process import return_freed_memory
from broker.protocol.errors import ModuleRefused, first_line
from broker.protocol.messages import AssignedModule, HeldModule
from broker.protocol.sizes import show_bytes, show_sizes
from broker.protocol.specs import ModuleKey, ModuleSpec
from edge_agent import modules
from edge_agent.device.calibration import Calibration, Loaded
from edge_agent.device.measurements import averaged
from edge_agent.modules import Module
from edge_agent.modules.panics import panics_as_errors
from edge_agent.modules.weights import digests
from edge_agent.runtime.out_of_memory import refused_memory

_log = structlog.get_logger()

Load = Callable[[ModuleSpec], Module]

MAX_WAIT_S = 10.0  # for leaving modules: longer than a forward pass within a usual deadline


@dataclass
class _Entry:
    """The state of one key. Its bytes count while it is loading or ready."""

    name: str
    spec: ModuleSpec
    size_bytes: int
    state: Literal["loading", "ready", "failed"] = "loading"
    module: Module | None = None
    error: str | None = None
    load_s: float | None = None
    compute_s: float | None = None
    digest: str | None = None  # of its weights, if the spec states none
    uses: int = 0
    leaving: bool = False  # unloaded, but still in use or loading
    abandoned: bool = False  # its load stands still: whatever comes of it is dropped

    @property
    def memory_bytes(self) -> int:
        return 0 if self.state == "failed" else self.size_bytes


class Store:
    """Holds modules.

    Args:
        budget_bytes: The most bytes of all modules together.
        load: Makes a module from its spec; by the families' table if not given.
        calibration: Measures the real cost of modules.
        wait_s: The longest wait of a load for memory of leaving modules.
    """

    def __init__(
        self,
        budget_bytes: int,
        load: Load = modules.load,
        *,
        calibration: Calibration,
        wait_s: float = MAX_WAIT_S,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._load = load
        self._wait_s = wait_s
        self._calibration = calibration
        self._entries: dict[ModuleKey, _Entry] = {}
        self._changed = threading.Condition()

    def load(self, assigned: AssignedModule) -> HeldModule:
        """Load a module; blocks until its weights are in memory. One that is held already only takes the new name.

        Raises:
            ModuleRefused: over the budget, it can't be loaded, or it was unloaded meanwhile.
        """
        entry, ours = self._claim(assigned)
        if ours:
            with digests.comparing_with(assigned.first_load) as compared:
                try:
                    with panics_as_errors():
                        loaded = self._calibration.load(assigned.spec, self._load)
                except Exception as error:  # a loader runs the code of a family and of libraries
                    entry.digest = compared.found
                    self._finish(entry, None, _reason(assigned, error))
                    raise ModuleRefused(_reason(assigned, error)) from error
            entry.digest = compared.found
            self._finish(entry, loaded, None)
            with _harmless():
                if entry.state == "ready" and loaded.is_alone:
                    self._calibration.keep(assigned.spec, loaded)
            del loaded  # a module that was refused or unloaded meanwhile must be freed
        with self._changed:
            self._changed.wait_for(lambda: entry.state != "loading")
            if entry.error is not None:
                raise ModuleRefused(entry.error)
            return _held(entry)

    def unload(self, key: ModuleKey) -> None:
        """Drop a module, now or when its last use or its loading ends; an unknown key is ignored."""
        self.settle(key, self.release(key))

    def release(self, key: ModuleKey) -> float | None:
        """The first half of ``unload``, which never waits. Returns the measured seconds of a pass, for ``settle``."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry.uses or entry.state == "loading":
                entry.leaving = True
            else:
                del self._entries[key]
            self._changed.notify_all()
            return entry.compute_s

    def settle(self, key: ModuleKey, compute_s: float | None) -> None:
        """The second half of ``unload``: keep what was measured, and tidy."""
        with _harmless():
            if compute_s is not None:
                self._calibration.remember(key, compute_s)
        self.tidy()

    def abandon(self, key: ModuleKey, reason: str) -> None:
        """End the load of a module that makes no progress: it has failed, and whatever comes of it is dropped."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is None or entry.state != "loading":
                return
            if entry.leaving:
                del self._entries[key]
            entry.state, entry.error, entry.abandoned = "failed", reason, True
            self._changed.notify_all()

    def refuse(self, assigned: AssignedModule, reason: str) -> None:
        """List a module as failed that can't be loaded now."""
        with self._changed:
            entry = _Entry(assigned.module, assigned.spec, 0, "failed", error=reason)
            self._entries[assigned.spec.key] = entry

    def fail(self, key: ModuleKey, error: Exception) -> str | None:
        """Drop a ready module that can't run any more; returns the reason to tell, unless it is gone already."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is None or entry.state != "ready" or entry.leaving:
                return None
            entry.state, entry.error, entry.module = "failed", f"{entry.name}: {error}", None
            self._changed.notify_all()
            return entry.error

    @contextmanager
    def use(self, key: ModuleKey) -> Iterator[Module]:
        """Keep a module in memory while it is used.

        Raises:
            ModuleRefused: it isn't held, or not ready.
        """
        with self._changed:
            entry = self._entries.get(key)
            if entry is None or entry.module is None or entry.leaving:
                state = "not held" if entry is None else "on its way out" if entry.leaving else entry.state
                raise ModuleRefused(f"the module {key} is {state} on this device: ask another, or try again later")
            entry.uses += 1
            module = entry.module
        try:
            yield module
        finally:
            with self._changed:
                entry.uses -= 1
                if entry.leaving and not entry.uses:
                    del self._entries[key]
                self._changed.notify_all()

    def record(self, key: ModuleKey, compute_s: float) -> None:
        """Add a measured forward pass to the module's moving average; an unknown key is ignored."""
        with self._changed:
            if entry := self._entries.get(key):
                entry.compute_s = averaged(entry.compute_s, compute_s)

    def pass_s(self, key: ModuleKey) -> float:
        """The seconds of a module's passes: measured, or else estimated from its operations; 0 for an unknown key."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is None:
                return 0.0
            return self._calibration.estimated_s(entry.spec) if entry.compute_s is None else entry.compute_s

    def batched(self, key: ModuleKey) -> frozenset[str | None]:
        """The uses of a module that take several requests in one pass; none for an unknown key."""
        with self._changed:
            entry = self._entries.get(key)
            passes = entry.module.passes if entry is not None and entry.module is not None else {}
            return frozenset(use for use, each in passes.items() if each.batched)

    def held(self) -> dict[ModuleKey, HeldModule]:
        """The modules held, loading or failed, for the heartbeat; without the leaving ones."""
        with self._changed:
            return {key: _held(entry) for key, entry in self._entries.items() if not entry.leaving}

    def cached(self) -> dict[ModuleKey, float]:
        """Modules that aren't held, were measured here, and have their weights on this machine -> seconds of a pass."""
        with self._changed:
            return {key: seconds for key, seconds in self._calibration.cached.items() if key not in self._entries}

    def passing(self) -> AbstractContextManager[object]:
        """The time of a forward pass: no measurement is taken meanwhile."""
        return self._calibration.passing

    @property
    def used_bytes(self) -> int:
        """Bytes of all modules loading, ready or leaving."""
        with self._changed:
            return sum(entry.memory_bytes for entry in self._entries.values())

    def _claim(self, assigned: AssignedModule) -> tuple[_Entry, bool]:
        """The key's entry, and whether the caller must load it. Waits for memory of leaving modules."""
        key, size_bytes = assigned.spec.key, self._calibration.expected_bytes(assigned.spec)
        with self._changed:
            self._changed.wait_for(
                lambda: self._alive(key) or self.used_bytes + size_bytes <= self.budget_bytes or not self._leaving(),
                self._wait_s,
            )
            if known := self._alive(key):
                known.name, known.leaving = assigned.module, False
                return known, False
            entry = self._entries[key] = _Entry(assigned.module, assigned.spec, size_bytes)
            if self.used_bytes <= self.budget_bytes:
                return entry, True
            entry.state = "failed"
            needed, free, budget = show_sizes(size_bytes, self.budget_bytes - self.used_bytes, self.budget_bytes)
            entry.error = (
                f"{assigned.module} needs {needed} and {free} of {budget} are free: raise the device's memory, or "
                "place it elsewhere"
            )
            raise ModuleRefused(entry.error)

    def _finish(self, entry: _Entry, loaded: Loaded | None, error: str | None) -> None:
        """End a load: ready, failed, too large, or unloaded meanwhile. The end of an abandoned one changes nothing."""
        with self._changed:
            if entry.abandoned:
                return
            if entry.leaving:
                error = f"{entry.name} was unloaded while it was loading"
                del self._entries[entry.spec.key]
            elif loaded is not None:
                free_bytes = self.budget_bytes - self.used_bytes + entry.size_bytes
                entry.size_bytes, entry.load_s, entry.compute_s = loaded.memory_bytes, loaded.load_s, loaded.compute_s
                if loaded.memory_bytes > free_bytes:
                    occupied, free, budget = show_sizes(loaded.memory_bytes, free_bytes, self.budget_bytes)
                    error = (
                        f"{entry.name} really occupies {occupied} and {free} of {budget} are free: raise the device's "
                        "memory, or place it elsewhere"
                    )
            entry.module = loaded.module if loaded is not None and error is None else None
            entry.error = error
            entry.state = "ready" if error is None else "failed"
            self._changed.notify_all()

    def tidy(self) -> None:
        """After a load or an unload: return freed memory to the system, and check the disk for weights again."""
        with _harmless():
            return_freed_memory()
            self._calibration.look()

    def _alive(self, key: ModuleKey) -> _Entry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.state != "failed" else None

    def _leaving(self) -> bool:
        return any(entry.leaving for entry in self._entries.values())


def _held(entry: _Entry) -> HeldModule:
    return HeldModule(
        module=entry.name,
        state=entry.state,
        error=entry.error,
        memory_bytes=entry.memory_bytes,
        load_s=entry.load_s,
        compute_s=entry.compute_s,
        uses=entry.uses,
        digest=entry.digest,
    )


def _reason(assigned: AssignedModule, error: Exception) -> str:
    if memory := refused_memory(error):
        needed = show_bytes(assigned.spec.memory_bytes) + memory.removeprefix("memory")
        return f"{assigned.module} needs {needed}, which this device doesn't really have"
    if isinstance(error, ModuleRefused):
        return f"{assigned.module}: {error}"
    first = first_line(error, "no reason given")
    return f"{assigned.module} can't be loaded ({type(error).__name__}: {first})"


@contextmanager
def _harmless() -> Iterator[None]:
    """Log errors of the work after a load or an unload: they must not undo it."""
    try:
        yield
    except Exception:  # noqa: BLE001 - where memory is short, any line may fail
        _log.exception("measuring_failed")
