"""A replay scenario, as a person writes it in ``s2m3/scenarios/*.yaml``, in frozen values.

Owns the format of the file and which fault may say what. Knows nothing of processes, brokers or clocks. An illegal
scenario can't exist: every rule is checked at construction, and the error names the field.

A fault has exactly one kind, and its target is one of: a device's id; ``orchestrator`` (the one that leads);
``module:NAME`` (the device that serves this module when the fault comes); ``standby:NAME`` (one that holds a standby
copy of it then); ``without:NAME`` (the first of the fleet that holds no copy of it then); ``front-door:TASK`` (the
first device of that task's front door then); ``killed`` (for ``start`` every device that is dead, for ``kill`` and in
``when`` the one killed last). Which tasks, modules and nodes there are is in the files of the tasks: ``library`` checks
these names.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import Interval
from broker.protocol.specs import (
    Availability,
    Bytes,
    DeviceId,
    NodeName,
    NotNegative,
    Rate,
    TaskName,
)
from broker.protocol.values import Spec
from broker.transport.connection import parse_url
from edge_agent.modules.weights.allowed import AllowedWeights
from edge_agent.modules.weights.download_settings import Downloads
from s2m3.testbed.engines import Engine

Kind = Literal[
    "kill",
    "start",
    "join",
    "switch_off",
    "pause",
    "partition",
    "slow",
    "restart",
    "hostile",
    "drain",
    "undrain",
    "squeeze",
    "hang",
    "stall",
    "fill",
    "crash",
    "deploy",
    "rollback",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
INNER: tuple[Kind, ...] = ("hang", "stall", "fill", "crash")  # faults from inside an agent
ORCHESTRATOR = "orchestrator"
OF_TASKS: tuple[Kind, ...] = ("crash", "deploy", "rollback")  # their target is a task
BROKER = "broker"
KILLED = "killed"
MODULE, STANDBY, WITHOUT, FRONT_DOOR = "module:", "standby:", "without:", "front-door:"
MAX_FAULTS = 10_000  # of a scenario, when all that repeat are written out
SHORT_TIMES = 0.4  # of all times of the load and the faults, in a short form
SHORT_RATE = 0.5  # of the requests, where they are more than one a second: a busy machine still computes them all ...
SHORT_PATIENCE = 3  # ... or answers them later, within this many deadlines
SHORT_INTERVAL = 0.5  # of the heartbeat's: less, and a busy machine's devices look dead

Target = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Times = Annotated[int, Field(ge=1, le=MAX_FAULTS)]
Limit = Annotated[int, Field(ge=0)]
_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

# the other fields that a kind needs, and those that it may have
_NEEDS: dict[str, set[str]] = {
    "pause": {"for_s"},
    "partition": {"for_s"},
    "slow": {"for_s", "factor"},
    "hostile": {"messages"},
    "squeeze": {"memory", "for_s"},
    "fill": {"for_s"},
    "deploy": {"dtype"},
}
_MAY: dict[str, set[str]] = {
    "partition": {"disconnect"},
    "restart": {"for_s", "gently"},
    "switch_off": {"for_s", "gently"},
    "deploy": {"broken", "replace"},
}
_PARAMETERS = ("for_s", "factor", "messages", "memory", "disconnect", "gently", "dtype", "broken", "replace")


class When(Spec):
    """The event that a fault waits for, from its ``at_s`` on: exactly one of these, seen on the wire."""

    node: NodeName | None = None  # inputs of this node, on their way to another device
    request: TaskName | None = None  # a request for this task
    online: Target | None = None  # the first heartbeat of this device since it was started last
    used: DeviceId | None = None  # inputs on their way to this device
    times: Times = 1  # so often

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in (self.node, self.request, self.online, self.used)) != 1:
            raise _unsound((), "must name exactly one of node, request, online, used")
        return self


class Fault(Spec):
    """One failure or act of an operator. Times are seconds since the first request."""

    at_s: NotNegative
    kill: Target | None = None  # SIGKILL
    start: Target | None = None  # of a device that was killed
    join: DeviceId | None = None  # a device of the fleet that wasn't there before starts
    switch_off: Target | None = None  # SIGKILL unless gently, and started again after for_s, if that is given
    pause: Target | None = None  # SIGSTOP, and SIGCONT after for_s: alive but hung
    partition: Target | None = None  # nothing passes on its link for for_s; the process lives
    slow: Target | None = None  # stopped and continued, so that it has 1/factor of its time
    restart: Literal["broker", "orchestrator"] | None = None  # SIGKILL unless gently, and started again after for_s
    hostile: Target | None = None  # malformed, short, oversized, stale and duplicated messages to this device
    drain: Target | None = None  # an operator takes the device out of service
    undrain: Target | None = None  # and back
    squeeze: Target | None = None  # its process gets no more than `memory` on top of what it has
    hang: Target | None = None  # the device's next forward pass never ends
    stall: Target | None = None  # its next load makes no progress
    fill: Target | None = None  # its disk has no room, for downloads and for temporary files
    crash: TaskName | None = None  # a request for this task that crashes each agent that computes it
    deploy: TaskName | None = None  # an operator deploys a revision of this task, with its modules in another dtype
    rollback: TaskName | None = None  # an operator deploys the first revision of this task again
    dtype: Literal["float16", "bfloat16"] | None = None
    broken: bool | None = None  # no device can load the modules of the revision: they aren't what their digests say
    replace: bool | None = None  # the revision before ends first
    for_s: Seconds | None = None
    factor: Annotated[float, Field(gt=1, le=1000)] | None = None
    messages: Annotated[int, Field(ge=1, le=100_000)] | None = None
    memory: Bytes | None = None
    disconnect: bool | None = None  # of a partition: the connections end at once, as when a router restarts
    gently: bool | None = None  # SIGTERM: of a restart, Mosquitto then publishes all wills before it ends
    when: When | None = None
    every_s: Seconds | None = None  # it comes again and again
    times: Times | None = None  # so often in all

    @model_validator(mode="after")
    def _one_kind_with_its_parameters(self) -> Self:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            found = f"has {len(kinds)} kinds ({', '.join(kinds)})" if kinds else "has no kind"
            raise _unsound((), f"{found}; write one of {', '.join(KINDS)} a fault")
        kind = kinds[0]
        given = {name for name in _PARAMETERS if getattr(self, name) is not None}
        needs, may = _NEEDS.get(kind, set()), _MAY.get(kind, set())
        if missing := sorted(needs - given):
            raise _unsound((), f"of kind {kind} needs {missing[0]}")
        if extra := sorted(given - needs - may):
            raise _unsound((extra[0],), f"means nothing to a fault of kind {kind}")
        if (self.every_s is None) != (self.times is None):
            raise _unsound((), "repeats with every_s and times together")
        return self

    @cached_property
    def kind(self) -> Kind:
        """Its kind."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @cached_property
    def target(self) -> str:
        """Its target, as written."""
        return str(getattr(self, self.kind))


class FleetDevice(Spec):
    """One device of the scenario."""

    id: DeviceId
    memory: Bytes | None = None  # for modules; None: what is really free, less a reserve
    speed: Annotated[float, Field(gt=0, le=1)] = 1.0  # below 1 emulates a slower device by waiting
    availability: Availability = "always"
    engine: Engine = "torch"
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1)] | None = None  # that it may serve; None: all
    compute_flops_per_s: Rate | None = None  # in place of ``speed``: a faster machine waits until it is as slow
    bandwidth_bits_per_s: Rate | None = None  # of its link to the broker; None: as fast as this machine
    latency_s: NotNegative | None = None  # of that link, one way

    @model_validator(mode="after")
    def _has_one_speed(self) -> Self:
        if self.compute_flops_per_s is not None and "speed" in self.model_fields_set:
            raise _unsound(("speed",), "says the same as compute_flops_per_s; remove one of them")
        return self


class Load(Spec):
    """The requests: photographs and questions in a seeded order, evenly spaced.

    They go on for ``duration_s``, and for longer where it takes longer until all faults are over and every task is
    served again (``run.PATIENCE_S`` at most).
    """

    rate_per_s: Annotated[float, Field(gt=0, le=1000)]
    duration_s: Seconds
    deadline_s: Seconds


class Expect(Spec):
    """Expectations: each is the most that is allowed, unless its name says otherwise."""

    lost: Limit = 0
    wrong: Limit = 0
    errors: Limit | None = None  # of all codes together; None: any number
    error_codes: tuple[ErrorCode, ...] | None = None  # which may come; None: any
    errors_at_least: Limit = 0  # where they are what the scenario is about
    moves: Limit | None = None  # modules newly active on a device, but for replicas; None: any number
    crashes: Limit = 0  # agents that a request crashed, as often as it did
    refusals_at_least: Limit = 0  # modules that a device said it can't hold: where this is what the scenario is about
    served_at_end: bool = True  # whether each task's last request must be answered
    replaced: bool = False  # whether a device or leader that is taken away must be replaced before its return
    used: tuple[DeviceId, ...] | None = None  # devices that must compute for an answer each time that they are there
    no_alarm: tuple[DeviceId, ...] | None = None  # devices that the leader must never call suspect, dead, or the like
    deployed: bool | None = None  # whether the revisions that were deployed last are served at the end, or refused
    leaders_at_least: Limit = 0  # orchestrators that led, one an epoch, from the one at the first request on


class Scenario(Spec):
    """One replay: a site, a load, faults, and what must hold."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    broker: str = "mosquitto"
    persistence: bool = False  # whether the broker keeps retained messages over its restart; Mosquitto only
    seed: int = 0
    heartbeat_interval_s: Interval = 1.0
    orchestrators: Literal[1, 2] = 1  # the second one is the standby
    spares: bool = True  # whether the orchestrator uses leftover memory for standby copies and replicas
    standby: bool = False  # wait before the load until every module has a standby copy that is ready
    fleet: Annotated[tuple[FleetDevice, ...], Field(min_length=1)]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    requests: dict[TaskName, _Path] = Field(default={})  # task -> the folder of its requests
    models: _Path | None = None  # the models directory of all agents
    weights: AllowedWeights | None = None  # the sources that all agents may load, as in an agent's file
    downloads: Downloads | None = None  # of weights by URL, as in an agent's file
    redundancy: Literal[1, 2] = 1  # of every task
    supervised: bool = False  # whether an agent that crashed is started again
    load: Load
    faults: tuple[Fault, ...] = ()
    expect: Expect = Expect()

    @property
    def is_running(self) -> bool:
        """Whether the broker runs already, and isn't the replay's own."""
        return "://" in self.broker

    @property
    def broker_name(self) -> str:
        """The broker for people: without a login."""
        return parse_url(self.broker).url if self.is_running else self.broker

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.broker not in {"mosquitto", "embedded"} and not self.is_running:
            raise _unsound(("broker",), "must be mosquitto, embedded, mqtt://host:port or mqtts://host:port")
        if self.persistence and self.broker != "mosquitto":
            raise _unsound(("persistence",), f"is a setting of mosquitto, and the broker is {self.broker_name}")
        if self.standby and not self.spares:
            raise _unsound(("standby",), "waits for standby copies, which spares: false rules out")
        ids = [device.id for device in self.fleet]
        for position, name in enumerate(ids):
            if name in ids[:position]:
                raise _unsound(("fleet", position, "id"), f"names {name} a second time")
        if sum(fault.times or 1 for fault in self.faults) > MAX_FAULTS:
            raise _unsound(("faults",), f"are more than {MAX_FAULTS}, with all that repeat")
        for position, fault in enumerate(self.faults):
            self._check(fault, ("faults", position), set(ids))
        self._check_joins()
        for field in ("used", "no_alarm"):
            if other := sorted(set(getattr(self.expect, field) or ()) - set(ids)):
                raise _unsound(("expect", field), f"names {other[0]}, which is not a device of the fleet")
        return self

    def _check(self, fault: Fault, place: tuple[int | str, ...], devices: set[DeviceId]) -> None:
        last_s = fault.at_s + (fault.every_s or 0.0) * ((fault.times or 1) - 1)
        if last_s >= self.load.duration_s:
            end = f"comes at {last_s:g} s, and the load ends at {self.load.duration_s:g} s"
            raise _unsound((*place, "at_s"), f"{end}; let it come before, or load for longer")
        if fault.target == BROKER and self.is_running:
            raise _unsound(
                (*place, "restart"), f"can't restart the broker at {self.broker_name}, which is not the replay's own"
            )
        if fault.target == BROKER and fault.gently and self.broker == "embedded":
            raise _unsound((*place, "gently"), "changes nothing: the embedded broker never announces its end")
        self._check_target(fault.kind, fault.target, (*place, fault.kind), devices)
        if fault.when and fault.when.online:
            self._check_target("start", fault.when.online, (*place, "when", "online"), devices)
        if fault.when and fault.when.used and fault.when.used not in devices:
            raise _unsound((*place, "when", "used"), f"names {fault.when.used}, which is not a device of the fleet")

    def _check_target(self, kind: Kind, target: str, place: tuple[int | str, ...], devices: set[DeviceId]) -> None:
        if kind in OF_TASKS:
            return  # which tasks there are is in their files
        known = devices | ({ORCHESTRATOR} if kind in {"kill", "start", "pause", "partition", "restart"} else set())
        known |= {BROKER} if kind == "restart" else set()
        known |= {KILLED} if kind in {"kill", "start"} else set()
        is_living = kind not in {"start", "join"}
        if is_living and target.startswith((MODULE, STANDBY, WITHOUT, FRONT_DOOR)):
            return  # as above
        if target not in known:
            by_name = (f"{MODULE}NAME", f"{STANDBY}NAME", f"{WITHOUT}NAME", f"{FRONT_DOOR}TASK")
            may = [*sorted(known), *(by_name if is_living else ())]
            raise _unsound(place, f"must name one of {', '.join(may)}, got {target}")

    def _check_joins(self) -> None:
        joined: set[DeviceId] = set()
        for position, fault in enumerate(self.faults):
            if fault.join is None:
                continue
            place = ("faults", position, "join")
            if fault.join in joined or fault.times is not None:
                raise _unsound(place, f"lets {fault.join} join a second time; use start for one that was killed")
            joined.add(fault.join)
            if len(joined) == len(self.fleet):
                raise _unsound(place, "leaves no device to begin with; add one to the fleet")

    @property
    def engine(self) -> Engine:
        """The engine by which answers are compared with the unsplit models': onnx if any device has it."""
        return "onnx" if any(device.engine == "onnx" for device in self.fleet) else "torch"

    @property
    def joining(self) -> frozenset[DeviceId]:
        """The devices that aren't there at the beginning."""
        return frozenset(fault.join for fault in self.faults if fault.join is not None)

    @property
    def inner_faults(self) -> bool:
        """Whether agents must be able to fail from inside."""
        return any(fault.kind in INNER for fault in self.faults)

    def changed(self, **fields: object) -> Scenario:
        """The scenario with other fields; raises ValidationError if it can't be."""
        return Scenario.model_validate(self.model_dump(exclude_unset=True) | fields)

    def shortened(self) -> Scenario:
        """The same faults in less time, with fewer requests that may wait longer: also for a busy machine."""
        faults = tuple(
            fault.model_copy(
                update={
                    name: SHORT_TIMES * seconds
                    for name in ("at_s", "for_s", "every_s")
                    if (seconds := getattr(fault, name)) is not None
                }
            )
            for fault in self.faults
        )
        given = self.load
        shorter = {
            "duration_s": SHORT_TIMES * given.duration_s,
            "rate_per_s": max(SHORT_RATE * given.rate_per_s, min(given.rate_per_s, 1.0)),
            "deadline_s": SHORT_PATIENCE * given.deadline_s,
        }
        load = given.model_copy(update=shorter)
        beat_s = max(0.05, self.heartbeat_interval_s * SHORT_INTERVAL)
        return self.model_copy(update={"faults": faults, "load": load, "heartbeat_interval_s": beat_s})

    def timeline(self) -> list[Fault]:
        """Every single fault in the order of time, those that repeat written out."""
        singles = [
            fault.model_copy(
                update={"at_s": fault.at_s + turn * (fault.every_s or 0.0), "every_s": None, "times": None}
            )
            for fault in self.faults
            for turn in range(fault.times or 1)
        ]
        return sorted(singles, key=lambda fault: fault.at_s)


def _unsound(place: tuple[int | str, ...], sentence: str) -> PydanticCustomError:
    """A problem between fields, with the place where a person corrects it."""
    return PydanticCustomError("unsound_scenario", "{sentence}", {"sentence": sentence, "place": place})
