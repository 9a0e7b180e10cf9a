"""A request carries the revision of its task's spec from the route to every message and to its answer."""

from __future__ import annotations

import numpy as np

from broker.protocol.messages import NodeDone, NodeFailed, NodeInputs
from broker.protocol.specs import InputSpec
from edge_agent.decide import decide
from edge_agent.events import Ran, Received, Reply, Run, Send
from edge_agent.modules import Output
from edge_agent.state import AgentState
from tests.builders import able, agent, all_of, module, only, requested, route, route_node

ENCODER, HEAD = module("encoder", memory_bytes=10, output_bytes=8), module("head", memory_bytes=10, output_bytes=8)
REVISION = "0123456789ab"
NODES = {
    "encoder": route_node(ENCODER.key, ("text",), able("gw-a")),
    "head": route_node(HEAD.key, ("encoder",), able("gw-b")),
}
ROUTE = route("t", NODES, revision=REVISION)
OUTPUT = Output({"features": np.zeros(2, dtype=np.float32)}, {"label": "a cat"})


def encode(state: AgentState) -> list[Send]:
    """A request that gw-a coordinates: the messages after its encoder ran there."""
    run = only(decide(state, requested("t"), 0.0), Run)
    return all_of(decide(state, Ran(run.run, OUTPUT, None, 0.0, 0.1), 0.1), Send)


def test_every_message_of_a_request_and_its_answer_name_the_revision() -> None:
    front, back = agent("gw-a", ENCODER, routes=[ROUTE]), agent("gw-b", HEAD)
    (inputs,) = [send for send in encode(front) if isinstance(send.message, NodeInputs)]
    assert isinstance(inputs.message, NodeInputs)
    assert (inputs.message.revision, inputs.message.plan.revision) == (REVISION, REVISION)
    run = only(decide(back, Received("gw-a", inputs.message, inputs.values), 0.2), Run)
    ended = decide(back, Ran(run.run, OUTPUT, None, 0.2, 0.1), 0.3)
    assert only(ended, Reply).result.revision == REVISION
    done = only(ended, Send).message
    assert isinstance(done, NodeDone)
    assert done.revision == REVISION


def test_failures_name_the_revision_too() -> None:
    front, back = agent("gw-a", ENCODER, routes=[ROUTE]), agent("gw-b")
    inputs = next(send for send in encode(front) if isinstance(send.message, NodeInputs))
    failed = only(decide(back, Received("gw-a", inputs.message, inputs.values), 0.2), Send).message
    assert isinstance(failed, NodeFailed)
    assert failed.revision == REVISION
    refused = decide(front, Received("gw-b", failed.model_copy(update={"retry": False}), {}), 0.3)
    assert only(refused, Reply).result.revision == REVISION


def test_another_revision_with_the_same_graph_is_the_same_work() -> None:
    state = agent("gw-a", ENCODER, routes=[ROUTE])
    encode(state)
    (request,) = state.coordinated.values()
    assert request.plan is not None
    assert request.plan.model_copy(update={"revision": None}).work == request.plan.work


def test_a_request_under_way_begins_anew_with_the_revision_that_took_over() -> None:
    state = agent("gw-a", ENCODER, routes=[ROUTE])
    encode(state)
    (request,) = state.coordinated.values()
    other = module("other", memory_bytes=10, output_bytes=8)
    nodes = {**NODES, "head": route_node(other.key, ("encoder",), able("gw-b"))}
    actions = decide(state, route("t", nodes, generation=2, revision="ba9876543210"), 0.2)
    assert only(actions, Run).run.node == "encoder", "its output is one of the revision before"
    assert request.plan is not None
    assert {node.key for node in request.plan.nodes.values()} == {ENCODER.key, other.key}
    assert (request.plan.revision, request.completed) == ("ba9876543210", {})


def test_a_request_goes_on_if_the_new_revision_computes_its_missing_nodes_in_the_same_way() -> None:
    state = agent("gw-a", ENCODER, routes=[ROUTE])
    encode(state)
    assert not all_of(decide(state, route("t", NODES, generation=2, revision="ba9876543210"), 0.2), Send)


def test_a_request_that_the_new_revision_can_not_take_ends_with_the_reason() -> None:
    state = agent("gw-a", ENCODER, routes=[ROUTE])
    encode(state)
    nodes = {"head": route_node("another key", ("image",), able("gw-b"))}
    picture = {"image": InputSpec(kind="image", bytes=1000)}
    changed = route("t", nodes, generation=2, revision="ba9876543210", inputs=picture)
    reply = only(decide(state, changed, 0.2), Reply)
    assert reply.result.error is not None
    assert reply.result.error.code == "bad_input"
