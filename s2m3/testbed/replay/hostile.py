"""Hostile messages, such as any MQTT client that may connect can send.

Owns their kinds: malformed, short, oversized, duplicated, and lies about the past (stale) and the future: of terms that
no leader can have come to, and of a device that reports any term, suspects another and says that it holds anything.
They are drawn with a seed, so that a replay can be repeated; only the duplicates depend on the messages that were
really sent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from broker.protocol.codec import MAX_CONTROL_BYTES, MAX_INPUT_BYTES, encode, encode_tensors
from broker.protocol.messages import (
    MAX_EPOCH_JUMP,
    MAX_FENCE,
    Assignment,
    DeviceProfile,
    DeviceState,
    Heartbeat,
    HeldModule,
    NodeInputs,
    OrchestratorState,
    Plan,
    PlannedNode,
    Route,
)
from broker.protocol.specs import DeviceId, TaskName
from broker.protocol.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    ORCHESTRATOR_HEARTBEAT,
    ORCHESTRATOR_STATE,
    RESULTS,
    TASK_REQUESTS,
    TASK_ROUTE,
    TENSORS,
)
from broker.transport.port import Delivery, Outgoing

STRANGER = "hostile"  # the device that it pretends to be, and its name as a client
OVERSIZED_EVERY = 100  # messages: each takes megabytes, at the broker, at every front door and here


@dataclass
class Hostile:
    """Makes such messages for one device."""

    prefix: str  # of the site's topics
    device: DeviceId
    tasks: Sequence[TaskName]  # of the site
    seed: int  # of all that is drawn

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - a load, not a secret
        self._count = 0

    def next(self, recent: Sequence[Delivery]) -> Outgoing:
        """One more; ``recent`` are messages that were really sent, of which one may come again."""
        self._count += 1
        if self._count % OVERSIZED_EVERY == 0:
            return self._chance.choice((self._oversized_control, self._oversized_input))()
        honest = [each for each in recent if not each.topic.startswith(f"{self.prefix}/tensors/{STRANGER}/")]
        makers = [
            self._malformed_tensors,
            self._short_tensors,
            self._malformed_control,
            self._bad_request,
            self._stale,
            self._future,
            self._stranger,
        ]
        if honest and self._chance.random() < 1 / (len(makers) + 1):
            return _again(self._chance.choice(honest))
        return self._chance.choice(makers)()

    def _tensors_topic(self) -> str:
        request = f"r{self._chance.randrange(10**6)}"
        return TENSORS.at(self.prefix, sender=STRANGER, receiver=self.device, request=request, node="image-encoder")

    def _malformed_tensors(self) -> Outgoing:
        payload = self._chance.choice(
            (b"", b"\0", b"\xff" * 8, (2**63).to_bytes(8, "little"), b"{}" * 50, self._chance.randbytes(300))
        )
        return Outgoing(self._tensors_topic(), payload)

    def _short_tensors(self) -> Outgoing:
        whole = self._stale_tensors()
        return Outgoing(self._tensors_topic(), whole[: self._chance.randrange(1, len(whole))])

    def _malformed_control(self) -> Outgoing:
        payload = self._chance.choice((b"{", b'{"epoch": "x"}', b"[]", b"\xff\xfe", b"null", b'{"epoch": 1e999}'))
        return Outgoing(self._control_topic(), payload)

    def _control_topic(self) -> str:
        assignment = DEVICE_ASSIGNMENT.at(self.prefix, device=self.device)
        return self._chance.choice((assignment, TASK_ROUTE.at(self.prefix, task=self._chance.choice(self.tasks))))

    def _bad_request(self) -> Outgoing:
        payload, kind = self._chance.choice(
            (
                (b"\xff\xd8\xff\xe0 no picture", "image/jpeg"),
                (b"", "image/png"),
                (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "image/png"),
                (b"\0" * 32, "application/x-safetensors"),
                (b"{}", "text/plain"),
            )
        )
        return self._request(payload, kind)

    def _request(self, payload: bytes, content_type: str) -> Outgoing:
        return Outgoing(
            TASK_REQUESTS.at(self.prefix, task=self._chance.choice(self.tasks)),
            payload,
            response_topic=RESULTS.at(self.prefix, client=STRANGER, request="0"),
            correlation=self._chance.randbytes(8),
            content_type=content_type,
            expiry_s=5,
        )

    def _oversized_control(self) -> Outgoing:
        return Outgoing(self._control_topic(), b'{"epoch": 1, "x": "' + b"x" * MAX_CONTROL_BYTES + b'"}')

    def _oversized_input(self) -> Outgoing:
        return self._request(b"\xff\xd8\xff" + b"\0" * MAX_INPUT_BYTES, "image/jpeg")

    def _stale(self) -> Outgoing:
        task, reason = self._chance.choice(self.tasks), "from an orchestrator of long ago"
        route = Route(task=task, epoch=0, generation=0, group=0, unavailable=reason)
        assignment = DEVICE_ASSIGNMENT.at(self.prefix, device=self.device), encode(Assignment(epoch=0, generation=0))
        tensors = self._tensors_topic(), self._stale_tensors()
        old = (tensors, assignment, (TASK_ROUTE.at(self.prefix, task=task), encode(route)))
        return Outgoing(*self._chance.choice(old))

    def _future(self) -> Outgoing:
        """A term that no leader can have come to, in one of the leader's topics."""
        epoch = self._chance.choice((2 + MAX_EPOCH_JUMP + self._chance.randrange(2**40), MAX_FENCE - 1, MAX_FENCE))
        route = Route(task=self._chance.choice(self.tasks), epoch=epoch, generation=0, group=0, unavailable="never")
        state = OrchestratorState(
            epoch=epoch,
            online=self._chance.choice((True, False)),
            session=self._chance.randrange(MAX_FENCE),
            change=self._chance.choice((0, MAX_FENCE)),
        )
        digits = b'{"epoch": ' + b"9" * 4300 + b', "online": true, "session": 1}'
        topic, payload = self._chance.choice(
            (
                (ORCHESTRATOR_STATE.at(self.prefix), encode(state)),
                (ORCHESTRATOR_STATE.at(self.prefix), self._chance.choice((digits, b""))),
                (ORCHESTRATOR_HEARTBEAT.at(self.prefix), encode(state)),
                (TASK_ROUTE.at(self.prefix, task=route.task), encode(route)),
                (DEVICE_ASSIGNMENT.at(self.prefix, device=self.device), encode(Assignment(epoch=epoch, generation=0))),
            )
        )
        return Outgoing(topic, payload, retain=topic == ORCHESTRATOR_STATE.at(self.prefix))

    def _stranger(self) -> Outgoing:
        """A device that doesn't exist, or exists only as a liar: too small for any module."""
        session = self._chance.randrange(3)
        profile = DeviceProfile(memory_bytes=1, compute_flops_per_s=1e21, bandwidth_bits_per_s=1e12, latency_s=0.0)
        status: Literal["online", "offline"] = self._chance.choice(("online", "offline"))
        state = DeviceState(status=status, session=session, profile=profile if status == "online" else None)
        held = HeldModule(module="m", state="ready", memory_bytes=2**50, compute_s=0.0)
        heartbeat = Heartbeat(
            session=session,
            seq=self._chance.choice((self._count, MAX_FENCE)),
            epoch=self._chance.choice((0, 2, MAX_FENCE)),
            generation=self._chance.choice((0, 2, MAX_FENCE)),
            modules={"k": held},
            suspects={self.device: 0.0},
        )
        topic, message = self._chance.choice(((DEVICE_STATE, state), (DEVICE_HEARTBEAT, heartbeat)))
        return Outgoing(topic.at(self.prefix, device=STRANGER), encode(message))

    def _stale_tensors(self) -> bytes:
        planned = PlannedNode(key="k", needs=("image",), device=self.device)
        message = NodeInputs(
            request=f"r{self._chance.randrange(10**6)}",
            task=self._chance.choice(self.tasks),
            node="image-encoder",
            epoch=0,
            generation=0,
            attempt=0,
            coordinator=STRANGER,
            deadline_s=5.0,
            reply_to=RESULTS.at(self.prefix, client=STRANGER, request="0"),
            plan=Plan(nodes={"image-encoder": planned}, output="image-encoder"),
            content_types={"image": "image/png"},
        )
        return encode_tensors(message, {"image/raw": np.zeros(64, dtype=np.uint8)})


def _again(delivery: Delivery) -> Outgoing:
    """The very same message once more."""
    return Outgoing(
        delivery.topic,
        delivery.payload,
        response_topic=delivery.response_topic,
        correlation=delivery.correlation,
        content_type=delivery.content_type,
        expiry_s=delivery.expiry_s or None,
    )
