"""Planned moves: from a placement that works to a better one, without a gap.

Owns when a move is worth making, and its course: the new copy loads while the old one serves; when all copies of the
round are loaded, their gain is worked out again from what was measured meanwhile; only then do the routes switch.
Knows nothing of failures: those are mended in ``reconcile``, at once. Pure.

Invariants:
- at most one round at a time, and none within ``Pace.review_s`` of the last one or of any change of what serves;
- no move for less than ``GAIN_SHARE`` of what its tasks cost and less than ``GAIN_S``, each move of a round included;
- the old copy goes only after the routes name the new one; a round that is given up leaves nothing behind but copies
  that are worth keeping as standbys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, TaskSpec
from orchestrator.events import Action, Note
from orchestrator.placement.planner_input import (
    at_hand,
    candidate_specs,
    placement_constraints,
    with_measured_footprints,
)
from orchestrator.placement.reconcile import calm, with_placement, with_spares
from orchestrator.planner.costs import objective_s, source_of
from orchestrator.planner.placement import distinct_modules, place_most
from orchestrator.state import Moment, Moves, Standing, State

GAIN_SHARE = 0.15  # of the tasks' weighted seconds: measured averages waver by some ten percent under load
GAIN_S = 0.02  # weighted seconds: less than this is the jitter of a broker on a wireless network, and nobody sees it


def finish_moves(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """End the round under way, if it can be ended: well, when all is loaded and it still gains; or by giving it up."""
    moves = state.standing.moves
    if moves is None:
        return state, []
    names = {state.standing.modules[key][0]: device for key, device in moves.to.items() if key in state.standing.where}
    why = _hindrance(state, moves, moment)
    if why is None and not all(state.cluster.devices[device].ready(key) for key, device in moves.to.items()):
        return state, []
    gain_s, needed_s = (0.0, 0.0) if why or moves.drains else _Board.of(state).gain_s(moves.to)
    if why is None and gain_s < needed_s:
        why = f"it would now gain {gain_s:.3g} s, and must gain {needed_s:.3g} s"
    standing = replace(state.standing, moves=None)
    if why is not None:
        note = Note("moves_given_up", {"modules": names, "why": why})
    else:
        because = "it is emptied" if moves.drains else f"the round gains {gain_s:.3g} s"
        reasons = {key: f"moved from {moves.origin[key]}: {because}" for key in moves.to}
        standing = replace(standing, where={**standing.where, **moves.to}, why={**standing.why, **reasons})
        note = Note("moves_made", {"modules": names, "gain_s": gain_s})
    standing = with_spares(state, standing, anew=False)
    return replace(with_placement(state, standing, moment.now_s), reviewed_s=moment.now_s), [note]


def review(state: State, moment: Moment) -> tuple[State, list[Action]]:
    """Look for a better placement from what is measured now; begin a round of moves if it is worth it."""
    due_s = review_at_s(state)
    if due_s is None or moment.now_s < due_s:
        return state, []
    state = replace(state, reviewed_s=moment.now_s, spares_due_s=moment.now_s)  # rates meet what was measured
    board = _Board.of(state)
    placement, refused = place_most(
        list(board.devices.values()),
        board.tasks,
        barred=placement_constraints(state, state.standing.facts),
        at_hand=at_hand(state),
        enough=moment.enough,
    )
    to = {} if refused else board.worthwhile(placement.where)
    if not to:
        return state, []
    gain_s, _ = board.gain_s(to)
    origin = {key: state.standing.where[key] for key in to}
    moves = Moves(to, origin, until_s=moment.now_s + state.pace.round_s, gain_s=gain_s)
    standing = with_spares(state, replace(state.standing, moves=moves), anew=False)
    if not _begun(standing, moves):
        return state, []
    names = {standing.modules[key][0]: device for key, device in to.items()}
    return replace(state, standing=standing), [Note("moves_planned", {"modules": names, "gain_s": gain_s})]


def review_at_s(state: State) -> float | None:
    """When a better placement is to be looked for, if nothing changes before."""
    standing = state.standing
    if standing.moves is not None or not standing.where or len(standing.facts.candidates) < 2 or not calm(state):  # noqa: PLR2004 - one device has no choice
        return None
    return state.reviewed_s + state.pace.review_s


def give_up_at_s(state: State) -> float | None:
    """When the round under way is given up."""
    return state.standing.moves.until_s if state.standing.moves else None


def _hindrance(state: State, moves: Moves, moment: Moment) -> str | None:
    """Why the round can't go on."""
    standing = state.standing
    for key, device in moves.to.items():
        if standing.where.get(key) != moves.origin[key]:
            return f"{standing.modules[key][0]} isn't on {moves.origin[key]} any more"
        if device not in standing.spares.standby.get(key, ()):
            return f"{device} can't take {standing.modules[key][0]} any more"
    if moment.now_s >= moves.until_s:
        return f"the copies weren't ready after {state.pace.round_s:g} s"
    return None


def _begun(standing: Standing, moves: Moves) -> bool:
    return all(device in standing.spares.standby.get(key, ()) for key, device in moves.to.items())


@dataclass(frozen=True)
class _Board:
    """What a placement and its alternatives cost, with what is measured now."""

    devices: Mapping[DeviceId, DeviceSpec]
    tasks: list[TaskSpec]
    sources: Mapping[str, DeviceSpec]
    standing: Standing

    @classmethod
    def of(cls, state: State) -> _Board:
        standing = state.standing
        devices = candidate_specs(state, standing.facts)
        tasks = with_measured_footprints(standing.tasks, standing.facts.footprints)
        return cls(devices, tasks, {task.task: source_of(task, devices) for task in tasks}, standing)

    def cost_s(self, moves: Mapping[ModuleKey, DeviceId], *, of: Mapping[ModuleKey, DeviceId]) -> float:
        """The objective of the tasks that use any module of ``of``, after these moves."""
        where = {key: self.devices[home] for key, home in {**self.standing.where, **moves}.items()}
        users = [task for task in self.tasks if any(task.module_of(node).key in of for node in task.nodes)]
        return objective_s(users, where, self.sources)

    def gain_s(self, moves: Mapping[ModuleKey, DeviceId]) -> tuple[float, float]:
        """What these moves gain of their tasks' objective, and what they must gain to be made."""
        now_s = self.cost_s({}, of=moves)
        return now_s - self.cost_s(moves, of=moves), max(GAIN_SHARE * now_s, GAIN_S)

    def worthwhile(self, target: Mapping[ModuleKey, DeviceId]) -> dict[ModuleKey, DeviceId]:
        """The moves towards another placement that fit beside all that serves now, and of which each gains enough."""
        modules = distinct_modules(self.tasks)
        room = {name: device.memory_bytes for name, device in self.devices.items()}
        for key, homes in self.standing.actives.items():
            for home in homes:
                room[home] = room.get(home, 0) - modules[key][1].memory_bytes
        moves: dict[ModuleKey, DeviceId] = {}
        for key, (_, module) in modules.items():
            to = target[key]
            if to not in self.standing.actives[key] and module.memory_bytes <= room[to]:
                moves[key] = to
                room[to] -= module.memory_bytes
        for key in reversed(list(moves)):
            others = {other: to for other, to in moves.items() if other != key}
            if self.cost_s(others, of=moves) - self.cost_s(moves, of=moves) < GAIN_S:
                moves = others
        gain_s, needed_s = self.gain_s(moves) if moves else (0.0, 1.0)
        return moves if gain_s >= needed_s else {}
