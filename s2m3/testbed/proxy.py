"""A TCP proxy between one process and the broker: it has the delay and bandwidth of a real link, and can be cut.

Owns the bytes between a client and the broker. Doesn't know MQTT. Never loses, adds, changes or reorders a byte of a
connection; it only delays bytes, or ends the connection.

The model of a link: each direction sends one byte after the other at its bandwidth; its connections take turns. Each
byte arrives ``delay_s`` after it was sent. Not modelled: loss and congestion control within a TCP connection, and the
round trip of TCP's own handshake.

The model of a cut: nothing passes, as when a cable is pulled, and connections stay open at both ends until their owners
give up. After ``restore`` all waiting bytes arrive, late, also the end of a connection, as TCP would resend them.
Connections that began during the cut never reached the broker, and end.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote

from broker.protocol.specs import NotNegative, Rate, Spec
from broker.servers.ports import HOST
from broker.transport.address import parse_url

CHUNK_BYTES = 8 * 1024  # connections take turns at this size: 3 ms at 20 Mbit/s
AHEAD_S = 0.005  # how early a lane takes bytes: a thread that wakes late loses no bandwidth
MAX_WAITING_BYTES = 16 * 1024 * 1024  # under way in one direction of a connection; then its sender waits
CONNECT_S = 5.0


class LinkShape(Spec):
    """The delay and the bandwidth of a link."""

    delay_s: NotNegative = 0.0  # each way: a ping takes twice as long
    up_bits_per_s: Rate | None = None  # towards the broker; None: as fast as this machine
    down_bits_per_s: Rate | None = None  # from the broker


UNSHAPED = LinkShape()


class Lane:
    """The arithmetic of one direction of a link: when entering bytes arrive. Its owner brings the clock and a lock."""

    def __init__(self, delay_s: float, bits_per_s: float | None) -> None:
        self.free_s = 0.0  # when the last byte that entered has left the sender
        self.passed_bytes = 0
        self._delay_s = delay_s
        self._bits_per_s = bits_per_s

    def enter(self, now_s: float, size_bytes: int) -> float:
        """Take these bytes; returns when the last one arrives, in seconds of the same clock."""
        self.free_s = max(self.free_s, now_s)
        if self._bits_per_s is not None:
            self.free_s += 8 * size_bytes / self._bits_per_s
        return self.free_s + self._delay_s


class Proxy:
    """A proxy in front of a broker, on a port of its own; its threads end with ``close``.

    ``buffer_bytes`` is the system's receive buffer of each connection; None: as large as the system likes. A sender
    takes these bytes for sent.
    """

    def __init__(self, target_url: str, shape: LinkShape = UNSHAPED, buffer_bytes: int | None = None) -> None:
        self._target = parse_url(target_url)
        self._buffer_bytes = buffer_bytes
        self._link = _Link(
            Lane(shape.delay_s, shape.up_bits_per_s), Lane(shape.delay_s, shape.down_bits_per_s), threading.Condition()
        )
        self._changed = self._link.changed  # guards the link and all below
        self._disconnects = 0
        self._begun_while_cut: list[socket.socket] = []
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, 0))
        self._port = int(self._listener.getsockname()[1])
        self._start("accept", self._accept)

    @property
    def url(self) -> str:
        """The address for clients, instead of the broker's; with the same name and password."""
        user, password = self._target.username, self._target.password
        login = f"{quote(user, safe='')}:{quote(password or '', safe='')}@" if user else ""
        return f"mqtt://{login}{HOST}:{self._port}"

    @property
    def connections(self) -> int:
        """The number of open connections to the broker."""
        with self._changed:
            return len(self._link.pairs)

    @property
    def passed_bytes(self) -> tuple[int, int]:
        """Bytes that arrived at the broker, and from it, since the start."""
        with self._changed:
            return self._link.up.passed_bytes, self._link.down.passed_bytes

    @property
    def waiting_bytes(self) -> tuple[int, int]:
        """Bytes on their way to the broker, and from it."""
        with self._changed:
            pairs = self._link.pairs
            return sum(pair.up.waiting_bytes for pair in pairs), sum(pair.down.waiting_bytes for pair in pairs)

    def cut(self) -> None:
        """Let nothing pass until ``restore``; connections stay open."""
        with self._changed:
            self._link.cut = True

    def restore(self) -> None:
        """Let everything pass again: waiting bytes arrive at once."""
        with self._changed:
            self._link.cut = False
            stale, self._begun_while_cut = self._begun_while_cut, []
            self._changed.notify_all()
        for client in stale:
            _end(client)

    def disconnect(self) -> None:
        """End every connection at both ends, at once, without an MQTT packet; new ones are accepted."""
        with self._changed:
            self._disconnects += 1
            for pair in self._link.pairs:
                pair.end()

    def close(self) -> None:
        """End every connection and accept no new one. Safe to call twice."""
        with self._changed:
            self._closed = True
            threads, self._threads = self._threads, []
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.restore()
        self.disconnect()
        for thread in threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                if self._link.cut and not self._closed:
                    self._begun_while_cut.append(client)
                    continue
                disconnects = self._disconnects
            try:
                broker = socket.create_connection((self._target.host, self._target.port), CONNECT_S)
            except OSError:  # the broker is down: the client's connection ends, and the client tries again
                _end(client)
                continue
            broker.settimeout(None)
            self._join(client, broker, disconnects)

    def _join(self, client: socket.socket, broker: socket.socket, disconnects: int) -> None:
        """Let the two connections pass on each other's bytes, unless ``disconnect`` was called since the client's."""
        for end in (client, broker):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._buffer_bytes is not None:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        with self._changed:
            if self._closed or disconnects != self._disconnects:
                _end(client)
                _end(broker)
                return
            pair = _Pair(self._link, client, broker)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            for name, flow in (("up", pair.up), ("down", pair.down)):
                self._start(f"{name}.read", flow.read)
                self._start(f"{name}.write", flow.write)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"proxy[{self._port}].{name}", daemon=True)
        self._threads.append(thread)
        thread.start()


@dataclass
class _Link:
    """The state that all connections share."""

    up: Lane
    down: Lane
    changed: threading.Condition  # guards this object, the pairs and the flows; notified at each change
    cut: bool = False
    pairs: set[_Pair] = field(default_factory=set)


class _Pair:
    """A client's connection and its connection to the broker. Call its methods with the link's lock."""

    def __init__(self, link: _Link, client: socket.socket, broker: socket.socket) -> None:
        self._link = link
        self._ends = (client, broker)
        self.ended = False  # bytes that still wait are dropped
        self.up = _Flow(self, link, link.up, client, broker)
        self.down = _Flow(self, link, link.down, broker, client)
        link.pairs.add(self)

    def end(self) -> None:
        """End both connections now."""
        self.ended = True
        for each in self._ends:
            with contextlib.suppress(OSError):  # closed already
                each.shutdown(socket.SHUT_RDWR)
        self._link.changed.notify_all()

    def leave(self) -> None:
        """End and forget the connections if both directions are done."""
        if self.up.done and self.down.done:
            self._link.pairs.discard(self)
            self.end()
            for each in self._ends:
                each.close()


class _Flow:
    """One direction of one connection: a reader books each chunk's arrival on the lane, a writer keeps to it."""

    def __init__(self, pair: _Pair, link: _Link, lane: Lane, source: socket.socket, sink: socket.socket) -> None:
        self.waiting_bytes = 0
        self.done = False
        self._pair = pair
        self._link = link
        self._changed = link.changed
        self._lane = lane
        self._source = source
        self._sink = sink
        self._chunks: deque[tuple[float, bytes]] = deque()  # (when it arrives, the bytes); no bytes: the end

    def read(self) -> None:
        """Receive chunks, as fast as the lane takes them."""
        while True:
            try:
                chunk = self._source.recv(CHUNK_BYTES)
            except OSError:
                chunk = b""
            with self._changed:
                self._chunks.append((self._lane.enter(time.monotonic(), len(chunk)), chunk))
                self.waiting_bytes += len(chunk)
                self._changed.notify_all()
                if not chunk or not self._room():
                    return

    def write(self) -> None:
        """Send each chunk at its time of arrival, in order."""
        try:
            while chunk := self._next():
                self._sink.sendall(chunk)
                with self._changed:
                    self.waiting_bytes -= len(chunk)
                    self._lane.passed_bytes += len(chunk)
                    self._changed.notify_all()
            self._sink.shutdown(socket.SHUT_WR)  # the other direction goes on
        except OSError:
            with self._changed:
                self._pair.end()
        with self._changed:
            self.done = True
            self._pair.leave()

    def _room(self) -> bool:
        """Wait until the lane can take more; False when the connection ended."""
        while not self._pair.ended:
            early_s = self._lane.free_s - time.monotonic() - AHEAD_S
            if early_s <= 0 and self.waiting_bytes <= MAX_WAITING_BYTES:
                return True
            self._changed.wait(early_s if early_s > 0 else None)
        return False

    def _next(self) -> bytes:
        """The next chunk, at its time of arrival; empty at the end."""
        with self._changed:
            while not self._pair.ended:
                if not self._chunks or self._link.cut:
                    self._changed.wait()
                    continue
                early_s = self._chunks[0][0] - time.monotonic()
                if early_s <= 0:
                    return self._chunks.popleft()[1]
                self._changed.wait(early_s)
            return b""


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
