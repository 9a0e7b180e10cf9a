"""The threads that load modules (``loads``) and the one that computes nodes.

Owns the way of forward passes through the store and the runner, the rounding of the arrays that nodes exchange, and
when a pass counts as hung. Decides nothing.

Invariants:
- Each load and each node ends in exactly one event, except in a pass that hangs, and after one that broke the
  accelerator: nothing is computed any more then.
- A pass is hung by its own measure: by the passes of its module before, whatever deadline the sensor chose.
- No thread here keeps the process from ending.
- A node takes the same rounded numbers wherever it runs: an answer doesn't depend on the placement.
- What the sensor gets is never rounded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from broker.process import return_freed_memory
from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.specs import ModuleKey
from broker.protocol.tensors import Tensors, embeddings, narrowed, widened
from edge_agent import events
from edge_agent.config import AgentConfig
from edge_agent.device.pass_note import PassNote, survive_full_stack
from edge_agent.loads import Loads
from edge_agent.modules import Output, Value
from edge_agent.runtime.output_cache import OutputCache, Work
from edge_agent.runtime.runner import Ended, Runner
from edge_agent.runtime.store import Store

HUNG_S = 30.0  # the least time after which a pass counts as hung
HUNG_FACTOR = 20.0  # times the measured seconds of a pass of this module, when that is longer
CLOSE_S = 1.0  # the longest wait for the present pass, when the agent ends

log = structlog.get_logger()


def hung_after_s(measured_s: float, batch: int) -> float:
    """The seconds after which a batch counts as hung; ``measured_s`` is one request's share of a pass."""
    return max(HUNG_S, HUNG_FACTOR * measured_s * batch)


@dataclass(frozen=True)
class LostPass:
    """A forward pass after which this process computes nothing more: it doesn't end, or it broke the accelerator."""

    runs: tuple[events.Run, ...]  # nodes that are computed together
    since_s: float
    limit_s: float
    broken: str  # why the accelerator fails; empty: the pass hangs


_Work = events.Run | Callable[[], object]


class _Passes:
    """The compute thread. It doesn't keep the process from ending, as the threads of an executor would."""

    def __init__(self, name: str, compute: Callable[[tuple[events.Run, ...]], object]) -> None:
        self._compute = compute
        self._works: deque[_Work] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: _Work) -> None:
        with self._changed:
            self._works.append(work)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def _serve(self) -> None:
        survive_full_stack()
        while work := self._next():
            try:
                if isinstance(work, tuple):
                    self._compute(work)
                else:
                    work()
            except Exception:
                log.exception("work_failed")

    def _next(self) -> tuple[events.Run, ...] | Callable[[], object] | None:
        """The next work, for a run with all of its group that are here already; None: the agent ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._works or self._closed)
            if self._closed:
                return None
            first = self._works.popleft()
            if not isinstance(first, events.Run):
                return first
            runs = [first]
            while self._works and isinstance(work := self._works[0], events.Run) and work.group == first.group:
                runs.append(work)
                self._works.popleft()
            return tuple(runs)


class Workers:
    """Performs ``Load``, ``Unload`` and ``Run``; its threads call ``report`` with the events."""

    def __init__(
        self,
        config: AgentConfig,
        store: Store,
        runner: Runner,
        *,
        report: Callable[[events.Event], object],
        note: PassNote,
        cache: OutputCache | None = None,
    ) -> None:
        self._store, self._runner, self._speed, self._note = store, runner, config.speed, note
        self._report = report
        self._cache = cache or OutputCache()
        self._loads = Loads(config.id, store, report=report, note=note)
        self._computing: tuple[events.Run, ...] = ()  # the present pass
        self._watched: tuple[tuple[events.Run, ...], float] = ((), 0.0)  # the pass seen last; since when
        self._computer = _Passes(f"agent[{config.id}].compute", self._run)
        self._log = log.bind(device=config.id)

    def submit(self, action: events.Load | events.Unload | events.Run) -> None:
        """Perform an action on its thread, after those before it."""
        match action:
            case events.Load(assigned):
                self._loads.load(assigned)
            case events.Unload():
                self._loads.unload(action)
                self._computer.submit(partial(self._cache.drop, action.key))
            case events.Run():
                self._computer.submit(action)

    def give_back_memory(self) -> None:
        """Return freed memory to the system, between two passes."""
        self._computer.submit(return_freed_memory)

    def watch(self, awake_s: float) -> LostPass | None:
        """Give up loads that hang, and return the present pass if it hangs or the accelerator is broken.

        One thread calls this often, with the time in which the process ran.
        """
        self._loads.watch(awake_s)
        runs = self._computing
        if runs is not self._watched[0]:
            self._watched = runs, awake_s
        limit_s = hung_after_s(self._store.pass_s(runs[0].key) if runs else 0.0, len(runs))
        found = LostPass(runs, awake_s - self._watched[1], limit_s, self._runner.broken)
        return found if found.broken or (runs and found.since_s > limit_s) else None

    def close(self) -> None:
        """Drop the passes that wait, and wait a little for the one that runs."""
        self._computer.close()

    def _run(self, runs: tuple[events.Run, ...]) -> None:
        """Compute runs of one module and use. Of equal work one is computed, and the others take what is kept of it."""
        if self._runner.broken:
            return
        self._computing = runs
        if later := self._run_once(runs):
            self._run_once(later, equal=True)
        if self._runner.broken:
            return
        self._note.end()
        self._computing = ()

    def _run_once(self, runs: Sequence[events.Run], *, equal: bool = False) -> list[events.Run]:
        """Compute runs; each ends once, but for those returned: unless ``equal``, another one has the same work."""
        later: list[events.Run] = []
        unfinished: dict[int, tuple[events.Run, Work | None]] = {}
        for run in runs:
            began_s = time.monotonic()
            if began_s >= run.deadline_s:
                text = "its deadline passed before it could be computed"
                self._end(run, RequestFailed(ErrorCode.DEADLINE_EXCEEDED, text), began_s)
                continue
            try:
                work = self._cache.work_of(run.key, run.use, run.values)
                known = self._cache.find(work)
            except Exception as error:  # noqa: BLE001 - where memory is short, any line may fail
                self._end(run, error, began_s)
                continue
            if known is not None:
                self._end(run, known, began_s, time.monotonic() - began_s, cached=True)
            elif work is not None and not equal and work in {other for _, other in unfinished.values()}:
                later.append(run)
            else:
                unfinished[len(unfinished)] = run, work
        began_s = time.monotonic()
        try:
            if unfinished:
                self._compute(unfinished)
        except Exception as error:  # noqa: BLE001 - whatever a module does, the sensor gets an answer
            for run, _ in unfinished.values():
                self._end(run, error, began_s, time.monotonic() - began_s)
        return later

    def _compute(self, unfinished: dict[int, tuple[events.Run, Work | None]]) -> None:
        """Compute runs of one module and use; each is removed when it ends."""
        runs = [run for run, _ in unfinished.values()]
        with self._store.use(runs[0].key) as module:
            many = [widened_values(run) for run in runs]
            passes = self._runner.run_all(module, many, runs[0].use, before=lambda begun: self._begin(runs, begun))
            while ended := self._next(passes):
                seconds, batch = ended[0].seconds / self._speed, ended[0].batch
                # As long as a slower device would compute on. The others yield, too: the threads that waited for the
                # interpreter go first, and without this a request of zero cost took a fifth longer on a busy machine.
                time.sleep(seconds - ended[0].seconds)
                began_s = time.monotonic() - seconds
                if any(isinstance(each.result, Output) for each in ended):
                    self._store.record(runs[0].key, seconds / batch)
                for each in ended:
                    run, work = unfinished.pop(each.index)
                    if isinstance(each.result, Output):
                        self._keep(work, each.result)
                    self._end(run, each.result, began_s, seconds, batch)
                    if isinstance(each.result, ModuleRefused):
                        self._fail(run.key, each.result)

    def _fail(self, key: ModuleKey, error: ModuleRefused) -> None:
        """Tell that a module can't run here any more; it must be loaded again."""
        if reason := self._store.fail(key, error):
            self._log.error("module_refused", module=key, error=reason)
            self._report(events.ModuleFailed(key, reason))

    def _keep(self, work: Work | None, output: Output) -> None:
        try:
            self._cache.keep(work, output)
        except Exception:  # noqa: BLE001 - the same; the node has its output
            self._log.exception("output_not_kept")

    def _next(self, passes: Iterator[list[Ended]]) -> list[Ended]:
        with self._store.passing():
            return next(passes, [])

    def _begin(self, runs: Sequence[events.Run], begun: Sequence[int]) -> None:
        self._note.begin(*(runs[index].payload for index in begun))

    def _end(
        self,
        run: events.Run,
        result: Output | Exception,
        began_s: float,
        seconds: float = 0.0,
        batch: int = 1,
        *,
        cached: bool = False,
    ) -> None:
        if isinstance(result, Exception) and self._runner.broken:
            return
        output = given = failed = None
        try:
            if isinstance(result, Exception):
                failed = result
            else:
                output, given = rounded_output(run, result)
        except Exception as error:  # noqa: BLE001 - the same
            failed = error
        self._report(events.Ran(run.run, output, failed, began_s, seconds, given, cached, batch))


def widened_values(run: events.Run) -> tuple[Value, ...]:
    """The values of a forward pass, as modules take them: float16 arrays are float32 again."""
    return tuple(value if isinstance(value, RawInput) else widened(value) for value in run.values)


def rounded_output(run: events.Run, output: Output) -> tuple[Output, Tensors | None]:
    """The output to keep, with its answer, and what other nodes take of it where that differs.

    Raises:
        LocalProtocolError: a number is too large for the plan's ``wire``.
        RequestFailed: the output can't be answered in the plan's form.
    """
    if run.form is not None:
        output = replace(output, answer=embeddings(output.tensors, run.form))
    if run.wire == "float32":
        return output, None
    given = narrowed(output.tensors, run.wire)
    return (output, given) if run.answers else (replace(output, tensors=given), None)
