"""The loop from frames to answers: still frames are left out, and each task gets the newest frame when it is free.

Owns the pace, the counts, and a thread for each task, which has one request in flight. A frame that comes meanwhile
waits alone: a newer one replaces it. Of a file each frame is answered, one after the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.client import Answer, Client
from broker.protocol.codec import RawInput
from broker.protocol.errors import NotConnected, RequestFailed, S2M3Error
from broker.protocol.specs import TaskName
from s2m3.camera.backoff import Backoff
from s2m3.camera.change import Change
from s2m3.camera.frame import Frame
from s2m3.camera.newest import Newest
from s2m3.camera.reader import Reader


@dataclass(frozen=True)
class Asked:
    """A task, and the texts that it gets with each frame."""

    task: TaskName
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """The end of one request: an answer, or the error."""

    task: TaskName
    at_s: float  # when its frame was read, in seconds since 1970
    answer: Answer | None
    error: S2M3Error | None


@dataclass(frozen=True)
class Counts:
    """The frames and requests so far."""

    looked: int  # frames that were compared
    still: int  # of these without a change: not sent
    sent: int  # requests that ended
    failed: int  # of these without an answer
    replaced: int  # frames that a newer one replaced before a task was free

    @property
    def still_share(self) -> float:
        """The share of still frames, 0 to 1."""
        return self.still / self.looked if self.looked else 0.0


class Watch:
    """Asks tasks about the frames of a reader.

    Args:
        client: that asks.
        reader: that has the frames; ``run`` starts it.
        asked: the tasks.
        tell: takes the end of each request, from the threads of the tasks, one at a time.
        every_s: seconds between two frames of a live source.
        change: that tells still frames.
        deadline_s: of each request.
    """

    def __init__(
        self,
        client: Client,
        reader: Reader,
        asked: Sequence[Asked],
        tell: Callable[[Told, Counts], object],
        *,
        every_s: float,
        change: Change,
        deadline_s: float,
    ) -> None:
        self._client, self._reader, self._tell = client, reader, tell
        self._every_s, self._change, self._deadline_s = every_s, change, deadline_s
        self._lock = threading.Lock()  # guards the counts, and tells one at a time
        self._sent = self._failed = 0
        self._failure: Exception | None = None
        self._stopping = threading.Event()
        self._waiting: dict[int, Newest[tuple[float, RawInput]]] = {place: Newest() for place in range(len(asked))}
        self._threads = [
            threading.Thread(
                target=self._serve, args=(each, self._waiting[place]), name=f"camera[{each.task}]", daemon=True
            )
            for place, each in enumerate(asked)
        ]

    @property
    def counts(self) -> Counts:
        """The frames and requests so far."""
        replaced = self._reader.frames.replaced if self._every_s == 0 else 0
        replaced += sum(each.replaced for each in self._waiting.values())
        return Counts(self._change.looked, self._change.still, self._sent, self._failed, replaced)

    def run(self) -> None:
        """Watch until the source ends; an interrupt ends it at once.

        Raises:
            S2M3Error: the source can't be read, or no task can be asked.
        """
        self._reader.start()
        for thread in self._threads:
            thread.start()
        try:
            self._loop()
            for waiting in self._waiting.values():
                waiting.close()
            for thread in self._threads:
                thread.join()
        finally:
            self.stop()
        if failure := self._failure or self._reader.failure:
            raise failure

    def stop(self) -> None:
        """End ``run``; requests on their way are not told. Any thread may call it."""
        self._stopping.set()
        self._reader.close()
        for waiting in self._waiting.values():
            waiting.close()

    def _loop(self) -> None:
        next_s = 0.0
        while not self._stopping.is_set():
            if (pause_s := next_s - time.monotonic()) > 0 and self._reader.is_live:
                self._stopping.wait(pause_s)
            frame: Frame | None = self._reader.frames.take()
            if frame is None:
                return
            next_s = time.monotonic() + self._every_s
            if self._change.is_still(frame.thumbnail()):
                continue
            sent = frame.at_s, frame.picture
            for waiting in self._waiting.values():
                if self._reader.is_live:
                    waiting.put(sent)
                else:
                    waiting.put_when_free(sent)

    def _serve(self, asked: Asked, waiting: Newest[tuple[float, RawInput]]) -> None:
        try:
            self._ask(asked, waiting)
        except Exception as error:  # noqa: BLE001 - such as an output that nobody reads any more; the main thread raises it
            self._failure = error
            self.stop()

    def _ask(self, asked: Asked, waiting: Newest[tuple[float, RawInput]]) -> None:
        backoff = Backoff()
        while (taken := waiting.take()) is not None:
            at_s, picture = taken
            answer = error = None
            try:
                answer = self._client.ask(
                    asked.task, image=picture, text=asked.texts or None, deadline_s=self._deadline_s
                )
            except (RequestFailed, NotConnected) as failure:
                error = failure
            except S2M3Error as failure:  # a rule of the broker, or a task that takes no picture: nothing will help
                self._failure = failure
                self.stop()
                return
            if self._stopping.is_set():
                return
            with self._lock:
                self._sent += 1
                self._failed += answer is None
                self._tell(Told(asked.task, at_s, answer, error), self.counts)
            if isinstance(error, NotConnected):
                self._stopping.wait(backoff.next_s())
            else:
                backoff.reset()
