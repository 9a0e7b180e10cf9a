"""The wait of a standby orchestrator: its view of the leader, its own copy of the operators' orders, and its log lines.

Owns both from the begin of the wait to its end, when this orchestrator leads. Doesn't know connections.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import structlog

from broker import leader_watch
from broker.leader_watch import LEADER_INTERVAL_S, READ_RETAINED_S, LeaderWatch
from broker.protocol.errors import BadFile
from broker.protocol.messages import OrchestratorState
from broker.transport import port
from orchestrator import events
from orchestrator.leadership.leader_files import LeaderFiles, StoredOrders
from orchestrator.leadership.orders import CopiedEvent, Orders, StandbyCopy

_log = structlog.get_logger("orchestrator")


class Waiting:
    """One wait; times are those of ``time.monotonic``.

    Args:
        files: the epoch and the orders of earlier terms.
        stored: where the copy is stored.
        own: the sessions of our links in earlier terms.
        settle_s: how long retained messages may take to arrive.
        place: the broker and the prefix, for the log.
    """

    def __init__(
        self, files: LeaderFiles, stored: StoredOrders, own: frozenset[int], settle_s: float, place: Mapping[str, str]
    ) -> None:
        self._files, self._stored, self._place = files, stored, place
        self._read_s = min(READ_RETAINED_S, settle_s)
        self._watch = LeaderWatch(own=own, stored=files.read_epoch())
        self._copy = StandbyCopy(files.read_orders(self._watch.stored), settle_s)

    @property
    def epoch(self) -> int:
        """The highest epoch heard."""
        return self._watch.epoch

    @property
    def linked_s(self) -> float:
        """Since when the link is up; now, if it is down."""
        return time.monotonic() if self._watch.up_s is None else self._watch.up_s

    @property
    def due_s(self) -> float | None:
        """The time to lead if nothing else is heard before; None while the link is down."""
        due_s, lacks_at_s = leader_watch.take_over_at_s(self._watch, self._read_s), self._copy.lacks_at_s
        return due_s if due_s is None or lacks_at_s is None else min(due_s, lacks_at_s)

    @property
    def hears_leader(self) -> bool:
        """Whether another orchestrator leads, and was heard over the present link."""
        return self._watch.leader is not None and self._watch.heard_over_this_link

    def with_revisions(self, orders: Orders) -> Orders:
        """These orders, with the revisions that were heard."""
        return self._copy.with_revisions(orders)

    def excuse_pause(self, due_s: float) -> None:
        """Give the leader its full time again if this process stood still since it was due to look."""
        if (now_s := time.monotonic()) > due_s + LEADER_INTERVAL_S:
            self._watch = leader_watch.reset_timer(self._watch, now_s)
            self._copy = self._copy.excuse_leader(now_s)

    def on_pause(self) -> None:
        """Give what the broker retains its full time again: it waited while this process stood still."""
        self._copy = self._copy.after_pause(time.monotonic())

    def on_refused(self, *, is_read_again: bool) -> None:
        """Take nothing as heard; all comes again, from now on or later."""
        self._copy = self._copy.heard_anew(time.monotonic() if is_read_again else math.inf)

    def on_event(self, event: port.LinkEvent, news: object, arrived_s: float) -> None:
        """Note an event of the link; ``news`` is what it says if it is a message, else the event itself."""
        if isinstance(event, port.LinkDown):
            _log.warning("waiting_for_broker", broker=self._place["broker"], reason=event.reason)
        if isinstance(news, events.LeaderTopicLost):
            _log.warning("leader_topic_lost", why=news.why)
        if not isinstance(news, port.LinkUp | port.LinkDown | OrchestratorState):
            self._update_copy(news, arrived_s)
            return
        before, retained = self._watch, isinstance(event, port.Delivery) and event.retain
        self._watch = after = leader_watch.on_event(before, news, time.monotonic(), retained=retained)
        if not isinstance(news, OrchestratorState) or not news.online or after.leader == (news.epoch, news.session):
            self._update_copy(news, arrived_s)
        if after.doubted is not None and after.doubted.times == 1 and after.doubted is not before.doubted:
            _log.warning("epoch_not_plausible", epoch=after.doubted.epoch, known=max(after.stored, after.epoch))
        if after.leader not in {before.leader, None}:
            self._store_epoch(after.epoch)
            _log.info("waiting_as_standby", epoch=after.epoch, **self._place)

    def _store_epoch(self, epoch: int) -> None:
        """Store the leader's epoch: after a restart, at a broker that lost its memory, none may lead with it again."""
        try:
            if epoch > self._files.read_epoch():
                self._files.store_epoch(epoch)
        except BadFile as error:
            _log.error("epoch_not_stored", reason=str(error))

    def _update_copy(self, news: object, arrived_s: float) -> None:
        """Keep our own copy of the operators' orders: the leader and the broker may end in the same moment."""
        if not isinstance(news, CopiedEvent):
            return
        before, self._copy = self._copy.orders, self._copy.on_event(news, time.monotonic(), arrived_s=arrived_s)
        if self._copy.orders is not before:
            self._stored.update(self._copy.orders, at_once=True)
