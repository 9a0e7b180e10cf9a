"""``topics.md`` equals the topic table: neither can change without the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.protocol import topics
from broker.protocol.codec import MAX_INPUT_BYTES, MAX_MESSAGE_BYTES, decode
from broker.protocol.errors import ErrorCode
from broker.protocol.tensors import DTYPES, MAX_HEADER_BYTES, MAX_RANK, MAX_TENSORS
from broker.protocol.topics import TOPICS, VERSION, Topic
from broker.servers.bridge import REPEATED

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "topics.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
SOURCES = [
    path for package in ("broker", "orchestrator", "edge_agent", "s2m3") for path in (ROOT / package).rglob("*.py")
]
CODE = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path != Path(topics.__file__))
NAMES = {id(value): name for name, value in vars(topics).items() if isinstance(value, Topic)}
USED = [topic for topic in TOPICS if re.search(rf"\b{NAMES[id(topic)]}\b", CODE)]
"""The topics that a process writes or reads: the page tells what is, so a topic gets its section with its code."""


def test_each_topic_has_its_heading_and_each_heading_its_topic() -> None:
    assert list(SECTIONS) == [topic.template for topic in USED]


@pytest.mark.parametrize("topic", USED, ids=lambda topic: topic.template)
def test_a_section_says_direction_qos_retain_and_when(topic: Topic) -> None:
    section = SECTIONS[topic.template]
    assert f"- direction: {topic.writer} → {topic.reader}\n" in section
    assert f"- QoS {topic.qos}, {'retained' if topic.retain else 'not retained'}\n" in section
    assert re.search(r"^- published: \S", section, flags=re.MULTILINE)


@pytest.mark.parametrize("topic", USED, ids=lambda topic: topic.template)
def test_a_section_has_an_example_that_is_a_message_and_a_line_to_paste(topic: Topic) -> None:
    section = SECTIONS[topic.template]
    examples = re.findall(r"```json\n(.*?)```", section, flags=re.DOTALL)
    assert bool(examples) == (topic.message is not None)
    for example in examples:
        assert topic.message is not None
        decode(topic.message, example.encode())
    (lines,) = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    named = re.search(rf"{VERSION}/[^' ]+", lines)
    assert named
    levels = {name: "[^/]+" if name in topic.free else "([a-z0-9-]+|[+])" for name in topic.fields}
    pattern = topic.template.format(**levels)
    assert re.fullmatch(f"{VERSION}/{pattern}", named[0].strip())


def test_what_crosses_a_bridge_is_listed() -> None:
    (table,) = re.findall(r"^## Between a site and its core\n(.*?)^## ", PAGE, flags=re.MULTILINE | re.DOTALL)
    rows = dict(
        re.findall(r"^\| (up|down|up, kept.*?|up, the.*?|at the core only) \| (.*) \|$", table, flags=re.MULTILINE)
    )
    listed = {way: [each for each in re.findall(r"`([^`]+)`", row) if "s2m3" not in each] for way, row in rows.items()}
    up = [topic for topic in TOPICS if topic.crosses == "up"]
    assert listed["up, kept during a cut"] == [topic.template for topic in up if topic not in REPEATED]
    assert listed["up, the newest after a cut"] == [topic.template for topic in up if topic in REPEATED]
    assert listed["down"] == [topic.template for topic in TOPICS if topic.crosses == "down"]
    assert listed["at the core only"] == [topics.BRIDGE_STATE.template]


def test_every_error_code_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE) == [str(code) for code in ErrorCode]


def test_the_limits_are_those_of_the_code() -> None:
    assert (
        f"most {MAX_MESSAGE_BYTES // 2**20} MiB, one input of a request at most {MAX_INPUT_BYTES // 2**20} MiB" in PAGE
    )
    stated = f"header {MAX_HEADER_BYTES // 1024} KiB, {MAX_TENSORS} arrays, {MAX_RANK} dimensions, dtypes"
    assert stated in PAGE
    listed = re.search(r"dtypes `([A-Z0-9 ]+)`", PAGE)
    assert listed
    assert set(listed[1].split()) == DTYPES
