"""An agent's link over a real broker: measured with its own messages, whatever else it says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from broker.protocol.codec import decode
from broker.protocol.messages import DeviceProfile, DeviceState
from broker.protocol.topics import DEVICE_STATE, prefix_of
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery
from edge_agent.config import AgentConfig
from edge_agent.device import link_probe
from edge_agent.device.profile import ASSUMED_BANDWIDTH_BITS_PER_S, ASSUMED_LATENCY_S
from edge_agent.service import Agent
from tests.builders import uncalibrated_store

ASSUMED = DeviceProfile(
    memory_bytes=100,
    compute_flops_per_s=1e9,
    bandwidth_bits_per_s=ASSUMED_BANDWIDTH_BITS_PER_S,
    latency_s=ASSUMED_LATENCY_S,
)
SLOW_BYTES_PER_S = 1e6  # each way: less than a tenth of what is assumed


@pytest.fixture
def measured(
    mosquitto_url: str, unique_prefix: str, make_recorder: Any, patience_s: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Starts an agent whose link is at a url, and gives the first profile that isn't the assumed one."""
    running: list[tuple[Agent, threading.Thread]] = []
    received = make_recorder()
    observer = MqttTransport(parse_url(mosquitto_url), client_id=f"{unique_prefix}-observer", inbox=received)

    monkeypatch.setattr(link_probe, "FIRST_S", 0.1)  # between rounds nothing happens
    monkeypatch.setattr(link_probe, "FIRST_GAP_S", 0.1)

    def start(url: str, **stated: float) -> DeviceProfile:
        config = AgentConfig.model_validate({"id": unique_prefix, "broker": url, "site": unique_prefix} | stated)
        profile = ASSUMED.model_copy(update=stated)
        topic = DEVICE_STATE.at(prefix_of(unique_prefix), device=config.id)
        observer.subscribe(topic)
        observer.start()
        agent = Agent(config, profile=profile, store=uncalibrated_store(100))
        thread = threading.Thread(target=agent.run)
        thread.start()
        running.append((agent, thread))

        def new(event: object) -> bool:
            state = decode(DeviceState, event.payload) if isinstance(event, Delivery) and event.topic == topic else None
            return state is not None and state.profile not in (None, profile)

        found = decode(DeviceState, received.wait_for(new).payload).profile
        assert found is not None
        return found

    yield start
    for agent, thread in running:
        agent.stop()
        thread.join(patience_s)
        assert not thread.is_alive()
    observer.close()


def test_an_agent_measures_its_link_to_mosquitto(measured: Callable[..., DeviceProfile], mosquitto_url: str) -> None:
    found = measured(mosquitto_url)
    assert found.latency_s > 0
    assert found.bandwidth_bits_per_s != ASSUMED_BANDWIDTH_BITS_PER_S
    assert (found.memory_bytes, found.compute_flops_per_s) == (ASSUMED.memory_bytes, ASSUMED.compute_flops_per_s)


def test_an_agent_behind_a_slow_link_announces_a_lower_bandwidth(
    measured: Callable[..., DeviceProfile], proxy_to: Callable[..., Any], mosquitto_url: str
) -> None:
    proxy = proxy_to(mosquitto_url, bytes_per_s=SLOW_BYTES_PER_S)
    found = measured(proxy.url, latency_s=0.123)
    assert found.bandwidth_bits_per_s < ASSUMED_BANDWIDTH_BITS_PER_S
    assert found.latency_s == 0.123, "as the operator says"
