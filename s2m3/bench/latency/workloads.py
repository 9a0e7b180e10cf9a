"""The workloads of a latency comparison: tasks of the catalogue, each with one real request.

Owns the table. Pictures and sounds are files as a sensor would send them: photographs that pip delivers, and the
recordings of ``catalog/pocket``. The time of a forward pass doesn't depend on the values of its weights, so hub models
may have random weights of their real size.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from s2m3.bench.requests import text_input
from s2m3.catalogue import load_task
from s2m3.reference.pictures import REQUESTS, picture

SOUNDS = ("window.wav", "pump.wav")
SOUND_S = 10.0  # the length of CLAP's input
CAPTIONS = ("a photo of a cat", "a photo of a dog", "a photo of a horse", "a photo of a cup")
NOISES = ("a dog in this picture", "a cat in this picture", "what is this", "a cup of coffee")


@dataclass(frozen=True)
class Workload:
    """One task of the catalogue, and the inputs of its requests."""

    name: str  # in the catalogue
    inputs: Callable[[], Mapping[str, RawInput]]

    @property
    def task(self) -> TaskSpec:
        """The task."""
        return load_task(self.name)


def sound(seconds: float = SOUND_S) -> RawInput:
    """The catalogue's recordings, repeated up to this length: 16-bit PCM."""
    frames, rate = b"", 0
    for name in SOUNDS:
        with wave.open(str(catalog.DIRECTORY / "pocket" / "sounds" / name)) as recorded:
            frames += recorded.readframes(recorded.getnframes())
            rate = recorded.getframerate()
    size = 2 * round(seconds * rate)
    made = io.BytesIO()
    with wave.open(made, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((frames * (size // len(frames) + 1))[:size])
    return RawInput(made.getvalue(), "audio/wav")


WORKLOADS = (
    Workload("pocket/vqa", lambda: next(request.inputs for request in REQUESTS if request.task == "vqa")),
    Workload("hub/retrieval-clip-b16", lambda: {"image": picture("china.jpg").raw, "text": text_input(*CAPTIONS)}),
    Workload("hub/alignment-clap", lambda: {"audio": sound(), "text": text_input(*NOISES)}),
)
"""A question about a photograph, captions for a photograph, texts for ten seconds of sound."""


def named(names: list[str] | None) -> tuple[Workload, ...]:
    """Workloads by their catalogue names; all of them by default.

    Raises:
        BadFile: there is no such workload.
    """
    known = {workload.name: workload for workload in WORKLOADS}
    for name in names or ():
        if name not in known:
            raise BadFile(
                file="--workload", problem=f"{name!r} is not a workload", fix=f"use one of {', '.join(known)}"
            )
    return tuple(known[name] for name in names) if names else WORKLOADS
