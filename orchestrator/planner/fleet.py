"""The devices of a plan as arrays, for fleets of 10,000.

Owns the figures of all devices: memory, speed and links, each an array of shape (D,), by row. Knows nothing of tasks,
placements or liveness. Invariant: of each figure, array and spec say the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from broker.cost_model import Linked, crossing_s, memory_bytes
from broker.protocol.specs import DeviceSpec, ModuleName, ModuleSpec
from orchestrator.planner.device_rows import DeviceRows, Row, RowSet, Weights, weights_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Fleet(DeviceRows):
    """Devices that may hold modules, with their figures; ids are distinct."""

    def __init__(self, devices: Sequence[DeviceSpec]) -> None:
        """Make the arrays of these devices, in whatever order they come."""
        super().__init__(devices)
        self.every: Integers = np.arange(len(self.specs))  # all rows, (D,)
        self.memory_bytes: Integers = np.array([spec.memory_bytes for spec in self.specs], dtype=np.int64)
        self.flops_per_s = _floats(spec.compute_flops_per_s for spec in self.specs)
        self.bandwidth_bits_per_s = _floats(spec.bandwidth_bits_per_s for spec in self.specs)
        self.latency_s = _floats(spec.latency_s for spec in self.specs)
        self.sometimes: Flags = self.flags(self.part_time)
        self._sizes: dict[Weights, Integers] = {}
        measured: dict[str, dict[Row, float]] = {}
        for row, spec in enumerate(self.specs):
            for name, seconds in spec.compute_s.items():
                measured.setdefault(name, {})[row] = seconds
        self._measured = {name: ([*there], [*there.values()]) for name, there in measured.items()}

    def flags(self, rows: RowSet) -> Flags:
        """Which rows a set has, (D,)."""
        bits = np.frombuffer(rows.to_bytes(len(self) // 8 + 1, "little"), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little", count=len(self)).astype(np.bool_)

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
        if (known := self._sizes.get(weights := weights_of(module))) is None:
            known = self._sizes[weights] = np.full(len(self), module.memory_bytes, dtype=np.int64)
            for rows, spec in self.forms(module):
                known[rows] = memory_bytes(module, spec)
        return known

    def fits(self, module: ModuleSpec) -> RowSet:
        """Which devices have the memory for a module, if they held nothing else."""
        flags = self.sizes_bytes(module) <= self.memory_bytes
        return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")

    def compute_s(self, name: ModuleName, module: ModuleSpec) -> Floats:
        """Seconds of one forward pass on every device, (D,): ``cost_model.compute_s``, bit for bit."""
        seconds = module.flops / self.flops_per_s
        for label in (name, module.measured_key):  # what was measured by key wins
            if label in self._measured:
                rows, there = self._measured[label]
                seconds[rows] = there
        return seconds


def _floats(figures: Iterable[float]) -> Floats:
    return np.array([*figures], dtype=np.float64)
