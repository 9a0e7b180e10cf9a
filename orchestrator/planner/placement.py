"""Which device holds which module: the three questions that are asked of the planner.

Owns ``place`` (all tasks by the greedy rule, or an error), ``refined`` (all tasks, by the search that the orchestrator
uses) and ``place_most`` (as many tasks as fit, by that search, and why not the others). The search begins with the
greedy rule, or with a packing where that rule finds no room; then come small changes, and then whole tasks, which on
small problems ends with the optimum. Knows nothing of liveness, epochs, messages or clocks: devices come in as specs,
all of them may be used, and the caller's ``enough`` may end the search early. ``place_most`` has one budget for all
that it does: what is left undone when it is spent is only what makes the answer better.

Invariants:
- a module is placed once however many tasks need it, and its memory counts once;
- on no device do the modules need more than its ``memory_bytes``;
- no module is on a device that is on only sometimes where devices that are always on can hold all. Otherwise as few
  modules are there as the search finds; those that can be elsewhere are;
- equal arguments give the equal placement: ties go to the smaller device id. The order of the tasks only says which of
  them yield when not all fit;
- ``refined`` is never worse than ``place``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from broker.protocol.errors import NoDeviceFits
from broker.protocol.specs import DeviceId, DeviceSpec, TaskName, TaskSpec
from orchestrator.planner.budget import Budget, never
from orchestrator.planner.copies import AtHand, Bars, Homes, original_key
from orchestrator.planner.device_rows import NOWHERE, sometimes_of
from orchestrator.planner.fleet import Fleet
from orchestrator.planner.greedy import PartialPlacement, greedy
from orchestrator.planner.large_neighbourhood_search import LargeNeighbourhoodSearch
from orchestrator.planner.local_search import LocalSearch
from orchestrator.planner.modules import distinct_modules
from orchestrator.planner.packing import STEPS, SearchLimitReached, least_extra
from orchestrator.planner.problem import Placement, Problem

WORK = 120_000
"""The work of one search, or of one ``place_most``, at most, in units of about 10 microseconds: a second."""
_STEPS_ALONE = 20_000  # of the search whether a refused task would fit if it were alone


def place(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Homes | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
) -> Placement:
    """Place every module of every task by the greedy rule.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        keep: modules that stay where they are, if that device is listed, not barred, and still has the memory.
        barred: devices that must not get a module.
        at_hand: devices that have a module's weights; preferred unless another is better by ``AT_HAND_SHARE``.

    Raises:
        NoDeviceFits: a module finds no device with enough memory left.
    """

    def placed(bars: Bars | None) -> Placement:
        problem = Problem(devices, tasks, homes=keep, barred=bars, at_hand=at_hand)
        draft = PartialPlacement(problem, problem.homes)
        greedy(draft)
        return problem.placement(draft.where, draft.kept)

    specs = devices.specs if isinstance(devices, Fleet) else devices
    return _on_always(specs, tasks, barred, placed) or placed(barred)


def refined(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    *,
    keep: Homes | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    enough: Callable[[], bool] = never,
) -> Placement:
    """Place every module of every task. The result is never worse than the greedy rule's, penalties included.

    The arguments are those of ``place``, and ``enough``: whether the caller's time is over. That only ends the search
    earlier.

    Raises:
        NoDeviceFits: there is no way to fit all beside what is kept.
    """

    def placed(bars: Bars | None) -> Placement:
        return _search(problem_of(barred=bars), Budget(), Budget(WORK, enough))

    problem_of = partial(Problem, devices, tasks, homes=keep, at_hand=at_hand)
    try:
        return _on_always(devices, tasks, barred, placed) or placed(barred)
    except NoDeviceFits as refusal:
        problem = problem_of(barred=barred)
        refusal.change = _least_change(PartialPlacement(problem, problem.homes), Budget())
        raise


def place_most(
    devices: Sequence[DeviceSpec],
    tasks: Sequence[TaskSpec],
    *,
    keep: Homes | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    budget: Budget | None = None,
    search: int = WORK,
) -> tuple[Placement, dict[TaskName, NoDeviceFits]]:
    """Place as many tasks as fit, and give the reason for each other task.

    Placed modules stay if everything fits that way; else they may move. If it still doesn't fit, tasks are admitted one
    by one: those of greater weight first, and of equal weight those that come first in ``tasks``. So a task never
    yields to a later one of equal weight. A refusal names the bytes that are missing beside the admitted tasks, and the
    tasks that it yields to.

    The arguments are those of ``place``; ``tasks`` are in the order in which they were deployed. ``budget`` is for all
    of this, and ``search`` says how much of it may go into the search for something better.
    """
    fleet, keep, budget = Fleet(devices), keep or {}, budget or Budget(WORK)
    near = {key: {*there} for key, there in (at_hand or {}).items()}
    for key, home in keep.items():  # a module that may move stays near its weights if it can
        near.setdefault(original_key(key), set()).add(home)
    most = partial(_place_most, tasks=tasks, near=near, search=search)
    problem_of = partial(Problem, fleet, known={})
    if (bars := _bars_of_sometimes(devices, tasks, barred)) is not None:
        always, refused = most(partial(problem_of, barred=bars), keep=keep, budget=budget.part(budget.left // 2))
        if not refused:
            return always, {}
        sometimes = sometimes_of(devices)
        keep = {**{key: home for key, home in keep.items() if home not in sometimes}, **always.where}
    return most(partial(problem_of, barred=barred), keep=keep, budget=budget)


def place_beside(
    devices: Sequence[DeviceSpec],
    placement: Placement,
    tasks: Sequence[TaskSpec],
    upcoming: Sequence[TaskSpec],
    *,
    barred: Bars,
    at_hand: AtHand | None,
    budget: Budget,
    search: int,
) -> tuple[Placement, dict[TaskName, NoDeviceFits]]:
    """Place as many of the ``upcoming`` tasks as fit beside placed ``tasks``, whose modules stay where they are.

    The other arguments and the result are those of ``place_most``.
    """

    def placed(bars: Bars | None) -> Placement:
        problem = Problem(devices, [*tasks, task], homes=placement.where, barred=bars, at_hand=at_hand)
        return _search(problem, budget.part(budget.left // 4), budget.part(search))

    refused: dict[TaskName, NoDeviceFits] = {}
    for task in upcoming:
        try:
            placement = _on_always(devices, [*tasks, task], barred, placed) or placed(barred)
            tasks = [*tasks, task]
        except NoDeviceFits as refusal:
            problem = Problem(devices, [*tasks, task], homes=placement.where, barred=barred)
            refusal.change = _least_change(PartialPlacement(problem, problem.homes), budget.part(budget.left // 4))
            refused[task.task] = refusal
    return placement, refused


def _place_most(
    problem_of: Callable[..., Problem],
    *,
    tasks: Sequence[TaskSpec],
    keep: Homes,
    near: AtHand,
    budget: Budget,
    search: int,
) -> tuple[Placement, dict[TaskName, NoDeviceFits]]:
    for homes in (keep, {}):
        with contextlib.suppress(NoDeviceFits):
            problem = problem_of(tasks, homes=homes, at_hand=near)
            return _search(problem, budget.part(budget.left // 4), budget.part(search)), {}
    waiting = sorted(tasks, key=lambda task: -task.weight)
    admitted, where, refused = _admit(problem_of, waiting, keep, budget.part(budget.left // 2))
    by_name, changes = {task.task: task for task in tasks}, budget.part(budget.left // 2)
    for name, refusal in refused.items():
        if not changes.over:
            refusal.change = _least_change(PartialPlacement(problem_of([*admitted, by_name[name]])), changes)
    for homes in (keep, {}, where):
        with contextlib.suppress(NoDeviceFits):
            problem = problem_of(admitted, homes=homes, at_hand=near)
            placement = _search(problem, budget, budget.part(search))
            break
    for name, refusal in refused.items():
        first = [task for task in waiting[: waiting.index(by_name[name])] if task.task not in refused]
        refusal.yields_to = _in_the_way(problem_of([by_name[name]]), first, placement, budget)
    return placement, refused


def _on_always(
    devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], barred: Bars | None, placed: Callable[[Bars], Placement]
) -> Placement | None:
    """The placement on the devices that are always on; None if they can't hold all, or if all devices are alike."""
    bars = _bars_of_sometimes(devices, tasks, barred)
    if bars is None:
        return None
    with contextlib.suppress(NoDeviceFits):
        return placed(bars)
    return None


def _bars_of_sometimes(devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec], barred: Bars | None) -> Bars | None:
    """The bars that also keep all modules from devices that are on only sometimes; None if all devices are alike."""
    reasons = dict.fromkeys(sometimes_of(devices), "it is on only sometimes")
    return {key: {**reasons, **(barred or {}).get(key, {})} for key in distinct_modules(tasks)} if reasons else None


def _in_the_way(
    alone: Problem, first: Sequence[TaskSpec], placement: Placement, budget: Budget
) -> tuple[TaskName, ...]:
    """Those of the tasks that come first which use devices that the refused task may use; none if it never fits."""
    draft = PartialPlacement(alone)
    with contextlib.suppress(SearchLimitReached):
        if draft.packing(budget, steps=_STEPS_ALONE) is None:
            return ()
    able = {alone.fleet.specs[row].id for module in draft.missing for row in draft.able(module).tolist()}
    return tuple(task.task for task in first if able & placement.devices_of(task.task))


def _search(problem: Problem, budget: Budget, for_better: Budget) -> Placement:
    """The best placement found of all tasks; modules that have a home stay there.

    Raises:
        NoDeviceFits: no way to fit all exists.
    """
    draft = PartialPlacement(problem, problem.homes)
    _fill(draft, budget)
    search = LocalSearch(draft, for_better)
    search.run()
    LargeNeighbourhoodSearch(search).run()
    return problem.placement(draft.where, draft.kept)


def _admit(
    problem_of: Callable[..., Problem], waiting: Sequence[TaskSpec], keep: Homes, budget: Budget
) -> tuple[list[TaskSpec], Homes, dict[TaskName, NoDeviceFits]]:
    """Admit one task after the other; return those that fit together, a placement of them, and the refusals."""
    admitted: list[TaskSpec] = []
    where: Homes = {}
    while True:  # until no task was admitted: then each reason is about the final placement
        refused: dict[TaskName, NoDeviceFits] = {}
        for task in waiting:
            try:
                where = _fit(partial(problem_of, [*admitted, task]), {**keep, **where}, budget)
                admitted.append(task)
            except NoDeviceFits as refusal:
                refused[task.task] = refusal
        if len(refused) == len(waiting):
            return admitted, where, refused
        waiting = [task for task in waiting if task.task in refused]


def _fit(problem_of: Callable[..., Problem], homes: Homes, budget: Budget) -> Homes:
    """Some placement of all tasks, in which modules that have a home stay there if they can.

    Raises:
        NoDeviceFits: no way exists; it names the bytes that are missing while all modules are at home.
    """
    problem = problem_of(homes=homes)
    draft = PartialPlacement(problem, problem.homes)
    try:
        greedy(draft, budget)
    except NoDeviceFits as refusal:
        problem = problem_of()
        draft = PartialPlacement(problem)
        try:
            _pack(draft, refusal, budget.part(budget.left // 4))  # the rest is for other tasks
        except SearchLimitReached:
            try:
                greedy(draft, budget)
            except NoDeviceFits:
                raise refusal from None
    return problem.placement(draft.where).where


def _fill(draft: PartialPlacement, budget: Budget) -> None:
    """Place the modules that have no device yet: by the greedy rule, or by packing where that finds no room.

    Raises:
        NoDeviceFits: there is no way to fit all beside what the draft already places; the draft is as before.
    """
    missing = draft.missing
    try:
        greedy(draft, budget)
    except NoDeviceFits as refusal:
        draft.put_all(dict.fromkeys(missing, NOWHERE))
        try:
            _pack(draft, refusal, budget)
        except SearchLimitReached:
            raise refusal from None


def _pack(draft: PartialPlacement, refusal: NoDeviceFits, budget: Budget) -> None:
    """Place the modules that have no device yet, at any cost.

    Raises:
        NoDeviceFits: the refusal: there is no way.
        SearchLimitReached: neither a way nor a proof was found.
    """
    rows = draft.packing(budget, steps=STEPS)
    if rows is None:
        raise refusal from None
    draft.put_all(rows)


def _least_change(draft: PartialPlacement, budget: Budget) -> tuple[DeviceId, int] | None:
    """The least change that makes all fit beside what the draft places: which device, how many bytes more."""
    problem, missing = draft.problem, draft.missing
    sizes = [problem.sizes[module].tolist() for module in missing]
    extra = least_extra(sizes, draft.room.tolist(), [problem.barred[module] for module in missing], budget=budget)
    return (problem.fleet.specs[extra[0]].id, extra[1]) if extra else None
