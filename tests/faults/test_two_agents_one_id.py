"""Two agents whose files name one id: one of them ends with a sentence, and the other one serves.

On Mosquitto: the embedded broker doesn't resend retained messages to a client whose session was taken over, so neither
agent can know.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from broker.protocol.codec import decode
from broker.protocol.errors import IdInUse
from broker.protocol.messages import DeviceState, Heartbeat
from broker.protocol.topics import DEVICE_HEARTBEAT, DEVICE_STATE, prefix_of
from broker.transport.connection import parse_url
from broker.transport.paho import MqttTransport
from edge_agent.config import AgentConfig
from edge_agent.service import Agent
from tests.builders import profile, uncalibrated_store

PROFILE = profile()


class Running:
    """An agent in a thread, and how it ended."""

    def __init__(self, url: str, site: str, one_ended: threading.Event) -> None:
        config = AgentConfig(id="gw-a", broker=url, site=site, heartbeat_interval_s=0.05)
        self.agent = Agent(config, profile=PROFILE, store=uncalibrated_store(100))
        self.refusal: IdInUse | None = None
        self.ended = threading.Event()
        self._one_ended = one_ended
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.agent.run()
        except IdInUse as error:
            self.refusal = error
        finally:
            self.ended.set()
            self._one_ended.set()


@contextmanager
def running(url: str, site: str, one_ended: threading.Event) -> Iterator[Running]:
    each = Running(url, site, one_ended)
    each.thread.start()
    try:
        yield each
    finally:
        each.agent.stop()
        each.thread.join()


def test_one_of_two_agents_with_one_id_ends_with_a_sentence_and_the_other_serves(
    mosquitto_url: str, unique_prefix: str, recorder: Any, patience_s: float
) -> None:
    prefix = prefix_of(unique_prefix)
    state = DEVICE_STATE.at(prefix, device="gw-a")
    one_ended = threading.Event()
    with ExitStack() as stack:
        observer = MqttTransport(parse_url(mosquitto_url), client_id=f"{unique_prefix}-observer", inbox=recorder)
        stack.callback(observer.close)
        observer.subscribe(state, DEVICE_HEARTBEAT.at(prefix, device="gw-a"))
        observer.start()
        first = stack.enter_context(running(mosquitto_url, unique_prefix, one_ended))
        recorder.wait_for(lambda event: getattr(event, "topic", "").endswith("/heartbeat"))
        second = stack.enter_context(running(mosquitto_url, unique_prefix, one_ended))
        assert one_ended.wait(patience_s), "neither agent ended"
        stays = second if first.ended.is_set() else first
        gone = first if stays is second else second
        assert "another agent is connected to the broker as gw-a" in str(gone.refusal)
        recorder.clear()
        heartbeat = recorder.wait_for(lambda event: getattr(event, "topic", "").endswith("/heartbeat"), count=5)
        session = decode(Heartbeat, heartbeat.payload).session
        assert session == stays.agent._session
        assert not stays.ended.is_set()
        announced = [decode(DeviceState, event.payload) for event in recorder.deliveries if event.topic == state]
        assert [each.status for each in announced if each.session == session][-1:] in ([], ["online"])
