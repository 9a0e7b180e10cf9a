"""A better placement than the greedy one: the search that the orchestrator uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from broker.errors import NoDeviceFits
from broker.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.fleet import NOWHERE, Fleet
from orchestrator.greedy import Board
from orchestrator.packing import GaveUp, least_extra, packed
from orchestrator.problem import AtHand, Bars, Placement, Problem


def never() -> bool:
    """The clock of a caller who has all the time."""
    return False


def refined(
    devices: Sequence[DeviceSpec] | Fleet,
    tasks: Sequence[TaskSpec],
    *,
    keep: Mapping[ModuleKey, DeviceId] | None = None,
    default_source: DeviceSpec | None = None,
    barred: Bars | None = None,
    at_hand: AtHand | None = None,
    enough: Callable[[], bool] = never,
) -> Placement:
    """Place every module of every task, at an objective not above the greedy rule's.

    Args:
        devices: those that may hold modules.
        tasks: what to serve; names are distinct.
        keep: as for ``place``.
        default_source: as for ``place``.
        barred: as for ``place``.
        at_hand: as for ``place``.
        enough: whether the caller's time is over; it only ends the search earlier.

    Raises:
        NoDeviceFits: there is no way to fit all.
    """
    problem = Problem(devices, tasks, default_source=default_source, barred=barred, at_hand=at_hand)
    board = Board(problem)
    board.keep(keep or {})
    fill(board)
    enough()
    return problem.placement(board.where, board.kept)


def fill(board: Board) -> None:
    """Place what has no device yet: by the greedy rule, or where that finds no room, by packing.

    Raises:
        NoDeviceFits: there is no way to fit all beside what the board already holds.
    """
    before = list(board.where)
    try:
        board.fill()
    except NoDeviceFits as refusal:
        problem = board.problem
        todo = [module for module, row in enumerate(before) if row == NOWHERE]
        for module in todo:
            board.put(module, NOWHERE)
        sizes = [problem.bytes[module] for module in todo]
        bars = [problem.barred[module] for module in todo]
        rooms = board.room.tolist()
        try:
            rows = packed(sizes, rooms, bars)
        except GaveUp:
            rows = None
        if rows is None:
            extra = least_extra(sizes, rooms, bars, steps=2000)
            change = (problem.fleet.specs[extra[0]].id, extra[1]) if extra else None
            raise refusal.after(change) from None
        for module, row in zip(todo, rows, strict=True):
            board.put(module, row)
