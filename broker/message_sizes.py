"""The sizes of a task's messages, by its spec, against what a broker takes. Pure.

Owns which messages a task sends, how large they are, and the sentence about one that is too large. The sizes of inputs
and outputs are the typical ones of the task's file. Doesn't know how a broker's limit is found out.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.protocol.codec import MAX_MESSAGE_BYTES
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import TaskSpec

_HEADER_BYTES = 3 * 1024  # topic, properties, ids, deadline, Response Topic: less than this
_NODE_BYTES = 640  # of the plan and the timings, beside the names of a node: less than this
_INPUT_BYTES = 384  # a content type and an array's place
_ANSWERED_NUMBER_BYTES = 16  # of an embedding's number in JSON
_FLOAT32_BYTES = 4


class SentMessage(NamedTuple):
    """A message of a task: what it carries, its bytes, and at most as many beside them for its header and topic."""

    what: str
    size_bytes: int
    header_bytes: int

    @property
    def packet_bytes(self) -> int:
        """An upper bound of its packet."""
        return self.size_bytes + self.header_bytes


def largest_message(task: TaskSpec) -> SentMessage:
    """The largest message that a task's requests need, by its spec."""
    sizes = {"the inputs together": sum(given.bytes for given in task.inputs.values())}
    sizes |= {f"the output of {name}": task.sent_bytes(name) for name in task.order}
    answered = task.module_of(task.output).output_bytes  # the answer isn't rounded
    sizes[f"the output of {task.output}"] = answered
    if task.answer is not None:
        sizes["the answer in JSON"] = answered // _FLOAT32_BYTES * _ANSWERED_NUMBER_BYTES
    what = max(sizes, key=lambda name: sizes[name])
    return SentMessage(what, sizes[what], header_bytes(task))


def header_bytes(task: TaskSpec) -> int:
    """At most as many bytes have the header, the topic and the properties of a task's messages."""
    nodes = sum(
        _NODE_BYTES + len(task.module_of(name).key) + 2 * len(name) + sum(len(need) + 8 for need in node.needs)
        for name, node in task.nodes.items()
    )
    return _HEADER_BYTES + nodes + sum(_INPUT_BYTES + len(name) for name in task.inputs)


def why_too_large(task: TaskSpec, limit_bytes: int | None) -> str | None:
    """The reason why a task's messages can't pass a broker that takes packets of ``limit_bytes``; None if they can.

    None as the limit is a broker without one; then our own counts.
    """
    largest, most = largest_message(task), min(MAX_MESSAGE_BYTES, limit_bytes or MAX_MESSAGE_BYTES)
    return None if largest.packet_bytes <= most else too_large(largest, most)


def too_large(message: SentMessage, limit_bytes: int) -> str:
    """The sentence about a message that can't pass."""
    size, header, limit = show_sizes(message.size_bytes, message.header_bytes, limit_bytes)
    fix = "make it smaller"
    if message.what == "the inputs together":
        fix = "send smaller ones, and write their size into the task's inputs (bytes)"
    if limit_bytes < MAX_MESSAGE_BYTES:
        fix = f"{fix}, or raise the broker's limit (Mosquitto: max_packet_size)"
    carried = f"{message.what} ({size}, and up to {header} for the header)"
    return f"{carried} can't pass the broker, where a message has at most {limit}: {fix}"
