"""The words of ``s2m3 status``: the state of a task, the standing of a device, the requests of the last minute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.protocol.messages import MAX_COUNT, DeviceState, OutputCacheUse, Route
from broker.protocol.reports import Standing, Summary, TaskCounters
from s2m3.cli.output import console, print_result, table
from s2m3.cli.status import caches_of, engines_of, standing_of, state_of, summaries_of, traffic_of, version_of
from tests.builders import encoder_route, heartbeat, online, profile

UNAVAILABLE = Route(task="t", epoch=1, generation=1, group=1, unavailable="no device fits m")


def served(*devices: str) -> Route:
    return encoder_route("t", devices, front_door=devices[:1])


@pytest.mark.parametrize(
    ("route", "state"),
    [
        (served("gw-a"), "not served: gw-a offline"),
        (served("gw-a", "gw-b"), "served"),
        (served("gw-c"), "served"),  # not heard yet
        (served(), "loading"),
        (UNAVAILABLE, "unavailable: no device fits m"),
    ],
)
def test_a_task_is_served_while_a_device_can_run_each_node(route: Route, state: str) -> None:
    states = {"gw-a": "offline", "gw-b": "online"}
    devices = {name: DeviceState.model_validate({"status": said, "session": 1}) for name, said in states.items()}
    assert state_of(cast("Any", SimpleNamespace(devices=devices)), route) == state


ONLINE = DeviceState(status="online", session=1)


def seen(**fields: Any) -> Any:
    return SimpleNamespace(**{"devices": {}, "drained": set(), "standings": {}, "summaries": {}} | fields)


@pytest.mark.parametrize(
    ("standing", "until", "says"),
    [
        ("online", None, "online"),
        ("dead", None, "dead since "),
        ("probation", 0.0, "probation until "),
    ],
)
def test_a_standing_says_until_when_and_why(standing: Any, until: float | None, says: str) -> None:
    said = Standing(device="gw-a", standing=standing, since=0, until=until, why="because")
    told = standing_of(seen(standings={"gw-a": said}), "gw-a", ONLINE)
    assert told.startswith(says)
    assert standing == "online" or told.endswith(": because")


def test_a_device_of_an_orchestrator_that_publishes_no_standings_has_its_own_state() -> None:
    assert standing_of(seen(), "gw-a", ONLINE) == "online"
    assert standing_of(seen(drained={"gw-a"}), "gw-a", ONLINE) == "draining"


def test_the_version_of_a_dead_device_is_that_of_its_last_summary() -> None:
    known = seen(summaries={"gw-a": Summary(session=1, at=1, version="0.1.0")})
    offline = DeviceState(status="offline", session=1)
    assert (version_of(known, "gw-a", offline), version_of(known, "gw-b", offline)) == ("0.1.0", "")


def test_the_engines_of_a_device_are_shown_with_the_number_of_its_exports() -> None:
    born = online(1, profile(engines=("onnx", "ctranslate2"), exports={"k": 1, "l": 2}))
    assert engines_of(born) == "onnx\nctranslate2\n(2 exports)"
    assert engines_of(online()) == "torch\nctranslate2", "an agent of before names none"
    assert engines_of(DeviceState(status="offline", session=1)) == ""


def test_the_last_minute_is_the_sum_over_the_devices_that_are_online_or_died_in_it() -> None:
    counted = {"t": TaskCounters(requests=3, answered=2, errors={"no_route": 1}, latency_s={0.1: 2})}
    offline = DeviceState(status="offline", session=1)
    devices = {"gw-a": ONLINE, "gw-b": ONLINE, "gw-c": offline, "gw-d": offline}
    told_at = {"gw-a": 1990.0, "gw-b": 1.0, "gw-c": 1980.0, "gw-d": 1900.0}  # the clock of gw-b is wrong
    summaries = {name: Summary(session=1, at=at, version="1", last_minute=counted) for name, at in told_at.items()}
    about_now = summaries_of(seen(devices=devices, summaries=summaries), now=2000.0)
    assert about_now == [summaries[name] for name in ("gw-a", "gw-b", "gw-c")]
    found = TaskCounters(requests=9, answered=6, errors={"no_route": 3}, latency_s={0.1: 6})
    assert traffic_of(about_now) == {"t": found}


def test_the_caches_of_devices_that_are_online_and_have_run_nodes_are_listed() -> None:
    used = OutputCacheUse(limit_bytes=2_000_000, used_bytes=500_000, outputs=9, hits=3, computed=12)
    heard = {
        "gw-a": heartbeat(output_cache=used),
        "gw-b": heartbeat(),
        "gw-c": heartbeat(output_cache=OutputCacheUse(limit_bytes=1)),
        "gw-d": heartbeat(output_cache=used),
    }
    devices = dict.fromkeys(heard, ONLINE) | {"gw-d": DeviceState(status="offline", session=1)}
    assert caches_of(seen(devices=devices, heartbeats=heard)) == [("gw-a", "3 of 15", "9", "0.5 of 2.0")]


def test_what_a_site_says_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    made = table("reason")
    made.add_row("[/red] \x1b]0;title\x07 [bold]")
    console().print(made)
    print_result(cast("Any", SimpleNamespace(json=False)), {}, "moved\x1b[2J")
    shown = capsys.readouterr().out
    assert "[/red] ?]0;title? [bold]" in shown
    assert "moved?[2J" in shown


def test_numbers_that_no_site_has_end_nothing() -> None:
    standing = Standing(device="gw-a", standing="dead", since=1e21, why="because")
    assert standing_of(seen(standings={"gw-a": standing}), "gw-a", ONLINE).endswith("after 1970: because")
    counted = {"t": TaskCounters(requests=MAX_COUNT, answered=MAX_COUNT, errors={"x": MAX_COUNT}, latency_s={0.1: 1})}
    summaries = [Summary(session=1, at=1, version="1", last_minute=counted)] * 2
    assert traffic_of(summaries)["t"].requests == MAX_COUNT
