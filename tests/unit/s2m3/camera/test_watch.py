"""The loop from frames to answers, with counts: one request in flight for each task, the newest frame next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest

from broker.client import Answer, Client
from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, LocalProtocolError, NotConnected, RequestFailed
from s2m3.camera.change import HEIGHT, WIDTH, Change, Thumbnail
from s2m3.camera.newest import Newest
from s2m3.camera.reader import Reader
from s2m3.camera.watch import Asked, Counts, Told, Watch
from tests.patience import PATIENCE_S, until


class Frame:
    """A picture whose number is its colour and its bytes; it counts how often it was encoded."""

    def __init__(self, number: int) -> None:
        self.number, self.at_s, self.encoded = number, float(number), 0

    def thumbnail(self) -> Thumbnail:
        return np.full((HEIGHT, WIDTH, 3), 20 * (self.number % 10), np.uint8)

    @property
    def picture(self) -> RawInput:
        self.encoded += 1
        return RawInput(bytes([self.number]), "image/jpeg")


class Source:
    """A reader whose frames the test gives."""

    def __init__(self, *, is_live: bool) -> None:
        self.is_live, self.failure = is_live, None
        self.frames: Newest[Frame] = Newest()

    def start(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        self.frames.close()


class Devices:
    """Answers ``ask`` when the test lets a task go on."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, tuple[str, ...] | None]] = []
        self.in_flight, self.most_in_flight = 0, 0
        self.go_on = threading.Semaphore(0)
        self.fails: Callable[[str], Exception | None] = lambda _: None
        self._lock = threading.Lock()

    def ask(self, task: str, *, image: RawInput, text: tuple[str, ...] | None, deadline_s: float) -> Answer:
        assert deadline_s == 5
        with self._lock:
            self.asked.append((task, image.data[0], text))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        assert self.go_on.acquire(timeout=PATIENCE_S)
        with self._lock:
            self.in_flight -= 1
        if error := self.fails(task):
            raise error
        return Answer("a cat", {"label": "a cat"}, {}, 0.1, ())


class Running:
    """A loop on a thread of its own."""

    def __init__(self, *asked: Asked, is_live: bool = True) -> None:
        self.source, self.devices = Source(is_live=is_live), Devices()
        self.told: list[Told] = []
        self.failure: Exception | None = None

        def tell(told: Told, _: Counts) -> None:
            self.told.append(told)

        self.watch = Watch(
            cast("Client", self.devices),
            cast("Reader", self.source),
            asked,
            tell,
            every_s=0,
            change=Change(),
            deadline_s=5,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.watch.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def see(self, number: int) -> Frame:
        """Give a frame to the loop, which looks at it before the next one."""
        frame, looked = Frame(number), self.watch.counts.looked
        self.source.frames.put(frame)
        until(lambda: self.watch.counts.looked > looked)
        return frame

    def end(self) -> None:
        self.source.frames.close()
        self.join()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_a_busy_task_gets_only_the_newest_of_the_frames_that_came_meanwhile() -> None:
    running = Running(Asked("classify"))
    for number in range(1, 7):
        running.see(number)
        until(lambda: running.devices.asked)
    running.devices.go_on.release(2)
    until(lambda: len(running.told) == 2)
    running.end()
    assert [number for _, number, _ in running.devices.asked] == [1, 6]
    assert running.watch.counts == Counts(looked=6, still=0, sent=2, failed=0, replaced=4)
    assert running.devices.most_in_flight == 1


def test_several_tasks_get_one_frame_that_is_encoded_once_each_with_its_texts() -> None:
    running = Running(Asked("classify"), Asked("zero-shot", ("a cat", "a dog")))
    frame = running.see(1)
    until(lambda: running.devices.in_flight == 2)
    running.devices.go_on.release(2)
    running.end()
    assert sorted(running.devices.asked, key=lambda each: each[0]) == [
        ("classify", 1, None),
        ("zero-shot", 1, ("a cat", "a dog")),
    ]
    assert frame.encoded == 1


def test_still_frames_are_neither_encoded_nor_sent() -> None:
    running = Running(Asked("classify"))
    running.devices.go_on.release(9)
    frames = [running.see(number) for number in (1, 1, 1, 2, 2)]
    until(lambda: len(running.told) == 2)
    running.end()
    assert [frame.encoded for frame in frames] == [1, 0, 0, 1, 0]
    assert running.watch.counts == Counts(looked=5, still=3, sent=2, failed=0, replaced=0)
    assert running.watch.counts.still_share == 0.6


def test_each_frame_of_a_file_is_answered_by_the_slowest_task_too() -> None:
    running = Running(Asked("classify"), Asked("vqa"), is_live=False)
    running.devices.go_on.release(99)
    for number in range(1, 6):
        running.source.frames.put_when_free(Frame(number))
    running.end()
    for task in ("classify", "vqa"):
        assert [number for asked, number, _ in running.devices.asked if asked == task] == [1, 2, 3, 4, 5]
    assert running.watch.counts.replaced == 0


def test_an_error_of_one_frame_is_told_and_the_next_one_is_asked() -> None:
    running = Running(Asked("classify"))
    errors: list[Exception | None] = [RequestFailed(ErrorCode.OVERLOADED, "later"), NotConnected("no broker"), None]
    running.devices.fails = lambda _: errors.pop(0)
    running.devices.go_on.release(9)
    for number in (1, 2, 3):
        running.see(number)
        until(lambda wanted=number: len(running.told) == wanted)  # type: ignore[misc]
    running.end()
    assert [type(each.error) for each in running.told] == [RequestFailed, NotConnected, type(None)]
    assert running.watch.counts == Counts(looked=3, still=0, sent=3, failed=2, replaced=0)


def test_a_task_that_takes_no_picture_ends_the_watch() -> None:
    running = Running(Asked("speech"))
    running.devices.fails = lambda _: LocalProtocolError("speech takes no image")
    running.devices.go_on.release(9)
    running.see(1)
    running.join()
    assert str(running.failure) == "speech takes no image"
    assert running.told == []


@pytest.mark.parametrize("ends", ["source", "interrupt"])
def test_the_answers_on_their_way_are_awaited_at_the_end_of_a_source_alone(ends: str) -> None:
    running = Running(Asked("classify"))
    running.see(1)
    until(lambda: running.devices.in_flight == 1)
    if ends == "interrupt":
        running.watch.stop()
        running.devices.go_on.release()
        running.join()
        assert running.told == []
    else:
        running.source.frames.close()
        running.devices.go_on.release()
        running.join()
        assert len(running.told) == 1
    assert running.failure is None


def test_an_answer_that_can_not_be_told_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(Asked("classify"))

    def tell(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(running.watch, "_tell", tell)
    running.devices.go_on.release()
    running.see(1)
    running.join()
    assert isinstance(running.failure, BrokenPipeError)
