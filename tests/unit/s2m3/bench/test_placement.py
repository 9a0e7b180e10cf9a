"""The 95 instances and what ``bench placement`` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.protocol.specs import FleetSpec, TaskSpec
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.packing import packed
from orchestrator.planner.placement import refined
from s2m3.bench.placement import compare as comparing
from s2m3.bench.placement import scale
from s2m3.bench.placement.compare import Outcome, Result, compare, summarise
from s2m3.bench.placement.instances import COUNT, draw, read, texts
from s2m3.bench.placement.plot import plot
from s2m3.bench.placement.solve import with_sources
from s2m3.cli.bench.placement import INSTANCES
from s2m3.cli.main import main

RESULTS = INSTANCES.parent / "results.json"
Instances = list[tuple[str, FleetSpec, tuple[TaskSpec, ...]]]


@pytest.fixture(scope="module")
def instances() -> Instances:
    """Those of the repository."""
    return list(read(INSTANCES))


def test_the_instances_of_the_repository_are_drawn_again_identically() -> None:
    drawn = {
        f"{instance.name}/{name}": text
        for instance in (draw(number) for number in range(1, COUNT + 1))
        for name, text in texts(instance).items()
    }
    written = {path.relative_to(INSTANCES).as_posix(): path.read_text() for path in INSTANCES.glob("*/*.yaml")}
    assert drawn == written


def test_another_seed_draws_other_instances() -> None:
    assert texts(draw(1)) != texts(draw(1, seed="another"))


def test_there_are_95_instances_with_the_stated_spread(instances: Instances) -> None:
    assert len(instances) == COUNT
    assert {len(tasks) for _, _, tasks in instances} == set(range(1, 7))
    assert {len(fleet.devices) for _, fleet, _ in instances} == set(range(2, 9))
    kinds = {device.id.rsplit("-", 1)[0] for _, fleet, _ in instances for device in fleet.devices}
    assert kinds == {"pi4", "pi5", "jetson-nano", "jetson-orin", "laptop", "desktop", "server"}
    sources = [len({task.source for task in with_sources(tasks, fleet)}) for _, fleet, tasks in instances]
    assert sources.count(1) < COUNT
    for _, fleet, tasks in instances:
        sizes = [module.memory_bytes for _, module in distinct_modules(tasks).values()]
        assert (
            packed(
                [[size] * len(fleet.devices) for size in sizes],
                [device.memory_bytes for device in fleet.devices],
                [()] * len(sizes),
            )
            is not None
        )


def test_refined_reaches_the_proven_optima_of_the_repository(instances: Instances) -> None:
    """Of every fourth instance; ``s2m3 bench placement`` does all, and proves the optima again."""
    proven = {each["instance"]: each["solvers"]["exact"] for each in json.loads(RESULTS.read_text())["instances"]}
    for name, fleet, tasks in instances[::4]:
        assert proven[name]["optimal"]
        found = refined(fleet.devices, with_sources(tasks, fleet))
        assert found.objective_s == pytest.approx(proven[name]["objective_s"], rel=1e-9), name


def test_compare_solves_with_all_three_and_measures_gaps_from_the_optimum(instances: Instances) -> None:
    told: list[str] = []
    (result,) = compare(instances[3:4], time_limit_s=60, progress=told.append)
    assert told == [result.instance] == ["004"]
    exact = result.solvers["exact"]
    assert exact.optimal
    for outcome in result.solvers.values():
        assert outcome.objective_s is not None
        assert outcome.gap is not None
        assert exact.objective_s is not None
        assert outcome.gap == pytest.approx(outcome.objective_s / exact.objective_s - 1)
        assert outcome.optimal == (outcome.gap <= comparing.EQUAL)


def made_up() -> list[Result]:
    best, miss = Outcome(1.0, 0.1, optimal=True, gap=0.0), Outcome(1.5, 0.2, optimal=False, gap=0.5)
    nothing, unproven = Outcome(None, 0.3, optimal=False, gap=None), Outcome(1.0, 9.0, optimal=None, gap=None)
    rows = [{"greedy": miss, "refined": best, "exact": best}, {"greedy": nothing, "refined": best, "exact": best}]
    rows.append({"greedy": unproven, "refined": unproven, "exact": unproven})
    return [Result(f"{number}", 1, 2, 3, row) for number, row in enumerate(rows)]  # type: ignore[arg-type]


def test_the_summary_counts_what_is_optimal_missing_and_unknown() -> None:
    greedy, refined_line, exact = summarise(made_up())
    assert (greedy["optimal"], greedy["no_plan"], greedy["mean_gap"], greedy["worst_gap"]) == (0, 1, 0.5, 0.5)
    assert (refined_line["optimal"], refined_line["no_plan"], refined_line["worst_gap"]) == (2, 0, 0.0)
    assert (exact["instances"], exact["median_solve_s"], exact["worst_solve_s"]) == (3, 0.1, 9.0)


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_the_plot_is_written(tmp_path: Path, name: str) -> None:
    plot(made_up(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    plot(made_up(), tmp_path / f"again-{name}")
    assert (tmp_path / f"again-{name}").read_bytes() == content


def test_the_command_prints_a_table_and_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in texts(draw(4)).items():
        (tmp_path / "4").mkdir(exist_ok=True)
        (tmp_path / "4" / name).write_text(text)
    assert main(["bench", "placement", "--instances", str(tmp_path)]) == 0
    assert "1 of 1" in capsys.readouterr().out
    assert main(["bench", "placement", "--instances", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [line["solver"] for line in document["summary"]] == ["greedy", "refined", "exact"]
    assert document["instances"][0]["solvers"]["refined"]["optimal"]


def test_scale_measures_fleets_of_growing_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "DECADES", ((1, 10), (10, 100)))
    assert main(["bench", "placement", "--scale", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scale"]
    assert [(line["modules"], line["devices"]) for line in found] == [(1, 10), (10, 100)]
    assert all(line["moved_modules"] == line["lost_modules"] for line in found)


def test_a_directory_without_instances_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "placement", "--instances", str(tmp_path)]) == 2
    assert "holds no instances" in capsys.readouterr().err
