"""The cost of one request for an agent that does nothing else, in calls of Python functions.

This code runs once a request in a process that slept, so that each function costs a multiple of what it takes in a
loop: what counts is how many are called. The bounds have some room, for versions of Python and pydantic differ; more
calls than that are a step that every request takes now.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import numpy as np

from broker.protocol.codec import RawInput
from broker.protocol.messages import NodeInputs
from broker.transport.port import Delivery
from edge_agent import wire
from edge_agent.decide import decide
from edge_agent.events import Ran, Received, Reply, Run, Send
from edge_agent.modules import Output
from tests.builders import PREFIX, able, agent, all_of, module, only, requested, route, route_node

SEE, READ, HEAD = module("see"), module("read"), module("head")
ROUTE = route(
    "zero-shot",
    {
        "see": route_node(SEE.key, ("image",), able("gw-a")),
        "read": route_node(READ.key, ("text",), able("gw-b")),
        "head": route_node(HEAD.key, ("see", "read"), able("gw-a")),
    },
)
INPUTS = {"image": RawInput(b"\xff\xd8\xff", "image/jpeg"), "text": RawInput(b"a cat\na dog", "text/plain")}
FEATURES = Output({"features": np.zeros((1, 512), dtype=np.float32)})
T = TypeVar("T")


def counted(work: Callable[..., T], *arguments: Any) -> tuple[T, int]:
    """The value of a function, and how many calls of Python functions it makes, comprehensions and all."""
    calls = 0

    def count(_: FrameType, kind: str, __: Any) -> None:
        nonlocal calls
        calls += kind == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found = work(*arguments)
    finally:
        sys.setprofile(before)
    return found, calls


def test_a_request_takes_few_calls() -> None:
    front, back = agent("gw-a", SEE, HEAD, routes=[ROUTE]), agent("gw-b", READ, routes=[ROUTE])
    taken: dict[str, int] = {}
    for number in range(3):  # the first one finds out what the others know
        now_s = 10.0 * number
        chosen, taken["ask"] = counted(decide, front, requested("zero-shot", number, inputs=INPUTS), now_s)
        ask, see = only(chosen, Send), only(chosen, Run)
        read = only(decide(back, Received("gw-a", ask.message, ask.values), now_s), Run)
        given, taken["give"] = counted(decide, back, Ran(read.run, FEATURES, None, now_s, 0.0), now_s)
        output = next(each for each in all_of(given, Send) if isinstance(each.message, NodeInputs))
        sent, taken["write"] = counted(wire.tensors_message, PREFIX, "gw-b", output, now_s)
        decide(front, Ran(see.run, FEATURES, None, now_s, 0.0), now_s)
        event, taken["read"] = counted(wire.event_of, PREFIX, Delivery(sent.topic, sent.payload))
        assert isinstance(event, Received)
        joined, taken["join"] = counted(decide, front, event, now_s)
        answer = Output({}, {"label": "a cat"})
        only(decide(front, Ran(only(joined, Run).run, answer, None, now_s, 0.0), now_s), Reply)
    most = {"ask": 325, "give": 72, "write": 36, "read": 36, "join": 85}
    assert {name: calls for name, calls in taken.items() if calls > most[name]} == {}
