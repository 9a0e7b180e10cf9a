"""Which moves of a round are worth making."""

from __future__ import annotations

from orchestrator.planner.moves import GAIN_S, LARGE_SHARE, MoveCosts
from tests.builders import device, joined, module

VISION, TEXT, HEAD = module("vision"), module("text"), module("head")
TASK = joined("match", [VISION, TEXT], HEAD, weight=1.0)
GOAL = {VISION.key: "fast", TEXT.key: "fast", HEAD.key: "old"}


def test_a_move_is_compared_with_the_other_moves_of_its_round_not_with_what_they_end() -> None:
    """Both encoders wait for each other: the slower one hides what the other gains, until it has moved.

    After the round the gain is a large share of what the task takes then, so the next round would make that move.
    """
    slow = device("old", compute_s={VISION.key: 2.0, TEXT.key: 0.015, HEAD.key: 1e-6})
    fast = device("fast", compute_s={VISION.key: 0.001, TEXT.key: 0.001, HEAD.key: 1e-6})
    where = dict.fromkeys((VISION.key, TEXT.key, HEAD.key), "old")
    devices = [each.model_copy(update={"latency_s": 0.0005, "bandwidth_bits_per_s": 1e9}) for each in (slow, fast)]
    costs = MoveCosts(devices, [TASK], where)
    moves = costs.worthwhile(GOAL, {key: (home,) for key, home in where.items()}, ())
    after = MoveCosts(devices, [TASK], where | moves)
    assert after.worthwhile(GOAL, {key: (home,) for key, home in (where | moves).items()}, ()) == {}
    gained_s = costs.cost_s({VISION.key: "fast"}, of=GOAL) - costs.cost_s({**moves}, of=GOAL)
    assert LARGE_SHARE * 0.015 < gained_s < GAIN_S, "the second encoder's gain is a middling one"
    assert moves == {VISION.key: "fast", TEXT.key: "fast"}
