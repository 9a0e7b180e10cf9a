"""The floor of a request: its messages through the broker, from process to process, that nobody reads.

Owns three relays and a sensor, each a process (the sensor is the caller's), made of the same lines as a hop of paho
alone (``ends``). They forward the bytes as agents forward a request of ``agents``: from the sensor to the front door,
to both encoders, back to the front door, and to the sensor. What agents tell each other besides isn't sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from queue import Empty, SimpleQueue
from typing import Any, Self

from s2m3.bench.wire.ends import LOST_S, PREFIX, HopLost, acknowledge, next_of, paho_client, payload_bytes

SENSOR, FRONT_DOOR, ENCODERS = "sensor", "gw-c", ("gw-a", "gw-b")


def _topic(receiver: str) -> str:
    return f"{PREFIX}/relays/{receiver}"


def _connected(url: str, name: str) -> tuple[Any, SimpleQueue[bytes]]:
    """A client of paho, and the messages that arrive for it."""
    taken: SimpleQueue[bytes] = SimpleQueue()
    client = paho_client(url, f"bench-relay-{name}", taken.put, _topic(name))
    client.on_publish = acknowledge  # or the embedded broker waits before it sends the next message
    return client, taken


def _encode(url: str, name: str, pipe: Any) -> None:  # noqa: ANN401 - a connection of multiprocessing
    client, taken = _connected(url, name)
    pipe.send(0.0)
    while True:
        client.publish(_topic(FRONT_DOOR), taken.get(), 1)


def _open_front_door(url: str, name: str, pipe: Any) -> None:  # noqa: ANN401 - the same
    client, taken = _connected(url, name)
    pipe.send(0.0)
    while True:
        request = taken.get()
        for encoder in ENCODERS:
            client.publish(_topic(encoder), request, 1)
        outputs = [taken.get() for _ in ENCODERS]
        client.publish(_topic(SENSOR), outputs[-1], 1)


class Relays:
    """The relays, and the sensor, as a context manager. Messages have the bytes of an agents' hop of ``size_bytes``."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url, self._request = url, bytes(payload_bytes(size_bytes))
        context = get_context("spawn")
        serves: dict[str, Callable[[str, str, Any], None]] = {FRONT_DOOR: _open_front_door}
        self._pipes, self._processes = [], []
        for name, serve in (serves | dict.fromkeys(ENCODERS, _encode)).items():
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            self._processes.append(context.Process(target=serve, args=(url, name, theirs), daemon=True))

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            next_of(pipe)  # it is connected
        self._client, self._answers = _connected(self._url, SENSOR)
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        for process in self._processes:
            process.terminate()
            process.join()

    def ask(self) -> float:
        """The seconds of one request.

        Raises:
            HopLost: a message didn't arrive.
        """
        began_s = time.monotonic()
        self._client.publish(_topic(FRONT_DOOR), self._request, 1)
        try:
            self._answers.get(timeout=LOST_S)
        except Empty as error:
            raise HopLost(f"no answer of the relays within {LOST_S:g} s") from error
        return time.monotonic() - began_s
