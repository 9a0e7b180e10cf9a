"""Births, wills, heartbeats and silence."""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.messages import MAX_FENCE, DeviceProfile, DeviceState, HeldModule
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.events import DeviceStateReceived, HeartbeatReceived, Tick
from orchestrator.membership.device import MAX_CACHED, MAX_MODULES, WILLS_S, Fitness
from orchestrator.membership.failure_detector import MAX_ABSENT, Cluster, next_deadline_s, on_event, on_own_heartbeat
from tests.builders import heartbeat, offline, profile

PROFILE = profile(1000, latency_s=0.002)
OTHER = PROFILE.model_copy(update={"memory_bytes": 500})


def birth(session: int = 1, profile: DeviceProfile | None = PROFILE) -> DeviceStateReceived:
    return DeviceStateReceived("gw", DeviceState(status="online", session=session, profile=profile))


def will(session: int = 1) -> DeviceStateReceived:
    return DeviceStateReceived("gw", offline(session))


def drain(session: int = 1) -> DeviceStateReceived:
    return DeviceStateReceived("gw", DeviceState(status="draining", session=session))


def gw_heartbeat(seq: int, session: int = 1, **modules: HeldModule) -> HeartbeatReceived:
    return HeartbeatReceived("gw", heartbeat(seq, session, modules=modules))


def listening() -> Cluster:
    return on_event(Cluster(heartbeat_interval_s=1.0), LinkUp(1), 0.0)


def alive() -> Cluster:
    return on_event(on_event(listening(), birth(), 0.0), gw_heartbeat(1), 0.0)


def test_a_device_is_alive_after_its_first_heartbeat_not_after_its_birth() -> None:
    born = on_event(listening(), birth(), 0.0)
    assert not born.devices["gw"].alive
    assert on_event(born, gw_heartbeat(1), 0.1).devices["gw"].fitness > Fitness.DRAINING


def test_a_will_of_the_current_session_ends_it_at_once() -> None:
    assert not on_event(alive(), will(), 0.1).devices["gw"].alive


def test_a_late_will_of_an_older_session_changes_nothing() -> None:
    again = on_event(on_event(alive(), birth(session=2), 0.1), gw_heartbeat(1, session=2), 0.2)
    after = on_event(again, will(session=1), 0.3).devices["gw"]
    assert (after.session, after.status, after.alive) == (2, "online", True)


def test_a_living_session_comes_back_after_a_late_birth_of_a_dead_one_took_its_place() -> None:
    # After a restart of ours nothing is known of session 1; its birth comes again after that of session 2.
    fooled = on_event(
        on_event(on_event(listening(), birth(session=2), 0.0), gw_heartbeat(7, session=2), 0.1), birth(session=1), 0.2
    )
    assert fooled.devices["gw"].session == 1
    silent = on_event(fooled, Tick(), 3.5)
    assert on_event(silent, gw_heartbeat(7, session=2), 3.6) == silent, "a repeated heartbeat proves nothing"
    again = on_event(silent, gw_heartbeat(8, session=2), 3.6).devices["gw"]
    assert (again.session, again.alive, again.past_sessions) == (2, True, {1: -1})


def test_a_session_whose_will_was_heard_never_comes_back() -> None:
    gone = on_event(on_event(alive(), will(session=1), 0.1), birth(session=2), 0.2)
    silent = on_event(gone, Tick(), 9.0)
    assert on_event(silent, gw_heartbeat(99, session=1), 9.1) == silent


def test_a_birth_of_an_ended_session_that_arrives_late_changes_nothing() -> None:
    again = on_event(on_event(alive(), birth(session=2), 0.1), gw_heartbeat(1, session=2), 0.2)
    assert on_event(again, birth(session=1), 0.3) == again
    gone = on_event(again, will(session=2), 0.4)
    assert on_event(gone, birth(session=2), 0.5) == gone
    assert on_event(gone, gw_heartbeat(9, session=2), 0.5) == gone


def test_a_heartbeat_of_another_session_or_an_older_one_changes_nothing() -> None:
    known = on_event(alive(), gw_heartbeat(5), 0.5)
    for late in (gw_heartbeat(6, session=2), gw_heartbeat(5), gw_heartbeat(4)):
        assert on_event(known, late, 0.6) == known


def test_a_device_whose_last_number_another_client_made_up_is_back_two_heartbeats_after_its_silence() -> None:
    captured = on_event(alive(), gw_heartbeat(MAX_FENCE), 0.5)
    assert on_event(captured, gw_heartbeat(2), 1.0) == captured
    dead = on_event(captured, Tick(), 4.0)
    once = on_event(dead, gw_heartbeat(5), 4.5)
    assert not once.devices["gw"].alive
    assert not on_event(once, gw_heartbeat(5), 4.6).devices["gw"].alive, "a repeated heartbeat proves nothing"
    assert not on_event(once, gw_heartbeat(4), 4.6).devices["gw"].alive, "nor does one before it"
    back = on_event(once, gw_heartbeat(6), 5.5).devices["gw"]
    assert (back.alive, back.seq, back.past_sessions) == (True, 6, {})


def test_a_will_that_comes_twice_changes_nothing_the_second_time_also_of_a_session_that_fell_silent_before() -> None:
    dead = on_event(on_event(alive(), gw_heartbeat(5), 0.5), Tick(), 4.0)
    ended = on_event(on_event(dead, gw_heartbeat(2), 4.5), will(), 5.0)
    assert on_event(ended, will(), 5.0) == ended


def test_heartbeats_and_deaths_of_unknown_devices_change_nothing() -> None:
    assert on_event(listening(), gw_heartbeat(1), 0.0).devices == {}
    assert on_event(listening(), will(), 0.0).devices == {}


def test_silence_makes_suspect_after_two_intervals_and_dead_after_three_and_a_quarter() -> None:
    cluster = on_event(alive(), Tick(), 1.99)
    assert cluster.devices["gw"].health == "well"
    cluster = on_event(cluster, Tick(), 2.0)
    assert cluster.devices["gw"].health == "suspect"
    assert cluster.devices["gw"].fitness > Fitness.DRAINING
    cluster = on_event(cluster, Tick(), 3.24)
    assert cluster.devices["gw"].alive
    assert not on_event(cluster, Tick(), 3.25).devices["gw"].alive


def test_one_look_after_a_long_silence_is_enough() -> None:
    assert on_event(alive(), Tick(), 60.0).devices["gw"].health == "dead"


def test_a_late_heartbeat_makes_a_suspect_well_again() -> None:
    cluster = on_event(on_event(alive(), Tick(), 3.0), gw_heartbeat(2), 3.1)
    assert cluster.devices["gw"].health == "well"
    assert on_event(cluster, Tick(), 5.0).devices["gw"].health == "well"


def test_a_heartbeat_brings_a_silent_device_back_but_a_repeated_birth_does_not() -> None:
    dead = on_event(alive(), Tick(), 4.0)
    assert not on_event(dead, birth(), 5.0).devices["gw"].alive
    assert on_event(dead, gw_heartbeat(2), 5.0).devices["gw"].alive


def test_the_detector_stands_still_while_our_own_link_is_down() -> None:
    cluster = on_event(alive(), LinkDown("gone"), 1.0)
    assert next_deadline_s(cluster) is None
    cluster = on_event(cluster, Tick(), 100.0)
    assert cluster.devices["gw"].alive
    cluster = on_event(cluster, LinkUp(2), 100.0)
    dead_s = 100.0 + RECONNECT_S + 3.25  # it may be the last one that reaches a broker that was away
    assert on_event(cluster, Tick(), dead_s - 0.05).devices["gw"].alive
    assert not on_event(cluster, Tick(), dead_s).devices["gw"].alive


def test_a_device_heard_over_the_new_link_has_the_usual_time_again() -> None:
    cluster = on_event(on_event(alive(), LinkDown("gone"), 1.0), LinkUp(2), 100.0)
    cluster = on_event(cluster, gw_heartbeat(2), 101.0)
    assert on_event(cluster, Tick(), 104.2).devices["gw"].alive
    assert not on_event(cluster, Tick(), 104.25).devices["gw"].alive


def test_a_device_that_a_restarted_broker_let_in_late_is_not_on_probation() -> None:
    cluster = on_event(on_event(alive(), LinkDown("gone"), 1.0), LinkUp(2), 100.0)
    away = on_event(cluster, will(), 104.0)
    again = on_event(on_event(away, birth(session=2), 105.0), gw_heartbeat(1, session=2), 105.0)
    assert again.devices["gw"].doubt is None


def other(event: DeviceStateReceived | HeartbeatReceived) -> DeviceStateReceived | HeartbeatReceived:
    """The same of another device."""
    return replace(event, device="gw-2")


def two() -> Cluster:
    return on_event(on_event(alive(), other(birth()), 0.0), other(gw_heartbeat(1)), 0.0)


def test_a_will_that_came_just_before_our_own_link_went_was_the_brokers_end() -> None:
    before = alive()
    gone = on_event(before, will(), 0.5)
    assert not gone.devices["gw"].alive
    assert on_event(gone, LinkDown("lost"), 0.51).devices == before.devices, "not on probation either"
    assert not on_event(gone, LinkDown("lost"), 0.5 + WILLS_S).devices["gw"].alive
    assert (
        on_event(on_own_heartbeat(on_event(before, will(), 0.5), 0.5), LinkDown("lost"), 0.9).devices["gw"].status
        == "offline"
    )
    assert on_event(on_event(on_own_heartbeat(before, 0.4), will(), 0.5), LinkDown("lost"), 0.9).devices["gw"].alive


def test_a_goodbye_that_comes_ahead_of_our_links_return_may_be_the_brokers_end_too() -> None:
    down = on_event(alive(), LinkDown("lost"), 1.0)
    up = on_event(on_event(down, will(), 4.0), LinkUp(2), 4.0)
    assert up.devices["gw"].alive
    assert not on_event(up, Tick(), 4.0 + RECONNECT_S + 3.25).devices["gw"].alive


def test_a_goodbye_that_the_broker_remembers_may_be_its_own_end_and_the_device_has_the_time_to_come_back() -> None:
    cluster = on_event(on_event(two(), LinkDown("gone"), 1.0), LinkUp(2), 100.0)
    cluster = on_event(cluster, will(), 100.0)
    cluster = on_event(on_event(cluster, other(birth(session=2)), 101.0), other(gw_heartbeat(1, session=2)), 101.0)
    assert cluster.devices["gw"].alive, "the other one has a new session, too"
    assert not on_event(cluster, Tick(), 100.0 + RECONNECT_S + 3.25).devices["gw"].alive
    back = on_event(on_event(cluster, birth(session=2), 104.0), gw_heartbeat(1, session=2), 104.1)
    assert back.devices["gw"].alive
    assert not on_event(back, will(session=2), 104.2).devices["gw"].alive, "a goodbye over this link counts"


def third(event: DeviceStateReceived | HeartbeatReceived) -> DeviceStateReceived | HeartbeatReceived:
    return replace(event, device="gw-3")


def three_after_a_new_link() -> Cluster:
    cluster = on_event(on_event(two(), third(birth()), 0.0), third(gw_heartbeat(1)), 0.0)
    return on_event(on_event(cluster, LinkDown("gone"), 1.0), LinkUp(2), 100.0)


def test_heartbeats_of_two_sessions_of_before_show_that_the_broker_was_there_and_the_goodbyes_count() -> None:
    cluster = on_event(three_after_a_new_link(), will(), 100.0)
    one = on_event(on_event(cluster, other(gw_heartbeat(2)), 100.5), other(gw_heartbeat(3)), 100.6)
    assert one.devices["gw"].alive, "one device may lie"
    assert not on_event(one, third(gw_heartbeat(2)), 100.7).devices["gw"].alive
    again = on_event(on_event(three_after_a_new_link(), birth(session=2), 100.1), will(), 100.2)
    again = on_event(on_event(again, other(gw_heartbeat(2)), 100.3), third(gw_heartbeat(2)), 100.3)
    assert on_event(again, gw_heartbeat(1, session=2), 100.4).devices["gw"].alive, "of an old session"
    silent = on_event(on_event(three_after_a_new_link(), other(gw_heartbeat(2)), 100.5), third(gw_heartbeat(2)), 100.5)
    silent = on_event(on_event(silent, other(gw_heartbeat(3)), 103.0), third(gw_heartbeat(3)), 103.0)
    assert not on_event(silent, Tick(), 103.25).devices["gw"].alive, "no device needs the time to connect any more"


def test_the_next_deadline_is_when_the_next_device_turns_suspect_or_dead() -> None:
    cluster = alive()
    assert next_deadline_s(listening()) is None
    assert next_deadline_s(cluster) == 2.0
    cluster = on_event(cluster, Tick(), 2.0)
    assert next_deadline_s(cluster) == 3.25
    assert next_deadline_s(on_event(cluster, Tick(), 3.25)) == 3600.0, "to be forgotten"


def test_until_its_first_heartbeat_a_new_session_keeps_the_modules_of_the_living_one_before() -> None:
    ready = HeldModule(module="m", state="ready")
    cluster = on_event(alive(), gw_heartbeat(2, key=ready), 0.5)
    assert on_event(cluster, birth(session=2), 0.6).devices["gw"].ready("key")
    assert not on_event(on_event(cluster, will(), 0.6), birth(session=2), 0.7).devices["gw"].ready("key")
    after = on_event(on_event(cluster, birth(session=2), 0.6), gw_heartbeat(0, session=2), 0.7).devices["gw"]
    assert after.modules == {}


def test_what_failed_is_known_until_the_first_heartbeat_of_a_new_session() -> None:
    failed = HeldModule(module="m", state="failed", error="no weights")
    cluster = on_event(alive(), gw_heartbeat(2, key=failed), 0.5)
    assert cluster.devices["gw"].failed == {"key": "no weights"}
    born = on_event(cluster, birth(session=2), 0.6)
    assert (born.devices["gw"].failed, born.devices["gw"].alive) == ({"key": "no weights"}, True)
    again = on_event(born, gw_heartbeat(0, session=2), 0.7).devices["gw"]
    assert (again.modules, again.failed, again.barred, again.alive) == ({}, {}, {}, True)


def test_a_failure_that_the_new_session_lists_again_is_no_further_failure() -> None:
    cluster = on_event(alive(), gw_heartbeat(2, key=FAILED), 0.5)
    again = on_event(on_event(cluster, birth(session=2), 0.6), gw_heartbeat(0, session=2, key=FAILED), 0.7)
    assert again.devices["gw"].backoffs == cluster.devices["gw"].backoffs


def test_until_its_first_heartbeat_a_new_session_keeps_pauses_and_measured_seconds() -> None:
    measured = HeldModule(module="n", state="ready", compute_s=0.3)
    cluster = on_event(on_event(alive(), gw_heartbeat(2, key=FAILED, n=measured), 0.5), gw_heartbeat(3), 0.6)
    born = on_event(cluster, birth(session=2), 0.7)
    assert born.devices["gw"].barred == {"key": "no weights"}
    assert born.devices["gw"].spec.compute_s == {"n": 0.3}
    again = on_event(born, gw_heartbeat(0, session=2), 0.8).devices["gw"]
    assert (again.barred, again.spec.compute_s) == ({}, {})


FAILED = HeldModule(module="m", state="failed", error="no weights")


def still_alive(cluster: Cluster, seq: int, now_s: float, **modules: HeldModule) -> Cluster:
    """A heartbeat just before this time, so that the device isn't dead."""
    return on_event(on_event(cluster, gw_heartbeat(seq, 1, **modules), now_s - 0.01), Tick(), now_s)


def test_a_failed_module_is_barred_for_half_a_minute_after_the_device_lists_it_no_more() -> None:
    cluster = on_event(on_event(alive(), gw_heartbeat(2, key=FAILED), 1.0), gw_heartbeat(3), 2.0)
    assert cluster.devices["gw"].failed == {}
    assert cluster.devices["gw"].barred == {"key": "no weights"}
    assert still_alive(cluster, 4, 30.9).devices["gw"].barred == {"key": "no weights"}
    assert still_alive(cluster, 4, 31.0).devices["gw"].barred == {}


def test_a_failed_module_is_barred_as_long_as_the_device_lists_it() -> None:
    cluster = on_event(alive(), gw_heartbeat(2, key=FAILED), 1.0)
    assert still_alive(cluster, 3, 9000.0, key=FAILED).devices["gw"].barred == {"key": "no weights"}


def test_the_pause_doubles_with_each_failure_up_to_a_quarter_of_an_hour_and_success_forgets_it() -> None:
    cluster, now_s, pauses_s = alive(), 0.0, []
    for seq in range(10, 40, 3):
        cluster = still_alive(cluster, seq, now_s, key=FAILED)
        until_s = cluster.devices["gw"].backoffs["key"].until_s
        assert until_s is not None
        pauses_s.append(round(until_s - now_s + 0.01))
        now_s = until_s + 1.0
        cluster = still_alive(cluster, seq + 1, now_s)
        assert cluster.devices["gw"].barred == {}
    assert pauses_s == [30, 60, 120, 240, 480, 900, 900, 900, 900, 900]
    ready = HeldModule(module="m", state="ready")
    assert still_alive(cluster, 50, now_s + 1, key=ready).devices["gw"].backoffs == {}


def test_the_end_of_a_pause_is_a_deadline() -> None:
    cluster = on_event(on_event(alive(), gw_heartbeat(2, key=FAILED), 1.0), gw_heartbeat(3), 30.5)
    assert next_deadline_s(cluster) == 31.0


def test_a_device_that_is_offline_for_an_hour_is_forgotten() -> None:
    gone = on_event(alive(), will(), 0.1)
    assert next_deadline_s(gone) == 3600.0
    assert "gw" in on_event(gone, Tick(), 3599.9).devices
    assert on_event(gone, Tick(), 3600.0).devices == {}


def sometimes(session: int = 1, profile: DeviceProfile | None = PROFILE) -> DeviceStateReceived:
    message = DeviceState(status="online", session=session, profile=profile, availability="sometimes")
    return DeviceStateReceived("gw", message)


def test_a_device_that_is_on_only_sometimes_is_remembered_for_a_week() -> None:
    gone = on_event(on_event(alive(), sometimes(), 0.1), will(), 0.2)
    assert gone.devices["gw"].absence == "it is away: it is on only sometimes"
    assert "gw" in on_event(gone, Tick(), 7 * 86_400.0 - 1).devices
    assert on_event(gone, Tick(), 7 * 86_400.0).devices == {}


def test_a_birth_says_whether_a_device_is_always_on_and_the_same_session_may_say_otherwise() -> None:
    cluster = on_event(alive(), sometimes(), 0.1)
    assert cluster.devices["gw"].spec.availability == "sometimes"
    assert on_event(cluster, birth(profile=None), 0.2).devices["gw"].spec.availability == "sometimes"
    assert on_event(cluster, birth(), 0.2).devices["gw"].spec.availability == "always"
    assert on_event(cluster, birth(session=2), 0.2).devices["gw"].spec.availability == "always"


def test_a_device_that_is_on_only_sometimes_is_on_no_probation_whether_it_said_goodbye_or_fell_silent() -> None:
    for end, now_s in ((will(), 60.0), (Tick(), 60.0)):
        cluster = on_event(on_event(alive(), sometimes(), 0.1), gw_heartbeat(2), 50.0)
        gone = on_event(on_event(cluster, Tick(), 53.0), end, now_s)
        assert not gone.devices["gw"].alive
        back = on_event(on_event(gone, sometimes(session=2), 70.0), gw_heartbeat(1, session=2), 70.1)
        assert back.devices["gw"].fitness == Fitness.FIT


def test_a_draining_device_is_alive_but_holds_nothing_new_and_keeps_its_profile() -> None:
    device = on_event(alive(), drain(), 0.5).devices["gw"]
    assert device.alive
    assert device.fitness <= Fitness.DRAINING
    assert device.profile == PROFILE
    assert on_event(on_event(alive(), drain(), 0.5), birth(), 0.6).devices["gw"].status == "draining"


def test_a_birth_without_a_profile_keeps_the_known_one_and_without_any_is_no_device() -> None:
    assert on_event(listening(), birth(profile=None), 0.0).devices == {}
    assert on_event(alive(), birth(session=2, profile=None), 0.1).devices["gw"].profile == PROFILE


def test_the_same_session_may_report_another_profile() -> None:
    cluster = on_event(alive(), birth(profile=OTHER), 0.1)
    assert cluster.devices["gw"].spec.memory_bytes == 500
    assert cluster.devices["gw"].alive


def test_measured_seconds_stand_in_the_devices_spec() -> None:
    held = HeldModule(module="m", state="ready", compute_s=0.3)
    fresh = HeldModule(module="n", state="ready", compute_s=0.0)
    assert on_event(alive(), gw_heartbeat(2, k=held, f=fresh), 0.1).devices["gw"].spec.compute_s == {"k": 0.3}


def test_a_spec_is_made_again_only_when_something_in_it_has_changed() -> None:
    held = HeldModule(module="m", state="ready", compute_s=0.3)
    known = on_event(alive(), gw_heartbeat(2, k=held), 0.1)
    made = known.devices["gw"].spec
    known = on_event(known, gw_heartbeat(3, k=held), 0.2)
    assert known.devices["gw"].spec is made
    known = on_event(known, gw_heartbeat(4, k=held.model_copy(update={"compute_s": 0.4})), 0.3)
    assert known.devices["gw"].spec.compute_s == {"k": 0.4}
    known = on_event(known, birth(profile=OTHER), 0.4)
    known = on_event(known, gw_heartbeat(5, k=held), 0.5)
    assert known.devices["gw"].spec.memory_bytes == 500


def test_an_export_that_needs_more_than_its_birth_said_is_in_the_spec_from_its_first_heartbeat_on() -> None:
    held = HeldModule(module="m", state="loading")
    exporting = PROFILE.model_copy(update={"engines": ("onnx",), "exports": {"k": 100}})
    known = on_event(on_event(listening(), birth(profile=exporting), 0.0), gw_heartbeat(1, k=held), 0.0)
    assert known.devices["gw"].spec.exports == {"k": 100}
    ready = held.model_copy(update={"state": "ready", "memory_bytes": 150})
    known = on_event(known, gw_heartbeat(2, k=ready), 0.1)
    assert known.devices["gw"].spec.exports == {"k": 150}


def test_what_is_kept_of_a_heartbeat_is_bounded_and_what_is_gone_leaves_little_behind() -> None:
    many = {f"k-{number}": HeldModule(module="m", state="ready", compute_s=1.0) for number in range(5_000)}
    cached = {f"c-{number}": 1.0 for number in range(5_000)}
    said = HeartbeatReceived("gw", heartbeat(9, 1, modules=many, cached=cached))
    device = on_event(alive(), said, 1.0).devices["gw"]
    assert (len(device.modules), len(device.cached)) == (MAX_MODULES, MAX_CACHED)
    for seq in range(10, 20):
        more = HeartbeatReceived("gw", heartbeat(seq, 1, cached={f"c-{seq}-{n}": 1.0 for n in range(2_000)}))
        device = on_event(alive(), more, 1.0).devices["gw"]
        assert len(device.measured) <= 2 * (MAX_MODULES + MAX_CACHED)
    gone = on_event(on_event(alive(), said, 1.0), will(), 2.0)
    kept = on_event(gone, Tick(), 2.0 + WILLS_S + 0.1).devices["gw"]
    assert (kept.modules, kept.cached, kept.measured, kept.before_will) == ({}, frozenset(), {}, None)


def test_the_number_of_absent_devices_is_bounded_and_the_latest_stay() -> None:
    cluster = listening()
    for number in range(MAX_ABSENT + 20):
        name, at_s = f"gw-{number}", number / 1000
        cluster = on_event(cluster, replace(birth(), device=name), at_s)
        cluster = on_event(cluster, replace(will(), device=name), at_s)
    assert len(cluster.devices) == MAX_ABSENT
    assert f"gw-{MAX_ABSENT + 19}" in cluster.devices
    assert "gw-0" not in cluster.devices
