"""The devices of a plan by row, and sets of rows: which run a module, and which are on only sometimes.

Owns the order of the rows, and sets of them as whole numbers: bit r is row r. That is as fast as arrays are, and the
orchestrator's own process needs no numpy (12 MB) for it. Knows nothing of placements or liveness.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broker.cost_model import runnable
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleSpec, Variant

Row = int
"""A device's place in the order of the devices' ids."""
NOWHERE: Row = -1
"""The row of what isn't a device of the plan."""
RowSet = int
"""A set of rows: bit r is row r."""
Weights = tuple[str, ModuleKey, int, tuple[Variant, ...]]


class DeviceRows:
    """Devices that may hold modules, by row; ids are distinct."""

    def __init__(self, devices: Sequence[DeviceSpec]) -> None:
        """Number these devices, in whatever order they come."""
        self.specs = sorted(devices, key=lambda device: device.id)  # by row
        self.rows: dict[DeviceId, Row] = {spec.id: row for row, spec in enumerate(self.specs)}
        self.all: RowSet = (1 << len(self.specs)) - 1
        self.part_time: RowSet = self.set_of(sometimes_of(self.specs))  # those that are on only sometimes
        self._runs: dict[Weights, RowSet] = {}
        self._alike, self._exporting = _by_engines(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def set_of(self, devices: Iterable[DeviceId]) -> RowSet:
        """The rows of these devices, as far as they are of the plan."""
        return _set_of([self.rows[name] for name in devices if name in self.rows], len(self))

    def runs(self, module: ModuleSpec) -> RowSet:
        """Which devices have an engine that can run a module: ``cost_model.runnable``."""
        if (known := self._runs.get(weights := weights_of(module))) is None:
            known = self.all
            for rows, spec in self.forms(module):
                there = self.all if len(rows) == len(self) else _set_of(rows, len(self))
                known = known & ~there if runnable(module, spec) is None else known | there
            self._runs[weights] = known
        return known

    def forms(self, module: ModuleSpec) -> Iterable[tuple[list[Row], DeviceSpec]]:
        """Rows of devices that run a module in one form, each with a device that stands for them; the last counts."""
        exporting = self._exporting.get(module.measured_key, ())
        return [*self._alike, *(([row], self.specs[row]) for row in exporting)]


def weights_of(module: ModuleSpec) -> Weights:
    """All of a module that the form depends on in which a device runs it."""
    return module.engine, module.measured_key, module.memory_bytes, module.variants


def sometimes_of(devices: Iterable[DeviceSpec]) -> set[DeviceId]:
    """The devices that are on only sometimes; none if no device is always on, for then all are alike."""
    specs = [*devices]
    sometimes = {spec.id for spec in specs if spec.availability == "sometimes"}
    return sometimes if len(sometimes) < len(specs) else set()


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


def _set_of(rows: Iterable[Row], count: int) -> RowSet:
    """The set of these of so many rows."""
    bits = bytearray(count // 8 + 1)
    for row in rows:
        bits[row >> 3] |= 1 << (row & 7)
    return int.from_bytes(bits, "little")
