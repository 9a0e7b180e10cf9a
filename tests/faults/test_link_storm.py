"""A site of real agents reconnects at once, each over a link of its own: the links that they announce stay true."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.protocol.codec import decode
from broker.protocol.messages import DeviceProfile, DeviceState
from broker.protocol.topics import DEVICE_STATE, prefix_of
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery
from edge_agent.device.link_probe import ROUNDS
from edge_agent.device.profile import ASSUMED_BANDWIDTH_BITS_PER_S
from s2m3.testbed.proxy import LinkShape, Proxy
from tests.patience import PATIENCE_S, until

LINKS = {
    f"gw-{number}": LinkShape(delay_s=delay_s, up_bits_per_s=rate, down_bits_per_s=rate)
    for number, (rate, delay_s) in enumerate([(10e6, 0.005), (50e6, 0.002)] * 4)
}
WRONG_FACTOR = 2.5
WITHIN_S = 10.0  # instead of a minute: the devices measure at nearly the same time
SERIES_S = ROUNDS * WITHIN_S + 5.0  # then all have measured their new connection
PROGRAM = """
import sys
from edge_agent import __main__ as agent
from edge_agent.device import link_probe

link_probe.SPREAD_S = link_probe.GAP_S = float(sys.argv.pop(1))
sys.exit(agent.main())
"""


def is_true(profile: DeviceProfile, link: LinkShape) -> bool:
    """Whether an announced link resembles the real one; the bandwidth is that of up and down together."""
    pairs = ((profile.bandwidth_bits_per_s, link.up_bits_per_s or 0.0), (profile.latency_s, link.delay_s))
    return all(max(pair) <= WRONG_FACTOR * min(pair) for pair in pairs)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_after_a_broker_restart_no_agent_announces_a_figure_of_the_traffic_jam(
    start_mosquitto: Callable[..., MosquittoBroker], tmp_path: Path
) -> None:
    broker = start_mosquitto()
    announced: dict[str, list[DeviceProfile]] = defaultdict(list)
    prefix = prefix_of()

    def hear(event: object) -> None:
        if isinstance(event, Delivery) and (ids := DEVICE_STATE.match(prefix, event.topic)):
            profile = decode(DeviceState, event.payload).profile
            if profile and profile.bandwidth_bits_per_s != ASSUMED_BANDWIDTH_BITS_PER_S:
                announced[ids["device"]].append(profile)

    listener = MqttTransport(parse_url(broker.url), client_id="listener", inbox=hear)
    listener.subscribe(DEVICE_STATE.filter(prefix))
    listener.start()
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        for device, link in LINKS.items():
            proxy = stack.enter_context(Proxy(parse_url(broker.url), link, buffer_bytes=16 * 1024))
            file = tmp_path / f"{device}.yaml"
            file.write_text(f"{{id: {device}, broker: '{proxy.url}', memory: 100MB, state_dir: {tmp_path}}}")
            agent = subprocess.Popen([sys.executable, "-c", PROGRAM, str(WITHIN_S), "--config", str(file)])
            stack.callback(agent.wait, PATIENCE_S)
            stack.callback(agent.terminate)
        until(lambda: len(announced) == len(LINKS), 3 * PATIENCE_S)
        first = {device: profiles[-1] for device, profiles in announced.items()}
        announced.clear()
        broker.stop()
        broker.start()
        threading.Event().wait(SERIES_S)
        assert announced.keys() == LINKS.keys()
        assert [device for device, link in LINKS.items() if not is_true(first[device], link)] == []
        told = [(device, profile) for device, profiles in announced.items() for profile in profiles]
        assert [(device, profile) for device, profile in told if not is_true(profile, LINKS[device])] == []
