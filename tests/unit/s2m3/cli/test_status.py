"""The words of ``s2m3 status``: the state of a task, the standing of a device, the requests of the last minute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.protocol.messages import MAX_COUNT, DeviceState, FirstLoad, OrchestratorState, OutputCacheUse, Route
from broker.protocol.reports import UNDELIVERED, ModuleSummary, Standing, Summary, TaskCounters, TaskStatus
from broker.protocol.sources import (
    RunningSource,
    SourceAnswer,
    SourceError,
    SourcesRunning,
    SourcesSpare,
    SourcesState,
)
from s2m3.cli.output import console, print_result, table
from s2m3.cli.status import (
    caches_of,
    engines_of,
    held_by,
    other_weights,
    standing_of,
    state_of,
    summaries_of,
    traffic_of,
    version_of,
)
from s2m3.cli.status_sources import source_table, sources_document
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


def test_a_device_that_has_other_weights_than_the_first_ones_is_named() -> None:
    first, other = (f"sha256:{digit * 64}" for digit in "ab")
    digests = {"a.b hub:x/y#z float32": FirstLoad(digest=first, devices=("gw-a", "gw-c"))}
    status = TaskStatus(task="t", digests=digests, other_digests={"a.b hub:x/y#z float32": {"gw-b": other}})
    (line,) = other_weights(cast("Any", SimpleNamespace(statuses={"t": status})), "t")
    assert line.startswith(f"gw-b doesn't load its weights of a.b hub:x/y#z float32: their digest is {other}, and the ")
    assert line.endswith(f"first was {first} (gw-a, gw-c)")
    assert other_weights(cast("Any", SimpleNamespace(statuses={})), "t") == []


ONLINE = DeviceState(status="online", session=1)


def seen(**fields: Any) -> Any:
    known: dict[str, Any] = {"devices": {}, "drained": set(), "standings": {}, "summaries": {}, "leader": None}
    return SimpleNamespace(**known | fields)


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


def test_the_standing_of_a_device_with_its_own_heartbeat_interval_says_so() -> None:
    said = Standing(device="gw-a", standing="online", since=0, until=None, why="")
    known = seen(standings={"gw-a": said}, leader=OrchestratorState(epoch=1, online=True, session=1))
    slow = DeviceState(status="online", session=1, heartbeat_interval_s=10.0)
    text = "online, a heartbeat every 10 s (the orchestrator's option says 1 s)"
    assert standing_of(known, "gw-a", slow) == text
    assert standing_of(known, "gw-a", slow.model_copy(update={"heartbeat_interval_s": 1.0})) == "online"
    assert standing_of(known, "gw-a", ONLINE) == "online", "an agent of before doesn't say"
    lost = said.model_copy(update={"why": f"{UNDELIVERED}: it has 9 KiB"})
    assert standing_of(seen(standings={"gw-a": lost}), "gw-a", ONLINE) == f"online: {UNDELIVERED}: it has 9 KiB"


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
    assert caches_of(seen(devices=devices, heartbeats=heard)) == [("gw-a", "3 of 15", "9", "0.5 of 1.9")]


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


DOOR = RunningSource(subscribe="cams/door", task="classify")
STATE = SourcesState(epoch=3, online=True, session=5)


def site_with_sources(**fields: Any) -> Any:
    none: dict[str, Any] = {"sources_state": {}, "sources_running": {}, "sources_spare": {}, "source_answers": {}}
    return SimpleNamespace(**none | fields)


def test_sources_are_shown_with_what_they_read_and_ask_their_newest_answer_and_the_spare(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = {
        "yard": SourceAnswer(source="yard", task="vqa", at=0, label="a cat\x1b[2J", score=0.5, topic="cams/yard"),
        "loop": SourceAnswer(source="loop", at=0, error=SourceError(code="bad_source", message="is a loop")),
    }
    yard = RunningSource(subscribe="cams/yard", task="vqa")
    running = SourcesRunning(host="gw-a", sources={"door": DOOR, "yard": yard}, more=2)
    spare = SourcesSpare(online=True, host="gw-b", session=1)
    site = site_with_sources(
        sources_state={"": STATE}, sources_running={"": running}, sources_spare={"": spare}, source_answers=answers
    )
    made = source_table(site)
    assert made is not None
    assert made.title == "sources, run on gw-a, epoch 3; a spare waits on gw-b; 2 more have no room here"
    console().print(made)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells[0] == ["door", "cams/door", "classify", "none yet"]
    assert cells[1][:3] == ["loop", "", ""]
    assert cells[1][3].endswith(" bad_source: is a loop")
    assert cells[2][3].endswith(" a cat?[2J 0.500")
    document: Any = sources_document(site)
    assert document["state"]["online"]
    assert (document["host"], document["spare"]["host"]) == ("gw-a", "gw-b")
    assert document["sources"]["door"] == {"subscribe": "cams/door", "task": "classify", "answer": None}
    assert document["sources"]["loop"]["answer"]["error"]["code"] == "bad_source"


def test_a_site_whose_sources_nobody_runs_says_so_and_one_without_sources_has_no_table() -> None:
    assert source_table(site_with_sources()) is None
    running = SourcesRunning(host="gw-a", sources={"door": DOOR})
    ended = STATE.model_copy(update={"online": False})
    made = source_table(site_with_sources(sources_state={"": ended}, sources_running={"": running}))
    assert made is not None
    assert made.title == "sources: no process runs them now (`s2m3 sources` does)"
    gone = SourcesSpare(online=False, host="gw-b", session=1)
    made = source_table(
        site_with_sources(sources_state={"": STATE}, sources_running={"": running}, sources_spare={"": gone})
    )
    assert made is not None
    assert made.title == "sources, run on gw-a, epoch 3; no spare waits"


def test_without_heartbeats_the_modules_are_those_of_the_summary() -> None:
    """A core has no heartbeats of its sites."""
    modules = {"k": ModuleSummary(module="m/x", state="ready", memory_bytes=1)}
    summaries = {"gw-a": Summary(session=1, at=1, version="1", modules=modules)}
    known = seen(heartbeats={}, assignments={}, summaries=summaries)
    assert held_by(known, "gw-a", ONLINE) == ("", "m/x (ready)")
    assert held_by(known, "gw-b", ONLINE) == ("", "")
