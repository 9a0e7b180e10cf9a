"""The link, measured with messages to oneself: what follows from their times, and what is announced."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.protocol.errors import NotConnected
from broker.protocol.messages import DeviceProfile
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig
from edge_agent.device.link_estimate import FASTEST_S, LARGE, LARGE_BYTES, SMALL, Echo, Link
from edge_agent.device.link_probe import LinkMeter
from tests.builders import profile

PROFILE = profile(1)


def through(echo: Echo, took_s: Callable[[int, int], float]) -> list[int]:
    """Send and hear until it is over; ``took_s(index, size)`` is how long a message takes. Returns the sizes sent."""
    now_s, sizes = 100.0, []
    payload: bytes | None = echo.begin(now_s)
    while payload is not None:
        sizes.append(len(payload))
        now_s += took_s(len(sizes) - 1, len(payload))
        payload = echo.heard(payload, now_s, now_s)
    return sizes


def test_latency_is_half_of_there_and_back_and_bandwidth_what_a_large_message_takes_besides() -> None:
    echo = Echo(7)
    sizes = through(echo, lambda _, size: 0.02 + 2 * 8 * size / 20e6 if size == LARGE_BYTES else 0.02)
    assert [size == LARGE_BYTES for size in sizes] == [False] * SMALL + [True] * LARGE
    assert max(sizes[:SMALL]) < 50
    assert echo.link is not None
    assert echo.link.latency_s == pytest.approx(0.01)
    assert echo.link.bandwidth_bits_per_s == pytest.approx(20e6)


def test_the_least_of_several_times_counts_so_other_traffic_is_not_taken_for_the_link() -> None:
    quiet, busy = Echo(1), Echo(1)
    through(quiet, lambda _, size: 0.5 if size == LARGE_BYTES else 0.02)
    through(busy, lambda index, size: (0.5 if size == LARGE_BYTES else 0.02) + (0.3 if index % 3 else 0))
    assert quiet.link == busy.link


def test_a_link_too_fast_to_be_measured_has_the_highest_figure_that_can_be_told() -> None:
    echo = Echo(1)
    through(echo, lambda _, __: 0.0)
    assert echo.link == Link(0.0, 2 * 8 * LARGE_BYTES / FASTEST_S)


def test_a_slow_link_is_not_held_up_with_more_than_one_large_message() -> None:
    assert through(Echo(1), lambda _, size: 8.0 if size == LARGE_BYTES else 0.1).count(LARGE_BYTES) == 1


@pytest.mark.parametrize("stray", [b"", b"\xff", b"8-0 ", b"7-1 ", b"7-00 "])
def test_what_is_not_the_awaited_message_is_passed_over(stray: bytes) -> None:
    echo = Echo(7)
    first = echo.begin(0.0)
    assert echo.heard(stray, 5.0, 5.0) is None
    assert echo.heard(first, 1.0, 1.0) is not None
    assert echo.heard(first, 2.0, 2.0) is None, "a duplicate"


def test_two_measurements_resemble_each_other_within_a_factor_of_two() -> None:
    link = Link(0.01, 1e6)
    assert link.resembles(Link(0.02, 0.5e6))
    assert not link.resembles(Link(0.021, 1e6))
    assert not link.resembles(Link(0.01, 0.4e6))
    assert not link.resembles(Link(0.0, 1e6))


class Loop:
    """A transport that gives back what is published, each message after its time, on a clock of its own."""

    def __init__(self, **config: object) -> None:
        self.now_s = 0.0
        self.latency_s = 0.02
        self.sent: list[Outgoing] = []
        self.meter = LinkMeter(AgentConfig.model_validate({"id": "gw-a"} | config), "echo", self.publish, self.clock)

    def clock(self) -> float:
        return self.now_s

    def publish(self, message: Outgoing) -> None:
        self.sent.append(message)

    def measure(self, profile: DeviceProfile) -> list[DeviceProfile]:
        said: list[DeviceProfile] = []
        self.meter.begin(1)
        while self.sent:
            message = self.sent.pop(0)
            assert (message.topic, message.qos, message.retain) == ("echo", 0, False)
            self.now_s += 2 * self.latency_s + (0.1 if len(message.payload) == LARGE_BYTES else 0.0)
            if new := self.meter.heard(message.payload, self.now_s, profile):
                said.append(new)
        return said


def test_a_measured_link_is_announced_once_and_again_when_it_is_another() -> None:
    loop = Loop()
    (said,) = loop.measure(PROFILE)
    assert said.latency_s == pytest.approx(0.02)
    assert said.bandwidth_bits_per_s == pytest.approx(2 * 8 * LARGE_BYTES / 0.1)
    assert (said.memory_bytes, said.compute_flops_per_s) == (PROFILE.memory_bytes, PROFILE.compute_flops_per_s)
    assert loop.measure(said) == []
    loop.latency_s = 0.06
    (again,) = loop.measure(said)
    assert again.latency_s == pytest.approx(0.06)


def test_what_the_operator_stated_is_not_overruled() -> None:
    (said,) = Loop(latency_s=0.5).measure(PROFILE.model_copy(update={"latency_s": 0.5}))
    assert said.latency_s == 0.5
    assert said.bandwidth_bits_per_s == pytest.approx(2 * 8 * LARGE_BYTES / 0.1)
    stated = Loop(latency_s=0.5, bandwidth_bits_per_s=1e6)
    stated.meter.begin(1)
    assert stated.sent == []


def test_a_link_that_never_answers_or_takes_nothing_changes_nothing() -> None:
    silent = Loop()
    silent.meter.begin(1)
    assert silent.meter.heard(b"of another", 1.0, PROFILE) is None
    refusing = Loop()

    def refuse(_: Outgoing) -> None:
        raise NotConnected

    meter = LinkMeter(AgentConfig(id="gw-a"), "echo", refuse, refusing.clock)
    meter.begin(1)
    assert meter.heard(b"1-0 ", 1.0, PROFILE) is None
