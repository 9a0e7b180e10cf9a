"""The outputs of passes, kept by what was computed: equal work is computed once, for all requests and tasks.

Owns the digest of a node's work, and a bounded store of outputs, of which the least recently used ones make room. Knows
no request, task or message. The compute thread alone looks up, keeps and drops; other threads read ``use``.

Work is the module, its use, and the values that the node really received, which this device digests itself. So no
message says what an output belongs to, and no sender can have an output kept for other values than its own.

Invariants:
- The outputs kept never exceed the limit, as ``size_of`` counts them; room is made before one is copied.
- A kept output is the module's own, before any rounding for other nodes, bit for bit. Errors are not kept.
- Nobody can change a kept output: its arrays are copies that can't be written to, and an answer is kept as text.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.messages import DeviceProfile, OutputCacheUse
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import ModuleKey
from edge_agent.modules import Output, Value
from edge_agent.modules.inputs.text_file import charset

DEFAULT_SHARE = 0.02  # of a device's memory: less than the error of a module's measured bytes
DEFAULT_MOST_BYTES = 16 * 2**20  # 2,000 embeddings; of live pictures, which don't repeat, more is wasted
LARGEST_SHARE = 0.25  # of the cache, for one output: larger ones would drive out what is used again
OUTPUT_BYTES = 1024  # about, in memory, of an output beside its arrays and its answer
ARRAY_BYTES = 256  # of an array, beside its elements

Work = tuple[ModuleKey, bytes]
"""A module, and the digest of its use and of the values that it takes."""


def work_of(key: ModuleKey, use: str | None, values: Sequence[Value]) -> Work:
    """The work of a node. Values are equal if their bytes, names, dtypes, shapes and encodings are.

    Nothing else in a content type counts.
    """
    forms: list[object] = [use]
    parts: list[bytes | memoryview] = []
    for value in values:
        if isinstance(value, RawInput):
            forms.append([len(value.data), charset(value.content_type)])
            parts.append(value.data)
        else:
            named = sorted(value.items())
            forms.append([(name, array.dtype.str, array.shape) for name, array in named])
            parts += [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for _, array in named]
    form = json.dumps(forms).encode()
    digest = hashlib.sha256(len(form).to_bytes(8, "big") + form)  # the lengths of all parts are in it
    for part in parts:
        digest.update(part)
    return key, digest.digest()


def size_of(output: Output) -> int:
    """About the memory of a kept output."""
    arrays = sum(int(array.nbytes) + ARRAY_BYTES + len(name) for name, array in output.tensors.items())
    arrays += sum(map(len, output.notes))
    return OUTPUT_BYTES + arrays + (0 if output.answer is None else len(json.dumps(output.answer)))


@dataclass(frozen=True)
class _Kept:
    output: Output  # without its answer
    answer: str | None  # as JSON
    size_bytes: int


class OutputCache:
    """Keeps outputs in at most ``limit_bytes``; with 0 none, and nothing is digested."""

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Work, _Kept] = OrderedDict()  # the least recently used first
        self._bytes = 0
        self._hits = self._computed = 0

    def work_of(self, key: ModuleKey, use: str | None, values: Sequence[Value]) -> Work | None:
        """The work of a node; None if this cache keeps nothing."""
        return work_of(key, use, values) if self.limit_bytes else None

    def find(self, work: Work | None) -> Output | None:
        """The output of this work, if it is kept."""
        found = self._kept.get(work) if work is not None else None
        if work is None or found is None:
            return None
        self._kept.move_to_end(work)
        self._hits += 1
        return replace(found.output, answer=None if found.answer is None else json.loads(found.answer))

    def keep(self, work: Work | None, output: Output) -> None:
        """Keep what was computed, unless it is too large."""
        if work is None:
            return
        self._computed += 1
        size_bytes = size_of(output)
        if size_bytes > LARGEST_SHARE * self.limit_bytes:
            return
        self._remove(work)
        while self._bytes + size_bytes > self.limit_bytes:
            self._remove(next(iter(self._kept)))
        answer = None if output.answer is None else json.dumps(output.answer)
        tensors = {name: array.copy() for name, array in output.tensors.items()}  # a view may hold a larger array
        for array in tensors.values():
            array.flags.writeable = False
        self._kept[work] = _Kept(Output(tensors, notes=output.notes), answer, size_bytes)
        self._bytes += size_bytes

    def drop(self, key: ModuleKey) -> None:
        """Drop all outputs of a module."""
        for work in [work for work in self._kept if work[0] == key]:
            self._remove(work)

    def use(self) -> OutputCacheUse | None:
        """How it is used, for the heartbeat; None if this cache keeps nothing."""
        if not self.limit_bytes:
            return None
        return OutputCacheUse(
            limit_bytes=self.limit_bytes,
            used_bytes=self._bytes,
            outputs=len(self._kept),
            hits=self._hits,
            computed=self._computed,
        )

    def _remove(self, work: Work) -> None:
        if known := self._kept.pop(work, None):
            self._bytes -= known.size_bytes


def with_cache(
    offered: DeviceProfile, stated: int | None, *, beside: bool, file: str = "agent"
) -> tuple[DeviceProfile, OutputCache]:
    """A device's profile with the memory that its cache leaves for modules, and the cache.

    Args:
        offered: with all its memory.
        stated: the cache's bytes as the operator states them; None: a small slice of the memory.
        beside: modules are in a card's memory, and outputs in the machine's beside it: nothing is taken off.
        file: the agent's, for errors.

    Raises:
        BadFile: the cache leaves no memory for modules.
    """
    memory_bytes = offered.memory_bytes
    default_bytes = DEFAULT_MOST_BYTES if beside else min(DEFAULT_MOST_BYTES, int(memory_bytes * DEFAULT_SHARE))
    limit_bytes = default_bytes if stated is None else stated
    if not beside and limit_bytes >= memory_bytes:
        memory, got = show_sizes(memory_bytes, limit_bytes)
        problem = f"must be less than the {memory} of `memory`, of which it is a part, got {got}"
        raise BadFile(file=file, field="cache", problem=problem, fix="lower it; 0 turns the cache off")
    left_bytes = memory_bytes if beside else memory_bytes - limit_bytes
    return offered.model_copy(update={"memory_bytes": left_bytes}), OutputCache(limit_bytes)
