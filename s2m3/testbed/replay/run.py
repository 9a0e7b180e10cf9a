"""Plays scenarios: the load and the faults at the same time, then the comparison with the wanted answers.

Owns the clock of the load, and which scenarios share a site. The wanted answers are known before the load starts: the
unsplit models', those that a person expects, or else those that the site itself gives before any fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from broker.client import Response
from broker.protocol.errors import BadFile, ErrorCode
from broker.protocol.sizes import show_count
from broker.protocol.specs import Revision
from broker.transport.connection import Connection
from s2m3.reference.pictures import DemoRequest
from s2m3.testbed.observer import Observer, named
from s2m3.testbed.replay.inject import Injector
from s2m3.testbed.replay.library import Request, answers, in_order, requests_for, wanted_of_revisions
from s2m3.testbed.replay.recording import Ending, Outcome, Recording
from s2m3.testbed.replay.requests import FolderRequest, Wanted
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.stage import Stage
from s2m3.testbed.replay.weights import weights_of
from s2m3.testbed.site import SiteFailed

TAIL_S = 1.0  # of load after all faults are over and every task is served again, when that took longer than planned
TAIL = 4  # requests of it at least
PATIENCE_S = 60.0  # for that
GIVEN_S = 8.0  # for a device that joins to be given modules: the orchestrator waits for 3 s of calm first
GRACE_S = 5.0  # after a deadline, for the client to say that it is over

UNFAILED_S = 60.0  # for an answer before any fault
AT_A_TIME = 4  # requests whose answers before any fault are awaited together
OF_THE_REQUEST = frozenset({ErrorCode.BAD_INPUT, ErrorCode.TOO_LARGE})  # errors that no other site would avoid

Asked = tuple[Request, float, Future[Response]]


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
                    say(f"starting a site ({scenario.broker_name}, {show_count(len(scenario.fleet), 'agent')}) ...")
                    directory = logs / Path(name).stem if logs else None
                    stage = stack.enter_context(Stage(scenario, directory, connection, say))
                say(f"replaying: {scenario.name} ...")
                with weights_of(scenario):
                    recording = play(scenario, stage)
            except SiteFailed as error:
                stage = None
                recording = Recording(scenario.name, scenario.seed, 0.0, 0.0, [], [], [], 0, troubles=[str(error)])
            yield name, scenario, recording


def play(scenario: Scenario, stage: Stage) -> Recording:
    """Play one scenario, and record everything.

    Raises:
        SiteFailed: the site did not come up.
        BadFile: a request's file is wrong.
    """
    requests = requests_for(scenario)
    every = {request: wanted for each in requests.values() for request, wanted in each.items()}
    unsplit = answers(request for request in every if isinstance(request, DemoRequest))
    revisions = wanted_of_revisions(scenario)
    stage.restore(standby=scenario.standby)
    unasked = [request for request in every if isinstance(request, FolderRequest) and every[request] is None]
    first = {request: wanted for request, wanted in every.items() if wanted is not None}
    first |= {request: Wanted(answer) for request, answer in unsplit.items()}
    first |= _unfailed(unasked, stage)
    before, crashed = stage.client.duplicates, len(stage.site.crashes)
    injector = Injector(stage, scenario)
    began_s = time.monotonic()
    injector.start(began_s)
    try:
        asked = _load(scenario, stage, injector, began_s, requests)
        outcomes = [_outcome(one, scenario, first, revisions) for one in asked]
    finally:
        injector.stop()
    stage.observer.look()
    troubles = [*injector.troubles, *stage.troubles()]
    if scenario.expect.deployed is not None:
        troubles += stage.undecided(deployed=scenario.expect.deployed)
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


def _unfailed(requests: Sequence[FolderRequest], stage: Stage) -> dict[Request, Wanted]:
    """The answers of the site as it is now, before any fault.

    Raises:
        BadFile: a request is refused for what is in it.
        SiteFailed: a request isn't answered.
    """
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        responses = list(
            pool.map(lambda each: stage.client.request(each.task, each.inputs, deadline_s=UNFAILED_S), requests)
        )
    for request, response in zip(requests, responses, strict=True):
        if (error := response.result.error) is not None:
            problem = f"{request.task} doesn't answer it, without any failure: {error.code}: {error.message}"
            if error.code in OF_THE_REQUEST:
                raise BadFile(file=str(request), problem=problem, fix="correct its files, or remove them")
            raise SiteFailed(f"{request}: {problem}")
    return {
        request: Wanted(found.result.answer, None if found.result.answer is not None else found.tensors)
        for request, found in zip(requests, responses, strict=True)
    }


def _load(
    scenario: Scenario,
    stage: Stage,
    injector: Injector,
    began_s: float,
    requests: Mapping[str, Mapping[Request, object]],
) -> list[Asked]:
    """Send requests evenly until the load's time is over, all faults are, and a leader has every task served again.

    The devices that must be used must be there again, too, those that join must hold what they are to hold, and those
    that are drained must have been replaced.
    """
    asked: list[Asked] = []
    used, joined_s = set(scenario.expect.used or ()), dict[str, float]()
    tasks = [spec.task for spec in stage.specs]
    questions = in_order(requests, scenario.seed)
    end_s = began_s + scenario.load.duration_s
    latest_s, tail_s = end_s + PATIENCE_S, max(TAIL_S, TAIL / scenario.load.rate_per_s)
    for turn, request in enumerate(questions):
        due_s = began_s + turn / scenario.load.rate_per_s
        stage.observer.listen(due_s - time.monotonic())
        stage.site.look_after()
        all_well = injector.finished and stage.observer.leads and stage.observer.serves(tasks)
        wanted = scenario.expect.deployed
        all_well = all_well and (wanted is None or not stage.undecided(deployed=wanted))
        all_well = all_well and _have_settled(stage.observer, scenario.joining, joined_s)
        routed = set().union(*map(named, stage.observer.routes.values()))
        all_well = all_well and used <= routed and (not scenario.expect.replaced or not routed & stage.observer.drained)
        if due_s < latest_s and not all_well:
            end_s = max(end_s, due_s + tail_s)
        if due_s >= end_s:
            return asked
        sent_s = time.monotonic()
        future = stage.client.submit(request.task, request.inputs, deadline_s=scenario.load.deadline_s)
        asked.append((request, sent_s, future))
    return asked  # pragma: no cover - the questions never end


def _have_settled(seen: Observer, joining: AbstractSet[str], joined_s: dict[str, float]) -> bool:
    """Whether these devices have joined, and are ready with what they got, or got nothing in ``GIVEN_S``.

    ``joined_s`` keeps when each was seen first.
    """
    now_s = time.monotonic()
    for device in joining & seen.heartbeats.keys():
        joined_s.setdefault(device, now_s)
    for device in joining:
        assignment = seen.assignments.get(device)
        assigned = {each.spec.key for each in assignment.modules} if assignment else set[str]()
        has_all = bool(assigned) and assigned <= seen.ready(device)
        if not has_all and now_s < joined_s.get(device, now_s) + GIVEN_S:
            return False
    return joined_s.keys() >= joining


def _outcome(
    asked: Asked,
    scenario: Scenario,
    first: Mapping[Request, Wanted],
    revisions: Mapping[Revision, Mapping[Request, Wanted]],
) -> Outcome:
    """How a request ended; waits until the client says so, by the deadline and a little more.

    An answer is right if it is that of the revision that it names: the ``first`` one's, or a later one's.
    """
    request, sent_s, future = asked
    try:
        response = future.result(max(0.0, sent_s + scenario.load.deadline_s + GRACE_S - time.monotonic()))
    except TimeoutError:
        return Outcome(request.task, sent_s, time.monotonic(), "lost", sentence="the client never ended it")
    result = response.result
    ended_s = sent_s + response.latency_s
    devices = tuple({timing.device: None for timing in result.timings} | {result.coordinator or "": None})
    way = tuple(device for device in devices if device)
    if result.error is None:
        wanted = revisions.get(result.revision or "", first)[request]
        right = wanted.is_given_by(scenario.engine, response)
        sentence = None if right else f"{request}: {result.answer}, expected {wanted}"
        ending: Ending = "right" if right else "wrong"
        return Outcome(request.task, sent_s, ended_s, ending, None, sentence, way, response.attempts)
    # Nobody at the site said so: the client gave up at the deadline.
    lost = result.error.code == ErrorCode.DEADLINE_EXCEEDED and result.coordinator is None
    code, text = str(result.error.code), result.error.message
    return Outcome(request.task, sent_s, ended_s, "lost" if lost else "error", code, text, way, response.attempts)
