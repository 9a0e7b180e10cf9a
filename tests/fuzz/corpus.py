"""The corpus: messages of a real site, and messages that once broke something, one file each.

Owns the format of the files: a line of JSON with the topic and the properties, then the payload as it is. Topics begin
with ``PREFIX``. ``record`` writes ``recorded/``; a failing run writes ``found/``, and its files stay.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from broker.protocol import topics
from broker.transport.port import Delivery

PREFIX = topics.prefix_of()
FOLDER = Path(__file__).parent / "messages"


def write(folder: Path, name: str, delivery: Delivery) -> Path:
    """Write a message as a file of the corpus."""
    head = {
        "topic": delivery.topic,
        "retain": delivery.retain,
        "response_topic": delivery.response_topic,
        "correlation": None if delivery.correlation is None else delivery.correlation.hex(),
        "content_type": delivery.content_type,
        "expiry_s": delivery.expiry_s,
    }
    path = folder / f"{name}.msg"
    path.write_bytes(
        json.dumps({key: value for key, value in head.items() if value}).encode() + b"\n" + delivery.payload
    )
    return path


def read(path: Path) -> Delivery:
    """Read a message."""
    head, _, payload = path.read_bytes().partition(b"\n")
    fields = json.loads(head)
    if "correlation" in fields:
        fields["correlation"] = bytes.fromhex(fields["correlation"])
    return Delivery(payload=payload, **fields)


def keep(delivery: Delivery) -> Path:
    """Keep a message that broke something, under the name of its content."""
    digest = hashlib.sha256(delivery.topic.encode() + b"\0" + delivery.payload).hexdigest()[:16]
    return write(FOLDER / "found", digest, delivery)


def recorded() -> dict[str, list[Delivery]]:
    """The messages of a real site, by the template of their topic."""
    by_template: dict[str, list[Delivery]] = {row.template: [] for row in topics.TOPICS}
    for path in sorted((FOLDER / "recorded").glob("*.msg")):
        delivery = read(path)
        incoming = topics.read(PREFIX, delivery.topic, delivery.payload)
        assert incoming is not None, f"{path} has a topic that isn't in the table"
        by_template[incoming.topic.template].append(delivery)
    return by_template


def of_one_term(delivery: Delivery, epoch: int = 1, generation: int = 5) -> Delivery:
    """The message with the epoch and generation that all have: who reads a later one drops the others."""
    payload = delivery.payload
    length = int.from_bytes(payload[:8], "little") if payload[8:9] == b"{" else None
    try:
        document = json.loads(payload if length is None else payload[8 : 8 + length])
    except ValueError:
        return delivery
    fields = document if length is None else document.get("__metadata__", {})
    if not isinstance(fields, dict):
        return delivery  # such as the state of a bridge, a number
    for name, value in (("epoch", epoch), ("generation", generation)):
        if name in fields:
            fields[name] = value if length is None else str(value)
    text = json.dumps(document).encode()
    if length is not None:
        text = len(text).to_bytes(8, "little") + text + payload[8 + length :]
    return replace(delivery, payload=text)


def found() -> list[Delivery]:
    """The messages that once broke something."""
    return [read(path) for path in sorted((FOLDER / "found").glob("*.msg"))]
