"""The reasons why a task found no place: what each device lacks, or why it doesn't count. Owns the sentences."""

from __future__ import annotations

from collections.abc import Mapping

from broker.protocol.errors import NoDeviceFits, by_reason
from broker.protocol.specs import DeviceId

NONE_CAN_RUN = "no device can run"  # a reason begins so if more memory would not help
FAILED = "it failed there"  # the reason of a device that was assigned a module begins so


def no_fit_reason(error: NoDeviceFits, absent: Mapping[DeviceId, str]) -> str:
    """The reason why a task found no place: what each device lacks, or why it doesn't count.

    ``absent`` are further devices, which the planner doesn't know, each with its reason.
    """
    error.absent = dict(absent)
    if error.short_bytes or not error.excluded:
        return str(error)
    error.excluded |= absent
    fix = "change one of these, and it is placed"
    if any(why.startswith(FAILED) for why in error.excluded.values()):
        fix = "remove the cause and wait, for it is tried again after a while; or correct the task's file"
    return f"{NONE_CAN_RUN} {error.module}: {by_reason(error.excluded)}; {fix}"
