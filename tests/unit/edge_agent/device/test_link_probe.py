"""The link, measured with messages to oneself: the estimate from their times, and the announced profile."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.protocol.errors import NotConnected
from broker.protocol.messages import DeviceProfile
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig
from edge_agent.device.link_probe import LARGE, LARGE_BYTES, MIN_TRANSFER_S, SMALL, Estimate, LinkProbe, Measurement
from tests.builders import profile

PROFILE = profile(1)


def run(measurement: Measurement, took_s: Callable[[int, int], float]) -> list[int]:
    """Send and receive until the end; a message takes ``took_s(index, size)``. Returns the sizes sent."""
    now_s, sizes, more = 100.0, [], True
    while more:
        payload = measurement.next_payload(now_s)
        sizes.append(len(payload))
        now_s += took_s(len(sizes) - 1, len(payload))
        more = measurement.on_echo(payload, now_s)
    return sizes


def test_latency_is_half_the_round_trip_and_bandwidth_the_extra_time_of_a_large_message() -> None:
    measurement = Measurement(7)
    sizes = run(measurement, lambda _, size: 0.02 + 2 * 8 * size / 20e6 if size == LARGE_BYTES else 0.02)
    assert [size == LARGE_BYTES for size in sizes] == [False] * SMALL + [True] * LARGE
    assert max(sizes[:SMALL]) < 50
    assert measurement.estimate is not None
    assert measurement.estimate.latency_s == pytest.approx(0.01)
    assert measurement.estimate.bandwidth_bits_per_s == pytest.approx(20e6)


def test_the_least_of_several_times_counts_so_other_traffic_is_not_taken_for_the_link() -> None:
    quiet, busy = Measurement(1), Measurement(1)
    run(quiet, lambda _, size: 0.5 if size == LARGE_BYTES else 0.02)
    run(busy, lambda index, size: (0.5 if size == LARGE_BYTES else 0.02) + (0.3 if index % 3 else 0))
    assert quiet.estimate == busy.estimate


def test_a_link_too_fast_to_be_measured_has_the_highest_measurable_bandwidth() -> None:
    measurement = Measurement(1)
    run(measurement, lambda _, __: 0.0)
    assert measurement.estimate == Estimate(0.0, 2 * 8 * LARGE_BYTES / MIN_TRANSFER_S)


def test_a_slow_link_is_not_held_up_with_more_than_one_large_message() -> None:
    assert run(Measurement(1), lambda _, size: 8.0 if size == LARGE_BYTES else 0.1).count(LARGE_BYTES) == 1


@pytest.mark.parametrize("stray", [b"", b"\xff", b"8-0 ", b"7-1 ", b"7-00 "])
def test_an_unexpected_message_is_ignored(stray: bytes) -> None:
    measurement = Measurement(7)
    first = measurement.next_payload(0.0)
    assert not measurement.on_echo(stray, 5.0)
    assert measurement.on_echo(first, 1.0)
    assert not measurement.on_echo(first, 2.0), "a duplicate"


def test_two_measurements_resemble_each_other_within_a_factor_of_two() -> None:
    link = Estimate(0.01, 1e6)
    assert link.resembles(Estimate(0.02, 0.5e6))
    assert not link.resembles(Estimate(0.021, 1e6))
    assert not link.resembles(Estimate(0.01, 0.4e6))
    assert not link.resembles(Estimate(0.0, 1e6))


class Loop:
    """A transport that gives back what is published, each message after its time, on a clock of its own."""

    def __init__(self, **config: object) -> None:
        self.now_s = 0.0
        self.latency_s = 0.02
        self.sent: list[Outgoing] = []
        self.probe = LinkProbe(AgentConfig.model_validate({"id": "gw-a"} | config), "echo", self.publish)

    def publish(self, message: Outgoing) -> None:
        self.sent.append(message)

    def measure(self, profile: DeviceProfile) -> list[DeviceProfile]:
        said: list[DeviceProfile] = []
        self.probe.begin(1, self.now_s)
        while self.sent:
            message = self.sent.pop(0)
            assert (message.topic, message.qos, message.retain) == ("echo", 0, False)
            self.now_s += 2 * self.latency_s + (0.1 if len(message.payload) == LARGE_BYTES else 0.0)
            if new := self.probe.on_echo(message.payload, self.now_s, self.now_s, profile):
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


def test_a_value_stated_by_the_operator_is_not_overruled() -> None:
    (said,) = Loop(latency_s=0.5).measure(PROFILE.model_copy(update={"latency_s": 0.5}))
    assert said.latency_s == 0.5
    assert said.bandwidth_bits_per_s == pytest.approx(2 * 8 * LARGE_BYTES / 0.1)
    stated = Loop(latency_s=0.5, bandwidth_bits_per_s=1e6)
    stated.probe.begin(1, 0.0)
    assert stated.sent == []


def test_a_link_that_never_answers_or_takes_nothing_changes_nothing() -> None:
    silent = Loop()
    silent.probe.begin(1, 0.0)
    assert silent.probe.on_echo(b"of another", 1.0, 1.0, PROFILE) is None

    def refuse(_: Outgoing) -> None:
        raise NotConnected

    refused = LinkProbe(AgentConfig(id="gw-a"), "echo", refuse)
    refused.begin(1, 0.0)
    assert refused.on_echo(b"1-0 ", 1.0, 1.0, PROFILE) is None
