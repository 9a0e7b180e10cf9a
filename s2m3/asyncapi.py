"""The contract as an AsyncAPI 3.0 document, for generators and editors: ``python -m s2m3.asyncapi topics.md``.

Owns the step from the topic table, the schemas of its messages and the sections of ``topics.md`` to the document. A
test holds ``docs/reference/asyncapi.yaml`` equal to it. Adds nothing to the table, the messages and the page.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import models_json_schema

from broker.protocol.codec import JSON, SAFETENSORS
from broker.protocol.messages import NodeDone, NodeFailed, NodeInputs, Result
from broker.protocol.specs import ID_PATTERN, LEVEL_PATTERN, MAX_LEVEL_BYTES
from broker.protocol.topics import REQUESTS, RESULTS, TASK_REQUESTS, TENSORS, TOPICS, VERSION, Topic
from broker.protocol.trace_context import NAME, PATTERN

Node = dict[str, Any]
_SECTION = re.compile(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_PUBLISHED = re.compile(r"^- published: (.*?)(?=\n\n|\n- |\Z)", re.MULTILINE | re.DOTALL)
_BINDINGS = "0.2.0"  # the version of AsyncAPI's MQTT bindings
_ENVELOPES = (NodeInputs, NodeDone, NodeFailed)
_REF = "#/components/schemas/"


def document(page: str) -> Node:
    """The AsyncAPI document of the topics that have a section on the page ``topics.md``."""
    sections = dict(_SECTION.findall(page))
    topics = [topic for topic in TOPICS if topic.template in sections]
    models = dict.fromkeys([topic.message for topic in topics if topic.message], None) | dict.fromkeys(_ENVELOPES)
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=f"{_REF}{{model}}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "S2M3",
            "version": version("s2m3"),
            "description": "The messages of a site, as topics.md explains them; a site may have its own prefix.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {"broker": {"host": "127.0.0.1:1883", "protocol": "mqtt", "protocolVersion": "5.0"}},
        "channels": {name_of(topic): _channel(topic, sections[topic.template]) for topic in topics},
        "operations": {name: each for topic in topics for name, each in _operations(topic, topics).items()},
        "components": {
            "messages": {name: each for topic in topics for name, each in _messages(topic).items()},
            "schemas": schemas["$defs"],
        },
    }


def name_of(topic: Topic) -> str:
    """The name of a topic's channel: its levels without the ids, and with the chosen levels of a sensor."""
    given = re.sub(r"/?\{\w+\}", "", topic.template).replace("/", "-")
    return f"{given}-of-client" if topic in REQUESTS and topic is not TASK_REQUESTS else given


def _channel(topic: Topic, section: str) -> Node:
    published = _PUBLISHED.search(section)
    channel: Node = {"address": f"{VERSION}/{topic.template}"}
    if published:
        channel["description"] = f"Published: {' '.join(published[1].split())}."
    channel["messages"] = {name: {"$ref": f"#/components/messages/{name}"} for name in _messages(topic)}
    if topic.fields:
        channel["parameters"] = {name: {"description": _level(topic, name)} for name in topic.fields}
    return channel


def _level(topic: Topic, name: str) -> str:
    if name in topic.free:
        return f"Chosen by the sensor: 1 to {MAX_LEVEL_BYTES} bytes of UTF-8 that match {LEVEL_PATTERN}"
    return f"An id that matches {ID_PATTERN}"


def _operations(topic: Topic, topics: list[Topic]) -> Node:
    """Sending and receiving, with their sides as tags. A request's answer is its reply."""
    name, operations = name_of(topic), {}
    for action, sides in (("send", topic.writer), ("receive", topic.reader)):
        operations[f"{action}-{name}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "tags": [{"name": side} for side in sides.split(", ")],
            "bindings": {"mqtt": {"qos": topic.qos, "retain": topic.retain, "bindingVersion": _BINDINGS}},
        }
        if topic in REQUESTS and RESULTS in topics:
            operations[f"{action}-{name}"]["reply"] = {"channel": {"$ref": f"#/channels/{name_of(RESULTS)}"}}
    return operations


def _messages(topic: Topic) -> Node:
    """The messages of a topic, by name."""
    binary = {"type": "string", "format": "binary"}
    if topic is TENSORS:
        return {
            kind.__name__: {
                "contentType": SAFETENSORS,
                "summary": _summary(kind),
                "description": "The document's metadata are the fields: strings unchanged, others as JSON text.",
                "payload": binary,
                "x-metadata": {"$ref": f"{_REF}{kind.__name__}"},
            }
            for kind in _ENVELOPES
        }
    if topic in REQUESTS:
        mqtt: Node = {"correlationData": binary, "bindingVersion": _BINDINGS}
        mqtt |= {"responseTopic": {"type": "string"}} if topic is TASK_REQUESTS else {}
        text = "The input itself, or a safetensors document of several; the Content Type says which."
        name = "Request" if topic is TASK_REQUESTS else "RequestOfClient"
        request: Node = {"contentType": "*/*", "summary": text, "headers": _user_properties(), "payload": binary}
        return {name: request | {"bindings": {"mqtt": mqtt}}}
    if topic.message is None:
        name = "".join(part.capitalize() for part in name_of(topic).split("-"))
        return {name: {"contentType": "application/octet-stream", "payload": binary}}
    kind = topic.message.__name__
    message: Node = {"contentType": JSON, "summary": _summary(topic.message), "payload": {"$ref": f"{_REF}{kind}"}}
    if topic.message is Result:
        message["description"] = (
            f"With a tensor as the answer: {SAFETENSORS}, with this JSON as `result` in its metadata."
        )
    return {kind: message}


def _user_properties() -> Node:
    """The user properties of a request."""
    text = "W3C's trace context: it stands in the request's trace. One that isn't valid is ignored."
    form: Node = {"type": "string", "pattern": PATTERN, "description": text}
    return {"type": "object", "properties": {NAME: form}}


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def main() -> None:
    """Print the document of the page that the first argument names."""
    text = yaml.safe_dump(document(Path(sys.argv[1]).read_text(encoding="utf-8")), sort_keys=False, width=120)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
