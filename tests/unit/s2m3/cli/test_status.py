"""What ``s2m3 status`` makes of the last word on a task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.protocol.messages import DeviceState, Route, RouteDevice, RouteNode
from broker.protocol.specs import InputSpec
from s2m3.cli.commands import _state_of

UNAVAILABLE = Route(task="t", epoch=1, generation=1, group=1, unavailable="no device fits m")


def route(*devices: str) -> Route:
    able = tuple(RouteDevice(device=d, compute_s=0.0, latency_s=0.0, bandwidth_bits_per_s=1e6) for d in devices)
    node = RouteNode(module="m", key="k", needs=("image",), output_bytes=8, devices=able)
    inputs = {"image": InputSpec(kind="image", bytes=1)}
    served = {"unavailable": None, "inputs": inputs, "nodes": {"n": node}, "output": "n", "front_door": devices[:1]}
    return UNAVAILABLE.model_copy(update=served)


@pytest.mark.parametrize(
    ("route", "state"),
    [
        (route("gw-a"), "not served: gw-a offline"),
        (route("gw-a", "gw-b"), "served"),
        (route("gw-c"), "served"),  # not heard yet
        (route(), "loading"),
        (UNAVAILABLE, "unavailable: no device fits m"),
    ],
)
def test_a_task_is_served_when_somebody_can_serve_it(route: Route, state: str) -> None:
    states = {"gw-a": "offline", "gw-b": "online"}
    devices = {name: DeviceState.model_validate({"status": said, "session": 1}) for name, said in states.items()}
    assert _state_of(cast("Any", SimpleNamespace(devices=devices)), route) == state
