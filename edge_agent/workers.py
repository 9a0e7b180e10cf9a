"""The threads that load modules (``loads``) and the one that computes nodes.

Owns the way of a forward pass through the store and the runner, the rounding of the arrays that nodes exchange, and
when a pass counts as hung. Decides nothing.

Invariants:
- Each load and each pass ends in exactly one event, except a pass that hangs.
- A pass is hung by its own measure: by the passes of its module before, whatever deadline the sensor chose.
- No thread here keeps the process from ending.
- A node takes the same rounded numbers wherever it runs: an answer doesn't depend on the placement.
- What the sensor gets is never rounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import structlog

from broker.process import return_freed_memory
from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Tensors, narrowed, widened
from edge_agent import events
from edge_agent.config import AgentConfig
from edge_agent.device.pass_note import PassNote, survive_full_stack
from edge_agent.loads import Loads
from edge_agent.modules import Output, Value
from edge_agent.runtime.output_cache import OutputCache
from edge_agent.runtime.runner import Runner
from edge_agent.runtime.store import Store

HUNG_S = 30.0  # the least time after which a pass counts as hung
HUNG_FACTOR = 20.0  # times the measured seconds of a pass of this module, when that is longer
CLOSE_S = 1.0  # the longest wait for the present pass, when the agent ends

log = structlog.get_logger()


def hung_after_s(measured_s: float, batch: int = 1) -> float:
    """The seconds after which a forward pass of a batch counts as hung; ``measured_s`` is that of one request."""
    return max(HUNG_S, HUNG_FACTOR * measured_s * batch)


@dataclass(frozen=True)
class HungPass:
    """A forward pass that doesn't end."""

    run: events.Run
    since_s: float
    limit_s: float


class _Passes:
    """The compute thread. It doesn't keep the process from ending, as the threads of an executor would."""

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], object]) -> None:
        self._queue.put(work)

    def close(self) -> None:
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _serve(self) -> None:
        survive_full_stack()
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:
                log.exception("work_failed")


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
        self._loads = Loads(config.id, store, report=report)
        self._computer = _Passes(f"agent[{config.id}].compute")
        self._computing: events.Run | None = None  # the present pass
        self._watched: tuple[events.Run | None, float] = (None, 0.0)  # the pass seen last; since when
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
                self._computer.submit(partial(self._run, action))

    def give_back_memory(self) -> None:
        """Return freed memory to the system, between two passes."""
        self._computer.submit(return_freed_memory)

    def watch(self, awake_s: float) -> HungPass | None:
        """Give up loads that hang, and return the present pass if it hangs.

        One thread calls this often, with the time in which the process ran.
        """
        self._loads.watch(awake_s)
        run = self._computing
        if run is not self._watched[0]:
            self._watched = run, awake_s
        if run is None:
            return None
        since_s, limit_s = awake_s - self._watched[1], hung_after_s(self._store.pass_s(run.key))
        return HungPass(run, since_s, limit_s) if since_s > limit_s else None

    def close(self) -> None:
        """Drop the passes that wait, and wait a little for the one that runs."""
        self._computer.close()

    def _run(self, run: events.Run) -> None:
        began_s = ended_s = time.monotonic()
        self._computing = run
        output = given = failed = None
        cached = False
        self._note.begin(run.payload)
        try:
            whole, cached = self._output_of(run, began_s)
            ended_s = time.monotonic()
            if not cached:
                self._store.record(run.key, ended_s - began_s)
            output, given = rounded_output(run, whole)
        except Exception as error:  # noqa: BLE001 - whatever a module does, the sensor gets an answer
            failed, ended_s = error, time.monotonic()
        self._note.end()
        self._computing = None
        self._report(events.Ran(run.run, output, failed, began_s, ended_s - began_s, given, cached))

    def _output_of(self, run: events.Run, began_s: float) -> tuple[Output, bool]:
        """The output of a node, unrounded, and whether it was kept from equal work."""
        if began_s >= run.deadline_s:
            raise RequestFailed(ErrorCode.DEADLINE_EXCEEDED, "its deadline passed before it could be computed")
        work = self._cache.work_of(run.key, run.use, run.values)
        if (known := self._cache.find(work)) is not None:
            return known, True
        output = self._forward(run, began_s)
        self._cache.keep(work, output)
        return output, False

    def _forward(self, run: events.Run, began_s: float) -> Output:
        values = widened_values(run)
        with self._store.use(run.key) as module, self._store.passing():
            output = self._runner.run(module, values, run.use)
        if self._speed < 1:  # wait as long as a slower device would compute on
            time.sleep((time.monotonic() - began_s) * (1 / self._speed - 1))
        return output


def widened_values(run: events.Run) -> tuple[Value, ...]:
    """The values of a forward pass, as modules take them: float16 arrays are float32 again."""
    return tuple(value if isinstance(value, RawInput) else widened(value) for value in run.values)


def rounded_output(run: events.Run, output: Output) -> tuple[Output, Tensors | None]:
    """The output to keep, and what other nodes take of it where that differs.

    Raises:
        LocalProtocolError: a number is too large for the plan's ``wire``.
    """
    if run.wire == "float32":
        return output, None
    given = narrowed(output.tensors, run.wire)
    return (output, given) if run.answers else (Output(given, output.answer), None)
