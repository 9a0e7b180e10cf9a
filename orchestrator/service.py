"""The orchestrator's process: messages in, ``decide``, messages out.

Owns the two connections, the planner, the loop and the log. Decides nothing.

Invariants:
- only the thread that calls ``run`` uses the state; inboxes only put events into the mailbox;
- the epoch is on the disk before it is published, and greater than every epoch stored or heard; a change of the
  deployed tasks is on the disk before any message follows from it;
- if the process stood still, or is behind with its work, no device is blamed for the messages that it couldn't
  receive, or hasn't read (``clock``); what it had to refuse is read again;
- no search holds up the loop: a planner's process does it, and its plan is an event (``planner_process``);
- the control connection alone publishes state; requests arrive on the other one, so that no picture delays a heartbeat;
- no message ends the loop: an exception that it causes is logged and counted.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from broker import leader_watch
from broker.leader_watch import LEADER_INTERVAL_S, READ_RETAINED_S
from broker.protocol import errors, topics
from broker.protocol.client_ids import client_id
from broker.protocol.codec import encode
from broker.protocol.messages import OrchestratorState
from broker.service_manager import ServiceManager
from broker.transport import port
from broker.transport.connect import connect
from broker.transport.connection import Connection
from broker.transport.denials import Denials
from broker.transport.refusals import read_again
from orchestrator import events
from orchestrator.action_log import log_action
from orchestrator.arrivals import Arrivals, Arrived
from orchestrator.clock import LoopClock
from orchestrator.decide import decide, next_deadline_s
from orchestrator.events import Action, Event, MessagesRefused, Overslept, PlanFound, Tick
from orchestrator.freed_memory import FreedMemory
from orchestrator.leadership.leader import announce_leadership
from orchestrator.leadership.leader_files import LeaderFiles, StoredOrders
from orchestrator.planner_process.client import MakePlanner, Planner, PlannerProcess
from orchestrator.reports import Reports, When
from orchestrator.state import Pace, State, initial
from orchestrator.unsent import Unsent
from orchestrator.waiting import Waiting
from orchestrator.wire import clears_request, control_filters, event_of, goodbye, outgoing_of, standby_filters

RETRY_UNSENT_S = 0.1  # when the transport's queue was full
RETRY_LEADING_S = 5.0  # when the epoch couldn't be stored
RETRY_FAILED_S = 1.0  # when a deadline could not be met because of a bug: not at once, for ever
GATHER_S = 0.02  # at most a fifteenth of the time in which a standby must have taken over

_log = structlog.get_logger("orchestrator")


class Orchestrator:
    """One orchestrator: it leads, or waits as a standby orchestrator. ``run`` blocks until ``stop`` is called.

    Args:
        connection: the broker, and how to reach it; its site is the prefix in front of all topics.
        state_dir: a directory of its own, where the epoch and the operators' orders outlive the process.
        heartbeat_interval_s: how often agents report that say nothing else; 0.05 to 60.
        settle_s: how long retained messages and first heartbeats may take to arrive after a connection.
        pace: how soon spares are chosen and better placements are searched for.
        answer_unknown_tasks: whether requests that no device serves are answered, for one more copy of each request;
            without it such a request ends at its sender's deadline.

    Raises:
        BadFile: the state directory or a file of the connection can't be used.
    """

    def __init__(
        self,
        connection: Connection,
        state_dir: Path,
        *,
        heartbeat_interval_s: float = 1.0,
        settle_s: float = 1.5,
        pace: Pace | None = None,
        answer_unknown_tasks: bool = True,
        manager: ServiceManager | None = None,
        make_transport: port.MakeTransport = connect,
        make_planner: MakePlanner = PlannerProcess,
    ) -> None:
        self._connection = connection
        self._prefix = topics.prefix_of(connection.site)
        self._files = LeaderFiles(state_dir, connection.url, self._prefix)
        self._files.check()  # before anything begins, for the errors that a leader would meet
        self._stored = StoredOrders(self._files)
        self._heartbeat_interval_s = heartbeat_interval_s
        self._settle_s = settle_s
        self._begin_term = partial(initial, heartbeat_interval_s=heartbeat_interval_s, settle_s=settle_s, pace=pace)
        self._answer_unknown_tasks = answer_unknown_tasks
        self._make_transport, self._make_planner = make_transport, make_planner
        self._planner: Planner | None = None
        self._manager = manager or ServiceManager({})
        self._arrivals = Arrivals(self._prefix, settle_s)
        self._client_id = partial(client_id, "orchestrators", secrets.token_hex(6), site=connection.site)
        self._data = self._new_data()
        self._control: port.Transport | None = None
        self._state: State | None = None
        self._unsent = Unsent()
        self._reports = Reports(self._prefix, self._unsent.too_large)
        self._denials = Denials(self._prefix)
        self._freed_memory = FreedMemory()
        self._stopping = False
        self._longest_step_s = max(heartbeat_interval_s, LEADER_INTERVAL_S)
        self._clock = LoopClock(self._longest_step_s)
        self._excused_s = 0.0  # when all devices last got their full time again, because messages were refused
        self._tick_from_s = 0.0  # no deadline is met before
        self._heartbeat_at_s = 0.0
        self._sessions: frozenset[int] = frozenset()  # of the links over which it led
        self._waiting: Waiting | None = None
        self._internal_errors = 0
        self.resigned: str | None = None  # why it stopped leading; None while it leads or hasn't led

    def run(self) -> None:
        """Wait while another leads, then lead; until ``stop`` is called.

        While the epoch can't be stored it doesn't lead, and tries again.
        """
        self._planner = self._make_planner(self._arrivals.from_planner)  # it starts while this one waits
        try:
            while not self._stopping and (waiting := self._wait_for_turn()) is not None:
                self._lead(waiting)
        finally:
            self._manager.stopping()
            self._leave()
            self._planner.close()
            dropped, failed = self._arrivals.dropped, self._internal_errors
            _log.info("stopped", messages_dropped=dropped, internal_errors=failed)

    def stop(self) -> None:
        """End ``run`` soon, cleanly. May be called from any thread or signal handler, more than once."""
        self._stopping = True
        self._arrivals.end_wait()

    # --- begin and end ---

    def _new_data(
        self, max_packet_bytes: int = port.MAX_CONTROL_PACKET_BYTES, *, sees_retain: bool = False
    ) -> port.Transport:
        """The connection for requests; while it waits, the one that hears the leader."""
        return self._make_transport(
            self._connection,
            client_id=self._client_id("data"),
            inbox=self._arrivals.from_data,
            max_packet_bytes=max_packet_bytes,
            sees_retain=sees_retain,
        )

    def _wait_for_turn(self) -> Waiting | None:
        """Wait until no orchestrator leads, and for the broker as long as it takes; None after ``stop``."""
        filters = standby_filters(self._prefix)
        self._data.subscribe(*filters)
        self._data.start()
        place = {"broker": self._connection.url, "prefix": self._prefix}
        self._waiting = waiting = Waiting(self._files, self._stored, self._sessions, self._settle_s, place)
        self._manager.status(f"connects to the broker {self._connection.url}")
        clock = LoopClock(LEADER_INTERVAL_S)
        while not self._stopping:
            self._manager.turn()
            due_s, now_s = waiting.due_s, time.monotonic()
            if due_s is not None and now_s >= due_s:
                break
            wait_s = self._manager.wait_s(None if due_s is None else min(READ_RETAINED_S, due_s - now_s))
            posted = self._arrivals.next(wait_s)
            if waiting.hears_leader:
                self._manager.ready(f"waits as the spare of the leader, epoch {waiting.epoch}")
            if due_s is not None:
                waiting.excuse_pause(due_s)
            if clock.has_paused(wait_s or 0.0):
                waiting.on_pause()
            if posted is not None and not isinstance(posted.event, PlanFound):
                event = posted.event
                news = self._event_of(event) if isinstance(event, port.Delivery) else event
                waiting.on_event(event, news, posted.at_s)
            self._read_again_if_refused(self._data, filters)
        return None if self._stopping else waiting

    def _lead(self, waiting: Waiting) -> None:
        """Lead until ``stop`` is called or a newer leader shows up."""
        known = self._files.read_epoch()
        last = max(known, waiting.epoch)
        epoch, orders = last + 1, waiting.with_revisions(self._files.read_orders(last))
        try:
            self._stored.write(orders)  # before the epoch: it outdates a file of an earlier version
            self._files.store_epoch(epoch)
        except errors.BadFile as error:
            self._wait_for_disk(error)
            return
        self._reports = Reports(self._prefix, self._unsent.too_large)
        self._state = self._begin_term(
            epoch=epoch, linked_s=waiting.linked_s, orders=orders, is_first=waiting.epoch == 0, copied_epoch=known
        )
        self._clock, self._arrivals.missed = LoopClock(self._longest_step_s), False
        self.resigned, self._heartbeat_at_s = None, time.monotonic()
        _log.info("leading", epoch=epoch, broker=self._connection.url, prefix=self._prefix)
        self._connect(epoch)
        while not self._stopping and self.resigned is None:
            self._turn(self._state)
        if self.resigned is not None:
            self._step_down()

    def _wait_for_disk(self, error: errors.BadFile) -> None:
        """Stay a standby for a while: agents couldn't tell two leaders of one epoch apart."""
        _log.error("cannot_lead", reason=str(error), again_in_s=RETRY_LEADING_S)
        self._manager.status(f"cannot lead: {error}")
        until_s = time.monotonic() + RETRY_LEADING_S
        while not self._stopping and (wait_s := until_s - time.monotonic()) > 0:
            self._manager.turn()
            self._arrivals.next(self._manager.wait_s(wait_s))
        self._data.close()
        self._arrivals.clear()
        self._data = self._new_data()

    def _step_down(self) -> None:
        """Become a standby orchestrator: of this term only the sessions of its links are kept."""
        self._leave()
        self._sessions |= frozenset(self._state.sessions if self._state else ())
        self._unsent.clear()
        self._arrivals.clear()
        self._state, self._control, self._data = None, None, self._new_data()
        self._tick_from_s = 0.0

    def _connect(self, epoch: int) -> None:
        self._data.close()
        if self._answer_unknown_tasks:
            self._data = self._new_data(port.MAX_PACKET_BYTES, sees_retain=True)
            self._data.subscribe(topics.requests_filter(self._prefix))
            self._data.start()

        self._control = self._make_transport(
            self._connection,
            client_id=self._client_id("control"),
            inbox=self._arrivals.from_control,
            will=partial(goodbye, self._prefix, epoch),
            max_packet_bytes=port.MAX_CONTROL_PACKET_BYTES,
            gather_s=GATHER_S,
        )
        self._control.subscribe(*control_filters(self._prefix))
        self._control.start()

    def _leave(self) -> None:
        """Publish that no orchestrator leads, unless this one resigned; then disconnect."""
        if self._state is not None:
            self._stored.update(self._state.orders, at_once=True)
        if self._control and self._state and self._state.link and self.resigned is None:
            for action in announce_leadership(self._state):
                if isinstance(action, events.PublishState):
                    self._carry_out(events.PublishState(action.message.model_copy(update={"online": False})))
            self._flush()
        if self._control:
            self._control.close()
        self._data.close()

    # --- the loop ---

    def _turn(self, state: State) -> None:
        """Wait for events or the next deadline, and react."""
        deadline_s = next_deadline_s(state)
        due_s = self._heartbeat_at_s if deadline_s is None else min(self._heartbeat_at_s, self._tick_at_s(deadline_s))
        wait_s = max(0.0, due_s - time.monotonic())
        wait_s = min(RETRY_UNSENT_S, wait_s) if self._unsent else wait_s
        self._manager.turn()
        batch = self._arrivals.all(wait_s)
        self._note_pause(wait_s)
        if self._control is not None:
            self._read_again_if_refused(self._control, control_filters(self._prefix))
        for posted in batch:
            if posted is None:
                return
            self._clock.read(posted.at_s)
            if (event := self._to_event(posted)) is not None:
                self._react(event)
            self._send_heartbeat()
            self._flush()
            self._note_pause()
            if self.resigned is not None:
                return
        if not batch:
            self._clock.catch_up()
        deadline_s = next_deadline_s(self._state or state)
        if deadline_s is not None and self._clock.now_s >= self._tick_at_s(deadline_s):
            self._react(Tick())
        self._send_heartbeat()
        self._flush()

    def _tick_at_s(self, deadline_s: float) -> float:
        return max(deadline_s, self._tick_from_s)

    def _note_pause(self, waited_s: float = 0.0) -> None:
        """Judge no device by a time in which this process stood still, or couldn't keep all messages."""
        is_settled = self._state is None or self._state.settled
        has_paused = self._clock.has_paused(waited_s, None if is_settled else LEADER_INTERVAL_S)
        if has_paused or (self._arrivals.missed and time.monotonic() >= self._excused_s + self._heartbeat_interval_s):
            _log.warning("overslept" if has_paused else "control_messages_dropped", dropped=self._arrivals.dropped)
            self._arrivals.missed, self._excused_s = False, time.monotonic()
            self._clock.catch_up()
            self._react(Overslept())

    def _read_again_if_refused(self, connection: port.Transport, filters: Sequence[str]) -> None:
        """Read again what the broker retains, once no more messages are refused: an order may have been among them."""
        is_urgent = self._state is None or not self._state.settled  # then what isn't heard counts as removed, soon
        is_new, is_due = self._arrivals.refusals.look(time.monotonic(), urgent=is_urgent)
        if is_due or (is_new and is_urgent):
            self._react(MessagesRefused())
            if self._waiting is not None:
                self._waiting.on_refused(is_read_again=is_due)
        if is_due:
            _log.warning("reading_again", dropped=self._arrivals.dropped)
            read_again(connection, *filters)

    def _send_heartbeat(self) -> None:
        """Publish, once in each interval, that the leader's loop runs."""
        state, now_s = self._state, time.monotonic()
        if state is None or now_s < self._heartbeat_at_s:
            return
        self._freed_memory.return_if_due(now_s)
        self._heartbeat_at_s = time.monotonic() + leader_watch.leader_interval_s(self._heartbeat_interval_s)
        if state.link is not None and self.resigned is None and state.republish_at_s is None:  # else it may be over
            alive = OrchestratorState(epoch=state.epoch, online=True, session=state.link.session)
            self._unsent.add([port.Outgoing(topics.ORCHESTRATOR_HEARTBEAT.at(self._prefix), encode(alive), qos=0)])
            self._report(partial(self._reports.sweep, state))

    def _react(self, event: Event) -> None:
        if self._state is None:
            return
        before = self._state
        try:
            self._state, actions = decide(before, event, self._clock.now_s)
        except Exception:  # noqa: BLE001 - a bug met by one message, perhaps a retained one, must not end the leader
            self._log_failure("event_failed", event)
            if isinstance(event, Tick):
                self._tick_from_s = self._clock.now_s + RETRY_FAILED_S
            return
        if actions:
            self._freed_memory.on_work(time.monotonic())
        for action in actions:
            try:
                self._carry_out(action)
            except Exception:  # noqa: BLE001 - the other actions are still due
                self._log_failure("action_failed", action)
        self._report(partial(self._reports.on_event, before, event, self._state, actions))
        for task, reason in self._reports.take_warnings():
            _log.warning("request_unanswerable", task=task, reason=reason, advice="s2m3 status shows how many come")

    def _report(self, reports: Callable[[When], list[port.Outgoing]]) -> None:
        """Publish reports for people, made for this moment; the site works without them."""
        try:
            self._unsent.add(reports(When(self._clock.now_s, time.time())))
        except Exception:  # noqa: BLE001 - as in _react
            self._log_failure("report_failed", reports)

    def _log_failure(self, what: str, cause: object) -> None:
        """Count and log the current exception."""
        self._internal_errors += 1
        _log.exception(what, kind=type(cause).__name__)

    def _to_event(self, posted: Arrived) -> Event | None:
        event = posted.event
        if isinstance(event, PlanFound):
            return event
        if isinstance(event, port.Delivery):
            return self._event_of(event)
        if isinstance(event, port.Denied) and self._denials.is_new(event):
            _log.error("denied_by_broker", topic=event.topic, reason=event.reason)
        elif posted.control and isinstance(event, port.LinkUp):
            _log.info("link_up", broker=self._connection.url)
            epoch = self._state.epoch if self._state else 0
            self._manager.ready(f"leads, epoch {epoch}, at {self._connection.url}")
            return event
        elif isinstance(event, port.LinkDown):
            _log.warning("link_down", link="control" if posted.control else "data", reason=event.reason)
            if posted.control:
                self._manager.status(f"lost the broker {self._connection.url}, and connects again")
                return event
        return None

    def _event_of(self, delivery: port.Delivery) -> Event | None:
        if (clearing := clears_request(self._prefix, delivery)) is not None:
            self._clear_request(clearing)
            return None
        try:
            return event_of(self._prefix, delivery)
        except errors.RemoteProtocolError as error:
            _log.warning("message_refused", topic=delivery.topic[:200], reason=str(error))
        except Exception:  # noqa: BLE001 - as in _react
            self._log_failure("message_failed", delivery)
        return None

    def _clear_request(self, clearing: port.Outgoing) -> None:
        """A retained request would come again at each connection and each change of a front door."""
        try:
            self._data.publish(clearing)
        except errors.TransportError as error:
            _log.warning("retained_request_not_cleared", topic=clearing.topic[:200], reason=str(error)[:200])
        else:
            _log.warning("retained_request_cleared", topic=clearing.topic[:200], advice="send requests without retain")

    # --- actions ---

    def _carry_out(self, action: Action) -> None:
        log_action(action)
        match action:
            case events.AnswerError(reply_to):
                try:
                    self._data.publish(outgoing_of(self._prefix, action))
                except (errors.TransportError, errors.MessageTooLarge) as error:
                    _log.warning("answer_lost", topic=reply_to, reason=str(error))
            case events.Resign(why, epoch):
                self.resigned = why
                self._files.store_epoch(max(self._files.read_epoch(), epoch))
            case events.RequestPlan() if self._planner is not None:
                self._planner.request(action)
            case events.EndPlanning() if self._planner is not None:
                self._planner.end(action)
            case events.Note() | events.RequestPlan() | events.EndPlanning():
                pass
            case _:
                self._unsent.add([outgoing_of(self._prefix, action)])

    def _flush(self) -> None:
        """Hand over the waiting messages as far as the connection takes them; what they follow from is stored first.

        What was decided over a link that has ended is dropped: that broker may have lost its memory, and the number of
        our orders would say that it has them all. All is published again over the next link.
        """
        state = self._state
        if state is not None and state.link is None:
            self._unsent.clear()
        elif state is None or self._stored.update(state.orders):
            is_over = state is not None and state.link is not None and state.link.session != self._arrivals.session
            self._unsent.hand_over(None if is_over else self._control)
