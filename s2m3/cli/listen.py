"""The messages of a site as they arrive, for commands that show what happens.

Owns the connection, and what a person reads on standard error when it ends or comes back. Orders nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from pydantic import BaseModel

from broker.protocol.errors import BrokerRefused, NotConnected, RemoteProtocolError
from broker.protocol.topics import Incoming, Topic, prefix_of, read
from broker.transport.connect import client_id_for, connect
from broker.transport.mailbox import Mailbox
from broker.transport.port import MAX_CONTROL_PACKET_BYTES, Delivery, Denied, LinkDown, LinkEvent, LinkUp
from s2m3.cli.arguments import connection_of, when_reached
from s2m3.testbed.observer import CONNECT_S

Heard = tuple[Incoming, BaseModel]


class Listener:
    """The messages of some topics. As a context manager it waits until the broker takes the subscriptions.

    Args:
        arguments: those of ``add_connection``.
        topics: which topics to read.

    Raises:
        NotConnected: the broker can't be reached when the ``with`` block starts.
        BrokerRefused: it refuses a subscription.
    """

    def __init__(self, arguments: argparse.Namespace, *topics: Topic) -> None:
        connection = connection_of(arguments)
        self.prefix = prefix_of(connection.site)
        self.skipped = 0
        """The number of messages that can't be read, or were too many."""
        self._broker = connection.url
        self._is_up = False
        self._was_up = False
        self._mailbox: Mailbox[LinkEvent] = Mailbox()
        self._transport = connect(
            connection,
            client_id=client_id_for(connection),
            inbox=self._put,
            max_packet_bytes=MAX_CONTROL_PACKET_BYTES,
        )
        self._transport.subscribe(*(topic.filter(self.prefix) for topic in topics))

    def messages(self, for_s: float | None) -> Iterator[Heard]:
        """The messages that arrive during this time, or for ever."""
        until_s = None if for_s is None else time.monotonic() + for_s
        while until_s is None or time.monotonic() < until_s:
            event = self._mailbox.get(None if until_s is None else max(0.0, until_s - time.monotonic()))
            if event is not None and (found := self._take(event)) is not None:
                yield found

    def __enter__(self) -> Self:
        until_s = time.monotonic() + CONNECT_S
        with ExitStack() as stack:
            stack.callback(self._transport.close)
            self._transport.start()
            while not self._is_up and (event := self._mailbox.get(until_s - time.monotonic())) is not None:
                self._take(event)
            if not self._is_up:
                raise NotConnected(f"no broker answers at {self._broker} within {CONNECT_S:g} s", is_absent=True)
            stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()

    def _put(self, event: LinkEvent) -> None:
        size_bytes = len(event.payload) if isinstance(event, Delivery) else 0
        if not self._mailbox.put_control(event, size_bytes, certain=not isinstance(event, Delivery)):
            self.skipped += 1

    def _take(self, event: LinkEvent) -> Heard | None:
        match event:
            case LinkUp():
                if self._was_up and not self._is_up:
                    print("s2m3: connected to the broker again", file=sys.stderr)
                self._is_up = self._was_up = True
            case LinkDown(reason, cause):
                if not self._was_up:
                    raise NotConnected(reason, is_absent=cause == "absent")
                if self._is_up:
                    print(f"s2m3: no connection to the broker: {reason}; waiting for it", file=sys.stderr)
                self._is_up = False
            case Denied(topic, reason):
                raise BrokerRefused(topic, reason)
            case Delivery():
                return self._read(event)
            case _:
                pass
        return None

    def _read(self, event: Delivery) -> Heard | None:
        incoming = read(self.prefix, event.topic, event.payload, retained=event.retain)
        if incoming is None:
            return None
        try:
            message = incoming.decode()
        except RemoteProtocolError:
            self.skipped += 1
            return None
        return None if message is None else (incoming, message)


@contextmanager
def listening(arguments: argparse.Namespace, *topics: Topic) -> Iterator[Listener]:
    """A listener to these topics, in a ``with`` block; it waits a while for a broker that starts."""
    with ExitStack() as stack:
        yield when_reached(lambda: stack.enter_context(Listener(arguments, *topics)))


@contextmanager
def quiet_end() -> Iterator[None]:
    """End without a word at Ctrl-C, and when the reader of standard output has gone."""
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        sys.stdout = None  # the interpreter would flush it at its end, and fail again
