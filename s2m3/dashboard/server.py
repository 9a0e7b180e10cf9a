"""The process: its socket, which only this machine reaches, and how it ends. Browsers' streams end with it, at once."""

from __future__ import annotations

import os
from functools import partial

from broker.service_manager import ServiceManager
from broker.transport.connection import Connection
from s2m3.dashboard.app import Dashboard, application
from s2m3.dashboard.feed import Feed
from s2m3.http.server import Server
from s2m3.listening import listening

HOST = "127.0.0.1"


def run(connection: Connection, port: int, *, allow_control: bool = False, until_stdin_closes: bool = False) -> None:
    """Serve the page until a signal comes; port 0 takes a free one. With ``allow_control`` the page gives orders.

    Raises:
        BadFile: the port is in use, or a file of the connection can't be used.
    """
    with listening(HOST, port) as listener:
        dashboard = Dashboard(Feed(connection, allow_control=allow_control))
        try:
            end = partial(setattr, dashboard, "ending", True)
            server = Server(dashboard.feed.site, application(dashboard), None, ServiceManager(os.environ), at_end=end)
            said = f"the dashboard is at {server.url_at(listener, HOST)}"
            said += "; it can drain devices" if allow_control else ""
            server.serve_until_stopped(listener, said, until_stdin_closes=until_stdin_closes)
        finally:
            dashboard.feed.close()
