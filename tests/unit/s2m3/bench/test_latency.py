"""The latency bench without its sites: its settings, workloads, percentiles and refusals."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.messages import Plan, PlannedNode
from s2m3.bench import weights
from s2m3.bench.latency import branches, workloads
from s2m3.bench.latency.compare import _trials
from s2m3.bench.latency.settings import LatencySettings
from s2m3.bench.latency.trial import percentiles
from s2m3.bench.requests import text_input
from s2m3.cli.main import main

SETTINGS = Path(__file__).parents[4] / "benchmarks" / "latency" / "settings"


def test_the_default_settings_are_those_of_the_usual_file() -> None:
    assert load_spec(SETTINGS / "usual.yaml", LatencySettings) == LatencySettings()


@pytest.mark.parametrize("file", sorted(SETTINGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_settings_file_can_be_read(file: Path) -> None:
    assert load_spec(file, LatencySettings).devices


def test_the_sites_uplink_is_the_cloud_agents_downlink() -> None:
    shape = LatencySettings.model_validate(
        {"uplink": {"up_bits_per_s": 20e6, "down_bits_per_s": 50e6, "round_trip_s": 0.05}}
    ).uplink.shape
    assert (shape.down_bits_per_s, shape.up_bits_per_s, shape.delay_s) == (20e6, 50e6, 0.025)


def test_each_contender_has_its_machines_and_only_devices_beside_the_source_have_links() -> None:
    settings = LatencySettings()
    trials = _trials(workloads.WORKLOADS[0], settings, Path("models"))
    assert {name: [agent.id for agent in trial.agents] for name, trial in trials.items()} == {
        "cloud": ["cloud"],
        "local": ["camera"],
        "split": ["camera", "gateway"],
    }
    assert {name: dict(trial.links) for name, trial in trials.items()} == {
        "cloud": {"cloud": settings.uplink.shape},
        "local": {},
        "split": {"gateway": settings.network.shape},
    }
    assert [trials[name].task.source for name in ("cloud", "local", "split")] == [None, "camera", "camera"]
    cloud, gateway = trials["cloud"].agents[0], trials["split"].agents[1]
    assert (cloud.speed, cloud.latency_s, cloud.bandwidth_bits_per_s) == (1.0, 0.025, 20e6)
    assert (gateway.speed, gateway.latency_s, gateway.bandwidth_bits_per_s) == (0.5, 0.001, 100e6)


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda each: each.name)
def test_a_workload_gives_every_input_of_its_task(workload: workloads.Workload) -> None:
    inputs = workload.inputs()
    assert inputs.keys() == workload.task.inputs.keys()
    assert all(inputs[name].content_type.startswith(given.kind) for name, given in workload.task.inputs.items())


def test_the_sound_is_as_long_as_it_says() -> None:
    with wave.open(io.BytesIO(workloads.sound(10.0).data)) as made:
        assert made.getnframes() / made.getframerate() == pytest.approx(10.0)


def test_percentiles_are_those_of_the_times() -> None:
    assert percentiles([0.4, 0.1, 0.2, 0.3, 0.5]) == {"p50": 0.3, "p95": 0.5, "min": 0.1, "max": 0.5}


def test_the_output_that_waits_for_branches_is_sent_last() -> None:
    def node(*needs: str) -> PlannedNode:
        return PlannedNode(key="k", needs=needs, device="gw-a")

    plan = Plan(
        nodes={"head": node("left", "right", "text"), "left": node("image"), "right": node("text")}, output="head"
    )
    raw = text_input("a")
    assert branches._branches(plan, {"image": raw, "text": raw}) == ["left", "right", "head"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("devices: []", ("devices", "at least 1")),
        ("devices: [{id: cloud}]", ("two machines have the id cloud",)),
        ("devices: [{id: a}, {id: a}]", ("two machines have the id a",)),
        ("uplink: {up_bits_per_s: 0}", (":1", "uplink.up_bits_per_s")),
        ("uplink: {round_trip_s: -1}", ("uplink.round_trip_s",)),
        ("cloud: {id: cloud, speed: 2}", ("cloud.speed",)),
        ("cloud: {id: cloud, sped: 1}", ("cloud.sped",)),
        ("network: {bits_per_s: .nan}", ("network.bits_per_s",)),
    ],
)
def test_bad_settings_are_one_line_that_names_file_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: tuple[str, ...]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    assert main(["bench", "latency", "--compare", "cloud", "--settings", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in (*words, str(file)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--compare", "cloud", "--requests", "0"],
            "argument --requests: must be a whole number of at least 1, got '0'",
        ),
        (["--routing", "--captions", "0"], "argument --captions: must be a whole number from 1 to 50, got '0'"),
        (["--routing", "--captions", "51"], "argument --captions: must be a whole number from 1 to 50, got '51'"),
        (["--compare", "cloud", "--workload", "pocket/none"], "--workload: 'pocket/none' is not a workload"),
        (["--compare", "cloud", "--settings", "missing.yaml"], "missing.yaml: No such file"),
    ],
)
def test_a_bad_option_is_one_line(
    exit_code: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert exit_code(["bench", "latency", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_existing_weights_are_not_written_again(tmp_path: Path) -> None:
    task = workloads.WORKLOADS[1].task
    (tmp_path / "openai" / "clip-vit-base-patch16").mkdir(parents=True)
    weights.provide(tmp_path, [task, workloads.WORKLOADS[0].task], pytest.fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["openai", "clip-vit-base-patch16"]


def test_an_unknown_workload_names_the_known_ones() -> None:
    with pytest.raises(BadFile, match="pocket/vqa"):
        workloads.named(["nothing"])
