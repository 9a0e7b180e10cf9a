"""The agent's loop: it takes events, lets ``decide`` choose the actions, and performs them.

Owns the service thread (the caller of ``run``). The threads of ``workers`` and of the
network only fill the mailbox. Owns the connections, too: the session, the measured link and the client id. So it
handles echoes, rebirth requests and the device's own state itself; ``decide`` decides everything else.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import structlog

from broker.protocol.client_ids import client_id
from broker.protocol.codec import decode, encode
from broker.protocol.errors import ErrorCode, IdInUse, RemoteProtocolError, TransportError
from broker.protocol.messages import About, DeviceProfile, DeviceState, ErrorBody
from broker.protocol.specs import MAX_TASKS, ClientName, TaskName
from broker.protocol.topics import DEVICE_ECHO, DEVICE_STATE, prefix_of
from broker.service_manager import ServiceManager
from broker.transport import port
from broker.transport.connect import connect
from broker.transport.connection import Connection
from broker.transport.denials import Denials
from broker.transport.mailbox import Mailbox
from broker.transport.refusals import Refusals, read_again
from edge_agent import events, wire
from edge_agent.config import AgentConfig
from edge_agent.config import connections as connections_of
from edge_agent.decide import step
from edge_agent.device.awake_clock import AwakeClock
from edge_agent.device.broker_drops import BrokerDrops
from edge_agent.device.client_takeover import ClientTakeover
from edge_agent.device.link_probe import LinkProbe
from edge_agent.device.pass_note import PassNote, machine_up_s
from edge_agent.heart import Heart, snapshot_of
from edge_agent.reports import SUMMARY_S, Reports
from edge_agent.requests.accounts import LOGIN_OWN, OPEN_OWN, Accounts
from edge_agent.requests.error_reply import refuse_unread
from edge_agent.restart import PassLost
from edge_agent.runtime.output_cache import OutputCache
from edge_agent.runtime.runner import Runner
from edge_agent.runtime.store import Store
from edge_agent.sender import Sender, as_error
from edge_agent.state import AgentState
from edge_agent.workers import LostPass, Workers

log = structlog.get_logger()

GIVE_BACK_S = 60.0  # between two returns of freed memory to the system; the next pass is a little slower
ANNOUNCED = 16  # of the device's states: more than can be under way
FAREWELL_S = 10.0  # for the requests that an agent with a hung pass coordinates
CLOSE_S = 3.0  # for both connections and the present pass, when the agent ends
READ_AGAIN_AFTER_S = 1.0  # without a refused control message
LOOK_AROUND_S = 0.02  # after an event, until the loop looks what else is due
LONGEST_SLEEP_S = 0.5  # the loop turns at least this often, so that a hung loop differs from an idle one
NOT_RECEIVED_LIFE_S = 1.0  # of the message to a coordinator that a device is not there; its retry covers the loss


@dataclass(frozen=True)
class _FromLink:
    link: Literal["control", "data"]
    event: port.LinkEvent
    at_s: float  # when it arrived
    account: ClientName = ""  # of a request's client


_ForWorkers = events.Load | events.Unload | events.Run


class Agent:
    """One device's agent. ``run`` blocks until ``stop`` is called from any thread.

    The heartbeat thread calls ``on_turn`` at each of its turns.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        profile: DeviceProfile,
        store: Store,
        runner: Runner | None = None,
        about: About | None = None,
        note: PassNote | None = None,
        cache: OutputCache | None = None,
        on_turn: Callable[[], None] = lambda: None,
        connections: tuple[Connection, Connection] | None = None,
        manager: ServiceManager | None = None,
        make_transport: port.MakeTransport = connect,
    ) -> None:
        self._config = config
        self._profile, self._about = profile, about
        self._store = store
        control, data = connections or connections_of(config)
        self._prefix = prefix_of(control.site)
        self._state_topic = DEVICE_STATE.at(self._prefix, device=config.id)
        runner = runner or Runner()
        self._state = AgentState(config.id, self._prefix, runner.batch, config.heartbeat_interval_s)
        self._manager, self._broker = manager or ServiceManager({}), control.url
        self._mailbox: Mailbox[events.Event | _FromLink] = Mailbox()
        self._refusals = Refusals(READ_AGAIN_AFTER_S)
        self._control = make_transport(
            control,
            client_id=client_id("devices", config.id, "control", site=control.site),
            inbox=partial(self._put, "control"),
            will=self._will,
            max_packet_bytes=port.MAX_CONTROL_PACKET_BYTES,
        )
        self._data = make_transport(
            data,
            client_id=client_id("devices", config.id, "data", site=control.site),
            inbox=partial(self._put, "data"),
        )
        self._heart = Heart(
            config,
            self._prefix,
            store,
            profile.memory_bytes,
            session=self._serving_session,
            publish=self._control.publish,
            on_turn=on_turn,
            cache=cache,
        )
        report = self._mailbox.put_own
        self._note = note or PassNote()
        self._workers = Workers(config, store, runner, report=report, note=self._note, cache=cache)
        self._sender = Sender(config.id, self._prefix, self._data.publish, report=report)
        self._denials = Denials(self._prefix)
        self._is_overloaded = False  # it refused a request since the start
        account_link = self._control if control.user else None
        self._broker_drops = BrokerDrops(control, config.id, make_transport, account_link)
        self._stopping = threading.Event()
        self._is_asked_to_end = False  # then a hung pass restarts nothing
        self._session: int | None = None  # of the control link, while it is up
        self._first_session: int | None = None  # under which it announced itself
        self._announced: deque[DeviceState] = deque(maxlen=ANNOUNCED)  # the latest: they come back
        self._takeover = ClientTakeover(time.monotonic())
        self._ended_by: IdInUse | PassLost | None = None
        self._awake = AwakeClock(time.monotonic())
        self._restart_by_s: float | None = None  # a pass hangs
        self._data_up = False
        self._computing: set[events.NodeRun] = set()  # submitted to the compute thread
        self._gives_back_at_s = time.monotonic() + GIVE_BACK_S
        self._link_probe = LinkProbe(config, DEVICE_ECHO.at(self._prefix, device=config.id), self._data.publish)
        version = about.version if about else "unknown"
        self._reports = Reports(config.id, self._prefix, version=version, publish=self._control.publish)
        self._summary_at_s = -math.inf
        self._look_around_at_s = -math.inf  # after an event; without one at each turn
        self._accounts = Accounts(LOGIN_OWN if control.user else OPEN_OWN)  # only the network's thread uses it
        self._refused: Counter[TaskName] = Counter()  # requests that weren't read; only the network's thread adds to it
        self._log = log.bind(device=config.id)

    def run(self) -> None:
        """Serve until stopped; then announce the end.

        Raises:
            IdInUse: another agent has this device's id.
            PassLost: a forward pass hangs, so this process must be replaced.
        """
        self._data.subscribe(*wire.data_filters(self._prefix, self._config.id))
        self._control.subscribe(*wire.control_filters(self._prefix, self._config.id))
        self._manager.status(f"connects to the broker {self._broker}")
        self._data.start()
        self._control.start()
        self._heart.start()
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._close()
        if self._ended_by is not None and not (self._is_asked_to_end and isinstance(self._ended_by, PassLost)):
            raise self._ended_by

    def stop(self) -> None:
        """End ``run`` soon; callable from any thread and from a signal handler."""
        self._is_asked_to_end = True
        self._end()

    def _end(self) -> None:
        self._stopping.set()
        self._mailbox.put_own(events.Tick())  # wakes the loop

    # --- events in ---

    def _put(self, link: Literal["control", "data"], event: port.LinkEvent) -> None:
        if self._broker_drops.hear(event):
            return
        item = _FromLink(link, event, time.monotonic())
        if link == "control" or not isinstance(event, port.Delivery):
            size_bytes = len(event.payload) if isinstance(event, port.Delivery) else 0
            certain = isinstance(event, port.LinkUp | port.LinkDown)
            is_kept = self._mailbox.put_control(item, size_bytes, certain=certain)
            if link == "control" and not is_kept:
                self._refusals.note(item.at_s)
        elif event.retain or (client := wire.client_of(self._prefix, event.topic)) is None:
            self._mailbox.put_data(item, len(event.payload))
        else:
            account = self._accounts.of(client, item.at_s)
            item = _FromLink(link, event, item.at_s, account)
            if not self._mailbox.put_request(item, len(event.payload), client=account):
                self._refuse(event)

    def _refuse(self, delivery: port.Delivery) -> None:
        """Answer a request that finds the mailbox full: from its topic and properties, in the network's thread."""
        request = wire.event_of(self._prefix, delivery)
        if isinstance(request, events.Requested):
            refusal = refuse_unread(self._state, request, time.monotonic())
            if refusal and (request.task in self._refused or len(self._refused) < MAX_TASKS):
                self._refused[request.task] += 1
            self._sender.refuse(refusal)

    def _turn(self) -> None:
        due_s = self._state.next_deadline_s()
        due_s = math.inf if due_s is None else due_s
        now_s = time.monotonic()
        item = self._mailbox.get(max(0.0, min(LONGEST_SLEEP_S, due_s - now_s, self._look_around_at_s - now_s)))
        self._heart.progress += 1
        event = self._read(item) if isinstance(item, _FromLink) else item
        now_s = time.monotonic()
        if event is not None:
            self._handle(event, now_s)
        if now_s >= due_s:
            self._handle(events.Tick(), now_s)
        if item is None or now_s >= self._look_around_at_s:
            self._look_around_at_s = math.inf
            self._look_around(now_s)
        else:
            self._look_around_at_s = min(self._look_around_at_s, now_s + LOOK_AROUND_S)

    def _look_around(self, now_s: float) -> None:
        """Do what is due by time and not by an event. It waits a little: events, and the compute thread, go first."""
        self._manager.turn()
        self._read_again_if_refused(now_s)
        self._sender.retry(now_s)
        if self._refused or self._is_overloaded:
            self._broker_drops.look(now_s)
        if self._heart.needs_snapshot(now_s):
            self._take_snapshot(now_s)
        self._link_probe.on_tick(now_s)
        self._watch_workers(now_s)
        if now_s >= self._gives_back_at_s:
            self._gives_back_at_s = now_s + GIVE_BACK_S
            self._workers.give_back_memory()
        if now_s >= self._summary_at_s:
            self._summary_at_s = now_s + SUMMARY_S
            self._reports.summarize(self._state, self._store.held(), self._refused.copy())

    def _read_again_if_refused(self, now_s: float) -> None:
        """Read again what the broker retains if control messages found no room: a route may have been among them."""
        is_new, is_due = self._refusals.look(now_s)
        if is_new or is_due:
            self._handle(events.ControlLinkRestored(), now_s)
        if is_due:
            self._log.warning("reading_again", dropped=self._mailbox.dropped)
            self._perform([events.ReadRetained()])

    def _serving_session(self) -> int | None:
        """The session under which this device serves: both links are up, and no forward pass hangs."""
        return self._session if self._data_up and self._restart_by_s is None else None

    def _take_snapshot(self, now_s: float) -> None:
        dropped = self._sender.dropped + Counter(mailbox_full=self._mailbox.dropped)
        self._heart.take(snapshot_of(self._state, dropped), now_s)

    def _send_heartbeat(self) -> None:
        self._take_snapshot(time.monotonic())
        self._heart.wake()

    def _watch_workers(self, now_s: float) -> None:
        """Leave when a forward pass is lost: at once for the orchestrator, a little later for good."""
        lost = self._workers.watch(self._awake.tick(now_s))
        if self._restart_by_s is None and lost is not None:
            self._leave(lost, now_s)
        elif self._restart_by_s is not None and (now_s >= self._restart_by_s or not self._state.coordinated):
            self._handle(events.Restarting(), now_s)
            self._ended_by = PassLost("a pass hangs, or broke the accelerator")
            self._end()

    def _leave(self, lost: LostPass, now_s: float) -> None:
        fields: dict[str, object] = {"batch": len(lost.runs), "restart_within_s": FAREWELL_S}
        for first in lost.runs[:1]:  # a load may break the accelerator, too
            fields |= {"node": first.run.node, "request": first.run.request, "module": first.key}
        if lost.broken:
            self._log.error("accelerator_broken", why=lost.broken, **fields)
        else:
            since_s, limit_s = round(lost.since_s, 1), round(lost.limit_s, 1)
            self._log.error("pass_hung", since_s=since_s, limit_s=limit_s, **fields)
        self._restart_by_s = now_s + FAREWELL_S
        # first: its coordinator must know before the new routes
        self._handle(events.PassIsLost(tuple(each.run for each in lost.runs), lost.broken), now_s)
        self._announce("offline")

    def _handle(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.Ran):
            self._computing.discard(event.run)
        try:
            waiting = deque([event])
            while waiting:
                if chosen := step(self._state, waiting, now_s):
                    self._perform(chosen)
        except Exception as error:  # noqa: BLE001 - a bug that one message meets must not end the service of all others
            self._state.dropped["internal_error"] += 1
            self._log.exception("event_failed", event_kind=type(event).__name__)
            for run in self._state.passes.keys() - self._computing:  # or their passes would never end
                self._mailbox.put_own(events.Ran(run, None, error, now_s, 0.0))

    def _read(self, item: _FromLink) -> events.Event | None:
        try:
            return self._event_of(item)
        except RemoteProtocolError as error:
            self._state.dropped["malformed"] += 1
            self._log.warning("message_refused", topic=getattr(item.event, "topic", "")[:200], error=str(error))
        except Exception:  # noqa: BLE001 - as in _handle; where memory is short, any line may fail
            self._state.dropped["internal_error"] += 1
            self._log.exception("link_event_failed", event_kind=type(item.event).__name__)
        return None

    def _event_of(self, item: _FromLink) -> events.Event | None:
        link, event = item.link, item.event
        match event:
            case port.Delivery():
                waited_s = max(0.0, time.monotonic() - item.at_s)
                read = wire.event_of(self._prefix, event, account=item.account, waited_s=waited_s)
                if not isinstance(read, events.ConnectionEvent):
                    return read
                self._on_connection_event(read, item.at_s)
            case port.LinkUp(session):
                self._log.info("link_up", link=link, session=session)
                self._link_changed(link, session)
                return events.ControlLinkRestored() if link == "control" else events.DataLinkChanged(up=True)
            case port.LinkDown(reason):
                self._log.warning("link_down", link=link, reason=reason)
                self._link_changed(link, None)
                return None if link == "control" else events.DataLinkChanged(up=False)
            case port.Denied() | port.Undelivered():
                if isinstance(event, port.Denied) and self._denials.is_new(event):
                    self._log.error("denied_by_broker", topic=event.topic, reason=event.reason)
                return wire.not_received(event, time.monotonic() + NOT_RECEIVED_LIFE_S)
        return None

    def _on_connection_event(self, event: events.ConnectionEvent, arrived_s: float) -> None:
        match event:
            case events.RebirthRequested():
                self._announce("online")
                self._send_heartbeat()
            case events.Echoed(payload):
                if found := self._link_probe.on_echo(payload, arrived_s, time.monotonic(), self._profile):
                    measured = found.model_dump(include={"latency_s", "bandwidth_bits_per_s"})
                    self._log.info("link_measured", **measured)
                    self._profile = found
                    self._announce("online")
            case events.RetainedState(said):  # perhaps a will of an earlier connection, or another agent's state
                self._takeover.on_session_seen(said.session, time.monotonic())
                if said.status == "offline":
                    self._announce("online")
            case DeviceState() as said if said not in self._announced:
                self._oppose(said)

    def _oppose(self, said: DeviceState) -> None:
        """Announce the device again after another client wrote its state, under a new session: it may have ended ours.

        The late will of an earlier connection ends nothing. The broker's will for this connection has another session
        from now on; so if the device dies before the next connection, its silence tells.
        """
        self._takeover.remember(said.session)
        is_late_will = said.status == "offline" and said.session != self._session
        if self._session is not None and not is_late_will:
            self._session = secrets.randbits(53)
            self._takeover.remember(self._session)
            self._log.warning("foreign_state_overwritten", session=said.session, status=said.status)
        self._announce("online")
        self._send_heartbeat()

    # --- actions out ---

    def _perform(self, chosen: list[events.Action]) -> None:
        """Perform actions in order; one that fails is logged, and those behind it are performed all the same.

        What the other threads do comes last: a pass would want the interpreter while messages wait to be written.
        """
        for_workers = [action for action in chosen if isinstance(action, _ForWorkers)]
        with self._data.together():
            self._perform_each([action for action in chosen if not isinstance(action, _ForWorkers)])
        self._perform_each(for_workers)

    def _perform_each(self, chosen: Sequence[events.Action]) -> None:
        for action in chosen:
            try:
                self._perform_one(action)
            except Exception as error:  # noqa: BLE001 - as in _handle
                self._state.dropped["internal_error"] += 1
                self._log.exception("action_failed", action_kind=type(action).__name__)
                self._make_up_for(action, error, time.monotonic())

    def _perform_one(self, action: events.Action) -> None:
        match action:
            case events.Load() | events.Unload():
                self._workers.submit(action)
            case events.Run():
                self._workers.submit(action)
                self._computing.add(action.run)
            case events.JoinGroup() | events.LeaveGroup() | events.ReadRetained():
                self._change_filters(action)
            case events.Send():
                self._sender.send(action)
            case events.Reply():
                self._sender.reply(action)
                error = action.result.error
                self._is_overloaded |= error is not None and error.code == ErrorCode.OVERLOADED
            case events.SendHeartbeat():
                self._send_heartbeat()
            case events.PublishEvent() | events.PublishTrace():
                self._reports.publish(action)
            case events.Log(name, fields):
                self._log.info(name, **fields)

    def _change_filters(self, action: events.JoinGroup | events.LeaveGroup | events.ReadRetained) -> None:
        match action:
            case events.JoinGroup(filter_):
                self._data.subscribe(filter_)
            case events.LeaveGroup(filter_):
                self._data.unsubscribe(filter_)
            case events.ReadRetained():
                read_again(self._control, *wire.control_filters(self._prefix, self._config.id))

    def _make_up_for(self, action: events.Action, error: Exception, now_s: float) -> None:
        """Report the end of an action that could not be begun, so that nothing waits for it."""
        match action:
            case events.Run(run):
                self._mailbox.put_own(events.Ran(run, None, error, now_s, 0.0))
            case events.Load(assigned):
                self._mailbox.put_own(events.ModuleFailed(assigned.spec.key))
            case events.Reply(result=result) if result.error is None:
                text = f"the answer can't be sent: {type(error).__name__}: {error}"
                self._perform([as_error(action, ErrorBody(code=ErrorCode.MODULE_FAILED, message=text[:500]))])

    # --- the links ---

    def _will(self, session: int) -> port.Outgoing:
        return port.Outgoing(self._state_topic, encode(DeviceState(status="offline", session=session)), retain=True)

    def _link_changed(self, link: Literal["control", "data"], session: int | None) -> None:
        """Announce the device once both links are up, and again at each new session of the control link."""
        if link == "data":
            self._data_up = session is not None
        else:
            self._session = session
            if session is not None:
                self._reports.republish_summary()
            self._check_takeover(session, time.monotonic())
        if session is None:
            self._manager.status(f"lost the broker {self._broker}, and connects again")
        else:
            self._announce("online")
            self._send_heartbeat()
            if link == "data":
                self._link_probe.begin(session, time.monotonic())

    def _check_takeover(self, session: int | None, now_s: float) -> None:
        if session is not None:
            self._takeover.on_connected(session, now_s)
            if self._takeover.suspected and not self._data_up:
                self._announce("offline")  # not serving yet, but the other agent must see this session
        elif self._takeover.on_disconnected(now_s):
            self._ended_by = IdInUse(self._config.id)
            self._end()

    def _announce(self, status: Literal["online", "offline"]) -> None:
        is_ready = self._data_up and self._restart_by_s is None
        if self._session is None or (status == "online" and not is_ready):
            return
        state = DeviceState(status=status, session=self._session)
        if status == "online":
            limits: dict[str, object] = {"tasks": self._config.tasks, "availability": self._config.availability}
            limits["heartbeat_interval_s"] = self._config.heartbeat_interval_s
            self._first_session = self._first_session or self._session
            lived = self._session != self._first_session  # this process, when the session before ended
            limits |= {"died_with": () if lived else self._note.died_with, "machine_up_s": round(machine_up_s(), 3)}
            state = state.model_copy(update={"profile": self._profile, "about": self._about, **limits})
        payload = encode(state)
        self._announced.append(decode(DeviceState, payload))
        try:
            self._control.publish(port.Outgoing(self._state_topic, payload, retain=True))
        except TransportError as error:  # online: a new link will follow; offline: so does the will
            self._log.warning("state_not_sent", status=status, error=str(error) or type(error).__name__)
        else:
            if status == "online":
                self._manager.ready(f"serves as {self._config.id} at {self._broker}")

    def _close(self) -> None:
        self._stopping.set()
        if not isinstance(self._ended_by, PassLost):  # else this process goes on with another program
            self._manager.stopping()
        self._heart.stop()
        self._broker_drops.stop()
        self._announce("offline")
        ends = (self._control.close, self._data.close, self._workers.close)
        closing = [threading.Thread(target=end, daemon=True) for end in ends]
        for each in closing:
            each.start()
        until_s = time.monotonic() + CLOSE_S
        for each in closing:
            each.join(max(0.0, until_s - time.monotonic()))
        self._log.info("agent_stopped")
