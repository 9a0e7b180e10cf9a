"""The link, measured with messages to oneself: the estimate from their times, and the announced profile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from broker.protocol.errors import NotConnected
from broker.protocol.messages import DeviceProfile
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig
from edge_agent.device.link_probe import (
    FIRST_S,
    GAP_S,
    LARGE,
    LARGE_BYTES,
    LATEST_S,
    MIN_TRANSFER_S,
    ROUND_S,
    ROUNDS,
    SMALL,
    SOONEST_S,
    SPREAD_S,
    Estimate,
    LinkProbe,
)
from tests.builders import profile

PROFILE = profile(1)


class Loop:
    """A transport that gives back what is published, each message after its time, on a clock of its own."""

    def __init__(self, took_s: Callable[[int, int], float] | None = None, **config: object) -> None:
        """A message takes ``took_s(index, size)``; without it, a latency and the time of a large one."""
        self.now_s = 0.0
        self.latency_s = 0.02
        self.took_s = took_s or self._took_s
        self.sent: list[Outgoing] = []
        self.sizes: list[int] = []  # of the messages that came back
        self.probe = LinkProbe(AgentConfig.model_validate({"id": "gw-a"} | config), "echo", self.publish)

    def _took_s(self, _: int, size_bytes: int) -> float:
        return 2 * self.latency_s + (0.1 if size_bytes == LARGE_BYTES else 0.0)

    def publish(self, message: Outgoing) -> None:
        self.sent.append(message)

    def measure(self, profile: DeviceProfile) -> list[DeviceProfile]:
        """Let a new connection be measured in one series; gives what is announced."""
        self.probe.begin(1, self.now_s)
        return [said for _ in range(ROUNDS) for said in self.one_round(profile)]

    def one_round(self, profile: DeviceProfile) -> list[DeviceProfile]:
        said: list[DeviceProfile] = []
        while not self.sent:
            self.now_s += 0.5
            self.probe.on_tick(self.now_s)
        while self.sent:
            message = self.sent.pop(0)
            assert (message.topic, message.qos, message.retain) == ("echo", 0, False)
            self.sizes.append(len(message.payload))
            self.now_s += self.took_s(len(self.sizes) - 1, len(message.payload))
            if new := self.probe.on_echo(message.payload, self.now_s, self.now_s, profile):
                said.append(new)
        return said


def measured(took_s: Callable[[int, int], float]) -> tuple[list[int], Estimate]:
    """The sizes of the messages of one measurement, and its result."""
    loop = Loop(took_s)
    (said,) = loop.measure(PROFILE)
    return loop.sizes, Estimate(said.latency_s, said.bandwidth_bits_per_s)


def test_latency_is_half_the_round_trip_and_bandwidth_the_extra_time_of_a_large_message() -> None:
    sizes, estimate = measured(lambda _, size: 0.02 + 2 * 8 * size / 20e6 if size == LARGE_BYTES else 0.02)
    assert [size == LARGE_BYTES for size in sizes] == ([False] * SMALL + [True] * LARGE) * ROUNDS
    assert max(sizes[:SMALL]) < 50
    assert estimate.latency_s == pytest.approx(0.01)
    assert estimate.bandwidth_bits_per_s == pytest.approx(20e6)


def test_the_least_of_several_times_counts_so_other_traffic_is_not_taken_for_the_link() -> None:
    _, quiet = measured(lambda _, size: 0.5 if size == LARGE_BYTES else 0.03125)  # times that binary numbers hold
    _, busy = measured(lambda index, size: (0.5 if size == LARGE_BYTES else 0.03125) + (0.25 if index % 3 else 0))
    assert quiet == busy


def test_a_link_too_fast_to_be_measured_has_the_highest_measurable_bandwidth() -> None:
    _, estimate = measured(lambda _, __: 0.0)
    assert estimate == Estimate(0.0, 2 * 8 * LARGE_BYTES / MIN_TRANSFER_S)


def test_a_slow_link_is_not_held_up_with_more_than_one_large_message() -> None:
    sizes, _ = measured(lambda _, size: 8.0 if size == LARGE_BYTES else 0.1)
    assert sizes.count(LARGE_BYTES) == ROUNDS, "one a round"


@pytest.mark.parametrize("stray", [b"", b"\xff", b"8-0-0-0 ", b"7-0-0-1 ", b"7-0-0-00 ", b"7-0-1-0 ", b"7-1-0-0 "])
def test_an_unexpected_message_is_ignored(stray: bytes) -> None:
    loop = Loop()
    loop.probe.begin(7, 0.0)
    loop.probe.on_tick(FIRST_S)
    (first,) = loop.sent
    for payload, sent in ((stray, 1), (first.payload, 2), (first.payload, 2)):  # the last one is a duplicate
        assert loop.probe.on_echo(payload, 5.0, 5.0, PROFILE) is None
        assert len(loop.sent) == sent


def test_two_measurements_resemble_each_other_within_a_factor_of_two() -> None:
    link = Estimate(0.01, 1e6)
    assert link.resembles(Estimate(0.02, 0.5e6))
    assert not link.resembles(Estimate(0.021, 1e6))
    assert not link.resembles(Estimate(0.01, 0.4e6))
    assert not link.resembles(Estimate(0.0, 1e6))


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
    stated.probe.on_tick(LATEST_S)
    assert stated.sent == []


def test_a_link_that_never_answers_or_takes_nothing_changes_nothing() -> None:
    silent = Loop()
    silent.probe.begin(1, 0.0)
    silent.probe.on_tick(FIRST_S)
    assert silent.probe.on_echo(b"of another", 1.0, 1.0, PROFILE) is None

    def refuse(_: Outgoing) -> None:
        raise NotConnected("no connection")

    refused = LinkProbe(AgentConfig(id="gw-a"), "echo", refuse)
    refused.begin(1, 0.0)
    refused.on_tick(FIRST_S)
    assert refused.on_echo(b"1-0-0-0 ", 1.0, 1.0, PROFILE) is None


class Jam(Loop):
    """A link that other devices slow down until some time."""

    def __init__(self, until_s: float, device: str = "gw-a") -> None:
        super().__init__(self._slowed)
        self.until_s = until_s
        self.probe = LinkProbe(AgentConfig(id=device), f"devices/{device}/echo", self.publish)

    def publish(self, message: Outgoing) -> None:
        self.sent.append(replace(message, topic="echo"))

    def _slowed(self, index: int, size_bytes: int) -> float:
        return self._took_s(index, size_bytes) + (0.8 if self.now_s < self.until_s else 0.0)


def test_a_known_link_keeps_its_figures_when_all_devices_reconnect_at_once() -> None:
    jam = Jam(0.0)
    (known,) = jam.measure(PROFILE)
    jam.until_s = jam.now_s + SPREAD_S + 2 * ROUND_S  # the first round is slow, and perhaps the second
    assert jam.measure(known) == []
    assert jam.sizes.count(LARGE_BYTES) == 2 * ROUNDS * LARGE


def test_a_link_that_really_became_worse_is_announced_after_the_last_round_and_a_better_one_at_once() -> None:
    jam = Jam(0.0)
    (known,) = jam.measure(PROFILE)
    jam.until_s = math.inf
    jam.probe.begin(2, jam.now_s)
    assert [len(jam.one_round(known)) for _ in range(ROUNDS)] == [0, 0, 1]
    jam.until_s = 0.0
    jam.probe.begin(3, jam.now_s)
    (better,) = jam.one_round(known)
    assert better.latency_s == pytest.approx(known.latency_s)


def test_figures_of_a_jam_at_the_first_start_are_corrected_by_a_later_series() -> None:
    jam = Jam(60.0)
    (first,) = jam.measure(PROFILE)
    assert first.latency_s > 0.4
    began_s = jam.now_s
    (corrected,) = jam.one_round(first)
    assert corrected.latency_s == pytest.approx(0.02)
    assert jam.now_s - began_s <= SOONEST_S + ROUND_S
    before_s = jam.now_s
    for _ in range(ROUNDS * 10):
        assert jam.one_round(corrected) == []
    assert jam.now_s - before_s > 3 * LATEST_S, "further and further apart"


def test_a_jam_that_ends_in_the_midst_of_a_measurement_gives_no_bandwidth_that_no_link_has() -> None:
    jam = Jam(30.0)  # it ends between the last small message and the first large one
    assert jam.measure(PROFILE) == []
    (found,) = [said for _ in range(ROUNDS) for said in jam.one_round(PROFILE)]
    assert found.latency_s == pytest.approx(0.02)
    assert found.bandwidth_bits_per_s == pytest.approx(2 * 8 * LARGE_BYTES / 0.1)


def test_a_thousand_devices_measure_at_a_thousand_times() -> None:
    jams = [Jam(0.0, f"gw-{number}") for number in range(1000)]
    for jam in jams:
        (known,) = jam.measure(PROFILE)
        jam.now_s = 0.0
        jam.probe.begin(2, 0.0)
        jam.one_round(known)
    began_s = Counter(int(jam.now_s) for jam in jams)
    assert max(began_s) <= SPREAD_S + 2
    assert max(began_s.values()) < 50, "of a thousand in one second"
    assert GAP_S >= 1


def test_a_lost_message_ends_its_round_and_not_the_measurement() -> None:
    loop = Loop()
    loop.probe.begin(1, 0.0)
    loop.probe.on_tick(FIRST_S)
    loop.sent.clear()  # the broker lost it
    loop.now_s = FIRST_S + ROUND_S
    loop.probe.on_tick(loop.now_s)
    said = [said for _ in range(ROUNDS - 1) for said in loop.one_round(PROFILE)]
    assert [each.latency_s for each in said] == [pytest.approx(0.02)]
