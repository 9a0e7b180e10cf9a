"""The AsyncAPI document says what the topic table, the messages and ``topics.md`` say, in valid AsyncAPI 3.0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.protocol.topics import TOPICS, VERSION, Topic
from s2m3.asyncapi import document, name_of

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "topics.md").read_text(encoding="utf-8")
WRITTEN = yaml.safe_load((ROOT / "docs" / "reference" / "asyncapi.yaml").read_text(encoding="utf-8"))
DESCRIBED = [topic for topic in TOPICS if f"\n## `{topic.template}`\n" in PAGE]
FIELDS = {  # of AsyncAPI 3.0's objects: those that we use
    "channels": {"address", "description", "messages", "parameters"},
    "operations": {"action", "channel", "tags", "bindings", "reply"},
    "messages": {"contentType", "summary", "description", "headers", "payload", "bindings", "x-metadata"},
}


def references(node: Any) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "$ref":
            yield value
        else:
            yield from references(value)


def test_the_page_is_the_document() -> None:
    assert document(PAGE) == WRITTEN, "run: python -m s2m3.asyncapi topics.md > docs/reference/asyncapi.yaml"


def test_each_section_of_topics_md_is_a_channel_and_the_other_way_round() -> None:
    headings = re.findall(r"^## `([^`]+)`$", PAGE, flags=re.MULTILINE)
    assert [each["address"] for each in WRITTEN["channels"].values()] == [f"{VERSION}/{name}" for name in headings]


@pytest.mark.parametrize("topic", DESCRIBED, ids=lambda topic: topic.template)
def test_a_channel_has_the_levels_the_quality_and_the_sides_of_its_topic(topic: Topic) -> None:
    name = name_of(topic)
    assert list(WRITTEN["channels"][name].get("parameters", {})) == list(topic.fields)
    for action, sides in (("send", topic.writer), ("receive", topic.reader)):
        operation = WRITTEN["operations"][f"{action}-{name}"]
        assert (operation["action"], operation["channel"]) == (action, {"$ref": f"#/channels/{name}"})
        mqtt = operation["bindings"]["mqtt"]
        assert (mqtt["qos"], mqtt["retain"]) == (topic.qos, topic.retain)
        assert ", ".join(tag["name"] for tag in operation["tags"]) == sides


def test_every_reference_leads_to_something() -> None:
    found = list(references(WRITTEN))
    assert len(found) > 50
    for reference in found:
        assert reference.startswith("#/")
        node: Any = WRITTEN
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_the_document_has_the_required_fields_of_asyncapi_3_and_no_unknown_ones() -> None:
    assert WRITTEN["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= WRITTEN["info"].keys()
    objects = {**WRITTEN, "messages": WRITTEN["components"]["messages"]}
    for kind, known in FIELDS.items():
        for each in objects[kind].values():
            assert each.keys() <= known
    for message in WRITTEN["components"]["messages"].values():
        assert {"payload", "contentType"} <= message.keys()
    for schema in WRITTEN["components"]["schemas"].values():
        assert schema.keys() <= {
            "title",
            "description",
            "type",
            "properties",
            "required",
            "additionalProperties",
            "enum",
        }


def test_numbers_that_fence_have_their_limits_in_the_schemas() -> None:
    epoch = WRITTEN["components"]["schemas"]["OrchestratorState"]["properties"]["epoch"]
    assert (epoch["type"], epoch["minimum"], epoch["maximum"]) == ("integer", 0, 2**53 - 1)
