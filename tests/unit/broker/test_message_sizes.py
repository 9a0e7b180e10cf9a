"""Sizes of a task's messages: the largest one, its header, and the sentence where a broker doesn't take it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from broker.message_sizes import header_bytes, largest_message, why_too_large
from broker.protocol.codec import MAX_MESSAGE_BYTES, encode_tensors
from broker.protocol.messages import NodeInputs, Plan, PlannedNode, Timing
from broker.protocol.specs import InputSpec, TaskSpec
from broker.protocol.topics import TENSORS, prefix_of
from broker.transport.port import MAX_PACKET_BYTES, Outgoing
from edge_agent import catalog
from s2m3.catalogue import load_task
from tests import builders

module = partial(builders.module, flops=2e9)
TASK = builders.read_and_see(module("vision"), module("text"), module("head"))
LONGEST = "d" * 63


def changed(**fields: object) -> TaskSpec:
    return TASK.model_copy(update=fields)


def test_a_task_whose_messages_pass_exactly_is_not_refused() -> None:
    largest = largest_message(TASK)
    assert (largest.what, largest.size_bytes) == ("the inputs together", 150_200)
    assert why_too_large(TASK, largest.packet_bytes) is None
    why = why_too_large(TASK, largest.packet_bytes - 1)
    assert why is not None
    assert why.startswith("the inputs together (146.7 KiB, and up to ")
    fix = "send smaller ones, and write their size into the task's inputs (bytes)"
    assert why.endswith(f"{fix}, or raise the broker's limit (Mosquitto: max_packet_size)")


def test_an_output_that_cannot_pass_is_named_with_its_size() -> None:
    why = why_too_large(changed(modules={**TASK.modules, "text": module("text", output_bytes=5_000_000)}), 2_000_000)
    assert why is not None
    assert "the output of read (4.8 MiB" in why
    assert "at most 1.9 MiB: make it smaller, or raise the broker's limit" in why


def test_a_broker_without_a_limit_takes_what_the_contract_allows() -> None:
    most = changed(inputs={"image": InputSpec(kind="image", bytes=MAX_MESSAGE_BYTES)})
    assert why_too_large(TASK, None) is None
    why = why_too_large(most, None)
    assert why is not None
    assert why.endswith("at most 16 MiB: send smaller ones, and write their size into the task's inputs (bytes)")
    assert largest_message(most).packet_bytes > MAX_PACKET_BYTES - 64 * 1024


def test_a_float16_wire_halves_what_nodes_send_and_not_the_answer() -> None:
    modules = {
        **TASK.modules,
        "text": module("text", output_bytes=5_000_001),
        "head": module("head", output_bytes=3_000_000),
    }
    task = changed(modules=modules, wire="float16")
    assert largest_message(task)[:2] == ("the output of head", 3_000_000)
    assert largest_message(changed(modules=modules))[:2] == ("the output of read", 5_000_001)


def test_embeddings_are_larger_in_json_than_on_the_wire() -> None:
    modules = {**TASK.modules, "head": module("head", output_bytes=200_000)}
    task = changed(modules=modules, answer="embeddings")
    assert largest_message(task)[:2] == ("the answer in JSON", 800_000)


@pytest.mark.parametrize("name", catalog.names())
def test_no_header_is_longer_than_the_room_that_is_left_for_it(name: str) -> None:
    task = load_task(name)
    nodes = {
        node: PlannedNode(key=task.module_of(node).key, needs=spec.needs, use=spec.use, device=LONGEST)
        for node, spec in task.nodes.items()
    }
    timings = tuple(
        Timing(
            node=node, device=LONGEST, queue_s=0.123456789012345, compute_s=1e-12, output_bytes=2**40, attempt=2**53 - 1
        )
        for node in nodes
    )
    message = NodeInputs(
        request="f" * 32,
        task=task.task,
        node=task.output,
        epoch=2**53 - 1,
        generation=2**53 - 1,
        attempt=2**53 - 1,
        revision=task.revision,
        coordinator=LONGEST,
        deadline_s=12345.1234567890123,
        reply_to="r" * 512,
        client="c" * 64,
        correlation="ff" * 64,
        plan=Plan(nodes=nodes, output=task.output, answer=task.answer, wire=task.wire, revision=task.revision),
        content_types=dict.fromkeys(task.inputs, "image/" + "j" * 200),
        timings=timings,
        second_door=(LONGEST,),
        payload="f" * 32,
        quarantined=True,
    )
    arrays = {f"{need}/raw": np.zeros(1, np.uint8) for need in task.inputs}
    topic = TENSORS.at(prefix_of("plant-4"), sender=LONGEST, receiver=LONGEST, request="f" * 32, node=task.output)
    packet = Outgoing(topic, encode_tensors(message, arrays), expiry_s=30).packet_bytes
    assert packet <= header_bytes(task)
    assert header_bytes(task) < 16 * 1024, "a broker that takes 128 KiB takes a picture of 112"
