"""The connection of the dashboard: what arrives becomes the picture, in a thread of its own.

Owns the thread and the lock of the picture. It shares one connection with the playground's requests, because an access
rule may bind the account to one client id.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import structlog

from broker.protocol.codec import MAX_CONTROL_BYTES
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.specs import DeviceId
from broker.protocol.topics import BRIDGE_STATE, TASK_ROUTE, is_at_core, prefix_of, read
from broker.transport.connect import connect
from broker.transport.connection import Connection
from broker.transport.mailbox import Mailbox
from broker.transport.port import (
    Delivery,
    Denied,
    Inbox,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
    Transport,
)
from s2m3.dashboard.board import Update
from s2m3.dashboard.control import Orders
from s2m3.dashboard.device import Entry
from s2m3.dashboard.picture import READS, Picture
from s2m3.http.site import Site

log = structlog.get_logger()

GATHER_S = 0.05  # a thread that wakes for each of a thousand heartbeats costs more than the heartbeats


class Feed:
    """The picture of a site, kept up to date, and the site for requests.

    Args:
        connection: the broker, and how to reach it.
        allow_control: whether the page may give orders.
        make_transport: a test passes that of the in-memory broker.

    Raises:
        BadFile: a file of the connection can't be used.
    """

    def __init__(
        self, connection: Connection, *, allow_control: bool = False, make_transport: MakeTransport = connect
    ) -> None:
        self._prefix = prefix_of(connection.site)
        self.orders: Orders | None = None
        """Gives orders, over the same connection; None where the page may not."""
        self._allow_control = allow_control
        about: Entry = {"broker": connection.url, "prefix": self._prefix}
        about |= {"login": connection.user is not None, "control": allow_control}
        self.is_at_core = is_at_core(self._prefix)
        """Whether the page shows a site as its core sees it: then no bridge carries requests and orders there."""
        self._picture = Picture(about, at_core=self.is_at_core)
        self._reads = (*READS, BRIDGE_STATE) if self.is_at_core else READS
        self._filters = frozenset(topic.filter(self._prefix) for topic in self._reads)
        self._lock = threading.Lock()
        self._mailbox: Mailbox[LinkEvent | None] = Mailbox()
        self._make_transport = make_transport
        self._thread = threading.Thread(target=self._run, name="picture", daemon=True)
        self._thread.start()
        self.site = Site(connection, who="dashboard", make_transport=self._connect)
        """Asks the tasks, over the same connection."""

    def update(self, version: int | None) -> Update:
        """The changes for a browser that has this version; everything for None."""
        with self._lock:
            return self._picture.update(version, time.time())

    def knows_device(self, name: DeviceId) -> bool:
        """Whether the page shows a device of this name."""
        with self._lock:
            return self._picture.knows_device(name)

    def close(self) -> None:
        """Disconnect, and end the thread. Safe to call twice."""
        self.site.close()
        self._mailbox.put_own(None)
        self._thread.join()

    def _connect(self, connection: Connection, /, *, inbox: Inbox, **settings: Any) -> Transport:  # noqa: ANN401 - the port's own
        """The client's transport. Events of the picture's topics go to the picture, and only there."""

        def see(event: LinkEvent) -> None:
            size_bytes = len(event.payload) if isinstance(event, Delivery) else 0
            if Orders.take(event):
                return
            self._mailbox.put_control(event, size_bytes, certain=not isinstance(event, Delivery))
            if not self._is_only_seen(event):
                inbox(event)

        transport = self._make_transport(connection, inbox=see, **(settings | {"gather_s": GATHER_S}))
        transport.subscribe(*sorted(self._filters))
        self.orders = Orders(self._prefix, transport) if self._allow_control else None
        return transport

    def _is_only_seen(self, event: LinkEvent) -> bool:
        if isinstance(event, Denied):
            return event.topic in self._filters - {TASK_ROUTE.filter(self._prefix)}
        if not isinstance(event, Delivery):
            return False
        incoming = read(self._prefix, event.topic, b"")
        return incoming is not None and incoming.topic in self._reads and incoming.topic is not TASK_ROUTE

    def _run(self) -> None:
        while True:
            for event in self._mailbox.get_all(None):
                if event is None:
                    return
                try:
                    with self._lock:
                        self._take(event)
                except RemoteProtocolError as error:
                    log.warning("message_refused", topic=getattr(event, "topic", ""), error=str(error))
                except Exception:
                    log.exception("message_failed", topic=getattr(event, "topic", ""))  # the others are shown

    def _take(self, event: LinkEvent) -> None:
        now = time.time()
        match event:
            case LinkUp():
                self._picture.up(now)
            case LinkDown(reason):
                self._picture.down(reason)
            case Denied(topic, reason, token=None):  # a subscription; that of answers is denied to who may only look
                self._picture.deny(topic, reason)
            case Delivery(topic, payload) if len(payload) <= MAX_CONTROL_BYTES:
                incoming = read(self._prefix, topic, payload, retained=event.retain)
                if incoming is not None and incoming.topic in self._reads:
                    self._picture.take(incoming, incoming.decode(), now)
