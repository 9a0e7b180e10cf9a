"""All devices that the orchestrator knows, and the events that change them: values only.

The rules are in ``failure_detector``. Doesn't know tasks, placement or the broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from broker.protocol.messages import DeviceState, Heartbeat
from broker.protocol.specs import DeviceId
from broker.transport.port import LinkDown, LinkUp
from orchestrator.membership.device import Device


@dataclass(frozen=True)
class DeviceStateReceived:
    """A device's birth, drain or will arrived."""

    device: DeviceId
    message: DeviceState


@dataclass(frozen=True)
class HeartbeatReceived:
    """A device's heartbeat arrived."""

    device: DeviceId
    message: Heartbeat


@dataclass(frozen=True)
class DrainReceived:
    """An operator's order arrived: take a device out of service, or put it back."""

    device: DeviceId
    drain: bool


@dataclass(frozen=True)
class Overslept:
    """The orchestrator's process stood still, and received nothing meanwhile."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


MembershipEvent = DeviceStateReceived | HeartbeatReceived | DrainReceived | Overslept | Tick | LinkUp | LinkDown


@dataclass(frozen=True)
class MassDeparture:
    """Most devices said goodbye at once: their modules are placed elsewhere only after ``until_s``."""

    until_s: float
    gone: frozenset[DeviceId]


@dataclass(frozen=True)
class Cluster:
    """All devices heard of since the start."""

    heartbeat_interval_s: float
    own_interval_s: float = 1.0  # between the orchestrator's own heartbeats
    devices: Mapping[DeviceId, Device] = field(default_factory=dict)
    listening: bool = False  # whether the orchestrator's link is up
    up_s: float = 0.0  # since when
    awaiting_first_heartbeat: Mapping[DeviceId, int] = field(default_factory=dict)  # over this link -> its last session
    tentative_wills: frozenset[DeviceId] = frozenset()  # those of them whose will may be of the broker's end
    drained: frozenset[DeviceId] = frozenset()  # by an operator, known or not
    mass_departure: MassDeparture | None = None
    echo_s: float | None = None  # when the orchestrator's own heartbeat last came back over this link

    def alive(self) -> list[Device]:
        """The devices to which requests may go, by id."""
        return [device for _, device in sorted(self.devices.items()) if device.alive]

    def with_device(self, device: Device | None) -> Cluster:
        """The cluster with this device; the same object if nothing changed."""
        if device is None or self.devices.get(device.id) is device:
            return self
        return replace(self, devices={**self.devices, device.id: device})
