"""The devices of a plan as arrays, built once and reused by later plans, for fleets of 10,000.

Owns the figures of all devices: memory, speed and links, each an array of shape (D,) in the order of the devices'
ids. Knows nothing of tasks, placements or liveness.

Invariants:
- a device keeps its row for the fleet's life: the row of a device that is gone has no memory, so nothing fits there;
- of each figure, array and spec say the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from broker.cost_model import Linked, crossing_s
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleName, ModuleSpec

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Row = int
"""A device's place in the arrays."""
NOWHERE: Row = -1
"""The row of what isn't a device of the fleet."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """Devices that may hold modules. Make one with ``Fleet.of``; ids are distinct."""

    specs: tuple[DeviceSpec, ...]  # by row, those that are gone among them
    rows: Mapping[DeviceId, Row]  # of those that are there
    memory_bytes: Integers
    flops_per_s: Floats
    bandwidth_bits_per_s: Floats
    latency_s: Floats
    measured: Mapping[str, tuple[Integers, Floats]]  # module name or key -> rows, and the seconds measured there

    @classmethod
    def of(cls, devices: Sequence[DeviceSpec] | Fleet) -> Fleet:
        """A fleet of these devices, in whatever order they come; a fleet is taken as it is."""
        if isinstance(devices, Fleet):
            return devices
        specs = sorted(devices, key=lambda device: device.id)
        measured: dict[str, tuple[list[Row], list[float]]] = {}
        for row, spec in enumerate(specs):
            for name, seconds in spec.compute_s.items():
                rows, there = measured.setdefault(name, ([], []))
                rows.append(row)
                there.append(seconds)
        return cls(
            specs=tuple(specs),
            rows={spec.id: row for row, spec in enumerate(specs)},
            memory_bytes=np.array([spec.memory_bytes for spec in specs], dtype=np.int64),
            flops_per_s=np.array([spec.compute_flops_per_s for spec in specs], dtype=np.float64),
            bandwidth_bits_per_s=np.array([spec.bandwidth_bits_per_s for spec in specs], dtype=np.float64),
            latency_s=np.array([spec.latency_s for spec in specs], dtype=np.float64),
            measured={
                name: (np.array(rows, dtype=np.int64), np.array(seconds, dtype=np.float64))
                for name, (rows, seconds) in measured.items()
            },
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[DeviceSpec]:
        return (self.specs[row] for row in self.rows.values())

    def without(self, device: DeviceId) -> Fleet:
        """The same fleet after the loss of one device; rows stay."""
        memory_bytes = self.memory_bytes.copy()
        memory_bytes[self.rows[device]] = 0
        rows = dict(self.rows)
        del rows[device]
        return replace(self, rows=rows, memory_bytes=memory_bytes)

    @cached_property
    def every(self) -> Integers:
        """All rows, (D,)."""
        return np.arange(len(self.specs))

    def crossings_s(self, size_bytes: int) -> Floats:
        """Seconds for this many bytes on each device's link, (D,): half of a transfer between two devices."""
        return self.latency_s + 8 * size_bytes / self.bandwidth_bits_per_s

    def transfers_s(self, size_bytes: int, end: Linked) -> Floats:
        """Seconds between each device and another end, (D,): ``cost_model.transfer_s``, bit for bit."""
        seconds = self.crossings_s(size_bytes) + crossing_s(size_bytes, end)
        if end.id in self.rows:
            seconds[self.rows[end.id]] = 0.0
        return seconds

    def compute_s(self, name: ModuleName, module: ModuleSpec) -> Floats:
        """Seconds of one forward pass on every device, (D,): ``cost_model.compute_s``, bit for bit."""
        seconds = module.flops / self.flops_per_s
        for label in (name, module.key):  # what was measured by key wins
            if label in self.measured:
                rows, there = self.measured[label]
                seconds[rows] = there
        return seconds
