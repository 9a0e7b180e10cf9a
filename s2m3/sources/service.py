"""The process that runs the sources: it waits as a spare, or leads a term.

Owns the mailbox, the spare's connection, and when a term begins and ends. Decides nothing about messages (``running``).

Invariants:
- a spare reads ``sources/state`` and ``sources/spare`` only, and is asked nothing. It says that it waits, in its will
  that it doesn't, and again where another one's end has overwritten that;
- only the thread that calls ``run`` uses the state; inboxes only put events into the mailbox;
- a term has a connection of its own, whose will ends it; a spare leads with a higher epoch.
"""

from __future__ import annotations

import socket
import time
from functools import partial

from broker import leader_watch
from broker.leader_watch import LeaderWatch
from broker.protocol import topics
from broker.protocol.codec import encode
from broker.protocol.errors import RemoteProtocolError, TransportError
from broker.protocol.sizes import show_count
from broker.protocol.sources import SourcesSpare, SourcesState
from broker.service_manager import ServiceManager
from broker.structured_log import structlog
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection
from broker.transport.mailbox import Mailbox
from broker.transport.port import (
    MAX_CONTROL_PACKET_BYTES,
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
    Outgoing,
    Transport,
)
from s2m3.sources.files import Configuration
from s2m3.sources.running import RequestEnded, Running

_log = structlog.get_logger("sources")


class Sources:
    """The sources of a site, or the spare for them. ``run`` blocks until ``stop`` is called.

    Args:
        connection: the broker, and how to reach it.
        configuration: of the files.
        manager: who started this process.
        make_transport: a test passes that of the in-memory broker.
    """

    def __init__(
        self,
        connection: Connection,
        configuration: Configuration,
        *,
        manager: ServiceManager | None = None,
        make_transport: MakeTransport = connect,
    ) -> None:
        self._manager = manager or ServiceManager({})
        self._connection = connection
        self._configuration = configuration
        self._prefix = topics.prefix_of(connection.site)
        self._make_transport = make_transport
        self._mailbox: Mailbox[LinkEvent | RequestEnded | None] = Mailbox()
        self._stopping = False
        self._own: frozenset[int] = frozenset()  # the sessions of earlier terms
        self._epoch = 0  # the highest known
        self.leads = False
        """Whether this process runs the sources now."""

    def run(self) -> None:
        """Wait as a spare and lead, in turn, until ``stop``."""
        self._manager.status(f"connects to the broker {self._connection.url}")
        while not self._stopping:
            if self._wait():
                self._lead()
        self._manager.stopping()

    def stop(self) -> None:
        """End ``run`` soon; any thread may call it."""
        self._stopping = True
        self._mailbox.put_control(None, certain=True)

    # --- the spare ---

    def _wait(self) -> bool:
        """Wait until nobody runs the sources; False when ``stop`` was called."""
        watch = LeaderWatch(own=self._own, stored=self._epoch)
        transport = self._make_transport(
            self._connection,
            client_id=client_id_for(self._connection),
            inbox=self._put_control,
            will=partial(spare_message, self._prefix, online=False),
            max_packet_bytes=MAX_CONTROL_PACKET_BYTES,
        )
        transport.subscribe(*(topic.at(self._prefix) for topic in (topics.SOURCES_STATE, topics.SOURCES_SPARE)))
        transport.start()
        session, is_told = -1, False  # of the present link; whether it has published that this spare waits
        try:
            while not self._stopping:
                due_s = leader_watch.take_over_at_s(watch)
                now_s = time.monotonic()
                if due_s is not None and now_s >= due_s:
                    self._epoch = max(self._epoch, watch.epoch)
                    return True
                self._manager.turn()
                event = self._mailbox.get(self._manager.wait_s(None if due_s is None else due_s - now_s))
                before = watch
                watch = self._on_event(watch, event, time.monotonic())
                if isinstance(event, LinkUp):
                    session = event.session
                if watch.leader is not None and self._must_tell(event, session, before):
                    self._tell(transport, session, online=True)
                    is_told = True
                if watch.leader is not None and before.leader is None:
                    _log.info("waiting_as_spare", epoch=watch.epoch)
                    self._manager.ready(f"waits as the spare of the leader, epoch {watch.epoch}")
            return False
        finally:
            if is_told:
                self._tell(transport, session, online=False)
            transport.close()
            while self._mailbox.get(0) is not None:
                pass  # of a connection that is closed

    def _must_tell(self, event: LinkEvent | RequestEnded | None, session: int, before: LeaderWatch) -> bool:
        """Whether nobody knows that this spare waits: it is new, its link is, or another one's end overwrote it."""
        if before.leader is None or isinstance(event, LinkUp):
            return True
        said = read_own(self._prefix, event) if isinstance(event, Delivery) else None
        return isinstance(said, SourcesSpare) and not said.online and said.session != session

    def _tell(self, transport: Transport, session: int, *, online: bool) -> None:
        try:
            transport.publish(spare_message(self._prefix, session, online=online))
        except TransportError as error:
            _log.warning("not_published", topic=topics.SOURCES_SPARE.at(self._prefix), reason=str(error))

    def _on_event(self, watch: LeaderWatch, event: LinkEvent | RequestEnded | None, now_s: float) -> LeaderWatch:
        match event:
            case LinkUp() | LinkDown():
                return leader_watch.on_event(watch, event, now_s)
            case Denied(topic, reason):
                _log.error("denied_by_broker", topic=topic, reason=reason)
            case Delivery():
                said = read_own(self._prefix, event)
                if isinstance(said, SourcesState):
                    return leader_watch.on_event(watch, said, now_s, retained=event.retain)
            case _:
                pass
        return watch

    # --- the leader ---

    def _lead(self) -> None:
        self._epoch += 1
        running = Running(
            self._connection,
            self._configuration,
            epoch=self._epoch,
            make_transport=self._make_transport,
            put=self._put,
            end=self._mailbox.put_own,
        )
        _log.info("leading", epoch=self._epoch, sources=len(self._configuration.sources))
        self.leads = True
        self._manager.ready(
            f"leads, epoch {self._epoch}, with {show_count(len(self._configuration.sources), 'source')} of its files"
        )
        try:
            while not self._stopping and running.resigned is None:
                due_s = running.next_due_s()
                now_s = time.monotonic()
                self._manager.turn()
                wait_s = None if due_s is None else max(0.0, due_s - now_s)
                event = self._mailbox.get(self._manager.wait_s(wait_s))
                running.react(event)
        finally:
            self.leads = False
            running.close()
            self._own |= running.sessions
            self._epoch = max(self._epoch, running.heard_epoch)
            while self._mailbox.get(0) is not None:
                pass  # of a term that is over
        if running.resigned is not None:
            _log.warning("resigned", reason=running.resigned)

    # --- the network's threads ---

    def _put_control(self, event: LinkEvent) -> None:
        size_bytes = len(event.payload) if isinstance(event, Delivery) else 0
        self._mailbox.put_control(event, size_bytes, certain=not isinstance(event, Delivery))

    def _put(self, event: LinkEvent) -> None:
        """A message of a sensor waits behind what the site itself says."""
        if isinstance(event, Delivery) and not event.topic.startswith(f"{self._prefix}/"):
            self._mailbox.put_data(event, len(event.payload))
        else:
            self._put_control(event)


def read_own(prefix: str, delivery: Delivery) -> SourcesState | SourcesSpare | None:
    """The message at ``sources/state`` or ``sources/spare``; None for any other, and for one that can't be read."""
    incoming = topics.read(prefix, delivery.topic, delivery.payload)
    if incoming is None or incoming.topic not in {topics.SOURCES_STATE, topics.SOURCES_SPARE}:
        return None
    try:
        said = incoming.decode()
    except RemoteProtocolError as error:
        _log.warning("message_refused", topic=delivery.topic, reason=str(error))
        return None
    return said if isinstance(said, SourcesState | SourcesSpare) else None


def spare_message(prefix: str, session: int, *, online: bool) -> Outgoing:
    """The retained message about a spare, or its end."""
    said = SourcesSpare(online=online, host=socket.gethostname(), session=session)
    return Outgoing(topics.SOURCES_SPARE.at(prefix), encode(said), retain=True)
