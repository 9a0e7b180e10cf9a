"""Mailboxes that refuse control messages of some topics, as if too many waited."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from broker.transport.mailbox import Mailbox
from broker.transport.port import Delivery
from tests.patience import until


class FullMailboxes:
    """All mailboxes of this process; ``refused`` has the topics of the refused messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: list[str] = []
        self._topics: tuple[str, ...] = ()
        put = Mailbox.put_control

        def put_or_refuse(mailbox: Mailbox[Any], event: Any, size_bytes: int = 0, *, certain: bool = False) -> bool:
            delivery = getattr(event, "event", None)
            if isinstance(delivery, Delivery) and delivery.topic in self._topics:
                self.refused.append(delivery.topic)
                return False
            return put(mailbox, event, size_bytes, certain=certain)

        monkeypatch.setattr(Mailbox, "put_control", put_or_refuse)

    @contextmanager
    def refusing(self, *topics: str) -> Iterator[None]:
        """Refuse the messages of these topics until one of each was refused."""
        self._topics = topics
        yield
        until(lambda: set(topics) <= set(self.refused))
        self._topics = ()
