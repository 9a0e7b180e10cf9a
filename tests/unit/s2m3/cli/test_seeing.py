"""Events and traces as text: a line each, a bar each, whatever the site says."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from broker.protocol import topics
from broker.protocol.codec import encode
from broker.protocol.reports import SystemEvent, Trace
from s2m3.cli.events import line_of
from s2m3.cli.main import main
from s2m3.cli.trace import WIDTH, is_asked, waterfall
from tests.builders import able, route, route_node


def line(**fields: Any) -> str:
    event = SystemEvent.model_validate({"type": "moved", "at": 0.0, **fields})
    incoming = topics.read("s2m3/v1", "s2m3/v1/devices/gw-b/events", encode(event))
    assert incoming is not None
    return line_of((incoming, event))


def test_an_event_is_one_line_with_its_reason() -> None:
    said = line(device="gw-a", module="m", origin="gw-c", why="moved from gw-c: it is dead")
    assert said.endswith("moved              gw-a         module=m origin=gw-c: moved from gw-c: it is dead")
    assert "gw-b" in line()


def test_a_strange_event_moves_no_cursor_and_has_no_second_line() -> None:
    said = line(at=1e20, why="a\x1b[2J\nb", strange={"deep": [1]})
    assert said.startswith("--:--:--")
    assert "\x1b" not in said
    assert "\n" not in said


def node(device: str = "gw-a", **changed: Any) -> dict[str, Any]:
    way = {"transfer_s": 0.0, "queue_s": 0.0, "compute_s": 0.0, "return_s": 0.0, "bytes": 0, "attempts": 1}
    return {"device": device, **way, **changed}


def trace(total_s: float, unfinished: dict[str, str] | None = None, **nodes: dict[str, Any]) -> Trace:
    fields = {"request": "r", "task": "t", "outcome": "answered", "total_s": total_s, "nodes": nodes}
    return Trace.model_validate(fields | {"unfinished": unfinished or {}})


def test_a_node_begins_when_what_it_needs_has_ended() -> None:
    graph = {"a": route_node("m", ("image",), able("gw-a")), "b": route_node("n", ("a",), able("gw-b"))}
    ways = {"a": node(queue_s=1.0, compute_s=3.0), "b": node("gw-b", transfer_s=1.0, compute_s=3.0)}
    first, head, of_a, of_b, legend = waterfall(trace(8.0, **ways), route("t", graph, output="b"), ".-#.")
    assert first == "request r of t: answered after 8000 ms"
    assert head.split()[:5] == ["node", "device", "0", "ms", "8000"]
    eighth = WIDTH // 8
    begin = of_a.index("--")
    assert of_a[begin:].startswith("-" * eighth + "#" * 3 * eighth + " ")
    assert of_b[begin:].startswith(" " * 4 * eighth + "." * eighth + "#" * 3 * eighth + " ")
    assert legend == ". transfer  - queue  # compute  . return"


def test_a_sensors_traceparent_is_shown_and_its_trace_id_finds_the_trace() -> None:
    traced = trace(1.0, a=node()).model_copy(update={"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01"})
    assert waterfall(traced)[1] == f"traceparent 00-{'4b' * 16}-{'0f' * 8}-01"
    for request, is_it in (("r", True), ("4b" * 16, True), ("0f" * 8, False)):
        assert is_asked(traced, argparse.Namespace(request=request, next=None)) is is_it
    assert not is_asked(trace(1.0), argparse.Namespace(request="4b" * 16, next=None))


@pytest.mark.parametrize("with_route", [True, False])
def test_every_trace_can_be_shown(*, with_route: bool) -> None:
    graph = {"a": route_node("m", ("image",), able("gw-a"))}
    found = route("t", graph, output="a") if with_route else None
    assert len(waterfall(trace(0.0), found)) == 3
    instant = waterfall(trace(0.0, a=node()), found, ".-#.")
    assert "#" in instant[2]
    long = waterfall(trace(1.0, a=node(compute_s=99.0), b=node(return_s=1e9)), found, ".-#.")
    assert max(map(len, long)) < 2 * WIDTH + 60
    told = waterfall(trace(1.0, {"c": "gw-c"}, a=node(cache_hit=True, attempts=3, batch=4, bytes=2048)), found)
    assert told[2].endswith(" KiB, output was kept, 3 attempts, one of 4 in a pass")
    assert told[3].split() == ["c", "gw-c", "did", "not", "finish"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("trace",), "--next"),
        (("trace", "r", "--next", "t"), "not allowed with"),
        (("events", "--follow", "--seconds", "3"), "not allowed with"),
        (("events", "--seconds", "0"), "greater than 0"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_watching_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--watch"]) == 2
    assert "--watch: shows the site at a terminal only" in capsys.readouterr().err
