"""Which device holds which module: the two questions that are asked of the planner.

Owns ``place`` (all tasks by the greedy rule, or an error) and ``place_most`` (as many tasks as fit, by the refined
search, and why not the others). Knows nothing of liveness, epochs or messages: devices come in as specs, and whoever is
listed may be used.

Invariants:
- a module is placed once however many tasks need it, and its memory counts once;
- on no device do the modules need more than its ``memory_bytes``;
- equal arguments in any order give the equal placement: ties go to the smaller device id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskName, TaskSpec
from orchestrator.planner.fleet import Fleet
from orchestrator.planner.greedy import Board, greedy
from orchestrator.planner.problem import AT_HAND_SHARE, AtHand, Bars, DeviceUse, Placement, Problem, distinct_modules
from orchestrator.planner.refine import fill, improved, least_change, never

__all__ = [
    "AT_HAND_SHARE",
    "AtHand",
    "Bars",
    "DeviceUse",
    "Placement",
    "distinct_modules",
    "never",
    "place",
    "place_most",
]

Homes = Mapping[ModuleKey, DeviceId]
ProblemOf = Callable[..., Problem]
"""Makes the problem of some tasks on the devices at hand."""


def place(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
) -> Placement:
    """Place every module of every task by the greedy rule.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        keep: modules that stay where they are, if that device is listed, not barred, and still has the memory.
        default_source: where requests of a task start that names no listed source.
        barred: devices that must not get a module.
        at_hand: devices that have a module's weights; preferred unless another is better by ``AT_HAND_SHARE``.

    Raises:
        NoDeviceFits: a module finds no device with enough memory left.
    """
    problem = Problem(devices, tasks, default_source=default_source, barred=barred, at_hand=at_hand)
    board = Board(problem)
    board.keep(keep or {})
    greedy(board)
    return problem.placement(board.where, board.kept)


def place_most(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    served: Collection[TaskName] = (),
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    enough: Callable[[], bool] = never,
) -> tuple[Placement, dict[TaskName, NoDeviceFits]]:
    """Place as many tasks as fit, and say of each other task why it doesn't.

    What is placed stays if everything fits that way; else it may move; else tasks are admitted one by one: those served
    now first, then the heavier weight, then by name. So a new task never drives out a served one. A refusal says what
    lacks beside the tasks that were admitted.

    Args:
        devices: as for ``place``.
        tasks: what would be served, if all fits.
        keep: as for ``place``.
        served: the tasks that are served now.
        default_source: as for ``place``.
        barred: as for ``place``.
        at_hand: as for ``place``.
        enough: whether the caller's time is over; it only ends the search for something better earlier.
    """
    fleet, keep = Fleet.of(devices), keep or {}
    near = {key: {*there} for key, there in (at_hand or {}).items()}
    for key, home in keep.items():  # what may move for others' sake stays near its weights all the same
        near.setdefault(key, set()).add(home)
    problem_of = partial(Problem, fleet, default_source=default_source, barred=barred)
    search = partial(_search, problem_of, near=near, enough=enough)
    for homes in (keep, {}):
        with contextlib.suppress(NoDeviceFits):
            return search(tasks, homes), {}
    waiting = sorted(tasks, key=lambda task: (task.task not in served, -task.weight, task.task))
    admitted, where, refused = _admit(problem_of, waiting, keep)
    by_name = {task.task: task for task in tasks}
    for name, refusal in refused.items():
        refused[name] = refusal.after(least_change(Board(problem_of([*admitted, by_name[name]]))))
    for homes in (keep, {}):
        with contextlib.suppress(NoDeviceFits):
            return search(admitted, homes), refused
    return search(admitted, where), refused


def _search(
    problem_of: ProblemOf, tasks: Sequence[TaskSpec], homes: Homes, *, near: AtHand, enough: Callable[[], bool]
) -> Placement:
    """The best placement found of all these tasks, with what has a home left there.

    Raises:
        NoDeviceFits: there is none.
    """
    board = Board(problem_of(tasks, at_hand=near))
    board.keep(homes)
    fill(board)
    return improved(board, enough)


def _admit(
    problem_of: ProblemOf, waiting: Sequence[TaskSpec], keep: Homes
) -> tuple[list[TaskSpec], Homes, dict[TaskName, NoDeviceFits]]:
    """Take in one task after the other; return those that fit together, a way to place them, and the refusals."""
    admitted: list[TaskSpec] = []
    where: Homes = {}
    while True:  # again, until nobody was admitted: each reason is then about the placement that stands
        refused: dict[TaskName, NoDeviceFits] = {}
        for task in waiting:
            try:
                where = _fit(problem_of([*admitted, task]), {**keep, **where})
                admitted.append(task)
            except NoDeviceFits as refusal:
                refused[task.task] = refusal
        if len(refused) == len(waiting):
            return admitted, where, refused
        waiting = [task for task in waiting if task.task in refused]


def _fit(problem: Problem, homes: Homes) -> Homes:
    """Some way to place all tasks, with what has a home left there if it can be.

    Raises:
        NoDeviceFits: there is none; it says what lacks while all is at home.
    """
    board = Board(problem)
    board.keep(homes)
    try:
        greedy(board)
    except NoDeviceFits as refusal:
        board = Board(problem)
        try:
            fill(board)
        except NoDeviceFits:
            raise refusal from None
    return problem.placement(board.where).where
