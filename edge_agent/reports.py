"""The reports of an agent for people: its events, its traces, and its summary.

Owns their topics, the time on them, and the process's session number. A report that can't be sent is dropped: no rule
depends on it. Decides nothing; ``decide`` chooses the events and traces.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

import structlog
from pydantic import BaseModel

from broker.protocol.codec import encode
from broker.protocol.errors import LocalProtocolError, TransportError
from broker.protocol.messages import HeldModule
from broker.protocol.reports import ModuleSummary, Summary, SystemEvent
from broker.protocol.specs import DeviceId, ModuleKey, TaskName
from broker.protocol.topics import DEVICE_EVENTS, DEVICE_SUMMARY, DEVICE_TRACES, Topic
from broker.transport.port import Outgoing
from edge_agent.events import PublishEvent, PublishTrace
from edge_agent.state import AgentState

SUMMARY_S = 30.0  # between two summaries

_log = structlog.get_logger()


class Reports:
    """Publishes the reports of one process of a device."""

    def __init__(self, device: DeviceId, prefix: str, *, version: str, publish: Callable[[Outgoing], None]) -> None:
        self._device, self._prefix, self._version = device, prefix, version
        self._publish = publish
        self._session = secrets.randbits(53)  # of this process: a link's is new at each connection, the counters aren't
        self._summary: Summary | None = None

    def publish(self, action: PublishEvent | PublishTrace) -> None:
        """Publish an event or a trace."""
        if isinstance(action, PublishTrace):
            self._send(DEVICE_TRACES, action.trace, request=action.trace.request)
            return
        found = {name: value for name, value in vars(action).items() if value is not None}
        self._send(DEVICE_EVENTS, SystemEvent(at=time.time(), device=self._device, **found))

    def summarize(
        self, state: AgentState, held: Mapping[ModuleKey, HeldModule], refused: Mapping[TaskName, int]
    ) -> None:
        """Publish the summary of this moment; call it every ``SUMMARY_S``, for its counts of the last minute.

        ``refused`` has all requests since the start that found no room and weren't read.
        """
        state.counters.count_refused(refused)
        self._summary = Summary(
            session=self._session,
            at=time.time(),
            version=self._version,
            modules={
                key: ModuleSummary.model_validate(each.model_dump(include=set(ModuleSummary.model_fields)))
                for key, each in held.items()
            },
            counters=state.counters.total(),
            last_minute=state.counters.since_two_snapshots(),
        )
        state.counters.take_snapshot(deployed=state.routes)
        self.republish_summary()

    def republish_summary(self) -> None:
        """Publish the last summary again: the broker may have lost it, or never received it."""
        if self._summary is not None:
            self._send(DEVICE_SUMMARY, self._summary)

    def _send(self, topic: Topic, message: BaseModel, **ids: str) -> None:
        place = topic.at(self._prefix, device=self._device, **ids)
        try:
            self._publish(Outgoing(place, encode(message), qos=topic.qos, retain=topic.retain))
        except (TransportError, LocalProtocolError) as error:
            _log.debug("report_not_sent", topic=place, error=str(error) or type(error).__name__)
