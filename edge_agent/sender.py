"""The way of messages out on the data connection: tensors to other agents, answers to sensors.

Owns what happens when a message can't be sent. An answer that the connection has no room for is kept and sent a little
later. ``done`` of its request waits behind it: an answer is handed over before the request is forgotten. Decides
nothing else. The service thread calls it; ``refuse`` serves the network thread.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable

import structlog

from broker.protocol.errors import ErrorCode, LocalProtocolError, TransportError
from broker.protocol.messages import ErrorBody, NodeDone, NodeInputs
from broker.protocol.specs import DeviceId
from broker.transport.port import Outgoing
from edge_agent import events, wire
from edge_agent.requests.execute import failure

MAX_KEPT = 1_000  # answers, and the messages behind them, that wait for room
RETRY_AFTER_S = 1.0  # in the error that replaces an answer for which there is no room at all

log = structlog.get_logger()


class Sender:
    """Sends for one device.

    Args:
        device: its id.
        prefix: of the topics.
        publish: hands a message to the data connection.
        report: takes the events of messages that can't be sent.
    """

    def __init__(
        self,
        device: DeviceId,
        prefix: str,
        publish: Callable[[Outgoing], None],
        *,
        report: Callable[[events.Event], object],
    ) -> None:
        self._device, self._prefix = device, prefix
        self._publish, self._report = publish, report
        self._kept: deque[events.Reply | events.Send] = deque()
        self.dropped: Counter[str] = Counter()
        """Messages that were not sent, by reason; only the service thread changes it."""
        self._log = log.bind(device=device)

    def send(self, send: events.Send) -> None:
        """Send tensors. ``done`` of a request whose answer is still kept goes after that answer."""
        if self._kept and isinstance(send.message, NodeDone) and self._keeps_answer_of(send.message):
            self._kept.append(send)
            return
        try:
            self._publish(wire.tensors_message(self._prefix, self._device, send, time.monotonic()))
        except LocalProtocolError as error:  # too large, or no way to write it: no retry helps
            self._log.error("tensors_not_sendable", receiver=send.receiver, error=str(error))
            if isinstance(send.message, NodeInputs):
                body = ErrorBody(code=ErrorCode.TOO_LARGE, message=str(error))
                failed = failure(send.message, body, retry=False)
                self._report(events.NotReceived(send.message.coordinator, failed, send.deadline_s))
        except TransportError as error:  # the coordinator's retry covers it
            self.dropped["tensors_not_sent"] += 1
            self._log.warning("tensors_not_sent", receiver=send.receiver, error=type(error).__name__)

    def reply(self, reply: events.Reply) -> None:
        """Answer a sensor; keep the answer where the connection has no room for it now."""
        if self._kept or not self._replied(reply):
            self._keep(reply)

    def retry(self, now_s: float) -> None:
        """Send the kept answers for which there is room now; drop those that nobody waits for any more."""
        while self._kept:
            first = self._kept[0]
            if now_s >= first.deadline_s + wire.LATE_S:
                self._count_unsent(first)
            elif isinstance(first, events.Reply) and not self._replied(first):
                return
            self._kept.popleft()
            if isinstance(first, events.Send):
                self.send(first)

    def refuse(self, actions: Iterable[events.Action]) -> None:
        """Send the refusal of a request that wasn't read; any thread may call this.

        Refusals have room of their own in the connection, so they aren't kept here.
        """
        now_s = time.monotonic()
        for action in actions:
            try:
                if isinstance(action, events.Reply):
                    self._publish(wire.result_message(action, now_s))
                elif isinstance(action, events.Send):
                    self._publish(wire.tensors_message(self._prefix, self._device, action, now_s))
            except (TransportError, LocalProtocolError) as error:
                self._log.warning("refusal_not_sent", error=type(error).__name__)

    def _replied(self, reply: events.Reply) -> bool:
        """Whether an answer, or the reason why it can't be sent, was handed over."""
        try:
            self._publish(wire.result_message(reply, time.monotonic()))
        except TransportError:
            return False
        except LocalProtocolError as error:  # no retry helps; the sensor gets the reason
            self._log.error("result_not_sendable", reply_to=reply.reply_to, error=str(error))
            if reply.result.error is None:
                body = ErrorBody(code=ErrorCode.TOO_LARGE, message=f"the answer can't be sent: {error}"[:500])
                return self._replied(as_error(reply, body))
        return True

    def _keep(self, reply: events.Reply) -> None:
        if len(self._kept) < MAX_KEPT:
            self._kept.append(reply)
            return
        text = "the device has no room to send more answers; send more slowly"
        body = ErrorBody(code=ErrorCode.OVERLOADED, message=text, retry_after_s=RETRY_AFTER_S)
        if not self._replied(as_error(reply, body)):
            self._count_unsent(reply)

    def _keeps_answer_of(self, done: NodeDone) -> bool:
        kept = (each for each in self._kept if isinstance(each, events.Reply))
        return any(reply.result.request == done.request for reply in kept)

    def _count_unsent(self, action: events.Reply | events.Send) -> None:
        if isinstance(action, events.Reply):
            self.dropped["result_not_sent"] += 1
            self._log.warning("result_not_sent", reply_to=action.reply_to)


def as_error(reply: events.Reply, body: ErrorBody) -> events.Reply:
    """The same end of a request with an error in place of the answer."""
    result = reply.result.model_copy(update={"answer": None, "error": body})
    return events.Reply(reply.reply_to, reply.correlation, result, reply.deadline_s)
