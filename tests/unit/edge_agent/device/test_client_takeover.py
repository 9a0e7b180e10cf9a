"""When an agent concludes that another one has its id."""

from __future__ import annotations

from itertools import count

from edge_agent.device.client_takeover import CALM_S, MOST_FOREIGN, MOST_FOREIGN_SETTLED, MOST_KNOWN, SETTLED_S, Rivals


def fight(agents: dict[str, Rivals], now_s: float) -> list[str]:
    """They throw each other out in turn until only one is left: who ended, in order."""
    sessions, ended = count(1), []
    retained, inside, waiting = 0, "", list(agents)
    for now in range(100):
        if not waiting:
            break
        name, now_s = waiting.pop(0), now_s + 0.1 * now
        if inside and agents[inside].disconnected(now_s):
            ended.append(inside)
        elif inside:
            waiting.append(inside)
        inside, own = name, next(sessions)
        agents[name].connected(own, now_s)
        if retained:
            agents[name].hear(retained, now_s)
        retained = own
        agents[name].hear(own, now_s)
    assert not waiting
    return ended


def test_of_two_that_have_just_started_exactly_one_ends() -> None:
    assert len(fight({"one": Rivals(0.0), "other": Rivals(4.0)}, 5.0)) == 1


def test_of_one_that_served_before_and_a_newcomer_the_newcomer_ends() -> None:
    assert fight({"old": Rivals(0.0), "new": Rivals(SETTLED_S + 9.0)}, SETTLED_S + 10.0) == ["new"]


def test_of_two_that_served_before_exactly_one_ends() -> None:
    assert MOST_FOREIGN_SETTLED > MOST_FOREIGN
    assert len(fight({"one": Rivals(0.0), "other": Rivals(0.0)}, SETTLED_S + 10.0)) == 1


def test_an_earlier_life_found_at_the_start_and_its_late_will_are_no_rival() -> None:
    rivals = Rivals(0.0)
    for turn in range(20):
        rivals.connected(turn, float(turn))
        rivals.hear(77, float(turn))
        assert not rivals.disconnected(turn + 0.5)


def test_one_s_own_sessions_are_no_rival_however_often_the_link_breaks() -> None:
    rivals = Rivals(0.0)
    for session in range(50):
        rivals.connected(session, float(session))
        rivals.hear(session - 1, float(session))
        assert not rivals.disconnected(session + 0.5)
    assert rivals.suspected


def test_a_connection_that_lasted_clears_what_was_seen_before() -> None:
    rivals = Rivals(0.0)
    for session in range(MOST_FOREIGN - 1):
        rivals.connected(session, float(session))
        rivals.hear(100 + session, float(session))
        rivals.disconnected(session + 0.5)
    rivals.connected(50, 10.0)
    rivals.hear(200, 10.0)
    assert not rivals.disconnected(10.0 + CALM_S + 1)


def test_of_all_its_sessions_an_agent_remembers_those_that_it_met_last() -> None:
    rivals = Rivals(0.0)
    for session in range(2, 10 * MOST_KNOWN):
        rivals.connected(session, float(session))
        for known in (1, session - 1):  # an earlier life's, again and again, and its own last one
            rivals.hear(known, float(session))
        assert not rivals.disconnected(session + 0.5)
        assert len(rivals._known) <= MOST_KNOWN
