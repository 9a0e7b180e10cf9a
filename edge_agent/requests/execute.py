"""The rules of running nodes: inputs arrive, a module runs, the output goes on. Sans-I/O, deterministic.

Owns the pending nodes and the outputs that are kept for retries. Knows nothing about the choice of devices
(``coordinate``), and not when a node is computed (``submit``).

Invariants:
- A node of a request is computed at most once at a time here, whatever attempts and duplicates arrive.
- The values of one (request, node) are the same in every attempt: modules are pure functions of their inputs.
- Inputs under a plan older than this device's assignment are refused, never run.
- Another device may have as many nodes and bytes waiting here as are left free: one that never sends the rest, with the
  longest deadline, leaves half of the room to the others.
"""

from __future__ import annotations

import json
from collections import Counter

from broker.protocol.errors import ErrorCode, LocalProtocolError, ModuleRefused, RequestFailed
from broker.protocol.messages import Envelope, ErrorBody, NodeDone, NodeFailed, NodeInputs, Permit, Result, Timing
from broker.protocol.specs import DeviceId, ModuleKey
from broker.protocol.topics import may_reply_to
from edge_agent import term
from edge_agent.events import Action, Log, NodeRun, PassIsLost, Ran, Received, Reply, Send, SendHeartbeat
from edge_agent.requests import quarantine, submit
from edge_agent.requests.load_estimate import on_pass_ended, own_wait_s
from edge_agent.runtime.out_of_memory import refused_memory
from edge_agent.state import (
    NODE_BYTES,
    AgentState,
    KeptOutput,
    PendingNode,
    kept_bytes_of,
    message_bytes_of,
    size_of,
)

MAX_PENDING = 4096  # nodes
MAX_PENDING_BYTES = 128 * 1024 * 1024  # of their inputs and messages
MAX_KEPT = 4096  # outputs that answer a retry without computing again
MAX_KEPT_BYTES = 64 * 1024 * 1024
SWEEP_S = 1.0  # between two searches for expired outputs
_ENVELOPE = tuple(Envelope.model_fields)


def on_inputs(state: AgentState, event: Received, message: NodeInputs, now_s: float) -> list[Action]:
    """Forward a kept output, or store the inputs and run the node when all are here."""
    planned = message.plan.nodes.get(message.node)
    if planned is None or not _may_send(state, event.sender, message) or planned.device != state.device:
        state.dropped["bad_envelope"] += 1
        return []
    if unfit := _unfit(state, message, planned.key, now_s):
        return [unfit]
    run = NodeRun(message.request, message.node, message.plan.work)
    if (kept := state.kept.get(run)) and now_s < kept.deadline_s:
        return _forward(state, message, kept, now_s, now_s + message.deadline_s, is_kept=True)
    if run not in state.pending and (refusal := _overload(state, event.sender, message, planned.key, now_s)):
        state.dropped["overloaded"] += 1
        return [_failed(message, refusal, now_s)]
    if (pending := state.pending.get(run)) is None:
        pending = state.pending[run] = PendingNode(message, now_s + message.deadline_s, event.sender)
        state.pending_of[event.sender] += 1
    if message.attempt >= pending.message.attempt:
        pending.message = message
    if refusal := _store(state, pending, event, message):
        submit.drop_pending(state, run)
        return [_failed(message, refusal, now_s, retry=refusal.code == ErrorCode.OVERLOADED)]
    return _enqueue_when_complete(state, run, pending, now_s)


def on_module_ready(state: AgentState, key: ModuleKey, now_s: float) -> list[Action]:
    """Run the nodes that waited for a module."""
    waiting = [(run, each) for run, each in state.pending.items() if each.key == key]
    return [action for run, pending in waiting for action in _enqueue_when_complete(state, run, pending, now_s)]


def on_module_gone(state: AgentState, key: ModuleKey, now_s: float) -> list[Action]:
    """Return the nodes that waited for an unloaded or failed module to their coordinators."""
    gone = [(run, each) for run, each in state.pending.items() if each.key == key and not each.running]
    for run, _ in gone:
        submit.drop_pending(state, run)
    text = f"{state.device} no longer holds {key}"
    return [_failed(pending.message, text, now_s) for _, pending in gone]


def on_pass_lost(state: AgentState, event: PassIsLost, now_s: float) -> list[Action]:
    """Return all nodes to their coordinators. That of a hung pass isn't tried elsewhere: it may hang there, too.

    Of several in the pass nobody knows which one hangs, and an accelerator may fail by itself: each is tried elsewhere,
    alone.
    """
    actions: list[Action] = []
    for each, pending in list(state.pending.items()):
        submit.drop_pending(state, each)
        is_in_it = each in event.runs
        text = f"{each.node} hangs on {state.device}" if is_in_it else f"{state.device} restarts: a pass hangs"
        if event.broken:
            text = f"{state.device} restarts: its accelerator fails ({event.broken})"
        is_suspect = is_in_it and (len(event.runs) > 1 or bool(event.broken))
        retry = is_suspect or not is_in_it
        actions.append(_failed(pending.message, text, now_s, retry=retry, quarantined=is_suspect))
    return actions


def on_ran(state: AgentState, event: Ran, now_s: float) -> list[Action]:
    """Submit the next pass; then keep and forward the output, or report the error to the coordinator."""
    on_pass_ended(state, event, now_s)
    told = [SendHeartbeat()] if quarantine.end_alone(state, event.run) else []
    return [*told, *submit.next_passes(state, now_s), *_on_output(state, event, now_s)]


def on_permit(state: AgentState, permit: Permit, now_s: float) -> list[Action]:
    """Submit the pass in quarantine that waited for the leader, or let it wait on."""
    if not term.obey(state, permit.epoch):
        return []
    if not permit.granted:
        quarantine.wait_on(state, permit.request, now_s)
        return []
    return submit.alone(state, now_s, permit.request)


def on_refused(state: AgentState, now_s: float) -> list[Action]:
    """Drop the nodes whose payloads are refused from now on, but for one that is computed."""
    over = [run for run, each in state.pending.items() if quarantine.refusal(state, each.message.payload, now_s)]
    actions: list[Action] = []
    for run in over:
        waits = state.alone is not None and state.alone.run == run and not state.alone.begun
        if waits or not state.pending[run].running:
            submit.drop_pending(state, run)
        if waits and quarantine.end_alone(state, run):
            actions.append(SendHeartbeat())
    return [*actions, *submit.next_passes(state, now_s)] if over else []


def on_tick(state: AgentState, now_s: float) -> list[Action]:
    """Drop what has no time left: inputs, whose coordinator answers the sensor, and outputs kept for retries."""
    _sweep(state, now_s)
    for run, pending in list(state.pending.items()):
        if now_s >= pending.deadline_s and not pending.running:
            state.dropped["expired"] += 1
            submit.drop_pending(state, run)
    return submit.alone(state, now_s)


def _on_output(state: AgentState, event: Ran, now_s: float) -> list[Action]:
    pending = state.pending.get(event.run)
    if pending is None:
        return []  # its deadline passed meanwhile
    submit.drop_pending(state, event.run)
    message, output = pending.message, event.output
    if now_s >= pending.deadline_s:
        state.dropped["expired"] += 1
        return []
    if output is None:
        return _on_error(state, message, event.error, now_s)
    timing = Timing(
        node=message.node,
        device=state.device,
        queue_s=max(0.0, event.began_s - pending.complete_s),
        compute_s=event.compute_s,
        output_bytes=size_of(output.tensors),
        attempt=message.attempt,
        cached=event.cached,
        notes=output.notes,
    )
    given = output.tensors if event.given is None else event.given
    size_bytes = kept_bytes_of(output.tensors) + (0 if event.given is None else kept_bytes_of(given))
    size_bytes += 0 if output.answer is None else len(json.dumps(output.answer))
    size_bytes += NODE_BYTES * (len(pending.timings) + 1)
    kept = KeptOutput(
        output,
        given,
        (*pending.timings.values(), timing),
        size_bytes,
        pending.size_bytes,
        pending.deadline_s,
        event.batch,
    )
    _keep(state, event.run, kept, now_s)
    return _forward(state, message, kept, now_s, pending.deadline_s)


def _unfit(state: AgentState, message: NodeInputs, key: ModuleKey, now_s: float) -> Send | None:
    """The answer to inputs that this device can't compute whatever its load, or mustn't."""
    is_stale = (message.epoch, message.generation) < state.fence
    if is_stale or key not in state.assigned or key in state.failed:
        state.dropped["stale" if is_stale else "not_held"] += 1
        stale = f"the plan is older than the assignment of {state.device}"
        return _failed(message, stale if is_stale else f"{state.device} is not assigned {key}", now_s)
    refused = quarantine.refusal(state, message.payload, now_s)
    return _failed(message, refused, now_s, retry=False) if refused else None


def _may_send(state: AgentState, sender: DeviceId, message: NodeInputs) -> bool:
    """Whether the sender can have these inputs, and the answer goes to an allowed topic."""
    nodes = message.plan.nodes
    able = (nodes[need].device for need in nodes[message.node].needs if need in nodes)
    return (sender == message.coordinator or sender in able) and may_reply_to(state.prefix, message.reply_to)


def _overload(
    state: AgentState, sender: DeviceId, message: NodeInputs, key: ModuleKey, now_s: float
) -> RequestFailed | None:
    """The refusal of a new node: too many nodes are pending, or it can't be computed in time."""
    free = MAX_PENDING - len(state.pending)
    if free <= _counted(state, sender, state.pending_of):
        return _too_many(state)
    compute_s = state.measured_s.get(key, 0.0)
    deadline_s = now_s + message.deadline_s
    wait_s = own_wait_s(
        state, now_s, task=message.task, client=message.client, new_work_s=compute_s, deadline_s=deadline_s
    )
    if not wait_s or wait_s + compute_s <= message.deadline_s:
        return None
    text = f"{state.device} has {wait_s:.1f} s of work before it, and {message.deadline_s:.1f} s were left"
    return RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=wait_s + compute_s - message.deadline_s)


def _counted(state: AgentState, sender: DeviceId, held: Counter[DeviceId]) -> int:
    """The part of these that must not exceed what is left free: all of another device's, nothing of our own."""
    return 0 if sender == state.device else held[sender]


def _add_bytes(state: AgentState, pending: PendingNode, size_bytes: int) -> bool:
    """Count more bytes of a pending node, or fewer, if there is room."""
    free = MAX_PENDING_BYTES - state.pending_bytes - size_bytes
    if size_bytes > 0 and free < _counted(state, pending.sender, state.pending_bytes_of):
        return False
    state.pending_bytes += size_bytes
    state.pending_bytes_of[pending.sender] += size_bytes
    return True


def _too_many(state: AgentState) -> RequestFailed:
    text = f"{state.device} holds too many waiting inputs; send more slowly"
    return RequestFailed(ErrorCode.OVERLOADED, text, retry_after_s=1.0)


def _store(state: AgentState, pending: PendingNode, event: Received, message: NodeInputs) -> RequestFailed | None:
    """Add the new values of a message to a node; return the refusal if it can't be done."""
    new_bytes = message_bytes_of(pending.message) - pending.message_bytes
    if not _add_bytes(state, pending, new_bytes):
        return _too_many(state)
    pending.message_bytes += new_bytes
    known = pending.message.plan.nodes
    pending.timings.update({timing.node: timing for timing in message.timings if timing.node in known})
    if unknown := sorted(event.values.keys() - set(message.plan.nodes[message.node].needs)):
        return RequestFailed(ErrorCode.MODULE_FAILED, f"{message.node} takes no {unknown[0]}")
    for need, value in event.values.items():
        if need in pending.values:
            continue
        size_bytes = kept_bytes_of(value)
        if not _add_bytes(state, pending, size_bytes):
            return _too_many(state)
        pending.size_bytes += size_bytes
        pending.values[need] = value
    return None


def _enqueue_when_complete(state: AgentState, run: NodeRun, pending: PendingNode, now_s: float) -> list[Action]:
    needs = pending.message.plan.nodes[run.node].needs
    queued = pending.waiting or pending.running
    if queued or pending.key not in state.ready or any(need not in pending.values for need in needs):
        return []
    pending.waiting, pending.complete_s = True, now_s
    pending.flow = pending.message.task, pending.message.client
    state.fair_queue.add(pending.flow[0], run, pending.deadline_s, client=pending.flow[1])
    return submit.next_passes(state, now_s)


def _forward(
    state: AgentState,
    message: NodeInputs,
    kept: KeptOutput,
    now_s: float,
    deadline_s: float,
    *,
    is_kept: bool = False,
) -> list[Action]:
    """Send an output to every node that takes it, the output node's to the sensor, and ``done`` to the coordinators."""
    plan = message.plan
    actions: list[Action] = []
    update = {"timings": kept.timings, "content_types": {}, "deadline_s": max(0.0, deadline_s - now_s)}
    for consumer in plan.consumers(message.node):
        inputs = message.model_copy(update=update | {"node": consumer})
        values = {message.node: kept.given} if kept.given else {}
        actions.append(Send(plan.nodes[consumer].device, inputs, values, deadline_s))
    own_s = state.measured_s.get(plan.nodes[message.node].key, 0.0)
    done = NodeDone(
        **_envelope(message),
        queue_s=own_wait_s(state, now_s, task=message.task, client=message.client, new_work_s=own_s),
        waited_s=0.0 if is_kept else kept.timings[-1].queue_s,
        compute_s=0.0 if is_kept else kept.timings[-1].compute_s,
        input_bytes=kept.input_bytes,
        cache_hit=is_kept or kept.timings[-1].cached,
        batch=1 if is_kept else kept.batch,
    )
    if message.node != plan.output:
        return [*actions, Send(message.coordinator, done, {}, deadline_s)]
    owners = (message.coordinator, *message.second_door)
    return [*actions, _answer(message, kept, deadline_s), *(Send(device, done, {}, deadline_s) for device in owners)]


def _answer(message: NodeInputs, kept: KeptOutput, deadline_s: float) -> Reply:
    result = Result(
        request=message.request,
        task=message.task,
        epoch=message.epoch,
        generation=message.generation,
        revision=message.revision,
        coordinator=message.coordinator,
        answer=kept.output.answer,
        timings=kept.timings,
    )
    tensors = kept.output.tensors if kept.output.answer is None else None
    return Reply(message.reply_to, bytes.fromhex(message.correlation), result, deadline_s, tensors)


def _on_error(state: AgentState, message: NodeInputs, error: Exception | None, now_s: float) -> list[Action]:
    """Report a failed pass to the coordinator; ``retry`` where another device or a later moment may succeed."""
    if isinstance(error, RequestFailed | LocalProtocolError):  # such as a number beyond float16, on any device
        return [_failed(message, error if isinstance(error, RequestFailed) else str(error), now_s, retry=False)]
    if isinstance(error, ModuleRefused):  # unloaded while the node waited
        return [_failed(message, str(error), now_s)]
    fields: dict[str, object] = {"request": message.request, "node": message.node}
    if memory := refused_memory(error):
        text = f"{state.device} has too little {memory} left to run {message.node}"
        return [Log("out_of_memory", fields), _failed(message, text, now_s)]
    text = f"{message.node} failed on {state.device}: {type(error).__name__}: {error}"
    failed = _failed(message, text[:500], now_s, retry=False)
    return [Log("module_failed", fields | {"error": text}), failed]


def _failed(
    message: NodeInputs, error: RequestFailed | str, now_s: float, *, retry: bool = True, quarantined: bool = False
) -> Send:
    if isinstance(error, str):
        error = RequestFailed(ErrorCode.MODULE_FAILED, error)
    body = ErrorBody(code=error.code, message=error.message, retry_after_s=error.retry_after_s)
    told = failure(message, body, retry=retry, quarantined=quarantined)
    return Send(message.coordinator, told, {}, now_s + message.deadline_s)


def failure(message: NodeInputs, error: ErrorBody, *, retry: bool, quarantined: bool = False) -> NodeFailed:
    """The message to the coordinator when a node can't run on its device; in quarantine it must be retried alone."""
    device = message.plan.nodes[message.node].device
    return NodeFailed(**_envelope(message), device=device, retry=retry, quarantined=quarantined, error=error)


def _envelope(message: NodeInputs) -> dict[str, object]:
    return {name: getattr(message, name) for name in _ENVELOPE}


def _keep(state: AgentState, run: NodeRun, kept: KeptOutput, now_s: float) -> None:
    _sweep(state, now_s)
    _drop_kept(state, run)
    state.kept[run] = kept
    state.kept_bytes += kept.size_bytes
    while state.kept_bytes > MAX_KEPT_BYTES or len(state.kept) > MAX_KEPT:
        _drop_kept(state, next(iter(state.kept)))


def _sweep(state: AgentState, now_s: float) -> None:
    """Drop expired outputs, at most every ``SWEEP_S``: that looks at each output."""
    if now_s < state.sweep_at_s:
        return
    state.sweep_at_s = now_s + SWEEP_S
    for run in [run for run, kept in state.kept.items() if now_s >= kept.deadline_s]:
        _drop_kept(state, run)


def _drop_kept(state: AgentState, run: NodeRun) -> None:
    if kept := state.kept.pop(run, None):
        state.kept_bytes -= kept.size_bytes
