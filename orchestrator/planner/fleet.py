"""The devices of a plan as arrays, for fleets of 10,000.

Owns the figures of all devices: memory, speed and links, each an array of shape (D,) in the order of the devices'
ids. Knows nothing of tasks, placements or liveness. Invariant: of each figure, array and spec say the same, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from broker.cost_model import Linked, crossing_s, memory_bytes, runnable
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec, Variant

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Row = int
"""A device's place in the arrays."""
NOWHERE: Row = -1
"""The row of what isn't a device of the fleet."""


class Fleet:
    """Devices that may hold modules; ids are distinct."""

    def __init__(self, devices: Sequence[DeviceSpec]) -> None:
        """Make the arrays of these devices, in whatever order they come."""
        self.specs = sorted(devices, key=lambda device: device.id)  # by row
        self.rows: dict[DeviceId, Row] = {spec.id: row for row, spec in enumerate(self.specs)}
        self.every: Integers = np.arange(len(self.specs))  # all rows, (D,)
        self.memory_bytes: Integers = np.array([spec.memory_bytes for spec in self.specs], dtype=np.int64)
        self.flops_per_s = _floats(spec.compute_flops_per_s for spec in self.specs)
        self.bandwidth_bits_per_s = _floats(spec.bandwidth_bits_per_s for spec in self.specs)
        self.latency_s = _floats(spec.latency_s for spec in self.specs)
        part_time = sometimes_of(self.specs)
        self.sometimes: Flags = np.array([spec.id in part_time for spec in self.specs], dtype=np.bool_)
        self._sizes: dict[_Weights, Integers] = {}
        self._runs: dict[_Weights, Flags] = {}
        self._alike, self._exporting = _by_engines(self.specs)
        measured: dict[str, dict[Row, float]] = {}
        for row, spec in enumerate(self.specs):
            for name, seconds in spec.compute_s.items():
                measured.setdefault(name, {})[row] = seconds
        self._measured = {name: ([*there], [*there.values()]) for name, there in measured.items()}

    def __len__(self) -> int:
        return len(self.specs)

    def crossings_s(self, size_bytes: int) -> Floats:
        """Seconds for this many bytes on each device's link, (D,): half of a transfer between two devices."""
        return self.latency_s + 8 * size_bytes / self.bandwidth_bits_per_s

    def transfers_s(self, size_bytes: int, end: Linked) -> Floats:
        """Seconds between each device and another end, (D,): ``cost_model.transfer_s``, bit for bit."""
        seconds = self.crossings_s(size_bytes) + crossing_s(size_bytes, end)
        if end.id in self.rows:
            seconds[self.rows[end.id]] = 0.0
        return seconds

    def sizes_bytes(self, module: ModuleSpec) -> Integers:
        """The memory that a module needs on every device, (D,): ``cost_model.memory_bytes``."""
        if (known := self._sizes.get(weights := _weights_of(module))) is None:
            known = self._sizes[weights] = np.full(len(self), module.memory_bytes, dtype=np.int64)
            for rows, spec in self._forms(module):
                known[rows] = memory_bytes(module, spec)
        return known

    def runs(self, module: ModuleSpec) -> Flags:
        """Which devices have an engine that can run a module, (D,): ``cost_model.runnable``."""
        if (known := self._runs.get(weights := _weights_of(module))) is None:
            known = self._runs[weights] = np.ones(len(self), dtype=np.bool_)
            for rows, spec in self._forms(module):
                known[rows] = runnable(module, spec) is not None
        return known

    def _forms(self, module: ModuleSpec) -> Iterable[tuple[list[Row], DeviceSpec]]:
        """Rows of devices that run a module in one form, each with a device that stands for them; the last counts."""
        exporting = self._exporting.get(module.measured_key, ())
        return [*self._alike, *(([row], self.specs[row]) for row in exporting)]

    def compute_s(self, name: ModuleName, module: ModuleSpec) -> Floats:
        """Seconds of one forward pass on every device, (D,): ``cost_model.compute_s``, bit for bit."""
        seconds = module.flops / self.flops_per_s
        for label in (name, module.measured_key):  # what was measured by key wins
            if label in self._measured:
                rows, there = self._measured[label]
                seconds[rows] = there
        return seconds


_Weights = tuple[str, ModuleKey, int, tuple[Variant, ...]]


def _weights_of(module: ModuleSpec) -> _Weights:
    """All of a module that the form depends on in which a device runs it."""
    return module.engine, module.measured_key, module.memory_bytes, module.variants


def _by_engines(specs: Sequence[DeviceSpec]) -> tuple[list[tuple[list[Row], DeviceSpec]], dict[ModuleKey, list[Row]]]:
    """The rows with the same engines, each with a device that stands for them; and by module those with an export."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    exporting: dict[ModuleKey, list[Row]] = {}
    for row, spec in enumerate(specs):
        alike.setdefault(spec.engines, []).append(row)
        for key in spec.exports:
            exporting.setdefault(key, []).append(row)
    without = [(rows, specs[rows[0]].model_copy(update={"exports": {}})) for rows in alike.values()]
    return without, exporting


def sometimes_of(devices: Iterable[DeviceSpec]) -> set[DeviceId]:
    """The devices that are on only sometimes; none if no device is always on, for then all are alike."""
    specs = [*devices]
    sometimes = {spec.id for spec in specs if spec.availability == "sometimes"}
    return sometimes if len(sometimes) < len(specs) else set()


def _floats(figures: Iterable[float]) -> Floats:
    return np.array([*figures], dtype=np.float64)
