"""The modules this device holds: each once, within the memory budget, as long as somebody uses it.

Owns the budget and the reference counts. Knows no family and no message but the two it speaks: what is assigned and
what is held. Thread-safe: a loader thread loads, compute threads use, the heartbeat's thread looks.

Invariants:
- The bytes of all modules loading, ready or on their way out never exceed the budget.
- Equal keys are one module: loading twice holds it once.
- A module in use is never taken away; unloading waits for the last use, and frees its bytes then.
- A failed module stays listed with its reason, at no bytes, until it is unloaded or loaded again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from broker.errors import ModuleRefused
from broker.messages import AssignedModule, HeldModule
from broker.specs import ModuleKey, ModuleSpec
from edge_agent import modules
from edge_agent.modules import Module

Load = Callable[[ModuleSpec], Module]

MAX_WAIT_S = 10.0  # for modules on their way out: longer than any forward pass of a sensible deadline
NEWEST_SHARE = 0.2  # of the newest measurement in the moving average


@dataclass
class _Entry:
    """What is known of one key. Its bytes count while it is loading or ready."""

    name: str
    spec: ModuleSpec
    state: Literal["loading", "ready", "failed"] = "loading"
    module: Module | None = None
    error: str | None = None
    compute_s: float | None = None
    uses: int = 0
    leaving: bool = False  # unloaded, but still used or still loading

    @property
    def memory_bytes(self) -> int:
        return 0 if self.state == "failed" else self.spec.memory_bytes


class Store:
    """Holds modules.

    Args:
        budget_bytes: What all modules together may occupy.
        load: Makes a module of its spec; the families' table by default.
        wait_s: How long a load waits for memory that is on its way out.
    """

    def __init__(self, budget_bytes: int, load: Load = modules.load, *, wait_s: float = MAX_WAIT_S) -> None:
        self.budget_bytes = budget_bytes
        self._load = load
        self._wait_s = wait_s
        self._entries: dict[ModuleKey, _Entry] = {}
        self._changed = threading.Condition()

    def load(self, assigned: AssignedModule) -> HeldModule:
        """Hold a module; blocks until its weights are in memory. One that is held already only takes the new name.

        Raises:
            ModuleRefused: over the budget, it can't be loaded, or it was unloaded meanwhile.
        """
        entry, ours = self._claim(assigned)
        if ours:
            try:
                module = self._load(assigned.spec)
            except Exception as error:  # a loader runs a family's and a library's code: anything may come
                self._finish(entry, None, _reason(assigned, error))
                raise ModuleRefused(_reason(assigned, error)) from error
            self._finish(entry, module, None)
        with self._changed:
            self._changed.wait_for(lambda: entry.state != "loading")
            if entry.error is not None:
                raise ModuleRefused(entry.error)
            return _held(entry)

    def unload(self, key: ModuleKey) -> None:
        """Let go of a module, now or when its last use or its loading ends; a key that isn't held is fine."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is None:
                return
            if entry.uses or entry.state == "loading":
                entry.leaving = True
            else:
                del self._entries[key]
            self._changed.notify_all()

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
        """Add a measured forward pass to the module's moving average; a key that is gone is fine."""
        with self._changed:
            entry = self._entries.get(key)
            if entry is not None:
                before = compute_s if entry.compute_s is None else entry.compute_s
                entry.compute_s = before + NEWEST_SHARE * (compute_s - before)

    def held(self) -> dict[ModuleKey, HeldModule]:
        """Everything held, loading or failed, for the heartbeat; without what is on its way out."""
        with self._changed:
            return {key: _held(entry) for key, entry in self._entries.items() if not entry.leaving}

    @property
    def used_bytes(self) -> int:
        """Bytes of all modules loading, ready or on their way out."""
        with self._changed:
            return self._used()

    def _used(self) -> int:
        return sum(entry.memory_bytes for entry in self._entries.values())

    def _claim(self, assigned: AssignedModule) -> tuple[_Entry, bool]:
        """The key's entry, and whether the caller must load it. Waits for memory that is on its way out."""
        key, size_bytes = assigned.spec.key, assigned.spec.memory_bytes
        with self._changed:
            self._changed.wait_for(
                lambda: self._alive(key) or self._fits(size_bytes) or not self._leaving(), self._wait_s
            )
            if known := self._alive(key):
                known.name, known.leaving = assigned.module, False
                return known, False
            entry = self._entries[key] = _Entry(assigned.module, assigned.spec)
            if self._used() <= self.budget_bytes:
                return entry, True
            entry.state = "failed"
            entry.error = (
                f"{assigned.module} needs {size_bytes} bytes and {self.budget_bytes - self._used()} of "
                f"{self.budget_bytes} are free: raise the device's memory, or place it elsewhere"
            )
            raise ModuleRefused(entry.error)

    def _finish(self, entry: _Entry, module: Module | None, error: str | None) -> None:
        """The end of loading: well, badly, or too late for an unload that came meanwhile."""
        with self._changed:
            if entry.leaving:
                module, error = None, f"{entry.name} was unloaded while it was loading"
                del self._entries[entry.spec.key]
            entry.module, entry.error = module, error
            entry.state = "ready" if error is None else "failed"
            self._changed.notify_all()

    def _alive(self, key: ModuleKey) -> _Entry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.state != "failed" else None

    def _fits(self, size_bytes: int) -> bool:
        return self._used() + size_bytes <= self.budget_bytes

    def _leaving(self) -> bool:
        return any(entry.leaving for entry in self._entries.values())


def _held(entry: _Entry) -> HeldModule:
    return HeldModule(
        module=entry.name,
        state=entry.state,
        error=entry.error,
        memory_bytes=entry.memory_bytes,
        compute_s=entry.compute_s,
        uses=entry.uses,
    )


def _reason(assigned: AssignedModule, error: Exception) -> str:
    if isinstance(error, ModuleRefused):
        return f"{assigned.module}: {error}"
    if isinstance(error, MemoryError):
        return f"{assigned.module} needs {assigned.spec.memory_bytes} bytes, which this device doesn't really have"
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{assigned.module} can't be loaded ({type(error).__name__}: {first})"
