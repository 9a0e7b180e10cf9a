"""The files of ``s2m3 sources``, and what a wrong one says: its line, its field, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from s2m3.sources.files import read_files

PREFIX = "s2m3/v1"
EXAMPLES = sorted((Path(__file__).parents[4] / "s2m3" / "sources" / "examples").glob("*.yaml"))
DOOR = """\
source: door
subscribe: frigate/door/person/snapshot
payload: raw
task: zero-shot
inputs: {text: ["a courier", "a neighbour", "nobody"]}
min_interval_s: 1
retained: skip
deadline_s: 10
publish: home/door/who
"""


def test_a_file_has_one_source_or_several_with_settings(tmp_path: Path) -> None:
    (tmp_path / "door.yaml").write_text(DOOR)
    (tmp_path / "more.yaml").write_text(
        "homeassistant: true\nsources:\n- {source: a, subscribe: x/+, task: t}\n- {source: b, subscribe: y, task: t}\n"
    )
    read = read_files([tmp_path / "door.yaml", tmp_path / "more.yaml"], PREFIX)
    assert list(read.sources) == ["door", "a", "b"]
    assert read.homeassistant == "homeassistant"
    assert read.sources["door"].inputs == {"text": ("a courier", "a neighbour", "nobody")}
    assert read_files([tmp_path / "door.yaml"], PREFIX).homeassistant is None, "off by default"


def test_home_assistants_own_prefix(tmp_path: Path) -> None:
    (tmp_path / "ha.yaml").write_text("homeassistant: true\nhomeassistant_prefix: ha/discovery\n")
    assert read_files([tmp_path / "ha.yaml"], PREFIX).homeassistant == "ha/discovery"


def test_the_examples_run_together() -> None:
    read = read_files(EXAMPLES, PREFIX)
    assert {"door", "garden", "cams", "notes"} <= read.sources.keys()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "one.yaml:1: holds no fields; write `name: value` lines"),
        ("sources: []\n", "one.yaml:1: has no sources; write one"),
        ("homeassistant: maybe\n", "one.yaml:1: homeassistant: "),
        ("sources: [", "one.yaml:1: "),
        (DOOR.replace("task:", "tasks:"), "one.yaml:4: tasks: "),
        (DOOR.replace("task: zero-shot\n", ""), "one.yaml: task: is missing; add it"),
        (DOOR.replace("payload: raw", "payload: jpeg"), "one.yaml:3: payload: is neither raw nor json with paths"),
        (
            DOOR.replace("payload: raw", "payload: {json: {image: picture}}"),
            "one.yaml:3: payload.json.image: 'picture' is",
        ),
        (DOOR.replace("who", "{1}"), "one.yaml:9: publish: names {1}; subscribe has 0 of +"),
        (DOOR.replace("deadline_s: 10", "deadline_s: soon"), "one.yaml:8: deadline_s: "),
        (
            DOOR.replace("frigate/door/person/snapshot", "s2m3/#"),
            "one.yaml:2: subscribe: s2m3/# can match topics of this",
        ),
        (DOOR.replace("frigate/door/person/snapshot", "home/#"), "one.yaml:9: publish: is a loop: this source reads"),
        (DOOR.replace("home/door/who", "s2m3/v1/tasks/x/spec"), "one.yaml:9: publish: s2m3/v1/tasks/x/spec can match"),
        (
            "sources:\n- {source: a, subscribe: x, task: t}\n- source: b\n  subscribe: y\n  task: 5\n",
            "one.yaml:5: sources.1.task: ",
        ),
        (
            "sources:\n- {source: a, subscribe: x/#, task: t}\n- source: b\n  subscribe: y\n  task: t\n  publish: x/y",
            "one.yaml:6: sources.1.publish: is a loop: the source a reads x/#, and would take x/y as a new message",
        ),
        (
            "homeassistant: true\nsources:\n- source: b\n  task: t\n  subscribe: homeassistant/#\n",
            "one.yaml:5: sources.0.subscribe: is a loop: it reads homeassistant/device/s2m3/+/config",
        ),
        (
            "sources:\n- {source: a, subscribe: x, task: t}\n- {source: a, subscribe: y, task: t}\n",
            "one.yaml:3: sources.1.source: a is",
        ),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "one.yaml").write_text(text)
    with pytest.raises(BadFile) as refused:
        read_files([tmp_path / "one.yaml"], PREFIX)
    told = str(refused.value).removeprefix(f"{tmp_path}/")
    assert told.startswith(says)
    assert "\n" not in told


def test_a_file_that_cant_be_read_and_a_name_in_two_files(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="name a YAML file that can be read"):
        read_files([tmp_path / "none.yaml"], PREFIX)
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(DOOR)
    with pytest.raises(BadFile, match=r"two.yaml:1: source: door is the name of a source in .*one.yaml, too"):
        read_files([tmp_path / "one.yaml", tmp_path / "two.yaml"], PREFIX)
