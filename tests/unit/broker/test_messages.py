"""Every message and its exact bytes, both ways; a missing field is refused, an unknown one ignored."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from broker.protocol.codec import decode, encode
from broker.protocol.errors import ErrorCode, RemoteProtocolError
from broker.protocol.messages import (
    MAX_FENCE,
    About,
    AssignedModule,
    Assignment,
    DeviceProfile,
    DeviceState,
    ErrorBody,
    Heartbeat,
    HeldModule,
    OrchestratorState,
    Plan,
    PlannedNode,
    Result,
    Route,
    RouteDevice,
    RouteNode,
    Timing,
)
from broker.protocol.reports import (
    EventType,
    ModuleSummary,
    Standing,
    Summary,
    SystemEvent,
    TaskCounters,
    TaskStatus,
    Trace,
    TraceNode,
)
from broker.protocol.specs import InputSpec, ModuleSpec, Source, TaskSpec, Wire

MODULE = ModuleSpec(
    family="clip.vision", source=Source(hub="openai/clip", part="vision"), memory_bytes=100, flops=2.5, output_bytes=8
)
MODULE_JSON = (
    b'{"family":"clip.vision","source":{"hub":"openai/clip","part":"vision"},"dtype":"float32",'
    b'"memory_bytes":100,"flops":2.5,"output_bytes":8}'
)
GOLDEN: list[tuple[BaseModel, bytes]] = [
    (OrchestratorState(epoch=3, online=True, session=9), b'{"epoch":3,"online":true,"session":9}'),
    (DeviceState(status="offline", session=9), b'{"status":"offline","session":9}'),
    (
        DeviceState(
            status="online",
            session=2**53 - 1,
            profile=DeviceProfile(memory_bytes=300, compute_flops_per_s=2e9, bandwidth_bits_per_s=1e8, latency_s=0.001),
        ),
        (
            b'{"status":"online","session":9007199254740991,"profile":{"memory_bytes":300,'
            b'"compute_flops_per_s":2000000000.0,"bandwidth_bits_per_s":100000000.0,"latency_s":0.001}}'
        ),
    ),
    (
        Assignment(epoch=1, generation=2, modules=(AssignedModule(module="clip/vision", spec=MODULE, why="it fits"),)),
        b'{"epoch":1,"generation":2,"modules":[{"module":"clip/vision","spec":' + MODULE_JSON + b',"role":"active",'
        b'"why":"it fits"}]}',
    ),
    (
        Heartbeat(
            session=9,
            seq=4,
            epoch=1,
            generation=2,
            modules={"k": HeldModule(module="clip/vision", state="ready", memory_bytes=70, load_s=0.5, compute_s=0.25)},
            cached={"other": 0.125},
            dropped={"stale": 2},
            suspects={"b": 1.5},
        ),
        (
            b'{"session":9,"seq":4,"epoch":1,"generation":2,"modules":{"k":{"module":"clip/vision","state":"ready",'
            b'"memory_bytes":70,"load_s":0.5,"compute_s":0.25,"uses":0,"queue":0}},"memory_used_bytes":0,'
            b'"memory_bytes":0,"cached":{"other":0.125},"in_flight":0,"progress":0,"dropped":{"stale":2},"suspects":{"b":1.5}}'
        ),
    ),
    (
        Route(
            task="pick",
            epoch=1,
            generation=2,
            group=3,
            inputs={"image": InputSpec(kind="image", bytes=10)},
            nodes={
                "head": RouteNode(
                    module="cosine",
                    key="k",
                    needs=("image",),
                    output_bytes=8,
                    devices=(RouteDevice(device="a", compute_s=0.1, latency_s=0, bandwidth_bits_per_s=1e8),),
                )
            },
            output="head",
            front_door=("a",),
            second_door=("b",),
        ),
        (
            b'{"task":"pick","epoch":1,"generation":2,"group":3,"inputs":{"image":{"kind":"image","bytes":10}},'
            b'"nodes":{"head":{"module":"cosine","key":"k","needs":["image"],"output_bytes":8,"devices":[{"device":"a",'
            b'"compute_s":0.1,"latency_s":0.0,"bandwidth_bits_per_s":100000000.0}]}},"output":"head","wire":"float32",'
            b'"front_door":["a"],"second_door":["b"]}'
        ),
    ),
    (
        Result(
            request="r-1",
            task="pick",
            epoch=1,
            generation=2,
            coordinator="a",
            answer={"label": "a cat", "scores": [0.5, None]},
            timings=(Timing(node="head", device="a", queue_s=0, compute_s=0.5, output_bytes=8, attempt=1),),
        ),
        (
            b'{"request":"r-1","task":"pick","epoch":1,"generation":2,"coordinator":"a","answer":{"label":"a cat",'
            b'"scores":[0.5,null]},"timings":[{"node":"head","device":"a","queue_s":0.0,"compute_s":0.5,'
            b'"output_bytes":8,"attempt":1}]}'
        ),
    ),
    (
        Result(request="r", task="t", error=ErrorBody(code=ErrorCode.OVERLOADED, message="später", retry_after_s=1)),
        (
            b'{"request":"r","task":"t","epoch":0,"generation":0,"error":{"code":"overloaded","message":"sp\xc3\xa4ter",'
            b'"retry_after_s":1.0},"timings":[]}'
        ),
    ),
    (
        OrchestratorState(epoch=1, online=True, session=2, change=7),
        b'{"epoch":1,"online":true,"session":2,"change":7}',
    ),
    (
        DeviceState(
            status="online",
            session=1,
            about=About(version="0.1.0", host="box", machine="aarch64", cpu="A76", python="3.12", engines=("torch",)),
            tasks=("classify",),
            availability="sometimes",
        ),
        (
            b'{"status":"online","session":1,"about":{"version":"0.1.0","host":"box","machine":"aarch64","cpu":"A76",'
            b'"python":"3.12","engines":["torch"]},"tasks":["classify"],"availability":"sometimes"}'
        ),
    ),
    (
        Standing(device="a", standing="probation", since=1.5, until=31.5, why="it died twice in 60 s"),
        b'{"device":"a","standing":"probation","since":1.5,"until":31.5,"why":"it died twice in 60 s"}',
    ),
    (
        TaskStatus(
            task="pick",
            revision="0123456789ab",
            revisions=("ba9876543210", "0123456789ab"),
            unanswerable={"no_response_topic": 3},
        ),
        (
            b'{"task":"pick","revision":"0123456789ab","revisions":["ba9876543210","0123456789ab"],'
            b'"unanswerable":{"no_response_topic":3}}'
        ),
    ),
    (
        SystemEvent.model_validate({"type": EventType.MOVED, "at": 1.5, "module": "m", "why": "faster", "to": "b"}),
        b'{"type":"moved","at":1.5,"module":"m","why":"faster","to":"b"}',
    ),
    (
        Trace(
            request="r",
            task="pick",
            outcome="answered",
            total_s=0.5,
            nodes={
                "head": TraceNode(
                    device="a", transfer_s=0.1, queue_s=0, compute_s=0.2, return_s=0.1, bytes=9, attempts=1
                )
            },
        ),
        (
            b'{"request":"r","task":"pick","outcome":"answered","total_s":0.5,"nodes":{"head":{"device":"a",'
            b'"transfer_s":0.1,"queue_s":0.0,"compute_s":0.2,"return_s":0.1,"bytes":9,"attempts":1,"cache_hit":false,'
            b'"batch":1}},"unfinished":{}}'
        ),
    ),
    (
        Summary(
            session=1,
            at=2.5,
            version="0.1.0",
            modules={"k": ModuleSummary(module="m", state="ready", memory_bytes=7)},
            counters={
                "pick": TaskCounters(requests=3, answered=2, errors={"no_route": 1}, latency_s={0.1: 1, math.inf: 1})
            },
        ),
        (
            b'{"session":1,"at":2.5,"version":"0.1.0","modules":{"k":{"module":"m","state":"ready","memory_bytes":7}},'
            b'"counters":{"pick":{"requests":3,"answered":2,"errors":{"no_route":1},"latency_s":{"0.1":1,"inf":1}}},'
            b'"last_minute":{}}'
        ),
    ),
]
ROWS = [pytest.param(message, data, id=type(message).__name__ + str(n)) for n, (message, data) in enumerate(GOLDEN)]


@pytest.mark.parametrize(("message", "data"), ROWS)
def test_a_message_has_exactly_these_bytes_and_comes_back(message: BaseModel, data: bytes) -> None:
    assert encode(message) == data
    assert decode(type(message), data) == message


@pytest.mark.parametrize(("message", "data"), ROWS)
def test_every_truncation_is_refused(message: BaseModel, data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(RemoteProtocolError, match=type(message).__name__):
            decode(type(message), data[:length])


@pytest.mark.parametrize(("message", "data"), [row for row in ROWS if not isinstance(row.values[0], SystemEvent)])
def test_an_unknown_field_is_ignored_so_that_a_newer_sender_is_understood(message: BaseModel, data: bytes) -> None:
    newer = json.loads(data) | {"added_in_2030": {"x": [1]}}
    assert decode(type(message), json.dumps(newer).encode()) == message


@pytest.mark.parametrize(("message", "data"), ROWS)
def test_each_missing_field_is_named(message: BaseModel, data: bytes) -> None:
    needed = [name for name, field in type(message).model_fields.items() if field.is_required()]
    assert needed
    for name in needed:
        lacking = {key: value for key, value in json.loads(data).items() if key != name}
        with pytest.raises(RemoteProtocolError, match=f"{type(message).__name__}: {name}: is missing"):
            decode(type(message), json.dumps(lacking).encode())


@pytest.mark.parametrize(("message", "data"), ROWS)
def test_a_message_cant_be_changed(message: BaseModel, data: bytes) -> None:
    del data
    with pytest.raises(ValidationError, match="frozen"):
        setattr(message, next(iter(type(message).model_fields)), None)


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (OrchestratorState, {"epoch": -1, "online": True, "session": 1}, "epoch: must be at least 0"),
        (OrchestratorState, {"epoch": "x", "online": True, "session": 1}, "epoch: must be a whole number"),
        (DeviceState, {"status": "sleeping", "session": 1}, "status: must be online"),
        (Result, {"request": "No Id", "task": "t"}, "request: is not a valid id"),
        (Result, {"request": "r\n", "task": "t"}, "request: is not a valid id"),
        (Result, {"request": "r" * 64, "task": "t"}, "request: is not a valid id"),
        (Result, {"request": "r", "task": "t", "error": {"code": "odd", "message": ""}}, "error.code: must be"),
    ],
)
def test_a_wrong_field_is_named(kind: type[BaseModel], fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode(kind, json.dumps(fields).encode())


FENCES = [
    (OrchestratorState, {"epoch": 1, "online": True, "session": 1, "change": 1}, ("epoch", "session", "change")),
    (DeviceState, {"status": "online", "session": 1}, ("session",)),
    (Assignment, {"epoch": 1, "generation": 1}, ("epoch", "generation")),
    (
        Heartbeat,
        {"session": 1, "seq": 1, "epoch": 1, "generation": 1},
        ("session", "seq", "epoch", "generation"),
    ),
    (Route, {"task": "t", "epoch": 1, "generation": 1, "group": 1}, ("epoch", "generation", "group")),
    (Result, {"request": "r", "task": "t", "epoch": 1, "generation": 1}, ("epoch", "generation")),
    (Summary, {"session": 1, "at": 0, "version": "1"}, ("session",)),
]
FIELDS = [
    pytest.param(kind, fields, name, id=f"{kind.__name__}.{name}") for kind, fields, names in FENCES for name in names
]


@pytest.mark.parametrize(("kind", "fields", "name"), FIELDS)
@pytest.mark.parametrize(
    "wrong",
    ["true", '"1"', "1.0", "1.5", "-1", str(2**53), "9" * 4_300, "1e3", "null", "[1]"],
    ids=lambda text: text[:20],
)
def test_a_fencing_number_is_an_integer_below_2_to_the_53(
    kind: type[BaseModel], fields: dict[str, Any], name: str, wrong: str
) -> None:
    written = json.dumps(fields | {name: "HERE"}).replace('"HERE"', wrong)
    with pytest.raises(RemoteProtocolError, match=f"{kind.__name__}: "):
        decode(kind, written.encode())
    largest = decode(kind, json.dumps(fields | {name: MAX_FENCE}).encode())
    assert getattr(largest, name) == MAX_FENCE


def test_no_other_count_of_a_message_takes_a_text_or_a_truth_value() -> None:
    report = {"session": 1, "seq": 1, "epoch": 1, "generation": 1}
    for wrong in ({"in_flight": True}, {"progress": "1"}, {"dropped": {"x": -1}}, {"memory_bytes": 2**61}):
        with pytest.raises(RemoteProtocolError, match=next(iter(wrong))):
            decode(Heartbeat, json.dumps(report | wrong).encode())


def test_a_spec_inside_a_message_may_have_newer_fields_and_a_file_may_not() -> None:
    module = json.loads(MODULE_JSON)
    newer = module | {"precisions": ["int4"], "source": module["source"] | {"mirror": "https://x"}}
    assignment = {"epoch": 1, "generation": 2, "modules": [{"module": "clip/vision", "spec": newer}]}
    assert decode(Assignment, json.dumps(assignment).encode()).modules[0].spec == MODULE
    inputs = {"image": {"kind": "image", "bytes": 10, "precision": "x"}}
    nodes = {"head": {"module": "m", "needs": ["image"], "batch": 4}}
    task = {"task": "pick", "inputs": inputs, "nodes": nodes, "output": "head", "modules": {"m": newer}, "since": 2030}
    assert decode(TaskSpec, json.dumps(task).encode()).modules["m"] == MODULE
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TaskSpec.model_validate(task)
    wrong = task | {"nodes": {"head": {"module": "m", "needs": ["sound"]}}}
    with pytest.raises(RemoteProtocolError, match="names sound, which is neither an input nor a node"):
        decode(TaskSpec, json.dumps(wrong).encode())


def test_an_event_may_have_further_fields_and_a_type_of_a_newer_version() -> None:
    event = decode(SystemEvent, b'{"type":"module_compiled","at":2.5,"engine":"onnx"}')
    assert (event.type, event.model_extra) == ("module_compiled", {"engine": "onnx"})
    assert decode(SystemEvent, encode(event)) == event


KINDS = sorted({type(message) for message, _ in GOLDEN}, key=lambda kind: kind.__name__)


@given(st.sampled_from(KINDS), st.binary(max_size=100))
def test_random_bytes_are_refused(kind: type[BaseModel], data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(kind, data)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([data for _, data in GOLDEN]), st.data())
def test_a_message_with_one_random_field_is_read_or_refused(data: bytes, draw: st.DataObject) -> None:
    kind = next(type(message) for message, golden in GOLDEN if golden == data)
    fields = json.loads(data)
    fields[draw.draw(st.sampled_from(sorted(fields)))] = draw.draw(_VALUES)
    try:
        message = decode(kind, json.dumps(fields).encode())
    except RemoteProtocolError:
        return
    again = decode(kind, encode(message))
    assert encode(again) == encode(message)  # an unknown field of an event may be null, and null is left out


def test_a_route_is_complete_when_every_node_has_a_device_and_there_is_a_front_door() -> None:
    node = RouteNode(module="m", key="k", needs=("i",), output_bytes=1)
    device = RouteDevice(device="a", compute_s=1, latency_s=0, bandwidth_bits_per_s=1)
    served = node.model_copy(update={"devices": (device,)})
    route = Route(task="t", epoch=1, generation=1, group=1, nodes={"n": served}, output="n", front_door=("a",))
    assert route.complete
    assert not route.model_copy(update={"nodes": {"n": served, "other": node}}).complete
    assert not route.model_copy(update={"front_door": ()}).complete
    assert not route.model_copy(update={"unavailable": "no memory"}).complete


def test_a_changed_copy_of_a_route_has_its_own_order() -> None:
    node = RouteNode(module="m", key="k", needs=("i",), output_bytes=1)
    route = Route(task="t", epoch=1, generation=1, group=1, nodes={"n": node}, output="n")
    assert route.order == ("n",)
    assert route.model_copy(update={"nodes": {"other": node}, "output": "other"}).order == ("other",)


def test_a_plan_knows_the_consumers_of_a_node() -> None:
    def planned(*needs: str) -> PlannedNode:
        return PlannedNode(key="k", needs=needs, device="a")

    plan = Plan(nodes={"a": planned("image"), "b": planned("a"), "c": planned("text", "a")}, output="c")
    assert plan.consumers("a") == ["b", "c"]
    assert plan.consumers("c") == []


def test_the_digest_of_work_depends_on_modules_graph_and_use_but_not_on_devices() -> None:
    def work(output: str = "a", wire: Wire = "float32", **changed: Any) -> str:
        planned = PlannedNode.model_validate({"key": "k", "needs": ("image",), "device": "gw-a"} | changed)
        second = PlannedNode(key="k2", needs=("a",), device="gw-a")
        return Plan(nodes={"a": planned, "b": second}, output=output, wire=wire).work

    assert work(device="gw-b") == work()
    others = {work(key="k3"), work(needs=("text",)), work(use="caption"), work(output="b"), work(wire="float16")}
    assert len(others | {work()}) == 6


@pytest.mark.parametrize("interval", ["0", "0.04", "60.1", "1e300", "-1", '"10"', "true", "NaN", "[]"])
def test_a_birth_with_an_absurd_heartbeat_interval_is_refused_when_it_is_read(interval: str) -> None:
    birth = b'{"status": "online", "session": 1, "heartbeat_interval_s": %s}' % interval.encode()
    with pytest.raises(RemoteProtocolError, match="heartbeat_interval_s"):
        decode(DeviceState, birth)


def test_a_birth_of_an_agent_that_does_not_say_its_interval_is_read_and_the_usual_one_takes_no_bytes() -> None:
    assert decode(DeviceState, b'{"status": "online", "session": 1}').heartbeat_interval_s is None
    usual, other = (
        OrchestratorState(epoch=1, online=True, session=1, heartbeat_interval_s=seconds) for seconds in (1.0, 5.0)
    )
    assert b"heartbeat" not in encode(usual)
    assert decode(OrchestratorState, encode(usual)) == usual
    assert decode(OrchestratorState, encode(other)) == other
