"""The port to the broker: publish, subscribe, will. It has two implementations, ``paho`` and ``memory``.

Owns what both promise:
- Events arrive by calling the inbox, which must only put them on a queue and return.
- ``LinkUp`` comes when the connection stands *and* the broker has acknowledged every remembered subscription: a birth
  that is published then is never ahead of its own subscriptions. It comes again at each reconnection, with a new
  session number.
- Publishing never waits. A message that can't be sent is an error at once. A message with QoS 1 and a token that no
  client subscribes to comes back as ``Undelivered``; not every broker reports this.
- Where a broker has no shared subscriptions, a shared filter is subscribed as a plain one, so each member of the group
  gets each message: ``LinkUp`` says so, and who forms a group gives it one member.
- Delivery is at most once per hop. The sensor makes it sure end to end: request id, deadline, retry. A ``lasting``
  message, which no client would send again, is delivered at least once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from broker.protocol.codec import MAX_CONTROL_BYTES, MAX_MESSAGE_BYTES
from broker.protocol.errors import LocalProtocolError
from broker.protocol.trace_context import Traceparent, read_traceparent
from broker.transport.connection import Connection

LONGEST_RETRY_S = 5.0  # between two attempts to reach a broker that is down
RECONNECT_S = LONGEST_RETRY_S + 1.0  # from a broker's return until every client is connected again
MAX_STRING_BYTES = 65_535  # MQTT counts the bytes of a topic, a content type or correlation data in 16 bits
MAX_EXPIRY_S = 2**32 - 1
MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + 64 * 1024  # room for the topic and the properties
MAX_CONTROL_PACKET_BYTES = MAX_CONTROL_BYTES + 1024  # of a control connection; its topics are short
_PACKET_OVERHEAD_BYTES = 64  # fixed header, lengths, packet id, property ids and names, expiry: less than this


_NOT_IN_TOPICS = re.compile("[+#\0]")


def _check_topic(topic: str) -> None:
    if not topic or _NOT_IN_TOPICS.search(topic) or len(topic.encode()) > MAX_STRING_BYTES:
        raise LocalProtocolError(
            f"{topic[:80]!r} is not a valid topic to publish to: use a short name without +, # and NUL"
        )


@dataclass(frozen=True)
class Outgoing:
    """A message to publish.

    ``token`` stays in this process and comes back in ``Undelivered``, ``Denied`` and ``Acknowledged``.
    A ``lasting`` message waits for the next connection, until it expires, and is sent again unless the broker has
    acknowledged it.

    Raises:
        LocalProtocolError: MQTT forbids the topic or a property, or a lasting message has QoS 0.
    """

    topic: str
    payload: bytes
    qos: Literal[0, 1] = 1
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expiry_s: int | None = None  # whole seconds, at least 1
    traceparent: Traceparent | None = None
    token: object = None
    lasting: bool = False
    confirm: bool = False  # report with ``Acknowledged`` that the broker has it; QoS 1

    def __post_init__(self) -> None:
        _check_topic(self.topic)
        if self.lasting and self.qos == 0:
            raise LocalProtocolError(
                f"{self.topic} can't last with QoS 0, which the broker doesn't acknowledge: use QoS 1"
            )
        if self.response_topic is not None:
            _check_topic(self.response_topic)
        if self.expiry_s is not None and not 1 <= self.expiry_s <= MAX_EXPIRY_S:
            raise LocalProtocolError(f"expiry_s must be 1 to {MAX_EXPIRY_S} whole seconds, got {self.expiry_s}")
        if "\0" in (self.content_type or "") or len((self.content_type or "").encode()) > MAX_STRING_BYTES:
            raise LocalProtocolError(f"a content type has at most {MAX_STRING_BYTES} bytes and no NUL")
        if len(self.correlation or b"") > MAX_STRING_BYTES:
            raise LocalProtocolError(f"correlation data have at most {MAX_STRING_BYTES} bytes")
        if self.traceparent is not None and read_traceparent(self.traceparent) != self.traceparent:
            raise LocalProtocolError("a traceparent that isn't valid can't be sent: leave it out")

    @cached_property
    def packet_bytes(self) -> int:
        """An upper bound of the packet's bytes; brokers limit the packet, not the payload."""
        texts = (self.topic, self.response_topic or "", self.content_type or "", self.traceparent or "")
        headers = sum(map(len, map(str.encode, texts))) + len(self.correlation or b"")
        return len(self.payload) + headers + _PACKET_OVERHEAD_BYTES


@dataclass(frozen=True)
class Delivery:
    """An arrived message."""

    topic: str
    payload: bytes
    retain: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    content_type: str | None = None
    expiry_s: int | None = None  # the rest that the broker left
    traceparent: Traceparent | None = None  # if there is a valid one


Feature = Literal["QoS 1", "retained messages", "wildcards in subscriptions", "shared subscriptions"]
"""A part of MQTT that a broker may lack; it says so when it accepts a connection."""
SHARED: Feature = "shared subscriptions"
NEEDED: frozenset[Feature] = frozenset({"QoS 1", "retained messages", "wildcards in subscriptions"})
"""A broker without one of these is refused."""
_SHARE = "$share/"


def plain_filter(name: str) -> str:
    """A filter without its share group, if it has one."""
    return name.split("/", 2)[2] if name.startswith(_SHARE) else name


@dataclass(frozen=True)
class LinkUp:
    """Connected and subscribed. ``max_packet_bytes`` is the broker's limit; None when it has none."""

    session: int
    max_packet_bytes: int | None = None
    lacks: frozenset[Feature] = frozenset()


Cause = Literal["lost", "absent", "refused", "taken"]
"""No connection, because nothing listens or answers (absent), each attempt will fail (refused), another client has this
client id (taken), or something else."""


@dataclass(frozen=True)
class LinkDown:
    """The connection ended, or an attempt failed; the transport reconnects by itself."""

    reason: str
    cause: Cause = "lost"


@dataclass(frozen=True)
class Undelivered:
    """The broker accepted a message, and no client subscribes to its topic."""

    topic: str
    token: object


@dataclass(frozen=True)
class Denied:
    """The broker refused a message or a subscription because of an access rule or a quota."""

    topic: str
    reason: str
    token: object = None  # of the message


@dataclass(frozen=True)
class Acknowledged:
    """The broker accepted a message with ``confirm``."""

    topic: str
    token: object


@dataclass(frozen=True)
class Subscribed:
    """The broker accepted a filter with ``confirm`` over a connection that stood already: what it retains comes now."""

    filter: str


LinkEvent = Delivery | LinkUp | LinkDown | Undelivered | Denied | Acknowledged | Subscribed
Inbox = Callable[[LinkEvent], None]


WillFor = Callable[[int], Outgoing]
"""Makes the will of a connection from its session number: the broker publishes it when the connection breaks."""


class Transport(Protocol):
    """A connection that restores itself."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""

    def start(self) -> None:
        """Begin to connect, and reconnect until ``close``; returns at once. ``LinkUp`` reports success."""

    def publish(self, message: Outgoing) -> None:
        """Hand a message to the broker without waiting.

        Raises:
            NotConnected: there is no connection, and the message isn't lasting.
            MessageTooLarge: larger than the broker's or our own limit.
            QueueFull: too many messages wait already.
        """

    def together(self) -> AbstractContextManager[None]:
        """Hold the small messages that this thread publishes meanwhile, some 64 KiB at most, and write them together.

        Each write wakes the broker, whose answer wakes this process. Only one thread may do so at a time.
        """

    def subscribe(self, *filters: str, confirm: bool = False) -> None:
        """Add filters, QoS 1; they are remembered and subscribed again at each connection.

        With ``confirm``, ``Subscribed`` reports each one that the broker accepts before the next ``LinkUp``.
        """

    def unsubscribe(self, *filters: str) -> None:
        """Remove filters."""

    def close(self) -> None:
        """Send the accepted messages, disconnect without the will, and stop. Safe to call twice."""


class MakeTransport(Protocol):
    """Makes a transport, not yet started: ``connect``, or a twin's for tests.

    Args:
        connection: the broker, and how to reach it.
        client_id: unique at the broker, which ends the older of two connections with the same id.
        inbox: called in the network thread, or in the twin's case in the thread that caused the event.
        will: makes the will for each connection's session number.
        max_packet_bytes: larger messages are refused, outgoing ones by ``publish`` and incoming ones by the broker.
        gather_s: QoS 0 messages that arrive faster than this one after the other are read together, so much later: a
            thread that wakes for each of a thousand heartbeats costs more than the heartbeats.
        sees_retain: a message that is published now with the retain flag arrives with it (MQTT's "retain as
            published"); by default only those have it that the broker had kept before.
    """

    def __call__(
        self,
        connection: Connection,
        /,
        *,
        client_id: str,
        inbox: Inbox,
        will: WillFor | None = None,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        gather_s: float = 0.0,
        sees_retain: bool = False,
    ) -> Transport:
        """Make it."""
