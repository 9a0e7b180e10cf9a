"""The devices of a plan, in the order of their ids, built once and reused over re-plans.

Owns what planning needs of many devices at a time. Knows nothing of tasks, placements or liveness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.specs import DeviceId, DeviceSpec


@dataclass(frozen=True)
class Fleet:
    """Devices that may hold modules; ids are distinct."""

    devices: tuple[DeviceSpec, ...]

    @classmethod
    def of(cls, devices: Sequence[DeviceSpec] | Fleet) -> Fleet:
        """A fleet of these devices, in whatever order they come; a fleet is taken as it is."""
        if isinstance(devices, Fleet):
            return devices
        return cls(tuple(sorted(devices, key=lambda device: device.id)))

    def without(self, device: DeviceId) -> Fleet:
        """The same fleet after the loss of one device."""
        return Fleet(tuple(spec for spec in self.devices if spec.id != device))
