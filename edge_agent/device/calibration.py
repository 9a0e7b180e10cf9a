"""The real cost of a module on this device: its footprint and its seconds, measured when it is loaded.

Owns the procedure, on the loader's thread: the family's imports, which don't count, resident memory, load, one pass to
warm up, up to ``PASSES`` passes against the clock, resident memory again. Measurements are kept on disk. Each waits for
a moment without a forward pass, at most ``PATIENCE_S``, so that neither disturbs the other.

A footprint is the growth of resident memory, and at least ``memory_bytes`` of the spec. Pages that a library keeps for
later modules count for the first one. Memory that a pass needs for a moment belongs to the device's headroom.

A module without sample inputs, or whose pass would by its operations take longer than ``LONGEST_S``, isn't run: its
seconds come with its first requests. One that fails on a picture, texts or a sound isn't loaded; made-up arrays, in
place of another module's, may be odd.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed, first_line
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import ModuleKey, ModuleSpec
from edge_agent.device import footprint
from edge_agent.device.measurements import Measurement, Measurements
from edge_agent.modules import Module, Value
from edge_agent.modules.loader import Loader
from edge_agent.modules.weights.progress import current
from edge_agent.runtime.accelerator import Accelerator
from edge_agent.runtime.out_of_memory import is_out_of_memory
from edge_agent.runtime.runner import Runner

MEASURE_S = 0.3  # of passes against the clock, after the warm-up
PASSES = 5  # at most
LONGEST_S = 10.0  # a pass that would take longer, by its operations, isn't run only to be measured
PATIENCE_S = 0.5  # the longest wait of a measurement for a moment without a forward pass
FRESH_BYTES = 64 * 1024 * 1024  # memory that must remain free beside a module's weights while they are read

log = structlog.get_logger()


@dataclass(frozen=True)
class Loaded:
    """A module in memory, and its cost."""

    module: Module
    memory_bytes: int
    load_s: float  # until it can be used, without the imports of its family
    compute_s: float | None  # None: not measured
    is_alone: bool = True  # no other load ran meanwhile: the growth of memory is this module's


class Calibration:
    """Measures the modules of one device.

    Args:
        measured: The measurements so far, and their file.
        speed: Share of its speed that the device offers: an emulated slower one's passes take longer.
        flops_per_s: The device's estimated speed, to skip passes that would take too long.
        runner: Runs the passes, and places modules on its device.
        loader: Says how much memory a module needs here, and imports its packages.
        accelerator: That holds the modules; then its memory is measured, and the machine's must only hold one that is
            read.
    """

    def __init__(
        self,
        measured: Measurements,
        *,
        speed: float = 1.0,
        flops_per_s: float = 1e9,
        runner: Runner | None = None,
        loader: Loader | None = None,
        accelerator: Accelerator | None = None,
        clock: Callable[[], float] = time.perf_counter,
        resident_bytes: Callable[[], int | None] = footprint.resident_bytes,
        free_bytes: Callable[[], int | None] = footprint.free_bytes,
    ) -> None:
        self.passing = threading.Lock()
        """Held during each forward pass."""
        self._measured = measured
        self._speed = speed
        self._flops_per_s = flops_per_s
        self._runner = runner or Runner()
        self._loader = loader or Loader()
        self._clock = clock
        self._accelerator = accelerator
        self._resident_bytes = accelerator.allocated_bytes if accelerator else resident_bytes
        self._free_bytes = free_bytes
        self.cached: Mapping[ModuleKey, float] = {}
        """Modules that were measured and whose weights are on this machine -> seconds of a pass."""
        self.look()

    def expected_bytes(self, spec: ModuleSpec) -> int:
        """The bytes that a module will occupy: as it was measured, or as its spec says."""
        known = self._known(spec)
        return max(self._loader.memory_bytes(spec), known.memory_bytes if known else 0)

    def estimated_s(self, spec: ModuleSpec) -> float:
        """The seconds of one pass of a module by its operations, at the speed that this device offers."""
        return spec.flops / self._flops_per_s / self._speed

    def load(self, spec: ModuleSpec, load: Callable[[ModuleSpec], Module]) -> Loaded:
        """Load a module, and measure whatever isn't known of it yet.

        Raises:
            ModuleRefused: the machine has too little free memory.
            Exception: whatever the family's loading or its first pass raises.
        """
        needed_bytes = self._loader.memory_bytes(spec)
        self._check_free(needed_bytes)
        self._loader.imports(spec)
        known = self._known(spec)
        before, began_s = self._resident(), self._clock()
        module = self._runner.placed(load(spec))
        compute_s = known.compute_s if known else None
        if compute_s is None:
            compute_s = self._calibrated(spec, module)
        after = self._resident()
        is_alone = not current().disturbed
        grown = after - before if before is not None and after is not None and is_alone else 0
        memory_bytes = known.memory_bytes if known and known.compute_s else max(needed_bytes, grown)
        load_s = self._clock() - began_s
        return Loaded(module, memory_bytes, load_s, None if compute_s is None else compute_s / self._speed, is_alone)

    def keep(self, spec: ModuleSpec, loaded: Loaded) -> None:
        """Keep the cost of a module that fits. The cost of one that doesn't may have been measured at a bad moment."""
        compute_s = None if loaded.compute_s is None else loaded.compute_s * self._speed
        spec = spec.model_copy(update={"memory_bytes": self._loader.memory_bytes(spec)})
        self._measured.keep(Measurement(spec=spec, memory_bytes=loaded.memory_bytes, compute_s=compute_s))

    def remember(self, key: ModuleKey, compute_s: float) -> None:
        """Keep the average seconds of a module's passes when it is unloaded."""
        known = self._measured.modules.get(key)
        if known is not None and compute_s > 0:
            self._measured.keep(known.model_copy(update={"compute_s": compute_s * self._speed}))

    def look(self) -> None:
        """Find which measured modules have their weights on this machine. Reads the disk, never the network."""
        self.cached = {
            key: each.compute_s / self._speed
            for key, each in tuple(self._measured.modules.items())  # a load may add one meanwhile
            if each.compute_s is not None and self._known(each.spec) and self._loader.is_here(each.spec)
        }

    def _known(self, spec: ModuleSpec) -> Measurement | None:
        """The measurement of a module; None if another variant of it was measured, such as an earlier export."""
        known = self._measured.modules.get(spec.key)
        needed_bytes = self._loader.memory_bytes(spec)
        is_same = known is None or needed_bytes in {spec.memory_bytes, known.spec.memory_bytes}
        return known if is_same else None

    def _check_free(self, needed_bytes: int) -> None:
        free = self._free_bytes()
        if free is not None and free < needed_bytes + FRESH_BYTES:
            needed, left = show_sizes(needed_bytes, free)
            raise ModuleRefused(
                f"its weights are {needed} and this machine has only {left} left: stop other "
                "programs here, or place it elsewhere"
            )

        if self._accelerator and (on_card := self._accelerator.free_bytes()) < needed_bytes:
            needed, left = show_sizes(needed_bytes, on_card)
            raise ModuleRefused(
                f"its weights are {needed} and {self._accelerator.name} has only {left} left: stop "
                "other programs that use it, or place it elsewhere"
            )

    def _calibrated(self, spec: ModuleSpec, module: Module) -> float | None:
        """Seconds of a pass on the sample inputs: the median of a few."""
        use = None if None in module.passes else next(iter(module.passes))  # an export may lack the ordinary one
        values = module.passes[use].steps.sample()
        if values is None or spec.flops / self._flops_per_s > LONGEST_S:
            log.info("module_not_calibrated", family=spec.family, why="no sample inputs" if values is None else "long")
            return None
        try:
            return self._clocked(module, values, use)
        except Exception as error:  # it may fail on made-up arrays and work on another module's
            if is_out_of_memory(error):
                raise
            is_its_own = not isinstance(error, RequestFailed) or error.code == ErrorCode.MODULE_FAILED
            if all(isinstance(value, RawInput) for value in values) and is_its_own:
                kind = "" if isinstance(error, RequestFailed) else f"{type(error).__name__}: "
                why = kind + first_line(error).removeprefix(f"{ErrorCode.MODULE_FAILED}: ")
                fix = "its files don't fit each other; correct them, or name others"
                raise ModuleRefused(f"it fails on a usual input ({why}): {fix}") from error
            log.warning("module_not_calibrated", family=spec.family, why=f"{type(error).__name__}: {error}")
            return None

    def _clocked(self, module: Module, values: tuple[Value, ...], use: str | None) -> float:
        began_s = self._clock()
        self._runner.run(module, values, use)  # the warm-up: no request waits for one-time work
        if (first_s := self._clock() - began_s) > MEASURE_S:
            return first_s
        took_s: list[float] = []
        while len(took_s) < PASSES and sum(took_s) < MEASURE_S:
            with self._quiet():
                began_s = self._clock()
                self._runner.run(module, values, use)
                took_s.append(self._clock() - began_s)
        return max(statistics.median(took_s), 1e-9)

    def _resident(self) -> int | None:
        with self._quiet():
            return self._resident_bytes()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Hold off forward passes, if the current one ends soon."""
        got = self.passing.acquire(timeout=PATIENCE_S)
        try:
            yield
        finally:
            if got:
                self.passing.release()
