"""The planner's process: it answers, comes to an end when told to, is started again, and ends with its orchestrator."""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from broker.protocol.specs import TaskSpec
from orchestrator.events import EndPlanning, PlanFound, RequestPlan
from orchestrator.planner.plans import PlacementPlan, PlacementProblem
from orchestrator.planner.solve import solve
from orchestrator.planner_process import NUMBER, client
from orchestrator.planner_process.__main__ import NICENESS, Ends
from orchestrator.planner_process.client import PlannerProcess
from tests.builders import InlinePlanner, chain, device, module, placement_problem
from tests.patience import PATIENCE_S, until

TASK = chain("classify", module("vision", 60), module("head", 10))


def problem(*tasks: TaskSpec, devices: int = 2) -> PlacementProblem:
    return placement_problem(
        devices=tuple(device(f"d{number:02}", speed=1e9 * (number + 1)) for number in range(devices)),
        tasks=tasks or (TASK,),
    )


@pytest.fixture
def found() -> queue.Queue[PlanFound]:
    return queue.Queue()


@pytest.fixture
def planner(found: queue.Queue[PlanFound]) -> Iterator[PlannerProcess]:
    process = PlannerProcess(found.put)
    yield process
    process.close()
    assert process.pid is None


def test_the_process_finds_what_the_function_finds(planner: PlannerProcess, found: queue.Queue[PlanFound]) -> None:
    for number in (1, 2):
        planner.request(RequestPlan((1, number), problem()))
        assert found.get(timeout=60) == PlanFound((1, number), solve(problem()))


def test_a_search_gives_way_to_its_orchestrator(planner: PlannerProcess, found: queue.Queue[PlanFound]) -> None:
    planner.request(RequestPlan((1, 1), problem()))
    found.get(timeout=60)
    assert psutil.Process(planner.pid).nice() == min(19, os.nice(0) + NICENESS)


def test_the_inline_planner_finds_the_same(found: queue.Queue[PlanFound]) -> None:
    InlinePlanner(found.put).request(RequestPlan((1, 1), problem()))
    assert found.get_nowait() == PlanFound((1, 1), solve(problem()))


def test_of_many_problems_the_last_is_answered(planner: PlannerProcess, found: queue.Queue[PlanFound]) -> None:
    for number in range(1, 9):
        planner.request(RequestPlan((1, number), problem()))
        planner.end(EndPlanning((1, number)))
    while found.get(timeout=60).ticket != (1, 8):
        pass
    assert found.empty()


def test_the_process_builds_no_validators(tmp_path: Path) -> None:
    """It reads no text: its problems are pickled."""
    file = tmp_path / "problem"
    file.write_bytes(pickle.dumps(problem()))
    code = (
        "import pickle, pathlib, sys, orchestrator.planner_process.__main__ as planner\n"
        "asked = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "assert planner.solve(asked).where\n"
        "print(type(asked.tasks[0]).__pydantic_complete__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_the_process_is_no_larger_after_a_large_problem(planner: PlannerProcess, found: queue.Queue[PlanFound]) -> None:
    planner.request(RequestPlan((1, 1), problem()))
    found.get(timeout=60)
    assert planner.pid
    before = resident_bytes(planner.pid)
    tasks = [chain(f"t{number}", module(f"m{number}", 1)) for number in range(40)]
    planner.request(RequestPlan((1, 2), problem(*tasks, devices=1_000)))
    plan = found.get(timeout=60).plan
    assert isinstance(plan, PlacementPlan)
    assert len(plan.where) == 40
    assert resident_bytes(planner.pid) - before < 1_000_000


def test_a_copy_leaves_the_orders_to_end_that_are_for_later_problems() -> None:
    read, write = os.pipe()
    for number in (1, 2, 4):
        os.write(write, NUMBER.pack(number))
    assert Ends(read).covers(1)
    third = Ends(read)
    assert third.covers(3), "it skips the one for 2, and 4 covers 3"
    assert not Ends(read).covers(5)
    os.close(write)
    assert Ends(read).covers(9), "the orchestrator has ended"
    os.close(read)


def test_no_signal_of_a_terminal_or_a_service_manager_ends_it(
    planner: PlannerProcess, found: queue.Queue[PlanFound]
) -> None:
    planner.request(RequestPlan((1, 1), problem()))
    found.get(timeout=60)
    pid = planner.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    planner.request(RequestPlan((1, 2), problem()))
    assert found.get(timeout=60).ticket == (1, 2)
    assert planner.pid == pid


def test_a_process_that_dies_is_started_again_and_the_problem_is_solved(
    planner: PlannerProcess, found: queue.Queue[PlanFound]
) -> None:
    planner.request(RequestPlan((1, 1), problem()))
    found.get(timeout=60)
    pid = planner.pid
    assert pid is not None
    with capture_logs() as log:
        os.kill(pid, signal.SIGKILL)
        planner.request(RequestPlan((1, 2), problem()))
        assert isinstance(found.get(timeout=60).plan, PlacementPlan)
    assert [(line["event"], line["status"]) for line in log] == [("planner_ended", -signal.SIGKILL)]
    assert planner.pid not in {pid, None}


def test_an_idle_process_that_dies_is_started_again_before_the_next_problem(planner: PlannerProcess) -> None:
    until(lambda: planner.pid is not None)
    pid = planner.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: planner.pid not in {pid, None})


def test_two_thousand_modules_that_hardly_fit_are_packed_or_refused(
    planner: PlannerProcess, found: queue.Queue[PlanFound], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes as deep as there are modules."""
    monkeypatch.setattr(client, "HUNG_S", 16 * PATIENCE_S)  # seconds on a quiet machine; on a busy one it doesn't hang
    modules = [module(f"m{number}", 50 if number % 2 else 34, flops=1e9 - number) for number in range(2000)]
    tasks = [chain(f"t{number}", *modules[number : number + 40]) for number in range(0, 2000, 40)]
    size = sum(each.memory_bytes for each in modules)
    asked = replace(problem(*tasks), devices=(device("a", size - 34_000), device("b", 34_000)))
    planner.request(RequestPlan((1, 1), asked))
    plan = found.get(timeout=17 * PATIENCE_S).plan
    assert isinstance(plan, PlacementPlan)
    assert len(plan.where) == 2000 - 40 * len(plan.refused) > 1900


def test_a_process_that_is_killed_at_work_is_started_again_and_the_problem_is_solved(
    planner: PlannerProcess, found: queue.Queue[PlanFound]
) -> None:
    until(lambda: planner.pid is not None)
    pid = planner.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that the problem is under way when it dies
    planner.request(RequestPlan((1, 1), problem()))
    os.kill(pid, signal.SIGKILL)
    assert isinstance(found.get(timeout=60).plan, PlacementPlan)


def test_a_copy_that_is_killed_at_work_ends_its_process_and_another_one_solves_the_problem(
    planner: PlannerProcess, found: queue.Queue[PlanFound]
) -> None:
    until(lambda: planner.pid is not None)
    pid = planner.pid
    tasks = [chain(f"t{number}", *(module(f"m{number}-{part}", 1) for part in range(5))) for number in range(100)]
    with capture_logs() as log:
        for number in itertools.count(1):  # if this process stood still, the copy may have ended before
            planner.request(RequestPlan((1, number), problem(*tasks, devices=300)))
            until(lambda: not found.empty() or psutil.Process(pid).children())
            for child in psutil.Process(pid).children():
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            assert isinstance(found.get(timeout=60).plan, PlacementPlan)
            if log:
                break
    assert [line["event"] for line in log] == ["planner_ended"]


def test_a_bug_met_by_one_problem_is_logged_and_the_process_goes_on(
    planner: PlannerProcess, found: queue.Queue[PlanFound]
) -> None:
    broken = PlacementProblem(**{**vars(problem()), "tasks": None})
    with capture_logs() as log:
        planner.request(RequestPlan((1, 1), broken))
        assert found.get(timeout=60) == PlanFound((1, 1), None)
    assert [(line["event"], line["kind"]) for line in log] == [("planning_failed", "PlacementProblem")]
    planner.request(RequestPlan((1, 2), problem()))
    assert found.get(timeout=60).ticket == (1, 2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_orchestrator(
    how: signal.Signals,
) -> None:
    code = (
        "import sys, time\n"
        "from orchestrator.planner_process.client import PlannerProcess\n"
        "planner = PlannerProcess(print)\n"
        "while planner.pid is None: time.sleep(0.01)\n"
        "print(planner.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.send_signal(how)
        parent.wait(timeout=60)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split())
