"""Files with a wrong value anywhere: one line with its place, the text of the file, and no word of the validator's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.sources import SourceSpec
from broker.protocol.specs import FleetSpec, TaskSpec
from broker.servers.site_files import Settings
from broker.transport.connection import ConnectionFile
from edge_agent.config import AgentConfig
from s2m3.bench.latency.settings import LatencySettings
from s2m3.cli import arguments
from s2m3.cli.main import main
from s2m3.sources.files import SourcesFile
from s2m3.testbed.replay.scenario import Scenario

ROOT = Path(__file__).parents[3]
CATALOG = ROOT / "edge_agent" / "catalog" / "pocket"
VALIDATOR = re.compile(
    r"(?i:tuple|dict|instance|\bclass\b|input should|field required|not permitted|validat|pydantic|\bstr\b|\bint\b)"
    r"|None|True|False|constrained|function-|\^\[|\]\*|\bbool\b|datetime|frozenset|literal"
)
DEVICE = {"id": "pi", "memory": "1GB", "compute_flops_per_s": 5e9, "bandwidth_bits_per_s": 1e8, "latency_s": 0.001}
GOOD: Mapping[type[BaseModel], dict[str, Any]] = {
    AgentConfig: {"id": "gw-a", "memory": "300MiB", "weights": {"hub": ["org/name"]}},
    ConnectionFile: {"broker": "mqtt://127.0.0.1"},
    FleetSpec: {"source": "pi", "devices": [DEVICE]},
    LatencySettings: {"cloud": {"id": "cloud"}, "devices": [{"id": "box", "memory": "1GiB"}]},
    Settings: {"hosts": ["broker.lan"]},
    SourcesFile: {"sources": [{"source": "door", "subscribe": "a/b", "task": "classify"}]},
    SourceSpec: {"source": "door", "subscribe": "a/b", "task": "classify", "inputs": {"text": ["a"]}},
    TaskSpec: yaml.safe_load((CATALOG / "classify.yaml").read_text()),
    Scenario: yaml.safe_load((ROOT / "s2m3" / "scenarios" / "leader-killed.yaml").read_text()),
}
EACH = 3  # wrong values of a place: all of them take minutes
WRONG = ("yes", "0123", "~", "2020-01-01", "-7", "[[1]]", "{a: {b: c}}", "a b/$", "''")


def places(value: Any, kind: Any, place: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """The places of a file, and those of fields that it leaves out."""
    yield place
    if isinstance(value, dict):
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        for name in dict.fromkeys([*value, *fields]):
            inner = next(models(fields[name].annotation), None) if name in fields else kind
            yield from places(value.get(name), inner, (*place, name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from places(each, kind, (*place, number))


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from models(each)


def changed(content: Any, place: tuple[int | str, ...], value: str) -> str:
    """The file with another text at a place."""
    copy = json.loads(json.dumps(content))
    node = copy
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = "HERE-IT-IS"
    return yaml.safe_dump(copy, width=10_000).replace("HERE-IT-IS", value)


def refusal(path: Path, kind: type[BaseModel]) -> BadFile | None:
    try:
        load_spec(path, kind)
    except BadFile as error:
        return error
    return None


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_no_wrong_value_is_answered_in_the_validators_words(kind: type[BaseModel], tmp_path: Path) -> None:
    path, refused = tmp_path / "file.yaml", 0
    path.write_text(yaml.safe_dump(GOOD[kind]))
    load_spec(path, kind)
    for number, place in enumerate(places(GOOD[kind], kind)):
        first = number % len(WRONG)
        for value in (WRONG * 2)[first : first + EACH] if place else ():
            path.write_text(changed(GOOD[kind], place, value))
            if (error := refusal(path, kind)) is not None:
                refused += 1
                sentence = str(error)
                assert "\n" not in sentence
                said = sentence.replace(str(tmp_path), "").replace(value, "")
                assert not VALIDATOR.search(said), (place, value, sentence)
                assert error.line is not None, (place, value, sentence)
    assert refused > 5


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (AgentConfig, "id: no", ':1: id: must be a text, and YAML reads no as a truth value; put it in quotes: "no"'),
        (AgentConfig, "id: 0123", ':1: id: must be a text, and YAML reads 0123 as a number; put it in quotes: "0123"'),
        (AgentConfig, "id: 1:30", ':1: id: must be a text, and YAML reads 1:30 as a number; put it in quotes: "1:30"'),
        (AgentConfig, "id: 1.0", ':1: id: must be a text, and YAML reads 1.0 as a number; put it in quotes: "1.0"'),
        (
            AgentConfig,
            "id: 2026-01-02",
            ":1: id: must be a text, and YAML reads 2026-01-02 as a date; put it in quotes",
        ),
        (
            SourceSpec,
            "source: a\nsubscribe: a\ntask: t\ninputs: {text: [yes, no]}",
            ":4: inputs.text.0: must be a text, and YAML reads yes as a",
        ),
        (
            SourceSpec,
            "source: a\nsubscribe: a\ntask: t\ninputs: {text: 0123}",
            ":4: inputs.text: must be a text, and YAML reads 0123 as a num",
        ),
        (AgentConfig, "id: ~", ':1: id: must be a text, and YAML reads ~ as no value; put it in quotes: "~"'),
        (AgentConfig, "id:", ":1: id: must be a text, and YAML reads this as no value; write a text"),
        (
            AgentConfig,
            "id: a\ntasks: [vqa, off]",
            ":2: tasks.1: must be a text, and YAML reads off as a truth value; put",
        ),
        (
            AgentConfig,
            "id: a\nthreads: yes",
            ":2: threads: must be a number, and YAML reads yes as a truth value; write",
        ),
        (
            AgentConfig,
            "id: a\nspeed: on",
            ":2: speed: must be a number, and YAML reads on as a truth value; write a number",
        ),
        (
            AgentConfig,
            "id: a\nmemory: yes",
            ":2: memory: must be a number, and YAML reads yes as a truth value; write a",
        ),
        (
            AgentConfig,
            "id: a\nmemory: 300",
            ":2: memory: 300 is a number of bytes; did you mean 300MiB? Write the unit",
        ),
        (AgentConfig, "id: a\nno: 1", ':2: no: YAML doesn\'t read the name no as a text; put it in quotes: "no"'),
        (
            AgentConfig,
            "id: a\nmemory: 3MiB\nmemory_bytes: 3MiB",
            ":3: memory_bytes: is memory by another name, which is",
        ),
        (AgentConfig, "id: a\nmemory_bytes: lots", ":2: memory_bytes: is not a valid size"),
        (
            AgentConfig,
            "id: a\nsite: plant 4",
            ":2: site: must consist of a-z, 0-9 and -, with / between levels; change",
        ),
        (
            FleetSpec,
            "source: pi\ndevices:\n  pi: {memory: 1GB}",
            ":2: devices: must be a list: write `- id: …` lines; cha",
        ),
        (FleetSpec, "source: pi\ndevices: pi", ":2: devices: must be a list: write `- id: …` lines; change 'pi'"),
        (
            FleetSpec,
            "source: pi\ndevices: [pi]",
            ":2: devices.0: must have fields: write `name: value` lines; change 'pi'",
        ),
    ],
)
def test_a_wrong_value_is_shown_as_it_was_written_with_the_fix(
    tmp_path: Path, kind: type[BaseModel], text: str, sentence: str
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(BadFile) as raised:
        load_spec(path, kind)
    assert str(raised.value).startswith(f"{path}{sentence}")


@pytest.mark.parametrize(
    "written", ["300MiB", "300 MiB", "300Mi", "307200KiB", "314572800", "314_572_800", "0.29296875 GiB"]
)
@pytest.mark.parametrize("name", ["memory", "memory_bytes"])
def test_a_size_has_one_spelling_in_every_file(tmp_path: Path, name: str, written: str) -> None:
    path = tmp_path / "file.yaml"

    def read(kind: type[BaseModel], content: Any) -> Any:
        text = yaml.safe_dump(content).replace("SIZE", written).replace("MEMORY", name)
        path.write_text(text)
        return load_spec(path, kind)

    assert read(AgentConfig, {"id": "a", "MEMORY": "SIZE"}).memory == 300 * 2**20
    device = {key: value for key, value in DEVICE.items() if key != "memory"} | {"MEMORY": "SIZE"}
    assert read(FleetSpec, {"source": "pi", "devices": [device]}).devices[0].memory_bytes == 300 * 2**20
    task = yaml.safe_load((CATALOG / "classify.yaml").read_text())
    for module in task["modules"].values():
        del module["memory_bytes"]
        module["MEMORY"] = "SIZE"
    assert {module.memory_bytes for module in read(TaskSpec, task).modules.values()} == {300 * 2**20}
    machines = read(LatencySettings, {"devices": [{"id": "box", "MEMORY": "SIZE"}]})
    assert machines.devices[0].memory == 300 * 2**20
    scenario = GOOD[Scenario] | {"fleet": [{"id": each["id"], "MEMORY": "SIZE"} for each in GOOD[Scenario]["fleet"]]}
    assert {each.memory for each in read(Scenario, scenario).fleet} == {300 * 2**20}


def test_a_module_may_be_called_memory(tmp_path: Path) -> None:
    task = yaml.safe_load((CATALOG / "classify.yaml").read_text())
    task["modules"]["memory"] = task["modules"].pop("efficientnet-lite0/encoder")
    task["nodes"]["image-encoder"]["module"] = "memory"
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(task))
    assert "memory" in load_spec(path, TaskSpec).modules


def test_json_is_read_as_json_with_tabs_and_a_mark_and_its_errors_have_lines(tmp_path: Path) -> None:
    task = yaml.safe_load((CATALOG / "classify.yaml").read_text())
    path, text = tmp_path / "task.json", json.dumps(task, indent="\t")
    for mark in ("", "\ufeff"):
        path.write_text(mark + text)
        assert load_spec(path, TaskSpec) == TaskSpec.model_validate(task)
    for old, new, sentence in (
        ('"output": "classifier"', '"output": 7', ":19: output: must be a text"),
        ('"output": "classifier"', '"output": "classifier",,', ":19: not JSON: "),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(BadFile) as raised:
            load_spec(path, TaskSpec)
        assert re.sub(r":\d+:", ":19:", str(raised.value)).startswith(f"{path}{sentence}")


@pytest.mark.parametrize("site", ["plant-4", "plant-4/", "/eu/plant-4/"])
def test_a_site_is_written_alike_in_a_file_and_as_an_option(
    tmp_path: Path, site: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "BROKER_S", 0.1)
    path = tmp_path / "gw-a.yaml"
    path.write_text(f"id: gw-a\nsite: {site}\n")
    assert load_spec(path, AgentConfig).site == site.strip("/")
    connection = tmp_path / "connection.yaml"
    connection.write_text(f"broker: mqtt://127.0.0.1:9\nsite: {site}\n")
    for options in (["--connection", str(connection)], ["--broker", "mqtt://127.0.0.1:9", "--site", site]):
        assert main(["status", *options]) == 1
        assert "connection refused" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["T\udcfcr", "\udcff"])
def test_an_argument_that_is_not_utf_8_is_one_line(argument: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["request", "classify", "--text", argument])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is not UTF-8" in said
