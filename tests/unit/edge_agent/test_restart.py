"""A hung agent restarts under its own process id, and not for ever."""

from __future__ import annotations

import sys

import pytest
import structlog

from edge_agent.device.awake_clock import AwakeClock
from edge_agent.restart import EXIT_HUNG, MOST, VARIABLE, WITHIN_S, restart
from edge_agent.workers import HUNG_S, hung_after_s


class Execution:
    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self.done: list[list[str]] = []

    def __call__(self, program: str, arguments: list[str]) -> None:
        assert program == sys.executable
        self.done.append(arguments)

    def restart(self, now_s: float) -> int:
        return restart(now_s, environ=self.environ, execute=self)


def test_it_runs_the_same_program_with_the_same_arguments() -> None:
    execution = Execution()
    execution.restart(100.0)
    assert execution.done == [[sys.executable, *sys.orig_argv[1:]]]


def test_after_three_times_in_ten_minutes_it_ends_with_an_exit_code_of_its_own() -> None:
    execution = Execution()
    for number in range(MOST):
        execution.restart(100.0 + number)
    assert execution.restart(100.0 + MOST) == EXIT_HUNG
    assert len(execution.done) == MOST
    assert EXIT_HUNG not in {0, 1, 2}
    execution.restart(101.0 + WITHIN_S)  # the first two are older than ten minutes now
    assert len(execution.done) == MOST + 1


def test_where_the_program_cannot_be_run_any_more_it_ends_with_that_code_too() -> None:
    def refuse(program: str, _: list[str]) -> None:
        raise FileNotFoundError(2, "No such file or directory", program)

    with structlog.testing.capture_logs() as logs:
        assert restart(100.0, environ={}, execute=refuse) == EXIT_HUNG
    assert logs[-1]["event"] == "cannot_restart"
    assert logs[-1]["reason"] == "No such file or directory"


@pytest.mark.parametrize("text", ["", "x", "1,,x", "1e999", "-5", "99999999"])
def test_a_count_that_cannot_be_read_counts_as_none(text: str) -> None:
    execution = Execution()
    execution.environ[VARIABLE] = text
    execution.restart(100.0)
    assert len(execution.done) == 1


@pytest.mark.parametrize(
    ("measured_s", "batch", "limit_s"),
    [(0.0, 1, HUNG_S), (0.1, 1, HUNG_S), (1.5, 1, HUNG_S), (2.0, 1, 40.0), (1.0, 8, 160.0)],
)
def test_a_pass_is_hung_by_what_was_measured(measured_s: float, batch: int, limit_s: float) -> None:
    assert hung_after_s(measured_s, batch) == pytest.approx(limit_s)


def test_time_in_which_the_whole_process_stood_still_does_not_count() -> None:
    clock = AwakeClock(0.0)
    for now_s in (0.5, 1.0, 1.5):
        clock.tick(now_s)
    assert clock.tick(3600.0) == pytest.approx(2.5)
    assert clock.tick(3600.5) == pytest.approx(3.0)
    assert clock.tick(3000.0) == pytest.approx(3.0)
