"""Runs modules: prepare, the forward pass on the module's engine, answer; of one request, or of several together.

Owns the way of requests through a module, the choice of its engine and device, and how requests are joined to a batch
and split again. Knows no family, and no engine's tensors.

Invariants of a batch:
- its requests have arrays of equal names, shapes and dtypes, joined along their first axis, and the family says that
  this pass takes them so (``Pass.batched``);
- a request fails alone: in its own ``prepare`` or ``answer``; a failed batch is halved until the bad request is alone;
- a pass that failed holds no memory when the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import structlog

from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Output, Pass, Prepared, Value
from edge_agent.modules.inputs.notes import gathered
from edge_agent.modules.panics import panics_as_errors
from edge_agent.modules.threads import limit
from edge_agent.modules.weights.mapped import check
from edge_agent.runtime.engines import engine
from edge_agent.runtime.out_of_memory import is_out_of_memory, without_frames

CPU = "cpu"

log = structlog.get_logger()


@dataclass(frozen=True)
class Ended:
    """The end of one of several requests: its output or its error."""

    index: int
    result: Output | Exception
    seconds: float  # of its pass, with the preparation of all requests in it
    batch: int = 1  # requests in the pass


class Runner:
    """Runs one pass at a time, on the thread that calls.

    Args:
        threads: of each pass, for this whole process; None leaves them as they are.
        batch: the most requests in one pass.
        device: that holds the weights of the engine ``torch``, in its words.
        problem: why nothing can be computed on that device any more; empty while it can.
    """

    def __init__(
        self,
        threads: int | None = None,
        *,
        batch: int = 1,
        device: str = CPU,
        problem: Callable[[], str] = lambda: "",
    ) -> None:
        self.batch, self.device, self._problem = batch, device, problem
        self.broken = ""
        """The reason for which each further pass on the device fails in this process; empty while it computes."""
        if threads is not None:
            limit(threads)

    def run(self, module: Module, values: Sequence[Value], use: str | None = None) -> Output:
        """Run a module in a node's use; None is its ordinary one.

        Raises:
            RequestFailed: as the module's steps do, and ``module_failed`` for a use that it doesn't have.
        """
        chosen = _chosen(module, use)
        prepared = _prepared(chosen, values)
        (found,) = self._forward(module, chosen, [prepared])
        return _answered(chosen, found, prepared)

    def placed(self, module: Module) -> Module:
        """A module that was just loaded, with its weights on the device of its engine, which no pass has to import."""
        engine(module.engine)
        if self.device == module.device or module.engine != "torch":
            return module
        from edge_agent.runtime.engines.torch import moved  # noqa: PLC0415 - only for this engine

        with self._looking(self.device):
            return moved(module, self.device)

    def run_all(
        self,
        module: Module,
        many: Sequence[Sequence[Value]],
        use: str | None = None,
        *,
        before: Callable[[Sequence[int]], object] = lambda _: None,
    ) -> Iterator[list[Ended]]:
        """Run a module for several requests, as many together as can be; the requests of each pass, as it ends.

        ``before`` is called with the requests whose preparation or pass begins.
        """
        try:
            chosen = _chosen(module, use)
        except RequestFailed as error:
            yield [Ended(index, error, 0.0) for index in range(len(many))]
            return
        prepared: dict[int, tuple[Prepared, float]] = {}
        for index, values in enumerate(many):
            before((index,))
            began_s = time.monotonic()
            try:
                prepared[index] = _prepared(chosen, values), time.monotonic() - began_s
            except Exception as error:  # noqa: BLE001 - whatever a family does, the other requests go on
                yield [Ended(index, error, time.monotonic() - began_s)]
        most = self.batch if chosen.batched else 1
        for group in _alike({index: each for index, (each, _) in prepared.items()}, most):
            yield from self._together(module, chosen, {index: prepared[index] for index in group}, before)

    def _together(
        self,
        module: Module,
        chosen: Pass,
        group: Mapping[int, tuple[Prepared, float]],
        before: Callable[[Sequence[int]], object],
    ) -> Iterator[list[Ended]]:
        indices = tuple(group)
        before(indices)
        began_s = time.monotonic()
        found = self._forward_or_error(module, chosen, [each for each, _ in group.values()])
        if isinstance(found, Exception):
            seconds = time.monotonic() - began_s
            if len(group) == 1 or self.broken:
                yield [Ended(index, found, seconds + prepare_s) for index, (_, prepare_s) in group.items()]
                return
            why = "out of memory: state a smaller batch" if is_out_of_memory(found) else type(found).__name__
            log.warning("batch_failed", batch=len(group), why=why)
            for half in (indices[: len(indices) // 2], indices[len(indices) // 2 :]):
                yield from self._together(module, chosen, {index: group[index] for index in half}, before)
            return
        results = [_answer(chosen, arrays, each) for arrays, (each, _) in zip(found, group.values(), strict=True)]
        seconds = time.monotonic() - began_s + sum(prepare_s for _, prepare_s in group.values())
        yield [Ended(index, result, seconds, len(group)) for index, result in zip(indices, results, strict=True)]

    def _forward_or_error(
        self, module: Module, chosen: Pass, group: Sequence[Prepared]
    ) -> list[Mapping[str, Array]] | Exception:
        """As ``_forward``, or its error, when all that the pass had in memory is free again."""
        try:
            return self._forward(module, chosen, group)
        except Exception as error:  # noqa: BLE001 - whatever a family does, the other requests go on
            return without_frames(error)

    def _forward(self, module: Module, chosen: Pass, group: Sequence[Prepared]) -> list[Mapping[str, Array]]:
        """The arrays of each request of one pass, in memory of their own; ``ModuleRefused`` if its files changed."""
        with panics_as_errors(), self._looking(module.device):
            check(module.mapped)  # a shorter file would end this process
            found = _forward(module, chosen, group)
            check(module.mapped)
            return found

    @contextmanager
    def _looking(self, device: str) -> Iterator[None]:
        """After an error, look whether the device still computes: after some errors it never does in this process."""
        try:
            yield
        except Exception:
            if device != CPU and not self.broken:
                self.broken = self._problem()
            raise


def _chosen(module: Module, use: str | None) -> Pass:
    chosen = module.passes.get(use)
    if chosen is None:
        known = ", ".join(sorted(each for each in module.passes if each)) or "its ordinary one"
        raise RequestFailed(
            ErrorCode.MODULE_FAILED, f"this module has no use {use}, only {known}: correct the task's use"
        )
    return chosen


@panics_as_errors()
def _prepared(chosen: Pass, values: Sequence[Value]) -> Prepared:
    with gathered() as notes:
        prepared = chosen.steps.prepare(values)
    return replace(prepared, notes=tuple(notes)) if notes else prepared


@panics_as_errors()
def _answered(chosen: Pass, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
    output = chosen.steps.answer(arrays, prepared)
    return replace(output, notes=prepared.notes) if prepared.notes else output


def _answer(chosen: Pass, arrays: Mapping[str, Array], prepared: Prepared) -> Output | Exception:
    try:
        return _answered(chosen, arrays, prepared)
    except Exception as error:  # noqa: BLE001 - the same
        return error


def _alike(prepared: Mapping[int, Prepared], most: int) -> Iterator[tuple[int, ...]]:
    """The requests in groups of equal arrays but for their numbers, of at most so many each, in order."""
    if most == 1:
        yield from ((index,) for index in prepared)
        return
    groups: dict[object, list[int]] = {}
    for index, each in prepared.items():
        shapes = tuple(sorted((name, array.dtype.str, array.shape) for name, array in each.arrays.items()))
        alone = not all(array.ndim for array in each.arrays.values())
        groups.setdefault(index if alone else shapes, []).append(index)
    for indices in groups.values():
        for first in range(0, len(indices), most):
            yield tuple(indices[first : first + most])


def _forward(module: Module, chosen: Pass, group: Sequence[Prepared]) -> list[Mapping[str, Array]]:
    run = engine(module.engine).forward
    if len(group) == 1:
        return [run(module, chosen, group[0].arrays)]
    joined = {name: np.concatenate([each.arrays[name] for each in group]) for name in group[0].arrays}
    found = {name: _split(name, array, len(group)) for name, array in run(module, chosen, joined).items()}
    return [{name: parts[index] for name, parts in found.items()} for index in range(len(group))]


def _split(name: str, array: Array, count: int) -> list[Array]:
    if not array.ndim or len(array) % count:
        raise ValueError(f"{name} of a batch of {count} is {array.shape}: this pass takes no batch")
    return [part.copy() for part in np.split(array, count)]
