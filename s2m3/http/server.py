"""The server: its socket, TLS, its limits of connections, and how it ends.

Owns the process. Requests that are under way when it is asked to end have ``ANSWER_S`` more; the others are refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.process import stopped_by_signals
from broker.service_manager import ServiceManager
from broker.transport.connection import Connection
from broker.transport.dial import load_certificate
from s2m3.http.app import MAX_HEADER_BYTES, Door, application
from s2m3.http.site import Site
from s2m3.listening import listening, url_of

MOST_CONNECTIONS = 1_000
HEADERS_S = 10.0  # until a request's headers must be there, also on a connection that was used before
IDLE_S = 5  # that a connection may be idle between two requests
ANSWER_S = 2.5
END_S = 4  # after which the connections that are left are cut


def run(
    connection: Connection,
    address: tuple[str, int],
    *,
    token: str | None = None,
    certificate: tuple[Path, Path] | None = None,
    until_stdin_closes: bool = False,
) -> None:
    """Serve until a signal comes.

    Args:
        connection: the broker, and how to reach it.
        address: where to listen; port 0 takes a free one.
        token: clients must show it; None: they need none.
        certificate: for TLS, its file and that of its key.
        until_stdin_closes: end also when standard input does.

    Raises:
        BadFile: the address is in use, or a file can't be used.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of each malformed body
    context = None if certificate is None else context_of(*certificate)
    with listening(*address) as listener:
        site = Site(connection)
        try:
            server = Server(site, application(Door(site, token)), context, ServiceManager(os.environ))
            said = f"the HTTP door listens at {server.url_at(listener, address[0])}"
            server.serve_until_stopped(listener, said, until_stdin_closes=until_stdin_closes)
        finally:
            site.close()


def context_of(cert: Path, key: Path) -> ssl.SSLContext:
    """The TLS of a server with this certificate; raises BadFile for one that can't be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, cert, key)
    return context


class Server(uvicorn.Server):
    """The server of an application, ended by ``stop`` instead of by its own handlers of signals.

    Args:
        site: closed when requests had time to end; None where the application asks no site.
        app: the application.
        context: for TLS; None: without.
        manager: hears that the server runs, and that it ends.
        at_end: called when it begins to end.
    """

    def __init__(
        self,
        site: Site | None,
        app: ASGIApp,
        context: ssl.SSLContext | None = None,
        manager: ServiceManager | None = None,
        *,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",  # the application logs its own errors
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=END_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            ssl_context_factory=None if context is None else lambda *_: context,
        )
        super().__init__(config)
        self._site = site
        self._manager = manager or ServiceManager({})
        self._at_end = at_end
        self._scheme = "http" if context is None else "https"

    def url_at(self, listener: socket.socket, host: str) -> str:
        """Its address at this socket."""
        return url_of(listener, host, self._scheme)

    def serve_until_stopped(self, listener: socket.socket, said: str, *, until_stdin_closes: bool) -> None:
        """Print a line that says what listens, and serve until a signal comes."""
        print(f"{said}; Ctrl-C ends it", flush=True)
        with stopped_by_signals(self.stop, until_stdin_closes=until_stdin_closes):
            self.run([listener])

    def stop(self) -> None:
        """End soon; called by a signal's handler, or by another thread."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the caller of ``run``."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Say at each turn of the server's loop that it runs; the first one comes when it listens."""
        self._manager.ready("answers requests")
        self._manager.turn()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let the requests under way be answered, for a while."""
        self._manager.stopping()
        self._at_end()
        loop = asyncio.get_running_loop()
        if self._site is not None:
            loop.call_later(ANSWER_S, loop.run_in_executor, None, self._site.close)
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """One connection, which ends when a request's headers take too long; uvicorn alone would wait for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()
        elif self._late is None:
            self._expect_headers()

    def on_response_complete(self) -> None:
        self._cancel()
        super().on_response_complete()

    def _expect_headers(self) -> None:
        self._late = self.loop.call_later(HEADERS_S, self._close)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
