"""The reasons why a module is on its device and on no other, worked out on request.

Owns the sentences. Knows nothing of how the placement was found: each reason compares the placement with one in which
only this module is moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from broker.protocol.sizes import show_bytes
from broker.protocol.specs import DeviceId, ModuleKey
from orchestrator.planner.device_rows import NOWHERE
from orchestrator.planner.greedy import PartialPlacement
from orchestrator.planner.problem import Placement

_REJECTED_SHOWN = 4  # other devices named in an assignment's reason; a thousand of them must still fit a message


@dataclass(frozen=True)
class Explanation:
    """The reason why a module is where it is, and for each other device why it isn't there."""

    device: DeviceId
    why: str
    rejected: Mapping[DeviceId, str]


def reason(placement: Placement, key: ModuleKey) -> str:
    """The explanation of one module as a text that names a few devices, whatever their number.

    Raises:
        KeyError: the placement doesn't have that module.
    """
    found, others = explain(placement, key, most=_REJECTED_SHOWN), len(placement.problem.fleet) - 1
    rejected = [f"{device}: {why}" for device, why in found.rejected.items()]
    more = [f"and {others - len(rejected)} more"] if others > len(rejected) else []
    return "; ".join([found.why, *rejected, *more])


def explain(placement: Placement, key: ModuleKey, *, most: int | None = None) -> Explanation:
    """Explain one module of a placement; with ``most``, only the first so many other devices.

    Raises:
        KeyError: the placement doesn't have that module.
    """
    problem, module = placement.problem, placement.problem.number[key]
    rows = problem.fleet.rows
    draft = PartialPlacement(problem, placement.where)
    home = draft.where[module]
    draft.put(module, NOWHERE)
    able, excluded = draft.able(module), problem.exclusions(module)
    if not problem.fleet.sometimes[home]:
        able = able[~problem.fleet.sometimes[able]]
        others = (problem.fleet.specs[row].id for row in np.flatnonzero(problem.fleet.sometimes))
        excluded = dict.fromkeys(others, "it is on only sometimes") | excluded
    costs_s = problem.costs_s(module, able, draft.where)
    cost_s = float(costs_s[np.searchsorted(able, home)])
    slower_s = dict(zip(able.tolist(), (costs_s - cost_s).tolist(), strict=True))
    rejected: dict[DeviceId, str] = {}
    for name, row in islice(((name, row) for name, row in rows.items() if row != home), most):
        if name in excluded:
            rejected[name] = excluded[name]
        elif row not in slower_s:
            short_bytes = int(problem.sizes[module][row] - draft.room[row])
            rejected[name] = f"memory short by {show_bytes(short_bytes, up=True)}"
        else:
            rejected[name] = _slower(slower_s[row], later=row > home)
    added_s = max(0.0, cost_s - problem.cost_s(module, NOWHERE, draft.where))
    if key in placement.kept:
        why = "stays where it is"
    elif len(able) == 1:
        why = f"adds {added_s:.3g} s; no other device can take it"
    elif min(slower_s.values()) >= 0:
        why = f"adds {added_s:.3g} s, the least"
    elif home in problem.at_hand[module]:
        why = f"adds {added_s:.3g} s, and its weights are there already"
    else:
        why = f"adds {added_s:.3g} s, the least when its turn came"
    return Explanation(placement.where[key], why, rejected)


def brief_reason(placement: Placement, key: ModuleKey) -> str:
    """The reason why one module is where it is, without a look at other devices."""
    problem, module = placement.problem, placement.problem.number[key]
    if key in placement.kept:
        return "stays where it is"
    where = PartialPlacement(problem, placement.where).where
    added_s = problem.cost_s(module, where[module], where) - problem.cost_s(module, NOWHERE, where)
    return f"adds {max(0.0, added_s):.3g} s"


def _slower(by_s: float, *, later: bool) -> str:
    if by_s > 0:
        return f"slower by {by_s:.3g} s"
    if by_s < 0:
        return f"faster by {-by_s:.3g} s now, not when its turn came"
    return "as fast, but later in the alphabet" if later else "as fast: no reason to move"
