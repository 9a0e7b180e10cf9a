"""Waits for the event that a fault waits for: a request, tensors for a node, the first heartbeat of a device.

Owns one connection that sees the data topics, and remembers the last few messages as they were, for those who replay
them. Its network thread only compares and calls back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Self

from broker.protocol.topics import DEVICE_HEARTBEAT, TASK_REQUESTS, TENSORS, prefix_of, read
from broker.transport.connect import connect
from broker.transport.port import Delivery, LinkEvent, LinkUp
from s2m3.testbed.replay.scenario import When
from s2m3.testbed.site import SiteFailed

CONNECT_S = 5.0
REMEMBERED = 40  # messages
MAX_REMEMBERED_BYTES = 1_000_000  # of one message

_FIELDS = {TENSORS: ("node", "node"), TASK_REQUESTS: ("request", "task"), DEVICE_HEARTBEAT: ("online", "device")}
"""The topics that are watched: the field of ``When`` that each one meets, and the id in its name."""

Spring = Callable[[], None]


class Tripwire:
    """Watches the data topics of a site; a context manager that waits until it sees them."""

    def __init__(self, url: str, site: str | None) -> None:
        self._prefix = prefix_of(site)
        self._lock = threading.Lock()
        self._set: list[tuple[When, Spring]] = []
        self._recent: deque[Delivery] = deque(maxlen=REMEMBERED)
        self._up = threading.Event()
        self._transport = connect(url, client_id="replay-tripwire", inbox=self._see)
        self._transport.subscribe(*(topic.filter(self._prefix) for topic in _FIELDS))
        self._transport.start()

    def arm(self, when: When, spring: Spring) -> None:
        """Call ``spring`` once, from the network's thread, at the next such event."""
        with self._lock:
            self._set.append((when, spring))

    @property
    def recent(self) -> list[Delivery]:
        """The last requests and tensors, oldest first."""
        with self._lock:
            return list(self._recent)

    def __enter__(self) -> Self:
        if not self._up.wait(CONNECT_S):
            self._transport.close()
            raise SiteFailed("the broker gives no second connection")
        return self

    def __exit__(self, *exc: object) -> None:
        self._transport.close()

    def _see(self, event: LinkEvent) -> None:
        if isinstance(event, LinkUp):
            self._up.set()
        if not isinstance(event, Delivery):
            return
        incoming = read(self._prefix, event.topic, event.payload)
        if incoming is None or incoming.topic not in _FIELDS:
            return
        field, name = _FIELDS[incoming.topic]
        happened = When.model_validate({field: incoming.ids[name]})
        with self._lock:
            if happened.online is None and len(event.payload) <= MAX_REMEMBERED_BYTES:
                self._recent.append(event)
            due = [spring for when, spring in self._set if when == happened]
            self._set = [(when, spring) for when, spring in self._set if when != happened]
        for spring in due:
            spring()
