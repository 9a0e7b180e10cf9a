"""All MQTT sessions of the simulator in one loop, without a thread.

Owns the sockets, and the life of a session: connect, subscribe, serve, and after a lost connection connect again, as
soon as an agent's transport would. Doesn't know what the messages mean: a ``Client`` does.
"""

from __future__ import annotations

import errno
import random
import selectors
import socket
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from broker.protocol.errors import RemoteProtocolError, TransportError
from broker.transport.connection import parse_url
from broker.transport.port import LONGEST_RETRY_S
from s2m3.bench.fleet import packets
from s2m3.bench.fleet.schedule import Agenda

FIRST_RETRY_S = 0.1
CONNECT_S = 3.0  # until the broker accepts a connection; as long as an agent's keepalive
LOOK_S = 0.01  # between two looks whether what a caller waits for holds
READ_BYTES = 65536
RECEIVED, SENT = "received", "sent"


class Client(ABC):
    """One MQTT client of the loop: how its session begins, and its reaction to messages."""

    client_id: str
    filters: Sequence[str]

    @abstractmethod
    def hello(self) -> bytes:
        """The CONNECT of a new session."""

    @abstractmethod
    def on_up(self) -> None:
        """The broker accepted the session and its subscriptions."""

    @abstractmethod
    def on_message(self, message: packets.Message) -> None:
        """A message came."""

    def on_down(self) -> None:  # noqa: B027 - most clients needn't know
        """The connection ended, or an attempt to connect failed."""


@dataclass(eq=False)
class _Connection:
    """The socket of a client, and what waits to be written."""

    client: Client
    sock: socket.socket
    reader: packets.Reader = field(default_factory=packets.Reader)
    unsent: bytearray = field(default_factory=bytearray)
    on_written: list[Callable[[], None]] = field(default_factory=list)  # called when ``unsent`` is empty
    connected: bool = False
    waits_for_room: bool = True  # the selector also looks for room to write
    up_s: float | None = None  # since when its subscriptions are granted


class Sessions:
    """The loop. Everything happens while ``run`` or ``run_until`` runs.

    Args:
        url: the broker.
    """

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self._address = (address.host, address.port)
        self._selector = selectors.DefaultSelector()
        self._connections: dict[Client, _Connection] = {}
        self._failures: Counter[Client] = Counter()
        self._retries: dict[Client, Callable[[float], None]] = {}
        self._timeouts: dict[Client, Callable[[float], None]] = {}
        self._chance = random.Random(0)  # noqa: S311 - no secret: waits between attempts to connect
        self.agenda: Agenda[Callable[[float], None]] = (
            Agenda()
        )  # functions, called with the time at which they were due
        self.bytes: Counter[str] = Counter()  # of all sessions, ``RECEIVED`` and ``SENT``
        self.up = 0  # sessions that are up

    # --- clients ---

    def open(self, client: Client) -> None:
        """Connect a client, and again whenever its connection ends, until ``close``."""

        def retry(_: float) -> None:
            self._connect(client)

        def give_up(_: float) -> None:
            self._lose(client)

        self._retries[client], self._timeouts[client] = retry, give_up
        self._connect(client)

    def open_later(self, client: Client, at_s: float) -> None:
        """Connect a client at a time."""
        self.agenda.set(lambda _: self.open(client), at_s)

    def close(self, client: Client) -> None:
        """End a client's connection without a goodbye, as a power failure does: the broker publishes its will."""
        retry = self._retries.pop(client, None)
        if retry is not None:
            self.agenda.discard(retry)
            self.agenda.discard(self._timeouts.pop(client))
        self._drop(client)
        self._failures.pop(client, None)

    def is_up(self, client: Client) -> bool:
        """Whether a client's session serves now."""
        connection = self._connections.get(client)
        return connection is not None and connection.up_s is not None

    def send(self, client: Client, data: bytes, on_written: Callable[[], None] | None = None) -> None:
        """Write packets; calls ``on_written`` once the system has taken them. Without a connection they are lost."""
        connection = self._connections.get(client)
        if connection is None:
            return
        if on_written is not None:
            connection.on_written.append(on_written)
        if connection.unsent or not connection.connected:
            connection.unsent += data
            return
        try:
            connection.unsent += data[self._write(connection, data) :]
        except OSError:
            self._lose(client)
        else:
            self._after_write(connection)

    def shut(self) -> None:
        """Close all sockets."""
        for client in list(self._connections):
            self.close(client)
        self._selector.close()

    # --- the loop ---

    def run(self, for_s: float) -> None:
        """Serve all sessions for a time."""
        self.run_until(lambda: False, for_s)

    def run_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Serve all sessions until something holds, or the time is over; returns whether it holds."""
        until_s, look_s = time.monotonic() + timeout_s, 0.0
        while True:
            now_s = time.monotonic()
            if now_s >= look_s:
                if holds():
                    return True
                look_s = now_s + LOOK_S
            if now_s >= until_s:
                return False
            next_s = self.agenda.next_s
            wake_s = min(until_s, now_s + LOOK_S if next_s is None else max(now_s, next_s), now_s + 10 * LOOK_S)
            for key, mask in self._selector.select(wake_s - now_s):
                self._serve(key.data, mask)
            now_s = time.monotonic()
            while (due := self.agenda.pop_due(now_s)) is not None:
                due[0](due[1])

    def _serve(self, connection: _Connection, mask: int) -> None:
        if self._connections.get(connection.client) is not connection:
            return  # it was closed by another client of the same turn
        try:
            if mask & selectors.EVENT_WRITE:
                self._on_room(connection)
            if mask & selectors.EVENT_READ:
                self._on_data(connection)
        except (OSError, RemoteProtocolError):
            self._lose(connection.client)

    def _on_room(self, connection: _Connection) -> None:
        if not connection.connected:
            if problem := connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(problem, "connect")
            connection.connected = True
        if connection.unsent:
            del connection.unsent[: self._write(connection, bytes(connection.unsent))]
        self._after_write(connection)

    def _on_data(self, connection: _Connection) -> None:
        data = connection.sock.recv(READ_BYTES)
        if not data:
            raise OSError(errno.ECONNRESET, "the broker closed the connection")
        self.bytes[RECEIVED] += len(data)
        for packet in connection.reader.feed(data):
            self._on_packet(connection, packet)

    def _on_packet(self, connection: _Connection, packet: packets.Packet) -> None:
        client = connection.client
        match packet:
            case packets.Message():
                if packet.packet_id:
                    self.send(client, packets.puback(packet.packet_id))
                client.on_message(packet)
            case packets.Accepted(reason=0):
                self.send(client, packets.subscribe(1, client.filters))
            case packets.Subscribed(reasons=reasons) if max(reasons) < packets.REFUSED:
                self.agenda.discard(self._timeouts[client])
                connection.up_s = time.monotonic()
                self.up += 1
                client.on_up()
            case packets.Acknowledged(reason=reason) if reason < packets.REFUSED:
                pass
            case _:
                raise RemoteProtocolError(f"the broker refused {client.client_id}: {packet}")

    # --- connections ---

    def _connect(self, client: Client) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._connections[client] = _Connection(client, sock)
        self._selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        self.agenda.set(self._timeouts[client], time.monotonic() + CONNECT_S)
        connection.unsent += client.hello()
        if (problem := sock.connect_ex(self._address)) not in {0, errno.EINPROGRESS}:
            if problem in {errno.EMFILE, errno.EADDRNOTAVAIL}:
                raise TransportError(f"this machine can't open more connections: {errno.errorcode[problem]}")
            self._lose(client)

    def _lose(self, client: Client) -> None:
        """Drop a client's connection, and connect again after the wait of an agent's transport."""
        if (connection := self._connections.get(client)) is None:
            return
        lasted = connection.up_s is not None and time.monotonic() - connection.up_s > LONGEST_RETRY_S
        self._drop(client)
        self._failures[client] = 0 if lasted else self._failures[client] + 1
        longest_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** self._failures[client])
        self.agenda.set(self._retries[client], time.monotonic() + longest_s * (1 + self._chance.random()) / 2)

    def _drop(self, client: Client) -> None:
        connection = self._connections.pop(client, None)
        if connection is None:
            return
        self.up -= connection.up_s is not None
        self.agenda.discard(self._timeouts[client]) if client in self._timeouts else None
        self._selector.unregister(connection.sock)
        connection.sock.close()
        client.on_down()

    def _write(self, connection: _Connection, data: bytes) -> int:
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            return 0
        self.bytes[SENT] += sent
        return sent

    def _after_write(self, connection: _Connection) -> None:
        if bool(connection.unsent) != connection.waits_for_room:
            connection.waits_for_room = bool(connection.unsent)
            room = selectors.EVENT_WRITE if connection.unsent else 0
            self._selector.modify(connection.sock, selectors.EVENT_READ | room, connection)
        if not connection.unsent and connection.on_written:
            written, connection.on_written = connection.on_written, []
            for call in written:
                call()
