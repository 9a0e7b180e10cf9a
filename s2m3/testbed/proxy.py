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

import asyncio
import contextlib
import selectors
import socket
import threading
from dataclasses import replace
from functools import partial
from typing import Self

from broker.protocol.specs import NotNegative, Rate
from broker.protocol.values import Spec
from broker.servers.ports import HOST
from broker.transport.connection import Connection
from broker.transport.dial import acknowledge_now

CHUNK_BYTES = 8 * 1024  # connections take turns at this size: 3 ms at 20 Mbit/s
AHEAD_S = 0.005  # how early a lane takes bytes: a loop that wakes late loses no bandwidth
MAX_WAITING_BYTES = 16 * 1024 * 1024  # under way in one direction of a connection; then its sender waits
CONNECT_S = 5.0


class LinkShape(Spec):
    """The delay and the bandwidth of a link."""

    delay_s: NotNegative = 0.0  # each way: a ping takes twice as long
    up_bits_per_s: Rate | None = None  # towards the broker; None: as fast as this machine
    down_bits_per_s: Rate | None = None  # from the broker


UNSHAPED = LinkShape()


class Lane:
    """One direction of a link: when entering bytes arrive, by a clock of its owner, and whose turn it is."""

    def __init__(self, delay_s: float, bits_per_s: float | None) -> None:
        self.free_s = 0.0  # when the last byte that entered has left the sender
        self.passed_bytes = 0
        self.turn = asyncio.Lock()  # a connection holds it until the lane can take more
        self._delay_s = delay_s
        self._bits_per_s = bits_per_s

    def enter(self, now_s: float, size_bytes: int) -> float:
        """Take these bytes; returns when the last one arrives, in seconds of the same clock."""
        self.free_s = max(self.free_s, now_s)
        if self._bits_per_s is not None:
            self.free_s += 8 * size_bytes / self._bits_per_s
        return self.free_s + self._delay_s


class Proxy:
    """A proxy in front of a broker, on a port of its own; its thread ends with ``close``.

    ``buffer_bytes`` is the system's receive buffer of each connection; None: as large as the system likes. A sender
    takes these bytes for sent.
    """

    def __init__(self, target: Connection, shape: LinkShape = UNSHAPED, buffer_bytes: int | None = None) -> None:
        self._target = target
        self._buffer_bytes = buffer_bytes
        self._up = Lane(shape.delay_s, shape.up_bits_per_s)
        self._down = Lane(shape.delay_s, shape.down_bits_per_s)
        self._passing = asyncio.Event()  # not set during a cut
        self._passing.set()
        self._serving: set[asyncio.Task[None]] = set()  # one a client
        self._pairs: set[tuple[_Flow, _Flow]] = set()  # up and down, of the clients that reached the broker
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self._port = int(self._listener.getsockname()[1])
        # Of the selectors only this one doesn't round a delay up to a whole millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._run, name=f"proxy[{self._port}]", daemon=True)
        self._thread.start()

    @property
    def connection(self) -> Connection:
        """The connection for clients, with this proxy's address instead of the broker's."""
        name = self._target.server_name or self._target.host
        return replace(self._target, host=HOST, port=self._port, server_name=name)

    @property
    def url(self) -> str:
        """The address for clients, instead of the broker's; without the login."""
        return self.connection.url

    @property
    def connections(self) -> int:
        """The number of open connections to the broker."""
        return len(self._pairs)

    @property
    def passed_bytes(self) -> tuple[int, int]:
        """Bytes that arrived at the broker, and from it, since the start."""
        return self._up.passed_bytes, self._down.passed_bytes

    @property
    def waiting_bytes(self) -> tuple[int, int]:
        """Bytes on their way to the broker, and from it."""
        pairs = list(self._pairs)  # the loop's thread changes them
        return sum(up.waiting_bytes for up, _ in pairs), sum(down.waiting_bytes for _, down in pairs)

    def cut(self) -> None:
        """Let nothing pass from now on, until ``restore``; connections stay open."""
        done = threading.Event()

        def cut() -> None:
            self._passing.clear()
            done.set()

        self._loop.call_soon_threadsafe(cut)
        done.wait(CONNECT_S)  # what a connection was about to do comes before; at most, it reaches for the broker

    def restore(self) -> None:
        """Let everything pass again: waiting bytes arrive at once."""
        self._loop.call_soon_threadsafe(self._passing.set)

    def disconnect(self) -> None:
        """End every connection at both ends, at once, without an MQTT packet; new ones are accepted."""
        self._loop.call_soon_threadsafe(self._disconnect)

    def close(self) -> None:
        """End every connection and accept no new one. Safe to call twice."""
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # ends ``_accept``
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- the thread ---

    def _run(self) -> None:
        self._loop.run_until_complete(self._accept())
        self._loop.close()

    def _disconnect(self) -> None:
        for task in self._serving:
            task.cancel()

    async def _accept(self) -> None:
        async with asyncio.TaskGroup() as group:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = await self._loop.sock_accept(self._listener)
                    serving = group.create_task(self._serve(client))
                    self._serving.add(serving)
                    serving.add_done_callback(self._serving.discard)
                    serving.add_done_callback(partial(_end, client))
            self._disconnect()

    async def _serve(self, client: socket.socket) -> None:
        """Pass on a client's bytes to the broker, and back, until both directions or one of the connections ended."""
        if not self._passing.is_set():
            await self._passing.wait()
            return
        try:  # blocks the others, for a moment: they go to the same broker
            broker = socket.create_connection((self._target.host, self._target.port), CONNECT_S)
        except OSError:  # the broker is down: the client's connection ends, and the client tries again
            return
        flows = _Flow(self._up, self._passing, client, broker), _Flow(self._down, self._passing, broker, client)
        self._pairs.add(flows)
        try:
            for end in (client, broker):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._buffer_bytes is not None:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            async with asyncio.TaskGroup() as group:
                for flow in flows:
                    group.create_task(flow.read())
                    group.create_task(flow.write())
        except* OSError:  # one of the connections is gone
            pass
        finally:
            self._pairs.discard(flows)
            _end(broker)


class _Flow:
    """One direction of one connection: a reader books each chunk's arrival on the lane, a writer keeps to it."""

    def __init__(self, lane: Lane, passing: asyncio.Event, source: socket.socket, sink: socket.socket) -> None:
        self.waiting_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._lane = lane
        self._passing = passing
        self._source = source
        self._sink = sink
        self._chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()  # (when it arrives, bytes); none: the end
        self._sent = asyncio.Event()

    async def read(self) -> None:
        """Receive chunks, as fast as the lane takes them."""
        while True:
            chunk = b""
            with contextlib.suppress(OSError):
                chunk = await self._loop.sock_recv(self._source, CHUNK_BYTES)
                acknowledge_now(self._source)
            self.waiting_bytes += len(chunk)
            async with self._lane.turn:
                self._chunks.put_nowait((self._lane.enter(self._loop.time(), len(chunk)), chunk))
                if not chunk:
                    return
                await asyncio.sleep(self._lane.free_s - self._loop.time() - AHEAD_S)
            while self.waiting_bytes > MAX_WAITING_BYTES:
                self._sent.clear()
                await self._sent.wait()

    async def write(self) -> None:
        """Send each chunk at its time of arrival, in order."""
        while True:
            arrives_s, chunk = await self._chunks.get()
            if (early_s := arrives_s - self._loop.time()) > 0:
                await asyncio.sleep(early_s)
            await self._passing.wait()
            if not chunk:
                break
            await self._loop.sock_sendall(self._sink, chunk)
            self.waiting_bytes -= len(chunk)
            self._lane.passed_bytes += len(chunk)
            self._sent.set()
        self._sink.shutdown(socket.SHUT_WR)  # the other direction goes on


def _end(connection: socket.socket, *_: object) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
