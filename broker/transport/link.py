"""One connection to the broker, from CONNECT to its end: it reads, writes, subscribes and pings.

Owns the messages that are under way, and why the connection ended. Doesn't know reconnections; the transport does.
The network thread uses the MQTT client, except while it waits: then a thread that publishes a small message writes it
itself (``write_now``). To wake the network thread would take as long as the message takes through the broker.

Invariants, each against a trap that was measured:
- Each connection has a new MQTT client, which resends nothing of an old session (it would resend an oversize message
  for ever). The outbox resends lasting messages.
- A long message counts as activity, though the ping waits behind it.
- A ping enters the client only between packets, as all that is written does: with TLS, a write that must wait is
  repeated with the same bytes.
- A connection that ends before the broker's answer says why in one sentence, as far as anybody can find out.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from broker.transport import failures, port
from broker.transport.connection import Connection
from broker.transport.dial import Dialer
from broker.transport.failures import CONNACK, Failure
from broker.transport.filters import Change, Filters
from broker.transport.gathering import Gathering
from broker.transport.keepalive import Keepalive
from broker.transport.mqtt_client import Limits, MqttClient, Reason
from broker.transport.outbox import Outbox
from broker.transport.port import LinkEvent, Outgoing
from broker.transport.publish_packet import Published
from broker.transport.wakeup import Wakeup

MAX_IN_FLIGHT = 20  # QoS 1 messages without their PUBACK: Mosquitto's default; a CONNACK may lower it
TOGETHER_BYTES = 64 * 1024  # with so many of them, no further message enters the client before they are written
CLOSE_S = 5.0  # limit of the wait for accepted messages at the end
MOST_LOGGED = 200  # characters of a stranger's topic
_TICK_S = 0.25  # between two looks at the keepalive
_NO_MATCHING_SUBSCRIBERS = 0x10
_SESSION_TAKEN_OVER = 0x8E


class Link:
    """One connection.

    Args:
        connection: the broker.
        dialer: opens the socket.
        client_id: of this connection.
        outbox: the messages to send.
        filters: what to subscribe to.
        emit: takes the events.
        max_packet_bytes: larger messages are refused.
        sees_retain: see ``MakeTransport``.
        log: the transport's log.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        dialer: Dialer,
        client_id: str,
        outbox: Outbox,
        filters: Filters,
        emit: Callable[[LinkEvent], None],
        max_packet_bytes: int,
        sees_retain: bool,
        log: Any,  # noqa: ANN401 - structlog's loggers are untyped
    ) -> None:
        self.session = secrets.randbits(53)  # exact in every JSON reader
        self.up = False  # accepted, and every filter subscribed
        self.failure: Failure | None = None  # why it ended
        self.has_reason = True  # false if the broker closed it without a word
        self.taken_over = False  # by another client with the same id
        self._connection, self._dialer, self._client_id = connection, dialer, client_id
        self._outbox, self._filters, self._emit, self._log = outbox, filters, emit, log
        self._max_packet_bytes, self._sees_retain = max_packet_bytes, sees_retain
        self._accepted = False
        self._limits = Limits(None, None)
        self._subscribing: dict[int, Change] = {}  # packet id -> filters without a SUBACK
        self._sent: dict[int, Outgoing] = {}  # packet id -> not written (QoS 0) or acknowledged (QoS 1)
        self._client = MqttClient(dialer, client_id, self)
        self._stuck = False  # the kernel's send buffer is full
        self._using = threading.Lock()  # held by the thread that uses the client
        self._closed = False
        self._error: Exception | None = None  # of another thread's write: it ends the connection

    def run(
        self,
        *,
        keepalive_s: int,
        will: Outgoing | None,
        wakeup: Wakeup,
        gathering: Gathering,
        closing: threading.Event,
    ) -> Failure:
        """Connect, then read, write and ping until the socket is closed; returns why it was.

        Raises:
            ConnectionFailed: the broker can't be reached.
        """
        client = self._client
        try:
            sock = client.open(
                self._connection, keepalive_s=keepalive_s, max_packet_bytes=self._max_packet_bytes, will=will
            )
            if sock is not None:
                with self._using:
                    self._pump(sock, wakeup, gathering, closing)
        finally:
            self._filters.end()
            with self._using:
                self._closed = True
                client.close()
        if self.failure is None and not self._accepted and not closing.is_set():
            self.failure = self._explain_refusal()
        return self.failure or Failure("the connection was lost")

    def write_now(self) -> bool:
        """Write the outbox's messages if the network thread waits; returns whether it needn't wake for them."""
        if not self._using.acquire(blocking=False):
            return False
        try:
            if not self.up or self._stuck or self._closed:
                return False
            self._stuck = self._flush()
        except Exception as error:  # noqa: BLE001 - it is the connection's, and not the publisher's
            self._error = error
            return False
        finally:
            self._using.release()
        return not self._stuck

    def _pump(self, sock: Any, wakeup: Wakeup, gathering: Gathering, closing: threading.Event) -> None:  # noqa: ANN401 - a socket
        client, outbox = self._client, self._outbox
        keepalive = Keepalive(time.monotonic(), time.monotonic())
        close_by_s = float("inf")
        while client.socket() is not None:  # a client never opens a second one
            if self._error is not None:
                raise self._error
            self._stuck = self._stuck or self._flush()
            if closing.is_set():
                close_by_s = min(close_by_s, time.monotonic() + CLOSE_S)
                if outbox.is_empty or time.monotonic() >= close_by_s:
                    client.say_goodbye()
            if client.socket() is None:
                return
            wait_s = gathering.wait_s
            unseen = not wait_s and client.has_unseen_bytes
            wants_room = self._stuck and not client.is_broken
            timeout_s = 0.0 if unseen else min(_TICK_S, wait_s or _TICK_S)
            self._using.release()
            try:
                readable, writable = wakeup.wait(sock, for_bytes=not wait_s, for_room=wants_room, timeout_s=timeout_s)
            finally:
                self._using.acquire()
            if readable or unseen:
                gathering.read(client)
                client.acknowledge()
            self._stuck = self._stuck and not writable
            now_s = time.monotonic()
            if readable or writable:
                keepalive.active_s = now_s
            if keepalive.is_dead(now_s, client.keepalive):
                self.failure = Failure("the broker is silent") if self._accepted else None
                return
            between_packets = client.is_connected() and not self._stuck and not client.want_write()
            if between_packets and keepalive.ping_due(now_s, client.keepalive):
                client.ping()

    def _flush(self) -> bool:
        """Write as much as possible; returns whether the kernel's send buffer is full.

        Messages enter the client when all earlier ones are written, small ones together; the outbox counts them all.
        """
        client = self._client
        for change in self._filters.take():
            if change.subscribe:
                self._subscribe(change)
            else:
                self._unsubscribe(change.filters)
        while True:
            if client.want_write():
                client.loop_write()
                if client.want_write():
                    return True
            queued_bytes = 0
            while queued_bytes < TOGETHER_BYTES and self._may_send and (message := self._outbox.take()) is not None:
                self._sent[client.send(message)] = message
                queued_bytes += message.packet_bytes
            if not queued_bytes:
                return False

    @property
    def _may_send(self) -> bool:
        return self._client.socket() is not None and len(self._sent) < (self._limits.in_flight or MAX_IN_FLIGHT)

    def _subscribe(self, change: Change) -> None:
        packet = self._client.add_filters(self._taken(change.filters), sees_retain=self._sees_retain)
        if packet is not None:
            self._subscribing[packet] = change

    def _unsubscribe(self, filters: tuple[str, ...]) -> None:
        others = self._taken(tuple(name for name in self._filters.wanted if name not in filters))
        if gone := [name for name in self._taken(filters) if name not in others]:
            self._client.unsubscribe(gone)

    def _taken(self, filters: tuple[str, ...]) -> tuple[str, ...]:
        """The filters as this broker takes them: without share groups, if it has none."""
        return tuple(map(port.plain_filter, filters)) if port.SHARED in self._limits.lacks else filters

    def _explain_refusal(self) -> Failure:
        """The reason of an end before the broker's answer."""
        client = self._client
        if client.tls_error is not None:
            return failures.of_tls(self._connection, client.tls_error)
        if client.first and client.first != CONNACK:
            return failures.of_answer(self._connection, client.first)
        return self._dialer.explain_end(is_silent=client.socket() is not None)

    # --- called by the client ---

    def on_connected(self, reason: Reason, limits: Limits) -> None:
        """Subscribe, or note why the broker refused."""
        if reason.is_failure:
            self.failure = failures.of_refusal(self._connection, self._client_id, reason.code, reason.text)
            return
        self._accepted = True
        self._limits = replace(limits, in_flight=min(MAX_IN_FLIGHT, limits.in_flight or MAX_IN_FLIGHT))
        if missing := limits.lacks & port.NEEDED:
            self.failure = failures.of_lacks(self._connection, sorted(missing))
            self._client.disconnect()  # without the will
            return
        if filters := self._filters.begin():
            self._subscribe(Change(True, filters))
        else:
            self._open()

    def on_subscribed(self, packet: int, reasons: Sequence[Reason]) -> None:
        """Report refused filters, those to be confirmed, and the link once all are answered."""
        change = self._subscribing.pop(packet, Change(True, ()))
        for name, reason in zip(change.filters, reasons, strict=False):
            if reason.is_failure:
                self._emit(port.Denied(name, reason.text))
            elif self.up and change.confirm:
                self._emit(port.Subscribed(name))
        if not self._subscribing and not self.up:
            self._open()

    def on_published(self, packet: int, reason: Reason) -> None:
        """Report a refused or undelivered message."""
        if (message := self._sent.pop(packet, None)) is None:
            return
        self._outbox.complete(message)
        if reason.is_failure:
            self._emit(port.Denied(message.topic, reason.text, message.token))
        elif message.confirm:
            self._emit(port.Acknowledged(message.topic, message.token))
        elif reason.code == _NO_MATCHING_SUBSCRIBERS and message.token is not None:
            self._emit(port.Undelivered(message.topic, message.token))

    def on_delivery(self, message: Published) -> None:
        """Report a message, unless it is too large: a broker may not check it."""
        found = message.delivery
        if found is None:
            topic = message.topic[:MOST_LOGGED]
            self._log.warning("refused a message: its topic or properties can't be read", topic=topic)
            return
        size_bytes = len(found.payload) + len(found.topic)  # at most the packet's
        if size_bytes > self._max_packet_bytes:
            self._log.warning("refused a message: too large", topic=found.topic[:MOST_LOGGED], size_bytes=size_bytes)
            return
        self._emit(found)

    def on_end(self, reason: Reason, *, by_broker: bool) -> None:
        """Note why the connection ended."""
        if by_broker:
            self.failure = Failure(f"the broker ended the connection: {reason.text}")
            self.taken_over = reason.code == _SESSION_TAKEN_OVER
        elif self._accepted and self.failure is None:
            self.failure = Failure(f"the connection was lost: {reason.text}")
            self.has_reason = False

    def _open(self) -> None:
        self.up = True
        limit_bytes = min(self._max_packet_bytes, self._limits.packet_bytes or self._max_packet_bytes)
        for message in self._outbox.open(limit_bytes):
            self._log.error("a lasting message expired, or is larger than the broker takes now", topic=message.topic)
        self._emit(port.LinkUp(self.session, self._limits.packet_bytes, self._limits.lacks))
