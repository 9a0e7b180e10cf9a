"""Recording: a real site says all that it can say, and some messages of each topic become the corpus.

Run it after a change of a message: ``python -m tests.fuzz.record``. It takes half a minute, a real Mosquitto and the
pocket weights.
"""

from __future__ import annotations

import base64
import json
import struct
import sys
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
from PIL import Image

from broker.protocol import topics
from broker.protocol.codec import RawInput, encode, encode_request
from broker.protocol.messages import Heartbeat
from broker.protocol.specs import TaskSpec
from broker.transport.connect import connect
from broker.transport.port import Delivery, LinkEvent, Outgoing
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.sources.files import Configuration
from s2m3.sources.service import Sources
from s2m3.testbed.site import Site
from tests.fuzz import corpus
from tests.media import picture_bytes
from tests.patience import PATIENCE_S
from tests.threads import running

AGENTS = tuple(
    AgentConfig.model_validate({"id": name, "memory": size}) for name, size in (("gw-a", "48MiB"), ("gw-b", "160MiB"))
)
DOOR = {"source": "door", "subscribe": "frigate/door/person/snapshot", "task": "zero-shot", "publish": "home/door/who"}
SOURCES: tuple[dict[str, Any], ...] = (
    DOOR | {"inputs": {"text": ["a courier", "nobody"]}},
    {"source": "garden", "subscribe": "zigbee2mqtt/+", "payload": {"json": {"image": "$.camera['a key'][0]"}}}
    | {"task": "classify", "retained": "take", "publish": "home/{1}/seen"},
    {"source": "loop", "subscribe": "home/#", "task": "classify"},
)
TASKS = ("pocket/classify", "pocket/zero-shot")
MAX_PAYLOAD_BYTES = 16 * 1024
MAX_OF_A_TOPIC = 5


class Recording:
    """An inbox that keeps every message, and wakes those that wait for one."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self._changed = threading.Condition()

    def __call__(self, event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            with self._changed:
                self.deliveries.append(event)
                self._changed.notify_all()

    def wait_for(self, *rows: topics.Topic) -> None:
        """Wait until there is a message of each of these topics."""
        with self._changed:
            self._changed.wait_for(lambda: {row.template for row in rows} <= templates_of(self.deliveries), PATIENCE_S)


def templates_of(deliveries: Iterable[Delivery]) -> set[str]:
    """The templates of the topics of these messages."""
    found = (topics.read(corpus.PREFIX, each.topic, each.payload) for each in deliveries)
    return {each.topic.template for each in found if each is not None}


def record() -> list[Delivery]:
    """Let a site say all that it can say."""
    inbox, prefix = Recording(), corpus.PREFIX
    with ExitStack() as stack:
        site = stack.enter_context(Site("mosquitto", AGENTS))
        transport = connect(site.connection, client_id="fuzz.recorder", inbox=inbox)
        stack.callback(transport.close)
        transport.subscribe(f"{prefix}/#")
        transport.start()
        site.serve([load_task(name) for name in TASKS])
        site.observer.publish(of_the_web())
        picture = RawInput(picture_bytes(Image.fromarray(np.full((8, 8, 3), 90, np.uint8))), "image/png")
        texts = RawInput(b"a cat\na dog", "text/plain")
        for text in (texts, RawInput(b"\xff\xfe", "text/plain"), RawInput(b" ", "text/plain")):
            site.client.request("zero-shot", {"image": picture, "text": text})
        site.client.request("classify", {"image": picture})
        site.client.request("classify", {"image": RawInput(b"no picture", "image/png")})
        payload, content_type = encode_request({"image": picture, "text": texts})
        reply_to = topics.RESULTS.at(prefix, client="camera-1", request="1")
        asked = topics.TASK_REQUESTS.at(prefix, task="zero-shot")
        transport.publish(
            Outgoing(asked, payload, response_topic=reply_to, correlation=b"1", content_type=content_type, expiry_s=9)
        )
        encoded = "data:image/png;base64," + base64.b64encode(picture.data).decode()
        for inputs in (
            {"image": encoded, "text": ["a cat", "a dog"]},
            {"image": "/9j/", "text": "x", "more": {"a": [1, None]}},
        ):
            for task, kind in (("zero-shot", "application/json"), ("zero-shot", None), ("Zero_Shot", None)):
                place = topics.TASK_REQUESTS.at(prefix, task="t").replace("/t/", f"/{task}/")
                transport.publish(Outgoing(f"{place}/camera-1/2", json.dumps(inputs).encode(), content_type=kind))
        transport.publish(Outgoing(asked, picture.data))  # its answer has no topic
        stack.enter_context(running(Sources(site.connection, Configuration())))
        for source in SOURCES:
            place = topics.SOURCE_SPEC.at(prefix, source=source["source"])
            transport.publish(Outgoing(place, json.dumps(source).encode(), retain=True))
        inbox.wait_for(topics.SOURCE_ANSWER)  # of the loop
        transport.publish(Outgoing(DOOR["subscribe"], picture.data))
        unknown = Heartbeat(session=1, seq=1, epoch=0, generation=0)
        transport.publish(Outgoing(topics.DEVICE_HEARTBEAT.at(prefix, device="gw-x"), encode(unknown), qos=0))
        site.observer.set_drain("gw-a", drain=True)
        site.wait_for(lambda seen: "gw-a" in seen.drained, PATIENCE_S)
        site.observer.set_drain("gw-a", drain=False)
        inbox.wait_for(*topics.TOPICS)
        site.observer.undeploy("classify", PATIENCE_S)
        site.kill("gw-b")
        site.wait_for(lambda seen: seen.devices["gw-b"].status == "offline", PATIENCE_S)
    return inbox.deliveries


def of_the_web() -> TaskSpec:
    """A task whose weights lie at a URL, from which no device may fetch them."""
    known = load_task("pocket/classify")
    digest = f"sha256:{'5a' * 32}"
    source = {"url": f"https://weights.plant.lan/sha256/{'5a' * 32}", "digest": digest, "part": "encoder"}
    changed = {name: module.model_dump() | {"source": source} for name, module in known.modules.items()}
    return TaskSpec.model_validate(known.model_dump() | {"task": "web", "modules": changed})


def shape_of(delivery: Delivery) -> Any:
    """The names in a message: one of each shape is enough."""
    try:
        if delivery.payload[:1] == b"{":
            return names_in(json.loads(delivery.payload))
        (length,) = struct.unpack_from("<Q", delivery.payload)
        header = json.loads(delivery.payload[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        return sorted(metadata), metadata.get("kind"), metadata.get("node")
    except (ValueError, struct.error):
        return delivery.content_type, not delivery.payload


def names_in(value: Any) -> Any:
    """The keys of an object, with those of the objects in it."""
    return sorted((key, str(names_in(inner))) for key, inner in value.items()) if isinstance(value, dict) else None


def main() -> None:
    """Replace the recorded part of the corpus."""
    folder = corpus.FOLDER / "recorded"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.msg"):
        old.unlink()
    kept: dict[str, dict[str, Delivery]] = {}
    for delivery in record():
        incoming = topics.read(corpus.PREFIX, delivery.topic, delivery.payload)
        if incoming is not None and len(delivery.payload) <= MAX_PAYLOAD_BYTES:
            kept.setdefault(incoming.topic.template, {}).setdefault(str(shape_of(delivery)), delivery)
    for template, shapes in kept.items():
        name = template.replace("/", ".").replace("{", "").replace("}", "")
        for number, delivery in enumerate(
            sorted(shapes.values(), key=lambda each: -len(each.payload))[:MAX_OF_A_TOPIC]
        ):
            corpus.write(folder, f"{name}-{number}", delivery)
    missing = {row.template for row in topics.TOPICS} - kept.keys()
    sys.stdout.write(
        f"{sum(map(len, kept.values()))} shapes of {len(kept)} topics; without a message: {sorted(missing)}\n"
    )


if __name__ == "__main__":
    main()
