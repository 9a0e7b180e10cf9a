"""Routes that strangers publish take a bounded number and bounded bytes, and never push out the device's own."""

from __future__ import annotations

import pytest

from broker.protocol.messages import Route
from edge_agent import kept_routes
from edge_agent.decide import decide
from edge_agent.events import JoinGroup
from edge_agent.state import AgentState
from tests.builders import PREFIX, all_of, encoder_route


def padded(task: str, size_bytes: int, *, door: str = "gw-x") -> Route:
    route = encoder_route(task, ("gw-a",), key="k", front_door=(door,))
    node = route.nodes["image-encoder"] if "image-encoder" in route.nodes else next(iter(route.nodes.values()))
    wide = node.model_copy(update={"devices": node.devices * (size_bytes // 100)})
    return route.model_copy(update={"nodes": dict.fromkeys(route.nodes, wide)})


@pytest.mark.parametrize("door", ["gw-x", "gw-a"])
def test_large_routes_of_strangers_are_bounded_in_bytes_and_our_own_stay(door: str) -> None:
    state = AgentState("gw-a", PREFIX)
    assert all_of(decide(state, encoder_route("own", ("gw-a",), key="k", front_door=("gw-a",)), 0.0), JoinGroup)
    for number in range(30):
        decide(state, padded(f"t-{number}", 870_000, door=door), 1.0)
    assert state.routes_bytes <= kept_routes.MAX_ROUTE_BYTES
    assert state.routes.keys() == state.route_sizes.keys() == state.share_groups.keys() | state.routes.keys()
    assert "own" in state.routes
    assert state.dropped["excess_route"] > 20
    assert len(state.share_groups) <= len(state.routes)


def test_many_routes_of_strangers_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_routes, "MAX_ROUTES", 20)
    state = AgentState("gw-a", PREFIX)
    decide(state, encoder_route("own", ("gw-a",), key="k", front_door=("gw-a",)), 0.0)
    for number in range(100):
        decide(state, padded(f"t-{number}", 100), 1.0)
    assert len(state.routes) == 20
    assert "own" in state.routes
    assert state.share_groups.keys() == {"own"}
