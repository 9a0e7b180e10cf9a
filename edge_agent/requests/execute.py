"""The rules of running nodes: inputs gather, a module runs, the output goes on. Pure; changes the state in place.

Owns the joins and the outputs kept for retries. Knows nothing of why a request takes this way (``coordinate``).
Invariants:
- A node of a request is computed at most once at a time here, whatever attempts and duplicates arrive.
- What a node gives to another is rounded to the plan's ``wire`` here, on the way out, whoever takes it: an answer
  doesn't depend on the placement. What the output node gives to the sensor isn't.
- The compute thread is given the next pass while it computes one, and no more: the others wait for their turn here.
- What can't be computed before its deadline is not begun.
- Values of one (request, node) are the same whatever attempt they came with: modules are pure functions of the inputs.
- What is older than this device's assignment is answered with "not here", never run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, LocalProtocolError, ModuleRefused, RequestFailed
from broker.protocol.messages import Envelope, ErrorBody, NodeDone, NodeFailed, NodeInputs, Result, Timing
from broker.protocol.specs import DeviceId, ModuleKey, NodeName
from broker.protocol.tensors import narrowed, widened
from broker.protocol.topics import may_reply_to
from edge_agent.actions import Action, Log, Reply, Run, Send
from edge_agent.events import NodeRun, Ran, Received
from edge_agent.modules import Output, Value
from edge_agent.requests.load_estimate import ended, handed, own_s
from edge_agent.runtime.out_of_memory import is_out_of_memory
from edge_agent.state import (
    HANDED_PASSES,
    MAX_JOIN_BYTES,
    MAX_JOINS,
    MAX_OUTPUT_BYTES,
    MAX_OUTPUTS,
    SWEEP_S,
    AgentState,
    Finished,
    Joining,
    size_of,
)


def on_inputs(state: AgentState, event: Received, message: NodeInputs, now_s: float) -> Iterable[Action]:
    """Inputs of a node arrived: forward a kept output, or gather, and run when all are there."""
    planned = message.plan.nodes.get(message.node)
    if planned is None or not _may_send(state, event.sender, message) or planned.device != state.device:
        state.dropped["bad_envelope"] += 1
        return
    if refusal := _refusal(state, message, planned.key):
        state.dropped["stale" if "older" in refusal else "not_held"] += 1
        yield _failed(message, RequestFailed(ErrorCode.MODULE_FAILED, refusal), retry=True, now_s=now_s)
        return
    run = _run_of(message)
    if (kept := state.finished.get(run)) and now_s < kept.deadline_s:
        yield from _forward(state, message, kept, now_s, now_s + message.deadline_s)
        return
    if run not in state.joining and (problem := _crowded(state, message, planned.key, now_s)):
        state.dropped["overloaded"] += 1
        yield _failed(message, problem, retry=True, now_s=now_s)
        return
    joining = state.joining.setdefault(run, Joining(message, now_s + message.deadline_s))
    if message.attempt >= joining.message.attempt:
        joining.message = message
    if problem := _gather(state, joining, message, event.values, planned.needs):
        _drop_join(state, run)
        yield _failed(message, problem, retry=problem.code == ErrorCode.OVERLOADED, now_s=now_s)
        return
    yield from _run_when_complete(state, run, joining, now_s)


def on_module_ready(state: AgentState, key: ModuleKey, now_s: float) -> Iterable[Action]:
    """A module is loaded: what waited for it runs."""
    for run, joining in list(state.joining.items()):
        if joining.message.plan.nodes[run.node].key == key:
            yield from _run_when_complete(state, run, joining, now_s)


def on_module_gone(state: AgentState, key: ModuleKey, now_s: float) -> Iterable[Action]:
    """A module was unloaded or failed: what waited for it goes back to its coordinator."""
    for run, joining in list(state.joining.items()):
        message = joining.message
        if message.plan.nodes[run.node].key == key and not joining.running:
            _drop_join(state, run)
            gone = RequestFailed(ErrorCode.MODULE_FAILED, f"{state.device} no longer holds {key}")
            yield _failed(message, gone, retry=True, now_s=now_s)


def on_ran(state: AgentState, event: Ran, now_s: float) -> Iterable[Action]:
    """A forward pass ended: keep its output and send it on, or tell the coordinator what went wrong."""
    ended(state, event.run, event.compute_s, now_s, well=event.output is not None)
    yield from _hand_out(state, now_s)
    yield from _pass_on(state, event, now_s)


def _pass_on(state: AgentState, event: Ran, now_s: float) -> Iterable[Action]:
    joining = state.joining.get(event.run)
    if joining is None:
        return  # its time was over meanwhile
    _drop_join(state, event.run)
    message = joining.message
    if now_s >= joining.deadline_s:
        state.dropped["expired"] += 1
        return
    if event.output is None:
        yield from _report(state, message, event.error, now_s)
        return
    try:
        output = _rounded(message, event.output)
    except LocalProtocolError as error:  # of the numbers: another device would compute the same
        yield _failed(message, RequestFailed(ErrorCode.MODULE_FAILED, str(error)), retry=False, now_s=now_s)
        return
    timing = Timing(
        node=message.node,
        device=state.device,
        queue_s=max(0.0, event.began_s - joining.complete_s),
        compute_s=event.compute_s,
        output_bytes=size_of(output.tensors),
        attempt=message.attempt,
    )
    size_bytes = timing.output_bytes + len(json.dumps(output.answer))
    finished = Finished(output, (*joining.timings.values(), timing), size_bytes, joining.deadline_s)
    _keep(state, event.run, finished, now_s)
    yield from _forward(state, message, finished, now_s, joining.deadline_s)


def on_tick(state: AgentState, now_s: float) -> None:
    """What has no time left is dropped: inputs, whose coordinator answers the sensor, and outputs kept for retries."""
    _sweep(state, now_s)
    for run, joining in list(state.joining.items()):
        if now_s >= joining.deadline_s and not joining.running:
            state.dropped["expired"] += 1
            _drop_join(state, run)


def _run_of(message: NodeInputs) -> NodeRun:
    return NodeRun(message.request, message.node, message.plan.work)


def _may_send(state: AgentState, sender: DeviceId, message: NodeInputs) -> bool:
    """Whether these inputs come from who can have them, and lead to where an answer may go."""
    needs = message.plan.nodes[message.node].needs
    able = {message.plan.nodes[need].device for need in needs if need in message.plan.nodes} | {message.coordinator}
    return sender in able and may_reply_to(state.prefix, message.reply_to)


def _crowded(state: AgentState, message: NodeInputs, key: ModuleKey, now_s: float) -> RequestFailed | None:
    """Why a new node of a request isn't taken: too many inputs wait, or it could not be computed in time."""
    if len(state.joining) >= MAX_JOINS:
        return _too_many(state)
    compute_s = state.measured_s.get(key, 0.0)
    wait_s = own_s(state, now_s, task=message.task, more_s=compute_s, deadline_s=now_s + message.deadline_s)
    if not wait_s or wait_s + compute_s <= message.deadline_s:
        return None
    text = f"{state.device} has {wait_s:.1f} s of work before it, and {message.deadline_s:.1f} s were left"
    return RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=wait_s + compute_s - message.deadline_s)


def _too_many(state: AgentState) -> RequestFailed:
    text = f"{state.device} holds too many waiting inputs; send more slowly"
    return RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=1.0)


def _refusal(state: AgentState, message: NodeInputs, key: ModuleKey) -> str | None:
    if (message.epoch, message.generation) < state.fence:
        return f"the plan is older than the assignment of {state.device}"
    if key not in state.assigned or key in state.failed:
        return f"{state.device} is not assigned {key}"
    return None


def _gather(
    state: AgentState,
    joining: Joining,
    message: NodeInputs,
    values: Mapping[NodeName, Value],
    needs: tuple[NodeName, ...],
) -> RequestFailed | None:
    for timing in message.timings:
        joining.timings[timing.node] = timing
    if unknown := sorted(values.keys() - set(needs)):
        return RequestFailed(ErrorCode.MODULE_FAILED, f"{message.node} takes no {unknown[0]}")
    for need, value in values.items():
        if need in joining.values:
            continue
        size = size_of(value)
        if state.join_bytes + size > MAX_JOIN_BYTES:
            return _too_many(state)
        state.join_bytes += size
        joining.size_bytes += size
        joining.values[need] = value
    return None


def _run_when_complete(state: AgentState, run: NodeRun, joining: Joining, now_s: float) -> Iterable[Action]:
    planned = joining.message.plan.nodes[run.node]
    under_way = joining.waiting or joining.running
    if under_way or planned.key not in state.ready or any(need not in joining.values for need in planned.needs):
        return
    joining.waiting, joining.complete_s = True, now_s
    state.queued[planned.key] += 1
    state.turns.add(joining.message.task, run, joining.deadline_s)
    yield from _hand_out(state, now_s)


def _hand_out(state: AgentState, now_s: float) -> Iterable[Action]:
    """Give the compute thread what comes next; what is too late by now is dropped before it costs anything."""
    while len(state.passes) < HANDED_PASSES and (turn := state.turns.take()):
        task, run = turn
        joining = state.joining[run]
        planned = joining.message.plan.nodes[run.node]
        _no_longer_waits(state, joining)
        if now_s >= joining.deadline_s:
            state.dropped["expired"] += 1
            _drop_join(state, run)
            continue
        joining.running = True
        handed(state, task, run, planned.key, now_s)
        values = tuple(
            value if isinstance(value := joining.values[need], RawInput) else widened(value) for need in planned.needs
        )
        yield Run(run, planned.key, values, joining.deadline_s, planned.use)


def _forward(
    state: AgentState, message: NodeInputs, finished: Finished, now_s: float, deadline_s: float
) -> Iterable[Action]:
    """Send an output to every node that takes it; the output node's goes to the sensor."""
    plan = message.plan
    consumers = plan.consumers(message.node)
    given = narrowed(finished.output.tensors, plan.wire) if consumers else {}
    for consumer in consumers:
        following = message.model_copy(
            update={
                "node": consumer,
                "timings": finished.timings,
                "content_types": {},
                "deadline_s": max(0.0, deadline_s - now_s),
            },
        )
        yield Send(plan.nodes[consumer].device, following, {message.node: given} if given else {}, deadline_s)
    if message.node == plan.output:
        yield _answer(message, finished, deadline_s)
    more_s = state.measured_s.get(plan.nodes[message.node].key, 0.0)
    done = NodeDone(**_envelope(message), queue_s=own_s(state, now_s, task=message.task, more_s=more_s))
    yield Send(message.coordinator, done, {}, deadline_s)
    if message.node == plan.output:
        for device in message.second_door:
            yield Send(device, done, {}, deadline_s)


def _rounded(message: NodeInputs, output: Output) -> Output:
    """An output as it is kept: rounded, but for that of the output node, which is also the sensor's."""
    if not message.plan.consumers(message.node):
        return output
    given = narrowed(output.tensors, message.plan.wire)
    return output if message.node == message.plan.output else Output(given, output.answer)


def _answer(message: NodeInputs, finished: Finished, deadline_s: float) -> Reply:
    output = finished.output
    result = Result(
        request=message.request,
        task=message.task,
        epoch=message.epoch,
        generation=message.generation,
        coordinator=message.coordinator,
        answer=output.answer,
        timings=finished.timings,
    )
    tensors = output.tensors if output.answer is None else None
    return Reply(message.reply_to, bytes.fromhex(message.correlation), result, deadline_s, tensors)


def _report(state: AgentState, message: NodeInputs, error: Exception | None, now_s: float) -> Iterable[Action]:
    if isinstance(error, RequestFailed):
        yield _failed(message, error, retry=False, now_s=now_s)
        return
    if isinstance(error, ModuleRefused):  # unloaded while it waited: another device may hold it
        yield _failed(message, RequestFailed(ErrorCode.MODULE_FAILED, str(error)), retry=True, now_s=now_s)
        return
    if is_out_of_memory(error):  # another device, or a later moment, may have it
        text = f"{state.device} has not the memory left to run {message.node}"
        yield Log("out_of_memory", {"request": message.request, "node": message.node})
        yield _failed(message, RequestFailed(ErrorCode.MODULE_FAILED, text), retry=True, now_s=now_s)
        return
    text = f"{message.node} failed on {state.device}: {type(error).__name__}: {error}"
    yield Log("module_failed", {"request": message.request, "node": message.node, "error": text})
    yield _failed(message, RequestFailed(ErrorCode.MODULE_FAILED, text[:500]), retry=False, now_s=now_s)


def _failed(message: NodeInputs, error: RequestFailed, *, retry: bool, now_s: float) -> Send:
    device = message.plan.nodes[message.node].device
    body = ErrorBody(code=error.code, message=error.message, retry_after_s=error.retry_after_s)
    failed = NodeFailed(**_envelope(message), device=device, retry=retry, error=body)
    return Send(message.coordinator, failed, {}, now_s + message.deadline_s)


def _envelope(message: NodeInputs) -> dict[str, object]:
    return {name: getattr(message, name) for name in Envelope.model_fields}


def _keep(state: AgentState, run: NodeRun, finished: Finished, now_s: float) -> None:
    _sweep(state, now_s)
    _let_go(state, run)
    state.finished[run] = finished
    state.finished_bytes += finished.size_bytes
    while state.finished_bytes > MAX_OUTPUT_BYTES or len(state.finished) > MAX_OUTPUTS:
        _let_go(state, next(iter(state.finished)))


def _sweep(state: AgentState, now_s: float) -> None:
    """Let go of outputs that nobody can ask for any more; now and then, for it looks at each."""
    if now_s < state.sweep_s:
        return
    state.sweep_s = now_s + SWEEP_S
    for run in [run for run, finished in state.finished.items() if now_s >= finished.deadline_s]:
        _let_go(state, run)


def _let_go(state: AgentState, run: NodeRun) -> None:
    if finished := state.finished.pop(run, None):
        state.finished_bytes -= finished.size_bytes


def _drop_join(state: AgentState, run: NodeRun) -> None:
    if joining := state.joining.pop(run, None):
        state.join_bytes -= joining.size_bytes
        if state.turns.discard(joining.message.task, run):
            _no_longer_waits(state, joining)


def _no_longer_waits(state: AgentState, joining: Joining) -> None:
    joining.waiting = False
    state.queued -= Counter({joining.message.plan.nodes[joining.message.node].key: 1})
