"""Whether a broker does what a site needs. Each thing is tried, over connections as agents and orchestrators have them.

Owns what is tried, and the sentences about it. Doesn't know devices and tasks. Its topics stand below ``check/`` and a
random id, so no process of the site reads them, and several checks don't meet.

Invariants:
- Nothing that was retained stays: each retained message is cleared, also when the check fails or is interrupted, and
  would expire by itself after ``EXPIRY_S``. So would a will.
- No absence is found out by waiting: a message that was sent later arrives first.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from broker.protocol.errors import NotConnected
from broker.protocol.sizes import show_bytes
from broker.protocol.topics import CHECK_KEPT, CHECK_MESSAGES, prefix_of
from broker.transport.connect import client_id_for
from broker.transport.connection import Connection
from broker.transport.crash import connect_and_crash
from broker.transport.port import MAX_PACKET_BYTES, SHARED, Outgoing
from s2m3.broker_check.peer import ANSWER_S, EXPIRY_S, Peer

LONG_S = 20.0  # a size whose message would take longer isn't tried
ROUND_TRIPS = 20
SHARED_MESSAGES = 20
LEAST_BYTES = 64 * 1024  # of a message: a small site's specs, routes and assignments have less
_FIRST_BYTES = 16 * 1024
_PRECISION = 32  # of the largest size: the error is at most this part of it

State = Literal["yes", "no", "not allowed", "not tried"]


@dataclass(frozen=True)
class Finding:
    """One thing that was tried, and what became of it. A site works without what isn't ``needed``."""

    what: str
    state: State
    text: str
    needed: bool

    @property
    def holds(self) -> bool:
        """Whether a site can do with it."""
        return self.state == "yes" or not self.needed


@dataclass
class Report:
    """All findings about one broker; None where something isn't known."""

    findings: list[Finding] = field(default_factory=list)
    packet_bytes: int | None = None  # the limit that it states
    message_bytes: int | None = None  # of the largest packet that passed
    refused_bytes: int | None = None  # of the smallest that didn't
    round_trip_s: float | None = None
    bytes_per_s: float | None = None  # of a large message, there and back

    @property
    def holds(self) -> bool:
        """Whether a site can work with this broker."""
        return all(finding.holds for finding in self.findings)

    @property
    def limit_bytes(self) -> int | None:
        """The largest packet that the broker takes, by its word or because a larger one didn't pass."""
        return self.packet_bytes if self.refused_bytes is None else self.message_bytes or 1


def check_broker(connection: Connection) -> Report:
    """Try all that a site needs of a broker.

    Raises:
        NotConnected: it can't be reached, refuses the connection, or says itself that it lacks what a site needs.
    """
    return _Check(connection).run()


def passes(connection: Connection, packet_bytes: int) -> bool | None:
    """Whether a broker takes a message of this size; None where the account may not try, or the answer isn't clear.

    Nobody receives it.

    Raises:
        NotConnected: the broker can't be reached, or refuses the connection.
    """
    topic = CHECK_MESSAGES.at(prefix_of(connection.site), run=secrets.token_hex(8), part="size", end="unread")
    with Peer(connection) as peer:
        if peer.publish(topic, b"") is not None:
            return None
        why = peer.publish(topic, _payload(topic, packet_bytes), timeout_s=3 * LONG_S)
        return True if why is None else False if peer.lost or peer.denied else None


def _payload(topic: str, packet_bytes: int) -> bytes:
    """The payload of a message with a packet of this size."""
    return bytes(packet_bytes - Outgoing(topic, b"", expiry_s=EXPIRY_S).packet_bytes)


class _Check:
    """One check of one broker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        prefix, run = prefix_of(connection.site), secrets.token_hex(8)
        self._kept = CHECK_KEPT.at(prefix, run=run)
        self._messages = CHECK_MESSAGES.at(prefix, run=run, part="messages", end="deep")
        self._others = CHECK_MESSAGES.at(prefix, run=run, part="messages", end="marker")
        self._report = Report()

    def run(self) -> Report:
        """Try everything."""
        report = self._report
        with Peer(self._connection) as first:
            report.packet_bytes = first.up.max_packet_bytes if first.up else None
            lacks_sharing = first.up is not None and SHARED in first.up.lacks
            self._found("MQTT 5", "yes", "it speaks MQTT 5, and takes this login")
        try:
            if self._try_retained():
                self._try_will()
        finally:
            self._clear()
        if self._try_levels():
            self._try_sharing(lacking=lacks_sharing)
            self._try_sizes()
        self._try_a_stranger()
        return report

    def _found(self, what: str, state: State, text: str, *, needed: bool = True) -> None:
        self._report.findings.append(Finding(what, state, text, needed))

    def _refused(self, what: str, topic: str, reason: str, *, subscribes: bool = False) -> None:
        verb = "subscribe to" if subscribes else "publish"
        self._found(what, "not allowed", f"the broker doesn't let this account {verb} {topic}: {reason}")

    def _try_retained(self) -> bool:
        what = "retained messages"
        with Peer(self._connection, self._kept) as writer:
            if reason := writer.denied.get(self._kept):
                self._refused(what, self._kept, reason, subscribes=True)
                return False
            if reason := writer.publish(self._kept, b"kept", retain=True):
                self._refused(what, self._kept, reason)
                return False
            is_kept = self._has_kept(b"kept")
            writer.publish(self._kept, b"", retain=True)
            forgets = is_kept and not self._has_kept(b"kept")
        if is_kept is None:
            self._found(what, "no", f"a message that was published to {self._kept} didn't arrive: look at its rules")
        elif not is_kept:
            self._found(what, "no", "it keeps none: specs, routes and assignments are retained")
        elif not forgets:
            self._found(what, "no", "an empty message doesn't clear a retained one: nothing could be undeployed")
        else:
            self._found(what, "yes", "a new subscriber gets it, and an empty message clears it")
        return bool(is_kept)

    def _has_kept(self, payload: bytes) -> bool | None:
        """Whether a new subscriber gets this retained message; None if nothing arrives at all."""
        with Peer(self._connection, self._kept) as reader:
            marker = secrets.token_bytes(8)
            reader.publish(self._kept, marker)
            if reader.hears(marker) is None:
                return None
            return any(each.retain and each.payload == payload for each in reader.heard)

    def _try_will(self) -> None:
        what, will = "wills", Outgoing(self._kept, b"will", retain=True, expiry_s=EXPIRY_S)
        with Peer(self._connection, self._kept) as reader:
            try:
                connect_and_crash(self._connection, client_id_for(self._connection), will, ANSWER_S)
            except NotConnected as error:
                self._found(what, "no", f"it refuses a connection with a retained will: {error}")
                return
            if reader.hears(b"will") is None:
                text = f"a connection broke, and its will didn't come within {ANSWER_S:g} s: deaths would be found late"
                self._found(what, "no", text)
                return
        is_kept = self._has_kept(b"will")
        text = "a connection broke, and its will came" + (", and is retained" if is_kept else ", but isn't retained")
        self._found(what, "yes" if is_kept else "no", text)

    def _clear(self) -> None:
        """Clear what this check may have retained; it expires if the broker can't be reached any more."""
        with contextlib.suppress(NotConnected), Peer(self._connection) as cleaner:
            cleaner.publish(self._kept, b"", retain=True)

    def _try_levels(self) -> bool:
        what, levels = "topic levels", self._messages.count("/") + 1
        with Peer(self._connection, self._messages) as peer:
            if reason := peer.denied.get(self._messages):
                self._refused(what, self._messages, reason, subscribes=True)
                return False
            seconds = []
            for _ in range(ROUND_TRIPS):
                began_s, payload = time.monotonic(), secrets.token_bytes(1000)
                if reason := peer.publish(self._messages, payload):
                    self._refused(what, self._messages, reason)
                    return False
                if peer.hears(payload) is None:
                    lost = peer.lost.reason if peer.lost else f"it didn't arrive within {ANSWER_S:g} s"
                    self._found(what, "no", f"a message to {self._messages} didn't come back: {lost}")
                    return False
                seconds.append(time.monotonic() - began_s)
        self._report.round_trip_s = statistics.median(seconds)
        self._found(what, "yes", f"a topic of {levels} levels, as deep as a site's deepest")
        text = f"{self._report.round_trip_s * 1000:.1f} ms for 1 kB, the median of {ROUND_TRIPS}"
        self._found("round trip", "yes", text)
        return True

    def _try_sharing(self, *, lacking: bool) -> None:
        what = "shared subscriptions"
        without = "a site works without them, with one device at the front door of each task"
        if lacking:
            self._found(what, "no", f"it says that it has none: {without}", needed=False)
            return
        group = f"$share/check/{self._messages}"
        with Peer(self._connection, group, self._others) as one, Peer(self._connection, group, self._others) as other:
            if reason := one.denied.get(group):
                self._refused(what, group, reason, subscribes=True)
                return
            sent = [secrets.token_bytes(8) for _ in range(SHARED_MESSAGES)]
            for payload in sent:
                one.publish(self._messages, payload)
            marker = secrets.token_bytes(8)
            one.publish(self._others, marker)
            for member in (one, other):
                member.hears(marker)
            counts = [sum(each.topic == self._messages for each in member.heard) for member in (one, other)]
        if sum(counts) == len(sent):
            text = f"of {len(sent)} messages one member of a group got {counts[0]}, and the other {counts[1]}"
            self._found(what, "yes", text)
        else:
            text = f"of {len(sent)} messages the two members of a group got {sum(counts)}: requests would be lost or "
            self._found(what, "no", f"{text}answered twice")

    # --- sizes ---

    def _try_sizes(self) -> None:
        report = self._report
        most = min(report.packet_bytes or MAX_PACKET_BYTES, MAX_PACKET_BYTES)
        good, bad, why, slow = 0, None, "", False
        for size in _steps(most):
            if report.bytes_per_s and size / report.bytes_per_s > LONG_S:
                slow = True
                break
            if why := self._why_lost(size):
                bad = size
                break
            good = size
        while bad is not None and bad - good > max(good // _PRECISION, 256):
            size = (good + bad) // 2
            if reason := self._why_lost(size):
                bad, why = size, reason
            else:
                good = size
        report.message_bytes, report.refused_bytes = good or None, bad
        self._found("message size", "yes" if good >= LEAST_BYTES else "no", self._size_text(good, why, slow=slow))
        if report.bytes_per_s is not None:
            speed = show_bytes(report.bytes_per_s)
            self._found("bandwidth", "yes", f"{speed} a second, there and back, for a message of {show_bytes(good)}")

    def _size_text(self, good: int, why: str, *, slow: bool) -> str:
        stated, size = self._report.packet_bytes, show_bytes(good)
        text = f"packets of up to {size} pass"
        if slow:
            text += f"; larger ones weren't tried: they would take more than {LONG_S:g} s"
        elif why and stated is None:
            text += f"; larger ones don't ({why}), and it doesn't state that limit when it accepts a connection"
        elif why:
            text += f", though it states {show_bytes(stated or 0)}: {why}"
        else:
            text += (
                ", as it states"
                if stated is not None and stated <= MAX_PACKET_BYTES
                else ", the most that a site sends"
            )
        if good < LEAST_BYTES:
            text += f"; a site needs {show_bytes(LEAST_BYTES)} or more"
        return text

    def _why_lost(self, packet_bytes: int) -> str:
        """The reason why a message of this size doesn't come back; empty if it does."""
        report, payload = self._report, _payload(self._messages, packet_bytes)
        allowed_s = ANSWER_S + (4 * packet_bytes / report.bytes_per_s if report.bytes_per_s else LONG_S)
        with Peer(self._connection, self._messages) as peer:
            began_s = time.monotonic()
            if reason := peer.publish(self._messages, payload, timeout_s=allowed_s):
                return reason
            if peer.hears(payload, allowed_s) is None:
                return peer.lost.reason if peer.lost else "it didn't come back"
            taken_s = time.monotonic() - began_s
        if packet_bytes >= LEAST_BYTES:
            latency_s = min(report.round_trip_s or 0.0, taken_s / 2)  # the median of others: this one may be faster
            report.bytes_per_s = packet_bytes / (taken_s - latency_s)
        return ""

    # --- access ---

    def _try_a_stranger(self) -> None:
        what = "wants a login"
        stranger = replace(self._connection, user=None, password=None, password_file=None)
        try:
            with Peer(stranger) as peer:
                may = peer.publish(self._others, b"stranger") is None
        except NotConnected:
            self._found(what, "yes", "who has none isn't let in")
            return
        if may:
            text = "anyone may connect and publish: who reaches this broker can deploy tasks (see SECURITY.md)"
            self._found(what, "no", text, needed=False)
        else:
            self._found(what, "yes", "who has none is let in, and may not publish")


def _steps(most: int) -> Iterator[int]:
    """The sizes to try, up to the largest."""
    size = _FIRST_BYTES
    while size < most:
        yield size
        size *= 4
    yield most
