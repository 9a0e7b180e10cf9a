"""The orders that the page gives where ``--allow-control`` stands: drain a device, or put it back in service.

Owns the messages, and the wait until the broker has taken or refused one. Doesn't know who may give orders: for the
account the broker's rules decide that, and ``app`` decides which page may ask.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from broker.protocol.codec import encode
from broker.protocol.errors import BrokerRefused, ErrorCode, NotConnected, QueueFull
from broker.protocol.messages import Drain
from broker.protocol.specs import DeviceId
from broker.protocol.topics import DEVICE_DRAIN
from broker.transport.port import Acknowledged, Denied, LinkEvent, Outgoing, Transport
from s2m3.http.refusals import FORBIDDEN, UNAVAILABLE, Refusal

CONFIRM_S = 5.0  # until the broker must have taken an order


class Orders:
    """Gives orders over a connection that others use, too; ``take`` gets its events first."""

    def __init__(self, prefix: str, transport: Transport) -> None:
        self._prefix, self._transport = prefix, transport

    async def set_drain(self, device: DeviceId, *, drain: bool) -> None:
        """Order a device out of service, or back; returns when the broker has the order.

        Raises:
            Refusal: an access rule forbids it, or there is no connection.
        """
        given: Future[None] = Future()
        given.set_running_or_notify_cancel()  # who asked may go away; the order stands
        message = Outgoing(
            DEVICE_DRAIN.at(self._prefix, device=device),
            encode(Drain(drain=True)) if drain else b"",
            retain=True,
            token=given,
            confirm=True,
        )
        try:
            self._transport.publish(message)
            await asyncio.wait_for(asyncio.wrap_future(given), CONFIRM_S)
        except BrokerRefused as error:
            text = f"{error}; this account may not drain: start with one of the role dashboard or operator"
            raise Refusal(FORBIDDEN, "forbidden", text) from error
        except (NotConnected, QueueFull, TimeoutError) as error:
            why = str(error) or f"no confirmation within {CONFIRM_S:g} s"
            text = f"the broker did not take the order ({why}): see what the device does, and try again"
            raise Refusal(UNAVAILABLE, ErrorCode.NO_ROUTE, text, retry_after_s=CONFIRM_S) from error

    @staticmethod
    def take(event: LinkEvent) -> bool:
        """Take in what became of an order; returns whether the event is about one."""
        if not isinstance(event, Acknowledged | Denied) or not isinstance(event.token, Future):
            return False
        if isinstance(event, Denied):
            event.token.set_exception(BrokerRefused(event.topic, event.reason))
        else:
            event.token.set_result(None)
        return True
