"""The heartbeats of an agent, and the thread that sends them.

Owns the thread, the sequence numbers, and when there is no heartbeat: without a session, or while the service's loop
hangs. It reads a snapshot of the rules' state, which the service thread takes, and never the state itself. The store
has a lock of its own.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from broker.protocol.codec import encode
from broker.protocol.errors import LocalProtocolError, TransportError
from broker.protocol.messages import Alone, Heartbeat
from broker.protocol.specs import DeviceId, ModuleKey
from broker.protocol.topics import DEVICE_HEARTBEAT
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig
from edge_agent.runtime.output_cache import OutputCache
from edge_agent.runtime.store import Store
from edge_agent.state import AgentState

HUNG_S = 5.0  # without a turn of the loop: far longer than any garbage collection
LONGEST_AGE_S = 0.5  # of a snapshot, while the loop turns
END_S = 0.5  # the longest wait for the thread's end

log = structlog.get_logger()


@dataclass(frozen=True)
class Snapshot:
    """The figures of a heartbeat that the rules know, at one moment."""

    fence: tuple[int, int] = (0, 0)
    queues: Mapping[ModuleKey, int] = field(default_factory=dict)
    in_flight: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    suspected_s: Mapping[DeviceId, float] = field(default_factory=dict)  # when
    alone: Alone | None = None


def snapshot_of(state: AgentState, dropped: Mapping[str, int]) -> Snapshot:
    """Copy the figures of the state; ``dropped`` counts what was dropped outside the rules."""
    return Snapshot(
        fence=state.fence,
        queues=state.queue_lengths,
        in_flight=len(state.coordinated),
        dropped=Counter(state.dropped) + Counter(dropped),
        suspected_s=dict(state.suspects),
        alone=Alone(request=state.alone.run.request, payload=state.alone.payload) if state.alone else None,
    )


class Heart:
    """Sends heartbeats, one each interval and one whenever it is woken.

    Args:
        config: of the device.
        prefix: of the topics.
        store: the modules that it holds.
        memory_bytes: for modules.
        session: the session under which it may send heartbeats now; None: none.
        publish: on the control connection; never blocks.
        on_turn: called at each turn of the thread, whether there is a heartbeat or not.
        cache: the outputs that it keeps.
    """

    def __init__(
        self,
        config: AgentConfig,
        prefix: str,
        store: Store,
        memory_bytes: int,
        *,
        session: Callable[[], int | None],
        publish: Callable[[Outgoing], None],
        on_turn: Callable[[], None] = lambda: None,
        cache: OutputCache | None = None,
    ) -> None:
        self._topic = DEVICE_HEARTBEAT.at(prefix, device=config.id)
        self._interval_s, self._store, self._memory_bytes = config.heartbeat_interval_s, store, memory_bytes
        self._cache = cache or OutputCache()
        self._session, self._publish, self._on_turn = session, publish, on_turn
        self.progress = 0
        """Turns of the service's loop, which counts them here."""
        self._snapshot, self._taken_s = Snapshot(), 0.0
        self._wakeup = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name=f"agent[{config.id}].heartbeat", daemon=True)
        self._log = log.bind(device=config.id)

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._thread.start()

    def stop(self) -> None:
        """Send no heartbeat any more."""
        self._stopping.set()
        self._wakeup.set()
        self._thread.join(END_S)

    def wake(self) -> None:
        """Send a heartbeat at once."""
        self._wakeup.set()

    def needs_snapshot(self, now_s: float) -> bool:
        """Whether the present snapshot is so old that the loop must take another one."""
        return now_s - self._taken_s >= min(LONGEST_AGE_S, self._interval_s)

    def take(self, snapshot: Snapshot, now_s: float) -> None:
        """Have the next heartbeats tell these figures."""
        self._snapshot, self._taken_s = snapshot, now_s

    def _send_all(self) -> None:
        sequence, progress, moved_s = 0, -1, time.monotonic()
        while not self._stopping.is_set():
            now_s = time.monotonic()
            self._on_turn()
            if self.progress != progress:
                progress, moved_s = self.progress, now_s
            if now_s - moved_s > HUNG_S:
                self._log.error("hung", since_s=round(now_s - moved_s, 1))
            elif (session := self._session()) is not None:
                sequence += self._sent(session, sequence, now_s)
            self._wakeup.wait(self._interval_s)
            self._wakeup.clear()

    def _sent(self, session: int, sequence: int, now_s: float) -> bool:
        try:
            self._publish(Outgoing(self._topic, encode(self._heartbeat(session, sequence, now_s)), qos=0))
        except (TransportError, LocalProtocolError) as error:
            self._log.warning("heartbeat_not_sent", error=str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001 - the next one may succeed; a device without heartbeats counts as dead
            self._log.exception("heartbeat_failed")
        else:
            return True
        return False

    def _heartbeat(self, session: int, sequence: int, now_s: float) -> Heartbeat:
        seen, store = self._snapshot, self._store
        return Heartbeat(
            session=session,
            seq=sequence,
            epoch=seen.fence[0],
            generation=seen.fence[1],
            modules={
                key: held.model_copy(update={"queue": seen.queues.get(key, 0)}) for key, held in store.held().items()
            },
            memory_used_bytes=store.used_bytes,
            memory_bytes=self._memory_bytes,
            cached=store.cached(),
            in_flight=seen.in_flight,
            progress=self.progress,
            dropped=dict(seen.dropped),
            suspects={device: max(0.0, now_s - at_s) for device, at_s in seen.suspected_s.items()},
            alone=seen.alone,
            output_cache=self._cache.use(),
        )
