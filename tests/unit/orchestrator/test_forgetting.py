"""A device that is gone for good is forgotten: what the broker retains of it goes, and one that comes back is new."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker.protocol.topics import DEVICE_STATE, OF_A_DEVICE
from orchestrator.events import Action, Clear, DeviceStateReceived, DrainReceived, ForgetReceived, Tick
from orchestrator.forgetting import MAX_FORGOTTEN
from tests.builders import all_of, chain, module, offline
from tests.simulated_site import Site

TASK = chain("classify", module("vision", memory_bytes=60))


def cleared(actions: Sequence[Action]) -> set[tuple[str, str]]:
    return {(each.topic.template, each.name) for each in actions if isinstance(each, Clear)}


def of(device: str) -> set[tuple[str, str]]:
    return {(topic.template, device) for topic in OF_A_DEVICE}


@pytest.mark.parametrize("ends", ["by its will", "by silence"])
def test_a_device_that_is_gone_leaves_nothing_at_the_broker(ends: str) -> None:
    site = Site(TASK, a=100, b=100)
    site.go_on(3)
    site.feed(DrainReceived("a", drain=True))
    if ends == "by its will":
        site.kill("a")
    else:
        site.agents["a"].up = False
        site.go_on(4)
    assert cleared(site.feed(ForgetReceived("a"))) == of("a")
    assert "a" not in site.state.cluster.devices
    assert "a" not in site.state.orders.drained
    assert site.told("device_forgotten")
    site.go_on(3)
    assert site.route("classify").complete


def test_a_device_that_is_online_or_only_late_is_not_forgotten() -> None:
    site = Site(TASK, a=100)
    site.go_on(2)
    assert not cleared(site.feed(ForgetReceived("a")))
    site.agents["a"].up = False
    site.now_s += 2.5
    site.feed(Tick())
    assert site.state.cluster.devices["a"].health == "suspect"
    assert not cleared(site.feed(ForgetReceived("a")))
    assert len(site.told("forget_refused")) == 2
    site.heartbeat("a")
    assert site.route("classify").complete


def test_a_device_that_comes_back_is_new_on_no_probation_and_not_drained() -> None:
    site = Site(TASK, a=100)
    site.go_on(2)
    for _ in range(3):
        site.kill("a")
        site.join("a", 100, 10e9)
    site.feed(DrainReceived("a", drain=True))
    site.kill("a")
    site.feed(ForgetReceived("a"))
    site.join("a", 100, 10e9)
    assert site.state.cluster.devices["a"].doubt is None
    site.go_on(3)
    assert site.route("classify").complete


def test_the_will_of_a_forgotten_device_is_cleared_and_its_birth_ends_that() -> None:
    site = Site(a=100, b=100)
    session = site.agents["a"].session
    site.agents["a"].up = False
    site.go_on(4)
    site.feed(ForgetReceived("a"))
    will = DeviceStateReceived("a", offline(session))
    assert cleared(site.feed(will)) == {(DEVICE_STATE.template, "a")}
    assert not cleared(site.feed(DeviceStateReceived("stranger", offline(1))))
    site.join("a", 100, 10e9)
    assert not cleared(site.feed(will)), "of the session before: it changes nothing"
    assert site.state.cluster.devices["a"].alive


def test_what_an_earlier_leader_knew_of_a_device_is_cleared_and_the_names_that_are_kept_are_bounded() -> None:
    site = Site(a=100)
    for number in range(MAX_FORGOTTEN + 5):
        assert cleared(site.feed(ForgetReceived(f"old-{number}"))) == of(f"old-{number}")
    assert len(site.state.forgotten) == MAX_FORGOTTEN
    assert not all_of(site.feed(Tick()), Clear)
