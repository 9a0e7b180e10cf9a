"""The operators' orders: deployed tasks, with their last revisions, and drained devices. A durable copy of them.

The digests of first loads are kept beside them (``placement.first_loads`` has their rule); they have no number.

The broker retains the same orders. Owns the rule that reconciles both after a new connection. Each change gets a
number, which the leader publishes in its topic (``change``):

- the broker's number is missing or lower than the copy's: the broker lost its memory, and what changed in the copy
  since that number wins. What the broker lacks is published again, and what was undeployed since is cleared again;
- otherwise the broker wins, and what it lacks was undeployed.

A leader publishes a number only when the broker has all orders up to it. A leader's will has none: it counts as the
last number that was heard over the leader's link, or as that of the orders that the broker itself delivered over it,
for the broker had all of them when that link ended. An order that is new, and not retained, is in the copy at once,
with the next number. Knows no files, topics or clock. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from broker.protocol.messages import FirstLoad, OrchestratorState
from broker.protocol.specs import MAX_TASKS, MAX_TASKS_BYTES, DeviceId, Revision, TaskName, TaskSpec
from broker.transport.port import RECONNECT_S, LinkDown, LinkUp
from orchestrator.events import (
    DrainReceived,
    Order,
    RevisionReceived,
    RevisionsListed,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
)

REVISIONS_KEPT = 5  # of each task, with the deployed one
MAX_EARLIER_BYTES = 8 * 1024 * 1024  # of the earlier revisions of all tasks: of more, tasks keep only the deployed one
MAX_HEARD_BYTES = MAX_TASKS_BYTES + MAX_EARLIER_BYTES
MAX_HEARD = MAX_TASKS + 1_000  # tasks that a standby keeps, also refused ones
MAX_DRAINED = 10_000  # devices; more are ignored
MAX_DIGESTS = 4_096  # of sources whose task files state none
HEARD_REVISIONS = 8  # of one task that a standby keeps: the last ones, and what a client of the broker invents
LACKS_AFTER_S = 2 * RECONNECT_S  # a leader whose number is lower until then doesn't have our orders: it has settled
REMOVALS_KEPT = 1_000  # undeployed tasks, and devices put back in service: the newest
LARGEST_CHANGE = 2**52 - 1  # that is accepted: half of all numbers stay for the changes after it
CopiedEvent = LinkUp | LinkDown | Order | RevisionReceived | RevisionsListed | OrchestratorState
_CHANGES_OF_A_TERM = 1024  # a later term's numbers are above those of earlier terms, though its leader lost its copy
_LARGEST_FACTOR = 2**40  # an epoch that counts for this; the product stays below ``LARGEST_CHANGE``


@dataclass(frozen=True)
class Deployed:
    """A deployed task: its spec, and the number of its last change."""

    spec: TaskSpec
    change: int


@dataclass(frozen=True)
class Orders:
    """All orders up to a change. Tasks are in the order in which they were deployed."""

    change: int = 0
    session: int | None = None  # of the leader's last link: by its will the broker has all up to ``confirmed``
    confirmed: int = 0
    tasks: Mapping[TaskName, Deployed] = field(default_factory=dict)
    drains: Mapping[DeviceId, int] = field(default_factory=dict)  # -> the number of the change
    undeployed: Mapping[TaskName, int] = field(default_factory=dict)
    undrained: Mapping[DeviceId, int] = field(default_factory=dict)
    revisions: Mapping[TaskName, tuple[TaskSpec, ...]] = field(default_factory=dict)  # the last ones, newest first
    served: Mapping[TaskName, TaskSpec] = field(default_factory=dict)  # older specs, until the deployed ones are ready
    digests: Mapping[str, FirstLoad] = field(default_factory=dict)  # of first loads, by ``ModuleSpec.recorded_as``

    @cached_property
    def specs(self) -> dict[TaskName, TaskSpec]:
        """The deployed specs."""
        return {task: deployed.spec for task, deployed in self.tasks.items()}

    @cached_property
    def drained(self) -> frozenset[DeviceId]:
        """The drained devices."""
        return frozenset(self.drains)


@dataclass(frozen=True)
class Delivered:
    """The orders that came over the present link: specs, valid or not, drains, and the ends of both."""

    tasks: frozenset[TaskName] = frozenset()
    drains: frozenset[DeviceId] = frozenset()
    youngest: tuple[TaskName, ...] = ()  # tasks that were first deployed over this link, and not before
    live_tasks: frozenset[TaskName] = frozenset()  # with an order that was given while this link was up
    live_drains: frozenset[DeviceId] = frozenset()  # the same; what has changed since was changed by a later order
    recorded: frozenset[tuple[TaskName, Revision]] = frozenset()  # by an earlier leader, and not in our copy

    def read_again(self) -> Delivered:
        """The part that is still known when all that the broker retains is read again over the same link."""
        return Delivered(youngest=self.youngest, live_tasks=self.live_tasks, live_drains=self.live_drains)


NO_ORDERS = Orders()
NOTHING_DELIVERED = Delivered()


@dataclass(frozen=True)
class Reconciled:
    """The orders in force, and what to publish so that the broker has them."""

    tasks: dict[TaskName, TaskSpec]
    drained: frozenset[DeviceId]
    specs: tuple[TaskSpec, ...] = ()
    drains: tuple[DeviceId, ...] = ()
    cleared_specs: tuple[TaskName, ...] = ()
    cleared_drains: tuple[DeviceId, ...] = ()


def change_of(orders: Orders, said: OrchestratorState) -> int:
    """The broker's change number by a message of the leader's topic; 0 when it has none, or an absurd one."""
    change = said.change if said.change <= LARGEST_CHANGE else 0
    return max(change, orders.confirmed) if not said.online and said.session == orders.session else change


def confirm(orders: Orders, session: int, change: int) -> Orders:
    """The orders, now that the broker is known to have all up to ``change``, over this link of the leader."""
    same = (orders.session, orders.confirmed) == (session, change)
    return orders if same else replace(orders, session=session, confirmed=change)


def next_change(orders: Orders, epoch: int) -> int:
    """The number of the next change in this term."""
    return max(orders.change + 1, _first_change(epoch))


def _first_change(epoch: int) -> int:
    return min(epoch, _LARGEST_FACTOR) * _CHANGES_OF_A_TERM


def record(
    orders: Orders,
    tasks: Mapping[TaskName, TaskSpec],
    drained: Collection[DeviceId],
    *,
    epoch: int,
    session: int | None,
    change: int | None = None,
    rejected: Collection[TaskName] = (),
) -> Orders:
    """The orders after these tasks, in this order, and drains; the same object if they are the same.

    The change gets the next number, or the given ``change``. ``session`` is that of the leader's present link, over
    which the change came: if the broker had all orders, it has all now. The revisions of undeployed tasks are dropped,
    but not those of a task whose new spec was rejected.
    """
    specs = orders.specs
    kept_revisions = {task: last for task, last in orders.revisions.items() if task in tasks or task in rejected}
    if len(kept_revisions) != len(orders.revisions):
        orders = replace(orders, revisions=kept_revisions)
    changed = {task: spec for task, spec in tasks.items() if specs.get(task) != spec}
    undeployed, undrained = specs.keys() - tasks.keys(), orders.drains.keys() - set(drained)
    if not (changed or undeployed or undrained or set(drained) - orders.drains.keys()):
        return orders
    if change is None:
        change = next_change(orders, epoch)
    deployed = {task: Deployed(spec, change) for task, spec in changed.items()}
    newer = {
        task: last_revisions([spec], kept_revisions.get(task, ()), served=orders.served.get(task))
        for task, spec in changed.items()
    }
    is_whole = session == orders.session and orders.confirmed >= orders.change
    return Orders(
        change=change,
        session=orders.session,
        confirmed=change if is_whole else orders.confirmed,
        tasks={task: deployed[task] if task in deployed else orders.tasks[task] for task in tasks},
        drains={device: orders.drains.get(device, change) for device in sorted(drained)},
        undeployed=_newest(orders.undeployed, undeployed, change, without=tasks.keys()),
        undrained=_newest(orders.undrained, undrained, change, without=drained),
        revisions=_bounded(kept_revisions | newer),
        served=orders.served,
        digests=orders.digests,
    )


def with_digests(orders: Orders, digests: Mapping[str, FirstLoad]) -> Orders:
    """The orders with these digests of first loads; of too many, the oldest that no deployed task uses go."""
    kept = {**orders.digests, **digests}
    if kept == orders.digests:
        return orders
    if (beyond := len(kept) - MAX_DIGESTS) > 0:
        used = {module.recorded_as for spec in orders.specs.values() for module in spec.modules.values()}
        oldest = [name for name in kept if name not in digests]
        for name in sorted(oldest, key=used.__contains__)[:beyond]:
            del kept[name]
    return replace(orders, digests=kept)


def last_revisions(*newest_first: Iterable[TaskSpec], served: TaskSpec | None = None) -> tuple[TaskSpec, ...]:
    """The last revisions of a task that are kept, of these lists one after the other, each once; and what is served."""
    specs: dict[Revision, TaskSpec] = {}
    for spec in chain.from_iterable(newest_first):
        specs.setdefault(spec.revision, spec)
    kept = [*specs.values()][:REVISIONS_KEPT]
    if served is not None and served not in kept and len(kept) == REVISIONS_KEPT:
        kept[-1] = served
    return tuple(kept)


def with_deployed_first(orders: Orders) -> Orders:
    """The orders, now that they are known, with each deployed spec before the other revisions of its task.

    Before that, a broker with an old memory may have listed an older one as the newest.
    """
    ordered = dict(orders.revisions)
    for task in orders.tasks.keys() & ordered.keys():
        ordered[task] = last_revisions([orders.tasks[task].spec], ordered[task], served=orders.served.get(task))
    return orders if ordered == orders.revisions else replace(orders, revisions=ordered)


def _bounded(revisions: dict[TaskName, tuple[TaskSpec, ...]]) -> dict[TaskName, tuple[TaskSpec, ...]]:
    """The revisions without the earlier ones of the tasks that have most of them, if there are too many bytes."""
    sizes = {task: _bytes_of(specs[1:]) for task, specs in revisions.items()}
    total_bytes = sum(sizes.values())
    if total_bytes <= MAX_EARLIER_BYTES:
        return revisions
    kept = dict(revisions)
    for task in sorted(sizes, key=lambda task: -sizes[task]):
        kept[task] = revisions[task][:1]
        total_bytes -= sizes[task]
        if total_bytes <= MAX_EARLIER_BYTES:
            break
    return kept


def reconcile(
    orders: Orders,
    broker_change: int,
    delivered: Delivered,
    tasks: Mapping[TaskName, TaskSpec],
    drained: Collection[DeviceId],
    *,
    rejected: Collection[TaskName] = (),
) -> Reconciled:
    """Reconcile the copy with what the broker delivered over a new link: ``tasks`` and ``drained``.

    Of the tasks only those count that were delivered. An order that was given over this link is in both. Of the
    ``rejected`` tasks the broker delivered a spec that isn't valid, so ``tasks`` has those of the copy.
    """
    since = min(orders.change, broker_change)
    specs = [
        deployed.spec
        for task, deployed in orders.tasks.items()
        if deployed.change > since and (task in rejected or _is_lost(orders, task, delivered, tasks))
    ]
    restored = {spec.task: spec for spec in specs}
    cleared = [
        task
        for task, change in orders.undeployed.items()
        if change > since and task in tasks and task in delivered.tasks - delivered.live_tasks
    ]
    older = [task for task in orders.tasks if task not in delivered.youngest]
    in_force = {
        task: restored.get(task) or tasks[task]
        for task in (*older, *(task for task in tasks if task not in orders.tasks), *delivered.youngest)
        if task in restored or (task in delivered.tasks and task in tasks and task not in cleared)
    }
    known = delivered.drains | delivered.live_drains
    lost_drains = [d for d, change in orders.drains.items() if change > since and d not in known]
    ended = orders.undrained.items()
    cleared_drains = [d for d, change in ended if change > since and d in drained and d not in delivered.live_drains]
    return Reconciled(
        tasks=in_force,
        drained=frozenset(drained) - set(cleared_drains) | set(lost_drains),
        specs=tuple(specs),
        drains=tuple(lost_drains),
        cleared_specs=tuple(cleared),
        cleared_drains=tuple(cleared_drains),
    )


@dataclass(frozen=True)
class StandbyCopy:
    """A standby orchestrator's copy of the orders, from what it hears. The leader's number says when it is whole."""

    orders: Orders
    settle_s: float  # for retained messages to arrive after our link came up
    up_s: float = math.inf
    tasks: Mapping[TaskName, TaskSpec | None] = field(default_factory=dict)  # heard over this link; None: rejected
    drained: frozenset[DeviceId] = frozenset()
    specs: Mapping[TaskName, Mapping[Revision, TaskSpec]] = field(default_factory=dict)  # of revisions, heard likewise
    specs_bytes: int = 0
    listed: Mapping[TaskName, RevisionsListed] = field(default_factory=dict)
    announced: OrchestratorState | None = None  # by the leader, and not in the copy yet
    broker_change: int = 0  # the leader's last number, heard over this link
    leader: tuple[int, int] | None = None  # its epoch and session
    leads_s: float = 0.0  # since when it was heard
    leaders_change: int = 0  # its highest number

    @property
    def lacks_at_s(self) -> float | None:
        """The time at which the leader counts as one that lacks our latest orders; None if it has them.

        It came first to a broker that lost its memory, and its own copy is older than ours. So we must lead.
        """
        if self.leader is None or self.leaders_change >= self.orders.change:
            return None
        return self.leads_s + LACKS_AFTER_S

    def excuse_leader(self, now_s: float) -> StandbyCopy:
        """The copy after our own process stood still: the leader has its full time again."""
        return replace(self, leads_s=now_s)

    def after_pause(self, now_s: float) -> StandbyCopy:
        """The copy after our own process stood still: what the broker retains may still wait to be read."""
        return self if self.up_s == math.inf else replace(self, up_s=now_s)

    def on_event(self, event: CopiedEvent, now_s: float, *, arrived_s: float | None = None) -> StandbyCopy:
        """The copy after this event. A leader's number covers all that was published before it.

        An event counts from its arrival, however late it is read: what the broker retains may still wait behind it.
        """
        arrived_s = now_s if arrived_s is None else arrived_s
        if isinstance(event, RevisionReceived | RevisionsListed):
            return self._heard_revisions(event)
        copy = self.heard_anew(arrived_s) if isinstance(event, LinkUp) else self._heard(event, now_s)
        if isinstance(event, OrchestratorState):
            copy = replace(copy, orders=copy.with_revisions(copy.orders))
        if copy.announced is None or arrived_s < copy.up_s + copy.settle_s:
            return copy
        return replace(copy, orders=_confirmed(copy, copy.announced), announced=None)

    def heard_anew(self, from_s: float) -> StandbyCopy:
        """The copy, with nothing heard: the broker sends what it retains from then on."""
        return StandbyCopy(self.orders, self.settle_s, from_s)

    def with_revisions(self, orders: Orders) -> Orders:
        """These orders with the revisions and digests that the leader tells; the same object if it has them.

        Of the two lists ours is the newer one if it has the newest revision of the other. What the broker still has of
        undeployed tasks doesn't count.
        """
        orders = with_digests(orders, self.orders.digests)
        revisions, served = dict(orders.revisions), dict(orders.served)
        known = orders.tasks.keys() | self.orders.tasks.keys() | self.tasks.keys()
        for task, listed in self.listed.items():
            if task not in known:
                continue
            specs, ours = self.specs.get(task, {}), orders.revisions.get(task, ())
            heard = [specs[revision] for revision in listed.revisions if revision in specs]
            if heard:
                is_ours_newer = heard[0].revision in {spec.revision for spec in ours}
                revisions[task] = last_revisions(ours, heard) if is_ours_newer else last_revisions(heard, ours)
            older = next((spec for spec in (*heard, *ours) if spec.revision == listed.served), None)
            if older is not None:
                served[task] = older
        served = {task: older for task, older in served.items() if _is_older(orders, task, older)}
        if revisions == orders.revisions and served == orders.served:
            return orders
        return replace(orders, revisions=_bounded(revisions), served=served)

    def _heard(self, event: LinkDown | Order | OrchestratorState, now_s: float) -> StandbyCopy:
        match event:
            case LinkDown():
                return self.heard_anew(math.inf)
            case TaskDeployed() | TaskRejected():
                task, spec = (event.spec.task, event.spec) if isinstance(event, TaskDeployed) else (event.task, None)
                return replace(self, tasks=self._with_task(task, spec))
            case TaskUndeployed(task):
                return self._without_task(task)
            case DrainReceived(device, drain):
                may_drain = drain and (device in self.orders.drains or len(self.drained) < MAX_DRAINED)
                return replace(self, drained=self.drained | {device} if may_drain else self.drained - {device})
            case OrchestratorState():
                return self._on_leader(event, now_s)
        return self

    def _without_task(self, task: TaskName) -> StandbyCopy:
        """The copy without a task, and without what was heard of its revisions: a later task of its name has none."""
        size_bytes = self.specs_bytes - _bytes_of(self.specs.get(task, {}).values())
        tasks = {name: spec for name, spec in self.tasks.items() if name != task}
        specs = {name: known for name, known in self.specs.items() if name != task}
        listed = {name: known for name, known in self.listed.items() if name != task}
        return replace(self, tasks=tasks, specs=specs, specs_bytes=size_bytes, listed=listed)

    def _on_leader(self, said: OrchestratorState, now_s: float) -> StandbyCopy:
        if said.online:
            change, copy = (said.change if said.change <= LARGEST_CHANGE else 0), self
            if self.leader != (said.epoch, said.session):
                copy = replace(self, leader=(said.epoch, said.session), leads_s=now_s, leaders_change=0)
            copy = replace(copy, leaders_change=max(copy.leaders_change, change))
            is_whole = 0 < change >= self.orders.change
            return replace(copy, announced=said, broker_change=change) if is_whole else copy
        if not self.broker_change:
            return self
        pending = self.announced and self.announced.model_copy(update={"session": said.session})
        return replace(self, announced=pending, orders=confirm(self.orders, said.session, self.broker_change))

    def _heard_revisions(self, event: RevisionReceived | RevisionsListed) -> StandbyCopy:
        if isinstance(event, RevisionsListed):
            if event.task not in self.listed and len(self.listed) >= MAX_HEARD:
                return self
            listed = replace(event, revisions=event.revisions[:REVISIONS_KEPT], digests={})
            orders = with_digests(self.orders, event.digests)
            return replace(self, orders=orders, listed={**self.listed, event.task: listed})
        known = self.specs.get(event.task, {})
        specs = {name: spec for name, spec in known.items() if name != event.revision}
        if event.spec is not None:
            specs = {**dict([*specs.items()][1 - HEARD_REVISIONS :]), event.revision: event.spec}
        size_bytes = self.specs_bytes + _bytes_of(specs.values()) - _bytes_of(known.values())
        if size_bytes > max(self.specs_bytes, MAX_HEARD_BYTES) or (not known and len(self.specs) >= MAX_HEARD):
            return self
        return replace(self, specs={**self.specs, event.task: specs}, specs_bytes=size_bytes)

    def _with_task(self, task: TaskName, spec: TaskSpec | None) -> Mapping[TaskName, TaskSpec | None]:
        """The tasks with one more. A new one for which there is no room counts as rejected, or isn't kept.

        A rejected spec leaves the one before in force.
        """
        others = {name: known for name, known in self.tasks.items() if name != task}
        if spec is None and (known := self.tasks.get(task)) is not None:
            spec = known  # it stays in force
        elif spec is None and task in self.orders.tasks:
            spec = self.orders.tasks[task].spec
        if task not in self.orders.tasks:
            if len(others) >= MAX_HEARD:
                return others
            if _bytes_of(known for known in (*others.values(), spec) if known is not None) > MAX_TASKS_BYTES:
                spec = None
        return {**others, task: spec}


def _bytes_of(specs: Iterable[TaskSpec]) -> int:
    return sum(spec.size_bytes for spec in specs)


def _confirmed(copy: StandbyCopy, leader: OrchestratorState) -> Orders:
    """The orders up to the leader's number: all that was heard.

    If it is of an earlier term, and the copy has it, what differs came after it: the leader will number it in a moment.
    """
    heard = {name: copy.tasks[name] for name in (*copy.orders.tasks, *copy.tasks) if name in copy.tasks}
    has_all = leader.change == copy.orders.change < _first_change(leader.epoch)
    kept = record(
        copy.orders,
        copy.orders.specs if has_all else {name: spec for name, spec in heard.items() if spec is not None},
        copy.orders.drained if has_all else copy.drained,
        epoch=leader.epoch,
        session=leader.session,
        change=leader.change,
        rejected=heard.keys(),
    )
    kept = kept if kept.change == leader.change else replace(kept, change=leader.change)
    return confirm(with_deployed_first(kept), leader.session, leader.change)


def _is_older(orders: Orders, task: TaskName, spec: TaskSpec) -> bool:
    """Whether a spec isn't the one of its task that was deployed last."""
    return task in orders.tasks and orders.tasks[task].spec.revision != spec.revision


def _is_lost(orders: Orders, task: TaskName, delivered: Delivered, tasks: Mapping[TaskName, TaskSpec]) -> bool:
    """Whether the broker lacks a spec, or retains an earlier one of it.

    If the task was undeployed and deployed again, that one isn't among its last revisions, but a leader recorded it.
    """
    if task in delivered.live_tasks:
        return False
    if task not in delivered.tasks:
        return True
    retained = tasks.get(task)
    if retained is None or retained == orders.tasks[task].spec:
        return False
    return (task, retained.revision) in delivered.recorded or retained in orders.revisions.get(task, ())


def _newest(
    before: Mapping[str, int], removed: Collection[str], change: int, *, without: Collection[str]
) -> dict[str, int]:
    """The numbers of removals, oldest first, without those that were ordered again."""
    both = {name: at for name, at in before.items() if name not in without and name not in removed}
    both |= dict.fromkeys(sorted(removed), change)
    return dict([*both.items()][-REMOVALS_KEPT:])
