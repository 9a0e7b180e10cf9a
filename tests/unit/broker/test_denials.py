"""A refusal of the broker is logged once, not once for every message."""

from __future__ import annotations

from broker.transport.denials import MAX_KNOWN, Denials
from broker.transport.port import Denied

PREFIX = "plant-4/s2m3/v1"


def test_each_topic_and_reason_is_new_once_whatever_the_number_of_the_request() -> None:
    denials = Denials(PREFIX)
    results, others = f"{PREFIX}/clients/cam-1/results", f"{PREFIX}/clients/cam-2/results"
    told = [
        denials.is_new(Denied(topic, reason))
        for topic, reason in (
            (f"{results}/1", "Not authorized"),
            (f"{results}/2", "Not authorized"),
            (f"{others}/1", "Not authorized"),
            (f"{results}/3", "Quota exceeded"),
            (f"{PREFIX}/tensors/gw-a/gw-b/1/image", "Not authorized"),
            (f"{PREFIX}/tensors/gw-a/gw-b/2/text", "Not authorized"),
            (f"{PREFIX}/devices/gw-a/state", "Not authorized"),
            (f"{PREFIX}/devices/gw-a/state", "Not authorized"),
            (f"{PREFIX}/tasks/+/route", "Not authorized"),
            (f"{PREFIX}/tasks/+/route", "Not authorized"),
        )
    ]
    assert told == [True, False, True, True, True, False, True, False, True, False]


def test_what_is_remembered_is_bounded() -> None:
    denials = Denials(PREFIX)
    assert all(denials.is_new(Denied(f"{number}", "Not authorized")) for number in range(3 * MAX_KNOWN))
    assert len(denials._known) <= MAX_KNOWN
