"""How long bytes take from one device to another: the transfer term of DESIGN section 6, spelled only here.

Planning (the orchestrator) and routing (each agent) must expect the same seconds; so both ask this file. It knows
neither specs nor routes: whatever has an id and the two figures of a link is one end of a transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Linked(Protocol):
    """One end of a transfer: a device and its link to the broker."""

    @property
    def id(self) -> str:
        """Equal ids are one device."""

    @property
    def latency_s(self) -> float:
        """One way, in seconds."""

    @property
    def bandwidth_bits_per_s(self) -> float:
        """Bits per second, greater than 0."""


@dataclass(frozen=True)
class Link:
    """An end of a transfer of which nothing else is known."""

    id: str
    latency_s: float
    bandwidth_bits_per_s: float


def transfer_s(size_bytes: int, a: Linked, b: Linked) -> float:
    """Seconds to send this many bytes from one device to another: nothing when they are the same."""
    if a.id == b.id:
        return 0.0
    return a.latency_s + b.latency_s + 8 * size_bytes / min(a.bandwidth_bits_per_s, b.bandwidth_bits_per_s)
