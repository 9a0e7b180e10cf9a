"""``s2m3 plan`` as a person types it: what it prints, and what it says of files that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.cost_model import objective_s
from broker.files import load_spec
from broker.protocol.specs import FleetSpec
from s2m3.bench.placement.solve import SOLVERS
from s2m3.catalogue import load_tasks
from s2m3.cli.main import main

FLEET = """
source: camera-1
devices:
  - {id: camera-1, memory_bytes: 1.0e8, compute_flops_per_s: 25e9, bandwidth_bits_per_s: 30e6, latency_s: 0.001}
  - id: gateway
    memory_bytes: 8.0e8
    compute_flops_per_s: 220e9
    bandwidth_bits_per_s: 100e6
    latency_s: 0.001
    compute_s: {see: 0.021}
"""
TASK = """
task: look
inputs:
  image: {kind: image, bytes: 150000}
nodes:
  encoder: {module: see, needs: [image]}
  head: {module: say, needs: [encoder]}
output: head
weight: 2
modules:
  see: {family: any.encoder, source: {pip: weights, part: see}, memory_bytes: 90MB, flops: 2e9, output_bytes: 4096}
  say: {family: any.head, memory_bytes: 4, flops: 1e6, output_bytes: 16}
"""
RENAMED = TASK.replace("task: look", "task: watch").replace("see", "sight").replace("part: sight", "part: see")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound fleet and a sound task, for a test to change."""
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "look.yaml").write_text(TASK)
    return tmp_path


@pytest.fixture
def plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on the folder's fleet: exit code, output, errors."""

    def run(*arguments: str, tasks: tuple[str, ...] = ("look.yaml",)) -> tuple[int, str, str]:
        named = [str(folder / task) if (folder / task).exists() or "." in task else task for task in tasks]
        code = main(["plan", "--fleet", str(folder / "fleet.yaml"), "--tasks", *named, *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_objective_can_be_recomputed_from_the_printed_placement(plan: Run, folder: Path, solver: str) -> None:
    names = ("look.yaml", "pocket/vqa", "pocket/ask", "hub/speech-whisper-tiny")
    code, out, _ = plan("--solver", solver, "--json", tasks=names)
    made = json.loads(out)
    assert code == 0
    assert made["feasible"]
    devices = {device.id: device for device in load_spec(folder / "fleet.yaml", FleetSpec).devices}
    tasks = [each.spec for name in names for each in load_tasks(folder / name if name == "look.yaml" else name)]
    where = {
        task.module_of(node).key: devices[made["placement"][task.nodes[node].module]]
        for task in tasks
        for node in task.nodes
    }
    cost_s = objective_s(tasks, where, {task.task: devices["camera-1"] for task in tasks})
    assert made["objective_s"] == pytest.approx(cost_s, rel=1e-9)
    weighted = sum(task.weight * made["latency_s"][task.task] for task in tasks)
    assert made["objective_s"] == pytest.approx(weighted, rel=1e-9)
    assert made["optimal"] is (True if solver == "exact" else None)
    assert made["bound_s"] == (made["objective_s"] if solver == "exact" else None)


def test_the_document_has_the_promised_fields(plan: Run) -> None:
    made = json.loads(plan("--json", tasks=("look.yaml", "pocket/vqa"))[1])
    promised = {"solver", "feasible", "objective_s", "optimal", "placement", "standby", "latency_s", "memory_bytes"}
    assert made.keys() >= promised | {"replicas", "solve_s", "explain", "bound_s"}
    assert made["memory_bytes"].keys() == {"shared", "unshared", "per_device"}
    for device, use in made["memory_bytes"]["per_device"].items():
        assert use["used"] + use["spare"] <= use["capacity"] == {"camera-1": 10**8, "gateway": 8 * 10**8}[device]
    assert sum(use["used"] for use in made["memory_bytes"]["per_device"].values()) == made["memory_bytes"]["shared"]
    assert {each["module"]: each["device"] for each in made["explain"]} == made["placement"]
    for each in made["explain"]:
        assert {each["device"], *each["rejected"]} == {"camera-1", "gateway"}
    for module, copies in made["standby"].items():
        assert made["placement"][module] not in copies


def test_leftover_memory_holds_standbys(plan: Run) -> None:
    made = json.loads(plan("--json")[1])
    assert made["placement"]["see"] == "gateway"
    assert made["standby"]["see"] == ["camera-1"]
    assert made["memory_bytes"]["per_device"]["camera-1"]["spare"] >= 90_000_000


def test_a_rate_beyond_one_copy_gets_a_replica(plan: Run, folder: Path) -> None:
    (folder / "look.yaml").write_text(TASK.replace("weight: 2", "weight: 45"))
    made = json.loads(plan("--json")[1])
    assert made["replicas"]["see"] == ["camera-1"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_device_that_is_on_only_sometimes_gets_a_replica_and_only_what_fits_nowhere_else(
    plan: Run, folder: Path, solver: str
) -> None:
    fleet = FLEET.replace("    compute_s", "    availability: sometimes\n    compute_s")
    (folder / "fleet.yaml").write_text(fleet)
    made = json.loads(plan("--json", "--solver", solver)[1])
    assert made["placement"] == {"say": "camera-1", "see": "camera-1"}
    assert made["replicas"]["see"] == ["gateway"]
    assert {each["rejected"]["gateway"] for each in made["explain"]} == {"it is on only sometimes"}
    (folder / "fleet.yaml").write_text(fleet.replace("1.0e8", "8.0e7"))
    made = json.loads(plan("--json", "--solver", solver)[1])
    assert made["placement"] == {"say": "camera-1", "see": "gateway"}
    reasons = {each["module"]: each["rejected"] for each in made["explain"]}
    assert reasons == {
        "say": {"gateway": "it is on only sometimes"},
        "see": {"camera-1": "memory short by 9.6 MiB"},
    }


def test_a_shared_module_under_two_names_is_placed_once_and_printed_under_both(plan: Run, folder: Path) -> None:
    (folder / "watch.yaml").write_text(RENAMED)
    made = json.loads(plan("--json", tasks=("look.yaml", "watch.yaml"))[1])
    assert made["placement"].keys() == {"see", "sight", "say"}
    assert made["placement"]["see"] == made["placement"]["sight"]
    assert made["memory_bytes"]["shared"] == 90_000_004
    assert made["memory_bytes"]["unshared"] == 180_000_008


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_plan_says_the_module_the_missing_bytes_and_the_smallest_change(
    plan: Run, folder: Path, solver: str
) -> None:
    (folder / "look.yaml").write_text(TASK.replace("90MB", "900MB"))
    code, out, _ = plan("--solver", solver, "--json")
    made = json.loads(out)
    assert code == 1
    assert made["feasible"] is False
    assert made["objective_s"] is None
    reason = made["reason"]
    assert reason["module"] == "see"
    assert reason["short_bytes"] == {"camera-1": 800_000_000, "gateway": 100_000_000}
    assert reason["missing_bytes"] == 100_000_000
    if solver != "greedy":
        assert reason["smallest_change"] == {"device": "gateway", "bytes": 100_000_000}
    code, out, _ = plan("--solver", solver)
    assert code == 1
    assert out.startswith("no plan: no device fits see (858.3 MiB)")


def test_people_get_tables_and_reasons(plan: Run) -> None:
    code, out, _ = plan("--solver", "exact", "--explain")
    assert code == 0
    assert "that is the least, proven" in out
    assert "see is on gateway" in out
    assert "  not on camera-1: slower by" in out


def test_without_time_exact_says_so_and_prints_its_bound(plan: Run) -> None:
    names = ("look.yaml", "pocket/ask", "pocket/vqa", "hub/speech-whisper-base")
    code, out, _ = plan("--solver", "exact", "--time-limit", "1e-9", "--json", tasks=names)
    made = json.loads(out)
    assert code == 0
    assert made["optimal"] is False
    assert 0 < made["bound_s"] <= made["objective_s"]
    assert "the time was over before a proof" in plan("--solver", "exact", "--time-limit", "1e-9", tasks=names)[1]


def test_a_list_names_tasks_and_what_is_different_about_them(plan: Run, folder: Path) -> None:
    (folder / "list.yaml").write_text(
        "tasks:\n  - {task: look.yaml, source: gateway, weight: 5}\n  - {task: pocket/classify}\n"
    )
    made = json.loads(plan("--json", tasks=("list.yaml",))[1])
    assert made["latency_s"].keys() == {"look", "classify"}
    assert made["latency_s"]["look"] == pytest.approx(0.021, rel=0.01)  # starts and runs on the gateway
    assert made["objective_s"] == pytest.approx(5 * made["latency_s"]["look"] + made["latency_s"]["classify"])


def test_a_directory_stands_for_its_task_files(plan: Run, folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "tasks" / "a.yaml").write_text(TASK)
    (folder / "tasks" / "b.json").write_text(json.dumps({"tasks": [{"task": "pocket/classify"}]}))
    (folder / "tasks" / "notes.txt").write_text("no task")
    assert json.loads(plan("--json", tasks=("tasks",))[1])["latency_s"].keys() == {"look", "classify"}


Wrong = tuple[str, str, int | None, str, str]
"""A text of the file, the text that replaces it, and the error's line, field and words."""


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


BAD_FLEETS: list[Wrong] = [
    ("memory_bytes: 8.0e8", "memory_bytes: 0", 6, "devices.1.memory_bytes", "greater than 0"),
    ("memory_bytes: 8.0e8", "memory_bytes: -1", 6, "devices.1.memory_bytes", "greater than 0"),
    ("memory_bytes: 8.0e8", "memory_bytes: .nan", 6, "devices.1.memory_bytes", "finite number"),
    ("memory_bytes: 8.0e8", "memory_bytes: nan", 6, "devices.1.memory_bytes", "is not a valid size"),
    ("220e9", ".nan", 7, "devices.1.compute_flops_per_s", "finite number"),
    ("220e9", "nan", 7, "devices.1.compute_flops_per_s", "finite number"),
    ("220e9", "-1", 7, "devices.1.compute_flops_per_s", "must be at least 1"),
    ("100e6", "0", 8, "devices.1.bandwidth_bits_per_s", "must be at least 1"),
    ("    latency_s: 0.001", "    latency_s: -0.001", 9, "devices.1.latency_s", "must be at least 0"),
    ("    latency_s: 0.001", "    latency_s: .inf", 9, "devices.1.latency_s", "finite number"),
    ("see: 0.021", "see: .nan", 10, "devices.1.compute_s.see", "finite number"),
    ("see: 0.021", "see: 0", 10, "devices.1.compute_s.see", "greater than 0"),
    ("- id: gateway", "- id: camera-1", 5, "devices.1.id", "names camera-1 a second time"),
    ("- id: gateway", "- id: Gateway", 5, "devices.1.id", "is not a valid id"),
    ("source: camera-1", "source: camera-2", 2, "source", "names camera-2, which is not among the devices"),
    ("source: camera-1", "", None, "source", "is missing"),
    ("devices:", "divices:", 3, "divices", "correct its spelling"),
    ("    bandwidth_bits", "    bandwith_bits", 8, "devices.1.bandwith_bits_per_s", "correct its spelling"),
]


@pytest.mark.parametrize("wrong", BAD_FLEETS, ids=str)
def test_a_wrong_fleet_is_one_line_with_file_line_and_field(plan: Run, folder: Path, wrong: Wrong) -> None:
    old, new, line, field, sentence = wrong
    (folder / "fleet.yaml").write_text(edited(FLEET, old, new))
    code, out, err = plan()
    place = f"fleet.yaml:{line}: {field}: " if line else f"fleet.yaml: {field}: "
    assert (code, out) == (2, "")
    assert place in err
    assert sentence in err
    assert err.count("\n") == 1


def test_a_fleet_without_devices_says_so(plan: Run, folder: Path) -> None:
    (folder / "fleet.yaml").write_text("source: camera-1\ndevices: []\n")
    code, _, err = plan()
    assert code == 2
    assert "fleet.yaml:2: devices: is empty: a plan needs at least one device" in err


BAD_TASKS: list[Wrong] = [
    ("needs: [image]", "needs: [head]", 6, "nodes.encoder", "the nodes form a cycle: encoder, head"),
    (
        "needs: [image]",
        "needs: [images]",
        6,
        "nodes.encoder.needs",
        "names images, which is neither an input nor a node",
    ),
    ("module: say", "module: sayy", 7, "nodes.head.module", "names sayy, which modules does not describe"),
    ("memory_bytes: 90MB", "memory_bytes: 0", 11, "modules.see.memory_bytes", "greater than 0"),
    ("memory_bytes: 90MB", "memory_bytes: -1", 11, "modules.see.memory_bytes", "greater than 0"),
    ("flops: 2e9", "flops: .nan", 11, "modules.see.flops", "finite number"),
    ("flops: 2e9", "flops: 0", 11, "modules.see.flops", "greater than 0"),
    ("output_bytes: 4096", "output_bytes: 0", 11, "modules.see.output_bytes", "greater than 0"),
    ("bytes: 150000", "bytes: -1", 4, "inputs.image.bytes", "greater than 0"),
    ("weight: 2", "weight: .nan", 9, "weight", "finite number"),
    ("weight: 2", "weight: 0", 9, "weight", "greater than 0"),
    ("output: head", "output: tail", 8, "output", "names tail, which is not a node"),
    ("output: head", "output: head\nsource: nowhere", 9, "source", "names nowhere, which is not a device of"),
]


@pytest.mark.parametrize("wrong", BAD_TASKS, ids=str)
def test_a_wrong_task_is_one_line_with_file_line_and_field(plan: Run, folder: Path, wrong: Wrong) -> None:
    old, new, line, field, sentence = wrong
    (folder / "look.yaml").write_text(edited(TASK, old, new))
    code, out, err = plan()
    assert (code, out) == (2, "")
    assert f"look.yaml:{line}: {field}: " in err
    assert sentence in err
    assert err.count("\n") == 1


def test_two_tasks_of_one_name_are_refused_with_both_files(plan: Run, folder: Path) -> None:
    (folder / "other.yaml").write_text(TASK)
    code, _, err = plan(tasks=("look.yaml", "other.yaml"))
    assert code == 2
    assert "other.yaml:2: task: look is the name of another task too, in " in err
    assert "look.yaml" in err


def test_one_module_name_for_two_modules_is_refused(plan: Run, folder: Path) -> None:
    (folder / "other.yaml").write_text(TASK.replace("task: look", "task: other").replace("part: see", "part: else"))
    code, _, err = plan(tasks=("look.yaml", "other.yaml"))
    assert code == 2
    assert "see is another module in " in err
    assert "rename one of the two" in err


def test_a_source_in_a_list_that_is_no_device_is_shown_in_the_list(plan: Run, folder: Path) -> None:
    (folder / "list.yaml").write_text("tasks:\n  - task: pocket/classify\n    source: nowhere\n")
    code, _, err = plan(tasks=("list.yaml",))
    assert code == 2
    assert "list.yaml:3: tasks.0.source: names nowhere, which is not a device of" in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("tasks: []\n", "tasks: "), ("tasks:\n  - {task: nope}\n", "nope: is neither in the catalogue nor a file")],
)
def test_a_list_that_names_no_task_is_refused(plan: Run, folder: Path, content: str, sentence: str) -> None:
    (folder / "list.yaml").write_text(content)
    code, _, err = plan(tasks=("list.yaml",))
    assert code == 2
    assert sentence in err


def test_an_empty_directory_is_refused(plan: Run, folder: Path) -> None:
    (folder / "tasks").mkdir()
    code, _, err = plan(tasks=("tasks",))
    assert code == 2
    assert "tasks: holds no task files" in err


def test_a_missing_fleet_is_refused(plan: Run, folder: Path) -> None:
    (folder / "fleet.yaml").unlink()
    code, _, err = plan()
    assert code == 2
    assert "fleet.yaml: No such file or directory" in err


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_that_is_no_time_is_refused(plan: Run, limit: str) -> None:
    with pytest.raises(SystemExit) as ended:
        plan("--time-limit", limit)
    assert ended.value.code == 2


@pytest.mark.parametrize("revision", ["main", "v1.0", "5ef227a"])
def test_a_revision_of_the_hub_that_is_no_commit_is_named_with_its_line(plan: Run, folder: Path, revision: str) -> None:
    pinned = TASK.replace("{pip: weights,", "{hub: org/name, revision: REVISION,")
    (folder / "look.yaml").write_text(pinned.replace("REVISION", f"'{revision}'"))
    code, _, err = plan()
    assert code == 2
    assert "look.yaml:11: modules.see.source.revision" in err
    assert f"is '{revision}', which may mean other weights tomorrow" in err
    (folder / "look.yaml").write_text(pinned.replace("REVISION", "'5ef227a78de3f75873f373246dac80def63b0003'"))
    assert plan()[0] == 0


ON_GATEWAY = "    compute_s: {see: 0.021}\n"
SEE = '"pip:weights#see:float32"'
SAY = '"weightless:any.head:float32"'


@pytest.mark.parametrize("solver", SOLVERS)
def test_devices_of_a_fleet_file_get_only_what_their_engines_run_and_count_that_variants_memory(
    folder: Path, plan: Run, solver: str
) -> None:
    exports = f"    engines: [onnx]\n    exports: {{{SEE}: 30MB, {SAY}: 5}}\n"
    (folder / "fleet.yaml").write_text(FLEET.replace(ON_GATEWAY, ON_GATEWAY + exports))
    code, out, _ = plan("--solver", solver, "--json")
    assert code == 0
    made = json.loads(out)
    assert made["placement"] == {"see": "gateway", "say": "gateway"}
    assert made["memory_bytes"]["shared"] == 30_000_005
    code, out, _ = plan("--solver", solver)
    assert "28.6" in out, "the table has the bytes of the export"
    (folder / "fleet.yaml").write_text(FLEET.replace(ON_GATEWAY, ON_GATEWAY + "    engines: [onnx]\n"))
    code, out, _ = plan("--solver", solver, "--json")
    made = json.loads(out)
    assert made["placement"] == {"see": "camera-1", "say": "camera-1"}
    why = made["explain"][0]["rejected"]["gateway"]
    assert why == "it runs onnx and has no export of say (s2m3 models export say)"


def test_a_task_whose_variant_fits_is_planned_with_it(folder: Path, plan: Run) -> None:
    varied = TASK.replace(
        "flops: 2e9", "flops: 2e9, variants: [{engine: onnx, source: {hub: a/b, part: see}, memory_bytes: 20MB}]"
    )
    (folder / "look.yaml").write_text(varied.replace("90MB", "9GB"))
    (folder / "fleet.yaml").write_text(FLEET.replace(ON_GATEWAY, ON_GATEWAY + "    engines: [onnx, torch]\n"))
    code, out, _ = plan("--json")
    assert code == 0
    assert json.loads(out)["memory_bytes"]["per_device"]["gateway"]["used"] >= 20_000_000


def test_an_engine_that_does_not_exist_is_told_with_its_field(folder: Path, plan: Run) -> None:
    (folder / "fleet.yaml").write_text(FLEET.replace(ON_GATEWAY, ON_GATEWAY + "    engines: [onxx]\n"))
    code, _, err = plan()
    assert code == 2
    assert "engines" in err
    assert "torch, onnx or ctranslate2" in err
    assert len(err.strip().splitlines()) == 1


def test_what_if_a_device_dies_or_one_more_comes(plan: Run, folder: Path) -> None:
    (folder / "fleet.yaml").write_text(
        FLEET + "  - {id: box, memory_bytes: 4e8, compute_flops_per_s: 9e12, bandwidth_bits_per_s: 1e9, latency_s: 0}\n"
    )
    assert json.loads(plan("--json")[1])["placement"]["see"] == "box"
    assert json.loads(plan("--json", "--without", "box")[1])["placement"]["see"] == "gateway"
    made = json.loads(plan("--json", "--one-more", "box", "--one-more", "box", "--without", "box")[1])
    assert made["memory_bytes"]["per_device"].keys() == {"camera-1", "gateway", "box-2", "box-3"}
    code, _, err = plan("--without", "boks")
    assert (code, err) == (
        2,
        "s2m3: --without: boks is not a device of the fleet; use one of: box, camera-1, gateway\n",
    )
    code, _, err = plan("--without", "camera-1")
    assert (code, err.count("\n")) == (2, 1)
    assert "requests start at camera-1" in err


def test_a_device_that_may_serve_nothing_is_a_source_and_no_row_of_the_memory(plan: Run, folder: Path) -> None:
    numbers = "memory_bytes: 1, compute_flops_per_s: 1, bandwidth_bits_per_s: 1e21, latency_s: 0"
    source = f"  - {{id: sensors, {numbers}, tasks: []}}"
    (folder / "fleet.yaml").write_text(FLEET.replace("source: camera-1", "source: sensors") + source + "\n")
    code, out, _ = plan("--explain")
    assert code == 0
    assert "not on sensors: it holds nothing" in out
    assert not [line for line in out.splitlines() if line.startswith("\u2502 sensors")]
