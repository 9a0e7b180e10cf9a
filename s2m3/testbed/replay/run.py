"""Plays scenarios: the load and the faults at the same time, then the comparison with the unsplit models.

Owns the clock of the load, and which scenarios share a site. The expected answers are computed before the load starts,
and compared after it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path

from broker.client import Response
from broker.protocol.errors import ErrorCode
from broker.transport.connection import Connection
from s2m3.reference.pictures import DemoRequest
from s2m3.testbed.observer import named
from s2m3.testbed.replay.inject import Injector
from s2m3.testbed.replay.library import Answer, answers, in_order, requests_for
from s2m3.testbed.replay.report import Ending, Outcome, Recording
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.stage import Stage
from s2m3.testbed.site import SiteFailed

TAIL_S = 1.0  # of load after all faults are over and every task is served again, when that took longer than planned
PATIENCE_S = 60.0  # for that
GRACE_S = 5.0  # after a deadline, for the client to say that it is over

Asked = tuple[DemoRequest, float, Future[Response]]


def play_all(
    loaded: Mapping[str, Scenario],
    say: Callable[[str], object],
    *,
    short: bool,
    logs: Path | None,
    connection: Connection | None = None,
) -> Iterator[tuple[str, Scenario, Recording]]:
    """Play scenarios one after the other; short ones share the processes of a site where they fit.

    A scenario whose site doesn't come up is recorded with that, and the next one gets a new site.

    Args:
        loaded: the scenarios by name.
        say: called with each step.
        short: play the short form of each.
        logs: a directory that gets one for each scenario, with what its processes print.
        connection: to the broker that the scenarios name, where it is a running one.
    """
    with ExitStack() as stack:
        stage: Stage | None = None
        for name, written in loaded.items():
            scenario = written.shortened() if short else written
            try:
                if stage is None or not short or not stage.fits(scenario):
                    stack.close()
                    say(f"starting a site ({scenario.broker_name}, {len(scenario.fleet)} agents) ...")
                    directory = logs / Path(name).stem if logs else None
                    stage = stack.enter_context(Stage(scenario, directory, connection))
                say(f"replaying: {scenario.name} ...")
                recording = play(scenario, stage)
            except SiteFailed as error:
                stage = None
                recording = Recording(scenario.name, scenario.seed, 0.0, 0.0, [], [], [], 0, troubles=[str(error)])
            yield name, scenario, recording


def play(scenario: Scenario, stage: Stage) -> Recording:
    """Play one scenario, and record everything.

    Raises:
        SiteFailed: the site did not come up.
    """
    requests = requests_for(scenario.tasks)
    expected = answers(request for each in requests.values() for request in each)
    stage.restore(standby=scenario.standby)
    before, crashed = stage.client.duplicates, len(stage.site.crashes)
    injector = Injector(stage, scenario)
    began_s = time.monotonic()
    injector.start(began_s)
    try:
        asked = _load(scenario, stage, injector, began_s)
        outcomes = [_outcome(one, scenario.load.deadline_s, expected[one[0]]) for one in asked]
    finally:
        injector.stop()
    stage.observer.look()
    troubles = [*injector.troubles, *stage.troubles()]
    return Recording(
        name=scenario.name,
        seed=scenario.seed,
        began_s=began_s,
        ended_s=time.monotonic(),
        outcomes=outcomes,
        faults=injector.done,
        sightings=list(stage.observer.sightings),
        duplicates=stage.client.duplicates - before,
        troubles=troubles,
        crashes=len(stage.site.crashes) - crashed,
    )


def _load(scenario: Scenario, stage: Stage, injector: Injector, began_s: float) -> list[Asked]:
    """Send requests evenly until the load's time is over, all faults are, and a leader has every task served again.

    The devices that must be used must be there again, too.
    """
    asked: list[Asked] = []
    used = set(scenario.expect.used or ())
    tasks = [spec.task for spec in stage.specs]
    questions = in_order(requests_for(scenario.tasks), scenario.seed)
    end_s = began_s + scenario.load.duration_s
    latest_s = end_s + PATIENCE_S
    for turn, request in enumerate(questions):
        due_s = began_s + turn / scenario.load.rate_per_s
        stage.observer.listen(due_s - time.monotonic())
        stage.site.look_after()
        all_well = injector.finished and stage.observer.leads and stage.observer.serves(tasks)
        all_well = all_well and used <= set().union(*map(named, stage.observer.routes.values()))
        if due_s < latest_s and not all_well:
            end_s = max(end_s, due_s + TAIL_S)
        if due_s >= end_s:
            return asked
        sent_s = time.monotonic()
        future = stage.client.submit(request.task, request.inputs, deadline_s=scenario.load.deadline_s)
        asked.append((request, sent_s, future))
    return asked  # pragma: no cover - the questions never end


def _outcome(asked: Asked, deadline_s: float, expected: Answer) -> Outcome:
    """How a request ended; waits until the client says so, by the deadline and a little more."""
    request, sent_s, future = asked
    try:
        response = future.result(max(0.0, sent_s + deadline_s + GRACE_S - time.monotonic()))
    except TimeoutError:
        return Outcome(request.task, sent_s, time.monotonic(), "lost", sentence="the client never ended it")
    result = response.result
    ended_s = sent_s + response.latency_s
    devices = tuple({timing.device: None for timing in result.timings} | {result.coordinator or "": None})
    way = tuple(device for device in devices if device)
    if result.error is None:
        right = result.answer == expected
        sentence = None if right else f"{request.picture}: {result.answer}, expected {dict(expected)}"
        ending: Ending = "right" if right else "wrong"
        return Outcome(request.task, sent_s, ended_s, ending, None, sentence, way, response.attempts)
    # Nobody at the site said so: the client gave up at the deadline.
    lost = result.error.code == ErrorCode.DEADLINE_EXCEEDED and result.coordinator is None
    code, text = str(result.error.code), result.error.message
    return Outcome(request.task, sent_s, ended_s, "lost" if lost else "error", code, text, way, response.attempts)
