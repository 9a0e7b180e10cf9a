"""Messages between agents as bytes: the names of the arrays, and what the receiver reads of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker.protocol.codec import RawInput
from broker.protocol.messages import NodeDone
from broker.protocol.tensors import unpack
from broker.transport.port import Delivery, Undelivered
from edge_agent import wire
from edge_agent.actions import Send
from edge_agent.events import Received
from edge_agent.modules import Value
from tests.builders import PREFIX, node_inputs

MESSAGE = node_inputs(needs=("encoder", "text"), content_types={"text": "text/plain"})


def test_a_raw_input_is_one_array_of_bytes_on_the_wire_and_a_raw_input_again_behind_it() -> None:
    features = np.ones((1, 2), dtype=np.float16)
    values: Mapping[str, Value] = {"text": RawInput(b"a cat", "text/plain"), "encoder": {"features": features}}
    sent = wire.tensors_message(PREFIX, "gw-a", Send("gw-b", MESSAGE, values, 1.0), 0.0)
    arrays, _ = unpack(sent.payload)
    assert sorted(arrays) == ["encoder/features", "text/raw"]
    assert (arrays["text/raw"].dtype.name, arrays["text/raw"].tobytes()) == ("uint8", b"a cat")
    received = wire.event_of(PREFIX, Delivery(sent.topic, sent.payload))
    assert isinstance(received, Received)
    assert received.message == MESSAGE
    assert received.values["text"] == values["text"]
    found = received.values["encoder"]
    assert isinstance(found, dict)
    assert found["features"].tobytes() == features.tobytes()


def test_arrays_of_an_input_that_has_no_content_type_are_read_as_the_output_of_a_node() -> None:
    message = MESSAGE.model_copy(update={"content_types": {}})
    sent = wire.tensors_message(PREFIX, "gw-a", Send("gw-b", message, {"text": RawInput(b"x")}, 1.0), 0.0)
    received = wire.event_of(PREFIX, Delivery(sent.topic, sent.payload))
    assert isinstance(received, Received)
    assert isinstance(received.values["text"], dict)


def test_the_coordinator_learns_of_inputs_that_no_device_received() -> None:
    sent = wire.tensors_message(PREFIX, "gw-c", Send("gw-b", MESSAGE, {}, 1.0), 0.0)
    event = wire.not_received(Undelivered(sent.topic, sent.token), 2.0)
    assert event is not None
    assert (event.coordinator, event.failed.device, event.failed.retry, event.deadline_s) == ("gw-a", "gw-b", True, 2.0)
    assert event.failed.error.message == "nobody receives messages for gw-b"
    done = NodeDone(request="r", task="t", node="head", epoch=1, generation=1, attempt=0)
    token = wire.tensors_message(PREFIX, "gw-b", Send("gw-a", done, {}, 1.0), 0.0).token
    assert wire.not_received(Undelivered("any", token), 2.0) is None
