"""A load on a task for as long as a ``with`` block lasts: a few requests at any time, and what became of each.

Closed loops: a slow machine gets fewer requests, never more than it can do.
"""

from __future__ import annotations

import threading
from typing import Self

from broker.client import Client
from s2m3.reference.pictures import REQUESTS
from tests.patience import PATIENCE_S, until

ANSWER_S = 3 * PATIENCE_S
ASKED = next(request for request in REQUESTS if request.task == "classify")


class SteadyLoad:
    """Asks ``classify`` over and over."""

    def __init__(self, client: Client, *, at_once: int = 2) -> None:
        self._client = client
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, name=f"load-{n}") for n in range(at_once)]
        self._lock = threading.Lock()
        self.answers = 0
        self.failures: list[str] = []
        """The requests without an answer: why."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many more requests were answered."""
        wanted = self.answers + count
        until(lambda: self.answers >= wanted or self.failures, ANSWER_S)

    def _ask(self) -> None:
        while not self._stopping.is_set():
            response = self._client.request(ASKED.task, ASKED.inputs, deadline_s=ANSWER_S)
            with self._lock:
                if response.result.text == ASKED.expected:
                    self.answers += 1
                else:
                    self.failures.append(response.result.model_dump_json())
