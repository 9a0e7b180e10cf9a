"""The agent's loop: events in, ``decide``, actions out.

Owns the threads: the service thread (the caller of ``run``), one for the heartbeat, one that loads modules, one that
computes. The network's threads only fill the mailbox. Decides nothing itself.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import structlog

from broker.protocol.codec import encode
from broker.protocol.errors import (
    ErrorCode,
    IdInUse,
    LocalProtocolError,
    ModuleRefused,
    RemoteProtocolError,
    RequestFailed,
    TransportError,
)
from broker.protocol.messages import DeviceProfile, DeviceState, ErrorBody, Heartbeat, NodeInputs
from broker.protocol.topics import DEVICE_ECHO, DEVICE_HEARTBEAT, DEVICE_STATE, prefix_of
from broker.transport.connect import connect
from broker.transport.mailbox import Mailbox
from broker.transport.port import (
    Delivery,
    Denied,
    LinkDown,
    LinkEvent,
    LinkUp,
    MakeTransport,
    Outgoing,
    Undelivered,
    Will,
)
from edge_agent import modules, wire
from edge_agent.actions import Action, JoinGroup, LeaveGroup, Load, Log, Reply, Run, Send, SendHeartbeat, Unload
from edge_agent.config import AgentConfig
from edge_agent.decide import decide
from edge_agent.device import footprint
from edge_agent.device.client_takeover import Rivals
from edge_agent.device.link_probe import LinkMeter
from edge_agent.events import (
    DataLinkChanged,
    Event,
    LinkRestored,
    ModuleFailed,
    ModuleReady,
    NodeRun,
    NotReceived,
    Ran,
    Tick,
)
from edge_agent.modules import Output
from edge_agent.runtime.store import Store
from edge_agent.state import AgentState

log = structlog.get_logger()

HUNG_S = 5.0  # without a turn of the loop, or beyond a forward pass's deadline: far longer than any garbage collection
GIVE_BACK_S = 60.0  # what a burst took goes back then; the next pass must fetch it anew, and is a little slower
LONGEST_SLEEP_S = 0.5  # the loop turns at least this often, so that a hung one is told from an idle one


@dataclass(frozen=True)
class _FromLink:
    link: Literal["control", "data"]
    event: LinkEvent
    at_s: float  # when it came


@dataclass(frozen=True)
class _Stop:
    pass


class Agent:
    """One device's agent. ``run`` blocks until ``stop`` is called from any thread.

    Args:
        config: what the operator says about the device.
        profile: what the device has to offer.
        store: holds its modules.
        make_transport: a test passes that of the in-memory broker.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        profile: DeviceProfile,
        store: Store,
        make_transport: MakeTransport = connect,
    ) -> None:
        self._config = config
        self._profile = profile
        self._store = store
        self._prefix = prefix_of(config.site)
        self._state = AgentState(config.id, self._prefix)
        self._mailbox: Mailbox[Event | _FromLink | _Stop] = Mailbox()
        url = config.broker
        self._control = make_transport(url=url, client_id=config.id, inbox=self._from_control, will=self._will)
        self._data = make_transport(url=url, client_id=f"{config.id}-data", inbox=self._from_data)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix=f"agent[{config.id}].load")
        self._compute = ThreadPoolExecutor(1, thread_name_prefix=f"agent[{config.id}].compute")
        self._heart = threading.Thread(target=self._beat_forever, name=f"agent[{config.id}].heartbeat", daemon=True)
        self._wake_heart = threading.Event()
        self._stopping = threading.Event()
        self._session: int | None = None  # of the control link, while it is up
        self._rivals = Rivals(time.monotonic())
        self._ended_by: IdInUse | None = None
        self._data_up = False
        self._progress = 0
        self._computing: set[NodeRun] = set()  # handed to the compute thread
        self._gives_back_at_s = time.monotonic() + GIVE_BACK_S
        self._hangs_at_s: float | None = None  # when the forward pass that runs now counts as hung
        self._meter = LinkMeter(config, DEVICE_ECHO.at(self._prefix, device=config.id), self._data.publish)
        self._log = log.bind(device=config.id)

    def run(self) -> None:
        """Serve until stopped; then say goodbye and let go of everything.

        Raises:
            IdInUse: another agent is connected under this device's id.
        """
        self._data.subscribe(*wire.data_filters(self._prefix, self._config.id))
        self._control.subscribe(*wire.control_filters(self._prefix, self._config.id))
        self._data.start()
        self._control.start()
        self._heart.start()
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._say_goodbye()
        if self._ended_by is not None:
            raise self._ended_by

    def stop(self) -> None:
        """End ``run`` soon; callable from any thread and from a signal handler."""
        self._stopping.set()
        self._mailbox.put_control(_Stop())

    # --- events in ---

    def _from_control(self, event: LinkEvent) -> None:
        self._mailbox.put_control(_FromLink("control", event, time.monotonic()))

    def _from_data(self, event: LinkEvent) -> None:
        item = _FromLink("data", event, time.monotonic())
        if isinstance(event, Delivery):
            self._mailbox.put_data(item, len(event.payload))
        else:
            self._mailbox.put_control(item)

    def _turn(self) -> None:
        due_s = self._state.next_deadline_s()
        wait_s = LONGEST_SLEEP_S if due_s is None else min(LONGEST_SLEEP_S, max(0.0, due_s - time.monotonic()))
        item = self._mailbox.get(wait_s)
        self._progress += 1
        event = self._taken_in(item) if isinstance(item, _FromLink) else item
        now_s = time.monotonic()
        if event is not None and not isinstance(event, _Stop):
            self._handle(event, now_s)
        due_s = self._state.next_deadline_s()
        if due_s is not None and now_s >= due_s:
            self._handle(Tick(), now_s)
        if now_s >= self._gives_back_at_s:
            self._gives_back_at_s = now_s + GIVE_BACK_S
            self._compute.submit(footprint.give_back)  # between passes

    def _handle(self, event: Event, now_s: float) -> None:
        if isinstance(event, Ran):
            self._computing.discard(event.run)
        try:
            self._perform(decide(self._state, event, now_s))
        except Exception as error:  # noqa: BLE001 - a bug met by one message must not end the device for all others
            self._state.dropped["internal_error"] += 1
            self._log.exception("event_failed", event_kind=type(event).__name__)
            for run in self._state.passes.keys() - self._computing:  # or their turn would never end
                self._mailbox.put_control(Ran(run, None, error, now_s, 0.0))

    def _taken_in(self, item: _FromLink) -> Event | None:
        try:
            return self._link_event(item)
        except Exception:  # noqa: BLE001 - as in _handle; where memory is short, any line may fail
            self._state.dropped["internal_error"] += 1
            self._log.exception("link_event_failed", event_kind=type(item.event).__name__)
            return None

    def _link_event(self, item: _FromLink) -> Event | None:
        link, event = item.link, item.event
        match event:
            case Delivery():
                return self._read(event, item.at_s)
            case LinkUp(session):
                self._log.info("link_up", link=link, session=session)
                self._link_changed(link, session)
                return LinkRestored() if link == "control" else DataLinkChanged(up=True)
            case LinkDown(reason):
                self._log.warning("link_down", link=link, reason=reason)
                self._link_changed(link, None)
                return None if link == "control" else DataLinkChanged(up=False)
            case Denied(topic, reason):
                self._log.error("denied_by_broker", topic=topic, reason=reason)
            case Undelivered():
                return wire.not_received(event, time.monotonic() + LONGEST_SLEEP_S)
        return None

    def _read(self, delivery: Delivery, arrived_s: float) -> Event | None:
        try:
            event = wire.event_of(self._prefix, delivery)
        except RemoteProtocolError as error:
            self._state.dropped["malformed"] += 1
            self._log.warning("message_refused", topic=delivery.topic, error=str(error))
            return None
        match event:
            case wire.RebirthRequested():
                self._announce("online")
                self._wake_heart.set()
            case wire.Echoed(payload):
                if measured := self._meter.heard(payload, arrived_s, self._profile):
                    self._link_measured(measured)
            case DeviceState():
                self._found(event)
            case _:
                return event
        return None

    # --- actions out ---

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Load() | Unload():
                    self._loader.submit(self._hold, action)
                case JoinGroup(filter_):
                    self._data.subscribe(filter_)
                case LeaveGroup(filter_):
                    self._data.unsubscribe(filter_)
                case Run():
                    self._computing.add(action.run)
                    self._compute.submit(self._run_node, action)
                case Send():
                    self._send(action)
                case Reply():
                    self._reply(action)
                case SendHeartbeat():
                    self._wake_heart.set()
                case Log(name, fields):
                    self._log.info(name, **fields)

    def _send(self, send: Send) -> None:
        try:
            self._data.publish(wire.tensors_message(self._prefix, self._config.id, send, time.monotonic()))
        except LocalProtocolError as error:  # too large, or no way to write it: no retry helps
            self._log.error("tensors_not_sendable", receiver=send.receiver, error=str(error))
            if isinstance(send.message, NodeInputs):
                failed = wire.failure(send.message, send.receiver, ErrorCode.TOO_LARGE, str(error), retry=False)
                self._mailbox.put_control(NotReceived(send.message.coordinator, failed, send.deadline_s))
        except TransportError as error:  # the coordinator's retry covers it
            self._state.dropped["tensors_not_sent"] += 1
            self._log.warning("tensors_not_sent", receiver=send.receiver, error=type(error).__name__)

    def _reply(self, reply: Reply) -> None:
        try:
            self._data.publish(wire.result_message(reply, time.monotonic()))
        except TransportError as error:  # too many wait already; the sensor's retry covers it
            self._state.dropped["result_not_sent"] += 1
            self._log.warning("result_not_sent", reply_to=reply.reply_to, error=type(error).__name__)
        except LocalProtocolError as error:  # no retry helps; the sensor hears why
            self._log.error("result_not_sendable", reply_to=reply.reply_to, error=str(error))
            if reply.result.error is None:
                body = ErrorBody(code=ErrorCode.TOO_LARGE, message=f"the answer can't be sent: {error}"[:500])
                result = reply.result.model_copy(update={"answer": None, "error": body})
                self._reply(Reply(reply.reply_to, reply.correlation, result, reply.deadline_s))

    # --- the loader's and the compute thread ---

    def _hold(self, action: Load | Unload) -> None:
        if isinstance(action, Unload):
            self._store.unload(action.key)
            self._log.info("module_unloaded", key=action.key)
            self._wake_heart.set()
            return
        module, key = action.assigned.module, action.assigned.spec.key
        try:
            held = self._store.load(action.assigned)
        except ModuleRefused as error:
            self._log.error("module_refused", module=module, error=str(error))
            self._mailbox.put_control(ModuleFailed(key))
        else:
            self._log.info(
                "module_ready", module=module, **held.model_dump(include={"memory_bytes", "load_s", "compute_s"})
            )
            self._mailbox.put_control(ModuleReady(key, held.compute_s))

    def _run_node(self, run: Run) -> None:
        began_s = time.monotonic()
        self._hangs_at_s = max(began_s, run.deadline_s) + HUNG_S
        output, failed = None, None
        try:
            output = self._forward(run, began_s)
        except Exception as error:  # noqa: BLE001 - whatever a module does, the sensor gets an answer
            failed = error
        self._hangs_at_s = None
        compute_s = time.monotonic() - began_s
        if output is not None:
            self._store.record(run.key, compute_s)
        self._mailbox.put_control(Ran(run.run, output, failed, began_s, compute_s))

    def _forward(self, run: Run, began_s: float) -> Output:
        if began_s >= run.deadline_s:
            raise RequestFailed(ErrorCode.DEADLINE_EXCEEDED, "its time was over before it could be computed")
        with self._store.use(run.key) as module, self._store.passing():
            output = modules.run(module, run.values, run.use)
        if self._config.speed < 1:  # wait as long as a slower device would compute on
            time.sleep((time.monotonic() - began_s) * (1 / self._config.speed - 1))
        return output

    # --- the heartbeat's thread: no I/O but the publish, which never waits ---

    def _beat_forever(self) -> None:
        """Beat while the device can serve: both links are up, the loop turns, and no forward pass hangs."""
        sequence, progress, moved_s = 0, -1, time.monotonic()
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if self._progress != progress:
                progress, moved_s = self._progress, now_s
            hangs_at_s = self._hangs_at_s
            if now_s - moved_s > HUNG_S or (hangs_at_s is not None and now_s > hangs_at_s):
                self._log.error("hung", since_s=round(now_s - moved_s, 1), computing=hangs_at_s is not None)
            elif (session := self._session) is not None and self._data_up and self._beat_safely(session, sequence):
                sequence += 1
            self._wake_heart.wait(self._config.heartbeat_interval_s)
            self._wake_heart.clear()

    def _beat_safely(self, session: int, sequence: int) -> bool:
        try:
            return self._beat(session, sequence)
        except Exception:  # noqa: BLE001 - the next beat may succeed; without this thread the device counts as dead
            self._log.exception("heartbeat_failed")
            return False

    def _beat(self, session: int, sequence: int) -> bool:
        epoch, generation = self._state.fence
        now_s = time.monotonic()
        beat = Heartbeat(
            session=session,
            seq=sequence,
            epoch=epoch,
            generation=generation,
            modules={
                key: held.model_copy(update={"queue": self._state.queued.get(key, 0)})
                for key, held in self._store.held().items()
            },
            memory_used_bytes=self._store.used_bytes,
            memory_bytes=self._profile.memory_bytes,
            cached=self._store.cached(),
            in_flight=len(self._state.coordinated),
            progress=self._progress,
            dropped=self._state.dropped.copy() | Counter(mailbox_full=self._mailbox.dropped),
            suspects={device: max(0.0, now_s - at_s) for device, at_s in dict(self._state.suspects).items()},
        )
        topic = DEVICE_HEARTBEAT.at(self._prefix, device=self._config.id)
        try:
            self._control.publish(Outgoing(topic, encode(beat), qos=0))
        except (TransportError, LocalProtocolError) as error:
            self._log.warning("heartbeat_not_sent", error=str(error) or type(error).__name__)
            return False
        return True

    # --- the links ---

    def _will(self, session: int) -> Will:
        return Will(
            DEVICE_STATE.at(self._prefix, device=self._config.id),
            encode(DeviceState(status="offline", session=session)),
        )

    def _link_changed(self, link: Literal["control", "data"], session: int | None) -> None:
        """Announce the device once both links can hear, and again at each new session of the control link."""
        if link == "control":
            self._session = session
            self._look_for_rivals(session, time.monotonic())
        else:
            self._data_up = session is not None
        if session is not None:
            self._announce("online")
            self._wake_heart.set()
            if link == "data":
                self._meter.begin(session)

    def _look_for_rivals(self, session: int | None, now_s: float) -> None:
        if session is not None:
            self._rivals.connected(session, now_s)
            if self._rivals.suspected and not self._data_up:
                self._announce("offline")  # not serving yet, but to be seen
        elif self._rivals.disconnected(now_s):
            self._ended_by = IdInUse(self._config.id)
            self.stop()

    def _found(self, state: DeviceState) -> None:
        """What is retained as our own state may be a late will, to be corrected, or somebody else's."""
        self._rivals.hear(state.session, time.monotonic())
        if state.status == "offline":
            self._announce("online")

    def _link_measured(self, profile: DeviceProfile) -> None:
        self._log.info("link_measured", latency_s=profile.latency_s, bandwidth_bits_per_s=profile.bandwidth_bits_per_s)
        self._profile = profile
        self._announce("online")

    def _announce(self, status: Literal["online", "offline"]) -> None:
        if self._session is None or (status == "online" and not self._data_up):
            return
        profile = self._profile if status == "online" else None
        state = DeviceState(status=status, session=self._session, profile=profile)
        topic = DEVICE_STATE.at(self._prefix, device=self._config.id)
        try:
            self._control.publish(Outgoing(topic, encode(state), retain=True))
        except TransportError as error:  # online: a new link will follow; offline: the will says the same
            self._log.warning("state_not_sent", status=status, error=str(error) or type(error).__name__)

    def _say_goodbye(self) -> None:
        self._stopping.set()
        self._wake_heart.set()
        self._heart.join(timeout=LONGEST_SLEEP_S)
        self._announce("offline")
        self._control.close()
        self._data.close()
        self._loader.shutdown(cancel_futures=True)
        self._compute.shutdown(cancel_futures=True)
        self._log.info("agent_stopped")
