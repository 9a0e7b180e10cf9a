"""The settings of a latency comparison, as a person writes them: machines, and the links between them.

Owns the fields, their defaults, and their meaning for links and agents. Runs nothing.

The broker is at the site, on the device where requests start (``devices[0]``), so messages within that device cross no
link. The site's other devices reach the broker over the site's own network, the cloud's machine over the uplink.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from broker.protocol.specs import (
    Bytes,
    DeviceId,
    NotNegative,
    Rate,
)
from broker.protocol.values import Spec
from edge_agent.config import AgentConfig
from s2m3.testbed.proxy import LinkShape

Speed = Annotated[float, Field(gt=0, le=1)]
Threads = Annotated[int, Field(ge=1, le=256)]


class Uplink(Spec):
    """The line from the site to the cloud; the defaults are usual for a small site."""

    up_bits_per_s: Rate = 20e6  # from the site to the cloud
    down_bits_per_s: Rate = 20e6
    round_trip_s: NotNegative = 0.05  # both ways together

    @property
    def shape(self) -> LinkShape:
        """The shape of the cloud machine's link to the broker: its downlink is the site's uplink."""
        return LinkShape(
            delay_s=self.round_trip_s / 2, up_bits_per_s=self.down_bits_per_s, down_bits_per_s=self.up_bits_per_s
        )


class Network(Spec):
    """The link of each of the site's devices to the broker, the same both ways: Wi-Fi or a wire."""

    bits_per_s: Rate = 100e6
    round_trip_s: NotNegative = 0.002

    @property
    def shape(self) -> LinkShape:
        """The shape of a device's link to the broker."""
        return LinkShape(delay_s=self.round_trip_s / 2, up_bits_per_s=self.bits_per_s, down_bits_per_s=self.bits_per_s)


class Machine(Spec):
    """One machine. ``speed`` is its share of this machine's speed at ``threads``, emulated by waiting."""

    id: DeviceId
    speed: Speed = 1.0
    threads: Threads = 1
    memory: Bytes = 4 * 1024**3  # for modules

    def config(self, link: LinkShape, models: str | None) -> AgentConfig:
        """Its agent's configuration. It states the link, so that the agent doesn't measure during a comparison."""
        widths = [width for width in (link.up_bits_per_s, link.down_bits_per_s) if width is not None]
        return AgentConfig(
            id=self.id,
            speed=self.speed,
            threads=self.threads,
            memory=self.memory,
            models=models,
            latency_s=link.delay_s,
            bandwidth_bits_per_s=min(widths, default=1e9),
        )


class LatencySettings(Spec):
    """All settings. The defaults: 20 Mbit/s and 50 ms, two devices half as fast as the cloud's machine."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "20 Mbit/s and 50 ms to a machine twice as fast"
    cloud: Machine = Machine(id="cloud")
    uplink: Uplink = Uplink()
    network: Network = Network()
    devices: Annotated[tuple[Machine, ...], Field(min_length=1, max_length=16)] = (
        Machine(id="camera", speed=0.5),
        Machine(id="gateway", speed=0.5),
    )

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        ids = [machine.id for machine in (self.cloud, *self.devices)]
        if twice := sorted({each for each in ids if ids.count(each) > 1}):
            raise ValueError(f"two machines have the id {twice[0]}")
        return self

    @property
    def source(self) -> Machine:
        """The device where requests start, and where the broker is."""
        return self.devices[0]
