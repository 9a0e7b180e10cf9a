"""One connection of a check, with all that arrives over it, for a thread that waits for one thing after the other."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from typing import Self

from broker.protocol.errors import MessageTooLarge, NotConnected, QueueFull
from broker.transport.connect import client_id_for, connect
from broker.transport.connection import Connection
from broker.transport.port import Acknowledged, Delivery, Denied, LinkDown, LinkEvent, LinkUp, Outgoing

EXPIRY_S = 60  # of retained messages and wills, if nobody were left to clear them
ANSWER_S = 10.0  # for one answer of the broker


class Peer:
    """One connection, as a context manager, with all that arrived over it.

    Raises:
        NotConnected: the broker can't be reached, or refuses the connection.
    """

    def __init__(self, connection: Connection, *filters: str) -> None:
        self.heard: list[Delivery] = []
        self.up: LinkUp | None = None
        self.lost: LinkDown | None = None
        self.denied: dict[object, str] = {}  # filter, or token of a message -> the broker's reason
        self._taken: set[object] = set()
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        self._transport = connect(connection, client_id=client_id_for(connection), inbox=self._events.put)
        self._transport.subscribe(*filters)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._transport.close)
            self._transport.start()
            self.wait(lambda: self.up or self.lost)
            if self.up is None:
                reason = self.lost or LinkDown(f"no broker answers within {ANSWER_S:g} s", "absent")
                raise NotConnected(reason.reason, is_absent=reason.cause == "absent")
            stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()

    def wait(self, holds: Callable[[], object], timeout_s: float = ANSWER_S) -> bool:
        """Take in what arrives until something holds; whether it does in time."""
        until_s = time.monotonic() + timeout_s
        while not holds():
            try:
                self._note(self._events.get(timeout=max(0.0, until_s - time.monotonic())))
            except queue.Empty:
                return False
        return True

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, timeout_s: float = ANSWER_S) -> str | None:
        """Publish a message; returns the reason why the broker didn't take it, None if it did."""
        token = object()
        expiry_s = EXPIRY_S if payload else None
        try:
            self._transport.publish(
                Outgoing(topic, payload, retain=retain, expiry_s=expiry_s, token=token, confirm=True)
            )
        except (NotConnected, MessageTooLarge, QueueFull) as error:
            return str(error)
        self.wait(lambda: token in self._taken or token in self.denied or self.lost, timeout_s)
        if token in self._taken:
            return None
        return self.denied.get(token) or (self.lost.reason if self.lost else "it didn't answer in time")

    def hears(self, payload: bytes, timeout_s: float = ANSWER_S) -> Delivery | None:
        """The message with this payload; None if it doesn't arrive in time."""
        found: list[Delivery] = []

        def is_there() -> bool:
            found[:] = [each for each in self.heard if each.payload == payload]
            return bool(found or self.lost)

        self.wait(is_there, timeout_s)
        return found[0] if found else None

    def _note(self, event: LinkEvent) -> None:
        match event:
            case Delivery():
                self.heard.append(event)
            case LinkUp():
                self.up = event
            case LinkDown():
                self.lost = event
            case Denied(topic, reason, token):
                self.denied[topic if token is None else token] = reason
            case Acknowledged(token=token):
                self._taken.add(token)
