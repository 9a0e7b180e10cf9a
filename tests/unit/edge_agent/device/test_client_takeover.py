"""An agent concludes that another one has its id."""

from __future__ import annotations

from itertools import count

from edge_agent.device.client_takeover import (
    CALM_S,
    MAX_FOREIGN,
    MAX_FOREIGN_SETTLED,
    MAX_KNOWN,
    SETTLED_S,
    ClientTakeover,
)


def fight(agents: dict[str, ClientTakeover], now_s: float) -> list[str]:
    """The agents take over each other's session until one is left. Returns those that ended, in order."""
    sessions, ended = count(1), []
    retained, inside, waiting = 0, "", list(agents)
    for now in range(100):
        if not waiting:
            break
        name, now_s = waiting.pop(0), now_s + 0.1 * now
        if inside and agents[inside].on_disconnected(now_s):
            ended.append(inside)
        elif inside:
            waiting.append(inside)
        inside, own = name, next(sessions)
        agents[name].on_connected(own, now_s)
        if retained:
            agents[name].on_session_seen(retained, now_s)
        retained = own
        agents[name].on_session_seen(own, now_s)
    assert not waiting
    return ended


def test_exactly_one_of_two_agents_that_have_just_started_ends() -> None:
    assert len(fight({"one": ClientTakeover(0.0), "other": ClientTakeover(4.0)}, 5.0)) == 1


def test_the_newcomer_ends_and_not_the_agent_that_served_before() -> None:
    assert fight({"old": ClientTakeover(0.0), "new": ClientTakeover(SETTLED_S + 9.0)}, SETTLED_S + 10.0) == ["new"]


def test_exactly_one_of_two_agents_that_served_before_ends() -> None:
    assert MAX_FOREIGN_SETTLED > MAX_FOREIGN
    assert len(fight({"one": ClientTakeover(0.0), "other": ClientTakeover(0.0)}, SETTLED_S + 10.0)) == 1


def test_the_session_of_an_earlier_process_and_its_late_will_are_not_a_takeover() -> None:
    takeover = ClientTakeover(0.0)
    for turn in range(20):
        takeover.on_connected(turn, float(turn))
        takeover.on_session_seen(77, float(turn))
        assert not takeover.on_disconnected(turn + 0.5)


def test_own_sessions_are_not_a_takeover_however_often_the_link_breaks() -> None:
    takeover = ClientTakeover(0.0)
    for session in range(50):
        takeover.on_connected(session, float(session))
        takeover.on_session_seen(session - 1, float(session))
        assert not takeover.on_disconnected(session + 0.5)
    assert takeover.suspected


def test_a_long_connection_clears_the_evidence() -> None:
    takeover = ClientTakeover(0.0)
    for session in range(MAX_FOREIGN - 1):
        takeover.on_connected(session, float(session))
        takeover.on_session_seen(100 + session, float(session))
        takeover.on_disconnected(session + 0.5)
    takeover.on_connected(50, 10.0)
    takeover.on_session_seen(200, 10.0)
    assert not takeover.on_disconnected(10.0 + CALM_S + 1)


def test_an_agent_remembers_the_sessions_that_it_saw_last() -> None:
    takeover = ClientTakeover(0.0)
    for session in range(2, 10 * MAX_KNOWN):
        takeover.on_connected(session, float(session))
        for known in (1, session - 1):  # an earlier life's, again and again, and its own last one
            takeover.on_session_seen(known, float(session))
        assert not takeover.on_disconnected(session + 0.5)
        assert len(takeover._known) <= MAX_KNOWN
