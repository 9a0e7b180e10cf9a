"""The devices of a plan as arrays, for fleets of 10,000.

Owns the figures of all devices: memory, speed and links, each an array of shape (D,) in the order of the devices'
ids. Knows nothing of tasks, placements or liveness. Invariant: of each figure, array and spec say the same, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from broker.cost_model import Linked, crossing_s, memory_bytes
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec

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
        self._sizes: dict[tuple[ModuleKey, int], Integers] = {}
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
        known = self._sizes.get((module.key, module.memory_bytes))
        if known is None:
            known = np.array([memory_bytes(module, spec) for spec in self.specs], dtype=np.int64)
            self._sizes[module.key, module.memory_bytes] = known
        return known

    def compute_s(self, name: ModuleName, module: ModuleSpec) -> Floats:
        """Seconds of one forward pass on every device, (D,): ``cost_model.compute_s``, bit for bit."""
        seconds = module.flops / self.flops_per_s
        for label in (name, module.measured_key):  # what was measured by key wins
            if label in self._measured:
                rows, there = self._measured[label]
                seconds[rows] = there
        return seconds


def sometimes_of(devices: Iterable[DeviceSpec]) -> set[DeviceId]:
    """The devices that are on only sometimes; none if no device is always on, for then all are alike."""
    specs = [*devices]
    sometimes = {spec.id for spec in specs if spec.availability == "sometimes"}
    return sometimes if len(sometimes) < len(specs) else set()


def _floats(figures: Iterable[float]) -> Floats:
    return np.array([*figures], dtype=np.float64)
