"""An ONNX file held to the torch module that it was made of: numbers, answers and seconds.

Owns what counts as the same answer. Equal bits aren't to be had: two engines sum in different orders.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from broker.protocol.tensors import Array

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""One pass: arrays by name to arrays by name."""
TOLERANCE = 1e-4  # of the largest number of an array, and of 1 where all are smaller: float32 by another engine
_TIMED = 5  # passes of each engine
_NAMED = ("label", "answer", "text", "caption")  # what an answer says; the rest are numbers


@dataclass(frozen=True)
class Difference:
    """How far arrays are from torch's."""

    largest: float = 0.0  # of any number
    relative: float = 0.0  # of the largest number of its array, at least 1

    def with_(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> Difference:
        """This, or that of these arrays, where it is larger."""
        largest, relative = self.largest, self.relative
        for name, array in expected.items():
            if found[name].shape != array.shape or not np.isfinite(found[name]).all():
                return Difference(np.inf, np.inf)
            if array.size:
                own = float(np.abs(found[name].astype(np.float64) - array).max())
                largest, relative = max(largest, own), max(relative, own / max(1.0, float(np.abs(array).max())))
        return Difference(largest, relative)


def same_answer(expected: Mapping[str, JsonValue] | None, found: Mapping[str, JsonValue] | None) -> bool:
    """Whether two answers say the same: the same label or text, for each segment of a picture the same region."""
    if expected is None or found is None:
        return expected is found
    if "segments" in expected:
        return all(
            one["label"] == other["label"] and abs(one["area"] - other["area"]) < 1e-3  # noqa: PLR2004 - of the picture
            for one, other in zip(_segments(expected), _segments(found), strict=True)
        )
    return expected.keys() == found.keys() and all(expected[name] == found[name] for name in _NAMED if name in expected)


def _segments(answer: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = answer["segments"]
    return found


def seconds(run: Run, arrays: Sequence[Mapping[str, Array]]) -> float:
    """The median seconds of a pass; the first ones are left out."""
    taken = []
    run(arrays[0])
    for at in range(_TIMED):
        began_s = time.perf_counter()
        run(arrays[at % len(arrays)])
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)


def opened(
    path: Path, outputs: Sequence[str], optional: Mapping[str, Sequence[int | None]], beside: Collection[str] = ()
) -> Run:
    """A file's pass, as an agent runs it; an array of ``optional`` that is missing has the first length 0.

    ``beside`` are the files that may hold its weights.

    Raises:
        ModuleRefused: an agent would refuse the file.
    """
    from edge_agent.modules.weights import onnx_file  # noqa: PLC0415 - onnxruntime, only where a file is run

    onnx_file.check(path, beside)
    session = onnx_file.open_session(path)
    empty = {name: np.zeros((0, *(each or 0 for each in rest)), np.float32) for name, (_, *rest) in optional.items()}
    return lambda arrays: session.run({**empty, **arrays}, tuple(outputs))
