"""The state of a task in ``s2m3 status``, by its last route."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.protocol.messages import DeviceState, Route
from s2m3.cli.status import state_of
from tests.builders import encoder_route

UNAVAILABLE = Route(task="t", epoch=1, generation=1, group=1, unavailable="no device fits m")


def served(*devices: str) -> Route:
    return encoder_route("t", devices, front_door=devices[:1])


@pytest.mark.parametrize(
    ("route", "state"),
    [
        (served("gw-a"), "not served: gw-a offline"),
        (served("gw-a", "gw-b"), "served"),
        (served("gw-c"), "served"),  # not heard yet
        (served(), "loading"),
        (UNAVAILABLE, "unavailable: no device fits m"),
    ],
)
def test_a_task_is_served_while_a_device_can_run_each_node(route: Route, state: str) -> None:
    states = {"gw-a": "offline", "gw-b": "online"}
    devices = {name: DeviceState.model_validate({"status": said, "session": 1}) for name, said in states.items()}
    assert state_of(cast("Any", SimpleNamespace(devices=devices)), route) == state
