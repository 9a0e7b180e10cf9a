"""The end of a request as a person sees it: its counters, and the trace of where its seconds went. Pure.

Owns the assembly of traces. Each figure is a duration: of the coordinator's clock, or of the clock of the device that
ran the node. No figure is the difference of two clocks.

A node is ready when the coordinator has sent its inputs, and when the nodes that it needs have finished. From then
until the coordinator receives ``done``, the device waited and computed for the seconds that it reports. The rest went
on the way: its inputs to the device, and ``done`` back. That rest is measured. It is split in the ratio that the cost
model gives for the two messages, because one clock can't measure them apart.
"""

from __future__ import annotations

from broker.cost_model import OUTSIDE, Link, transfer_s
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import NodeDone, Plan, Route
from broker.protocol.reports import Trace, TraceNode
from broker.protocol.specs import DeviceId, NodeName, in_order
from edge_agent.events import Action, PublishTrace
from edge_agent.state import AgentState, Coordinated

DONE_BYTES = 1000  # of a ``done`` on the wire, for the ratio of the two ways


def on_ended(state: AgentState, request: Coordinated, code: ErrorCode | None, now_s: float) -> list[Action]:
    """Count the end of a request, an answer unless there is a ``code``, and publish its trace unless there are many."""
    if code is None:
        state.counters.count_answer(request.task, now_s - request.arrived_s)
    else:
        state.counters.count_error(request.task, code)
    if not state.trace_sampler.take(now_s):
        return []
    return [PublishTrace(trace_of(request, state.routes.get(request.task), state.device, code, now_s))]


def trace_of(request: Coordinated, route: Route | None, here: DeviceId, code: ErrorCode | None, now_s: float) -> Trace:
    """The trace of a request that ends now.

    Args:
        request: as its coordinator knows it.
        route: its task's, which names the links; None when the task is undeployed.
        here: the coordinator.
        code: of the error; None for an answer.
        now_s: on the coordinator's clock.
    """
    plan = request.plan
    nodes = _nodes(request, plan, _links(route), here) if plan else {}
    return Trace(
        request=request.request,
        task=request.task,
        outcome=code.value if code else "answered",
        total_s=round(max(0.0, now_s - request.arrived_s), 6),
        traceparent=request.traceparent,
        nodes=nodes,
        unfinished={name: planned.device for name, planned in plan.nodes.items() if name not in nodes} if plan else {},
    )


def _nodes(request: Coordinated, plan: Plan, links: dict[DeviceId, Link], here: DeviceId) -> dict[NodeName, TraceNode]:
    ended_s: dict[NodeName, float] = {}  # on the coordinator's clock, when ``done`` left the device
    nodes: dict[NodeName, TraceNode] = {}
    for name in in_order({name: planned.needs for name, planned in plan.nodes.items()}):
        if name not in request.reports or name not in request.completed:
            continue
        done, (device, done_s) = request.reports[name], request.completed[name]
        needs, began_s = plan.nodes[name].needs, done_s - done.waited_s - done.compute_s
        _, sent_s = request.current_assignees.get(name, (device, began_s))  # it finished after it had been taken back
        ready_s = max(ended_s.get(need, sent_s) for need in needs)
        on_the_way_s = max(0.0, done_s - ready_s - done.waited_s - done.compute_s)
        senders = [plan.nodes[need].device if need in plan.nodes else here for need in needs]
        return_s = on_the_way_s * _return_share(done, device, senders, here, links)
        ended_s[name] = done_s - return_s
        nodes[name] = TraceNode(
            device=device,
            transfer_s=round(on_the_way_s - return_s, 6),
            queue_s=round(done.waited_s, 6),
            compute_s=round(done.compute_s, 6),
            return_s=round(return_s, 6),
            bytes=done.input_bytes,
            attempts=done.attempt + 1,
            cache_hit=done.cache_hit,
            batch=done.batch,
        )
    return nodes


def _return_share(
    done: NodeDone, device: DeviceId, senders: list[DeviceId], here: DeviceId, links: dict[DeviceId, Link]
) -> float:
    """The share of ``done`` in the time on the way, by the cost model. On one device all of it is the loop's."""

    def expected_s(size_bytes: int, sender: DeviceId, receiver: DeviceId) -> float:
        ends = (
            links.get(each, Link(each, OUTSIDE.latency_s, OUTSIDE.bandwidth_bits_per_s)) for each in (sender, receiver)
        )
        return transfer_s(size_bytes, *ends)

    there_s = max(expected_s(done.input_bytes, sender, device) for sender in senders)
    back_s = expected_s(DONE_BYTES, device, here)
    return back_s / (there_s + back_s) if there_s + back_s > 0 else 1.0


def _links(route: Route | None) -> dict[DeviceId, Link]:
    able = (each for node in route.nodes.values() for each in node.devices) if route else ()
    return {each.device: Link(each.device, each.latency_s, each.bandwidth_bits_per_s) for each in able}
