"""The exporter's process: its connection to the broker, and the server that Prometheus asks.

Owns the connection and the server. Doesn't know samples (``samples``) nor what is kept (``picture``).

Invariants:
- It only reads: it publishes nothing.
- A request of a client takes at most ``ANSWER_S``, and at most ``MOST_CONNECTIONS`` are open.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from socket import SHUT_RDWR, socket
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

from broker.process import stopped_by_signals
from broker.protocol.topics import BRIDGE_STATE, ORCHESTRATOR_UNANSWERED, REPORTS, is_at_core, prefix_of, read
from broker.service_manager import ServiceManager
from broker.structured_log import structlog
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection
from broker.transport.port import (
    MAX_CONTROL_PACKET_BYTES,
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
)
from s2m3.listening import is_loopback, is_own_name, listening, url_of
from s2m3.metrics.health import health
from s2m3.metrics.picture import Picture
from s2m3.metrics.samples import families

_log = structlog.get_logger("metrics")

GATHER_S = 0.05  # heartbeats that come one after the other are read together
MOST_CONNECTIONS = 16
ANSWER_S = 20.0  # for a client's request and the answer to it
OK, FORBIDDEN, NOT_FOUND, UNAVAILABLE = 200, 403, 404, 503


class Exporter:
    """Keeps what a site publishes, and gives it as metrics, until ``close``.

    Args:
        connection: the broker, and how to reach it.
        make_transport: a test passes that of the in-memory broker.

    Raises:
        BadFile: a file of the connection can't be used.
    """

    def __init__(self, connection: Connection, *, make_transport: MakeTransport = connect) -> None:
        self._prefix = prefix_of(connection.site)
        self._lock = threading.Lock()  # of all that follows
        self._picture = Picture(at_core=is_at_core(self._prefix))
        self._why_away: str | None = f"the broker at {connection} has not answered yet"
        self._hidden: dict[str, str] = {}  # topics that the broker refuses -> a sentence
        self._version = version("s2m3")
        self._transport = make_transport(
            connection,
            client_id=client_id_for(connection),
            inbox=self._see,
            max_packet_bytes=MAX_CONTROL_PACKET_BYTES,
            gather_s=GATHER_S,
        )
        seen = (*REPORTS, BRIDGE_STATE) if self._picture.at_core else REPORTS
        self._transport.subscribe(*(topic.filter(self._prefix) for topic in seen))
        self._transport.start()

    def collect(self) -> list[Metric]:
        """All metrics at this moment: with it this is a collector of prometheus-client."""
        with self._lock:
            return families(self._picture, connected=self._why_away is None, version=self._version)

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """The content type and the bytes of all metrics, in the format that a client accepts."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    def health(self) -> dict[str, object]:
        """Whether the site serves."""
        with self._lock:
            return health(self._picture, why_away=self._why_away, hidden=tuple(self._hidden.values()))

    def close(self) -> None:
        """Disconnect. Safe to call twice."""
        self._transport.close()

    # --- the network's thread ---

    def _see(self, event: LinkEvent) -> None:
        with self._lock:
            self._take(event)

    def _take(self, event: LinkEvent) -> None:
        match event:
            case LinkUp():
                self._why_away = None
                _log.info("link_up")
            case LinkDown(reason):
                if self._why_away is None:
                    _log.warning("link_down", reason=reason)
                self._why_away = f"no connection to the broker: {reason}"
                self._picture.forget_states()
                self._hidden.clear()
            case Denied(topic, reason) if topic != ORCHESTRATOR_UNANSWERED.at(self._prefix):  # no rule of an old site
                self._hidden[topic] = f"the broker refused {topic}: {reason}"
                _log.warning("denied_by_broker", topic=topic, reason=reason)
            case Delivery():
                incoming = read(self._prefix, event.topic, event.payload, retained=event.retain)
                if incoming is not None:
                    self._picture.note(incoming, time.monotonic())
            case _:
                pass


class Server(ThreadingHTTPServer):
    """The server of ``/metrics`` and ``/healthz`` at a socket that listens already."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket, exporter: Exporter) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()  # made by the class, and of no use
        self.socket = listener
        self.exporter = exporter
        self.is_private = is_loopback(listener.getsockname()[0])
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the library's
        """Answer in a thread of its own; close a connection that is one too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the same
        """Answer, and cut the connection of a client that takes too long."""
        late = threading.Timer(ANSWER_S, _cut, (request,))
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._free.release()

    def handle_error(self, *_: object) -> None:
        """Log an error, except that a client went away."""
        if not isinstance(error := sys.exception(), OSError):
            _log.error("request_failed", exc_info=error)


def _cut(request: socket) -> None:
    with suppress(OSError):  # it has gone already
        request.shutdown(SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.is_private and not is_own_name(self.headers.get("Host") or "localhost"):
            self._answer(FORBIDDEN, {"error": "ask by the address of this machine, or as localhost"})
        elif path == "/metrics":
            self._send(OK, *self.server.exporter.metrics(self.headers.get("Accept", "")))
        elif path == "/healthz":
            document = self.server.exporter.health()
            self._answer(OK if document["status"] == "ok" else UNAVAILABLE, document)
        else:
            self._answer(NOT_FOUND, {"error": "see /metrics and /healthz"})

    def log_message(self, *_: object) -> None:
        """Log nothing: Prometheus asks every few seconds."""

    def version_string(self) -> str:
        return "s2m3"

    def _answer(self, status: int, document: object) -> None:
        self._send(status, "application/json", json.dumps(document).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def run(connection: Connection, address: tuple[str, int], *, until_stdin_closes: bool = False) -> None:
    """Export until a signal comes.

    Args:
        connection: the broker, and how to reach it.
        address: where to listen; port 0 takes a free one.
        until_stdin_closes: end also when standard input does.

    Raises:
        BadFile: the address is in use, or a file can't be used.
    """
    stopped, manager = threading.Event(), ServiceManager(os.environ)
    with listening(*address) as listener:
        exporter = Exporter(connection)
        server = Server(listener, exporter)
        thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
        try:
            with stopped_by_signals(stopped.set, until_stdin_closes=until_stdin_closes):
                thread.start()
                url = url_of(listener, address[0])
                print(f"metrics: {url}/metrics, health: {url}/healthz; Ctrl-C ends it", flush=True)
                manager.ready("answers requests")
                while not stopped.wait(manager.wait_s(None)):
                    manager.turn()
        finally:
            manager.stopping()
            server.shutdown()
            exporter.close()
