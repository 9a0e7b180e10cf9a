"""The planner's input: devices with what they measured, tasks with the memory that they really need, constraints.

Owns the step from reports to the planner's arguments. Changes nothing; doesn't know how a placement is found.

Invariants:
- a measured value wins over an estimate. Of measured footprints the largest counts everywhere, and at least the spec's;
  but one device's word counts elsewhere only up to a bound, so that it can't make a task too large for the others.
  Each variant of a module has a footprint of its own; that of a device's export counts only there;
- a module needs the bytes that its own device reports, where it is ready: another device's larger measurement displaces
  no module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from broker.cost_model import runnable
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleSpec, TaskSpec
from orchestrator.membership.deadly_loads import ENOUGH
from orchestrator.membership.device import Device, Fitness
from orchestrator.placement import revisions
from orchestrator.placement.deployability import disputed_modules, refusals_of, refused_too_often, why_unservable
from orchestrator.planner.copies import AtHand, Bars, copy_key, original_key, with_further_copies
from orchestrator.planner.modules import distinct_modules
from orchestrator.state import CurrentPlacement, Facts, State

MOST_TIMES_SPEC = 2  # a measured footprint, where it isn't the device's own, is at most this times the spec's bytes ...
MOST_BEYOND_BYTES = 16 * 1024 * 1024  # ... and this: a small module's measurement has the noise of its process


def facts_of(state: State) -> Facts:
    """The facts that placement depends on."""
    alive = state.cluster.alive()
    barred: dict[ModuleKey, dict[DeviceId, str]] = {}
    for device in alive:
        for key, error in device.barred.items():
            barred.setdefault(key, {})[device.id] = f"it failed there: {error}"
        for key, deaths in state.load_deaths.items():
            if len(deaths) >= ENOUGH and not device.ready(key):
                others = " and ".join(sorted(deaths)[:ENOUGH])
                barred.setdefault(key, {})[device.id] = f"{others} died while they loaded it"
            elif device.id in deaths and not device.ready(key):
                barred.setdefault(key, {})[device.id] = "it died while it loaded it"
    tasks = revisions.tasks_to_place(state)
    disputed, refusals = disputed_modules(tasks), refusals_of(alive)
    reasons = {t.task: why for t in tasks if (why := why_unservable(state, t, refusals, disputed)) is not None}
    served = tuple(task for task in tasks if task.task not in reasons)
    return Facts(
        candidates=tuple((device.id, device.offered) for device in alive),
        tasks=served,
        unservable=reasons,
        barred=barred,
        footprints={
            key: state.footprints[key]
            for task in served
            for module in task.modules.values()
            for key, size_bytes in _spec_bytes(module).items()
            if state.footprints.get(key, 0) > size_bytes
        },
        doubts={device.id: device.doubt for device in alive if device.doubt is not None},
        limits={device.id: device.tasks for device in alive if device.tasks is not None},
        sometimes=frozenset(device.id for device in alive if not device.always_on),
    )


def rest_stays(before: State, state: State) -> bool:
    """Whether all is the same object that the facts, and what is asked of the planner, follow from, but for devices."""
    return (
        before.tasks is state.tasks
        and before.served is state.served
        and before.footprints is state.footprints
        and before.load_deaths is state.load_deaths
        and before.link is state.link
        and before.planning is state.planning
        and before.placement.where is state.placement.where
        and before.cluster.mass_departure is state.cluster.mass_departure
    )


def same_facts(then: Device, now: Device) -> bool:
    """Whether two versions of a living device give the same facts."""
    return (
        (then.fitness, then.doubt) == (now.fitness, now.doubt)
        and (then.offered, then.tasks, then.availability) == (now.offered, now.tasks, now.availability)
        and then.barred == now.barred
    )


def placement_constraints(
    state: State, facts: Facts, *more: Mapping[ModuleKey, DeviceId], least: Fitness = Fitness.FIT
) -> Bars:
    """The devices that each module must not be placed on: where it failed, and those below ``least`` that lack it.

    A draining device keeps what only it serves; other doubtful devices keep all that they were assigned, and the
    modules that ``more`` places there. Where nothing else fits, a lower fitness is enough.
    """
    bars: dict[ModuleKey, dict[DeviceId, str]] = {key: dict(refusals) for key, refusals in facts.barred.items()}
    keys = {module.key for task in facts.tasks for module in task.modules.values()}
    for name, why in facts.doubts.items():
        draining, device = is_draining(state, name), state.cluster.devices.get(name)
        if not draining and device is not None and device.fitness >= least:
            continue
        homes = [item for homes in (state.placement.where, *more) for item in homes.items()]
        stays = {original_key(key) for key, home in homes if home == name}
        if not draining:
            stays |= state.placement.roles.get(name, {}).keys()
        for key in keys - stays:
            bars.setdefault(key, {}).setdefault(name, why)
    return bars


def is_draining(state: State, name: DeviceId) -> bool:
    """Whether a device's modules must move away."""
    device = state.cluster.devices.get(name)
    return device is not None and device.draining


def spare_constraints(state: State, facts: Facts, *where: Mapping[ModuleKey, DeviceId]) -> Bars:
    """As ``placement_constraints``; a module that was refused too often gets no further copies at all."""
    bars: dict[ModuleKey, Mapping[DeviceId, str]] = dict(placement_constraints(state, facts, *where))
    for key in refused_too_often(refusals_of(state.cluster.alive())):
        others = {name: "" for name, _ in facts.candidates if key not in state.placement.roles.get(name, {})}
        bars[key] = {**others, **bars.get(key, {})}
    return bars


def _spec_bytes(module: ModuleSpec) -> dict[ModuleKey, int]:
    """The bytes of a module's own weights and of its variants, as its task states them, by the key of the weights."""
    return {module.key: module.memory_bytes, **{each.key: each.memory_bytes for each in module.variants}}


def updated_footprints(state: State, name: DeviceId) -> Mapping[ModuleKey, int]:
    """The footprints after a device's report of modules that it was assigned, as far as one device's word counts."""
    known, assigned = state.cluster.devices.get(name), state.assignments.get(name)
    if known is None or assigned is None:
        return state.footprints
    larger: dict[ModuleKey, int] = {}
    for each in assigned.modules:
        if not known.ready(each.spec.key):
            continue
        form = runnable(each.spec, known.profile)
        if form is None or form.key is None:
            continue  # an export, which no other device has
        most_bytes = MOST_TIMES_SPEC * form.memory_bytes + MOST_BEYOND_BYTES
        size_bytes = min(known.modules[each.spec.key].memory_bytes, most_bytes)
        if size_bytes > state.footprints.get(form.key, 0):
            larger[form.key] = size_bytes
    return {**state.footprints, **larger} if larger else state.footprints


def candidate_specs(state: State, facts: Facts) -> dict[DeviceId, DeviceSpec]:
    """The candidates as planning sees them."""
    devices = dict(state.cluster.devices.items())  # one search for each would take longer than all else here
    specs = [device.spec for name, _ in facts.candidates if (device := devices.get(name)) is not None]
    return {spec.id: spec for spec in revisions.allow_upcoming(specs, facts.tasks)}


def with_measured_footprints(tasks: Sequence[TaskSpec], footprints: Mapping[ModuleKey, int]) -> list[TaskSpec]:
    """The tasks with the bytes that their modules, and the variants of these, really occupy."""
    measured: list[TaskSpec] = []
    for task in tasks:
        larger = {
            name: _with_measured_footprint(module, footprints)
            for name, module in task.modules.items()
            if not footprints.keys().isdisjoint(_spec_bytes(module))
        }
        measured.append(task.model_copy(update={"modules": {**task.modules, **larger}}) if larger else task)
    return measured


def _with_measured_footprint(module: ModuleSpec, footprints: Mapping[ModuleKey, int]) -> ModuleSpec:
    variants = tuple(
        each.model_copy(update={"memory_bytes": footprints.get(each.key, each.memory_bytes)})
        for each in module.variants
    )
    size_bytes = footprints.get(module.key, module.memory_bytes)
    return module.model_copy(update={"memory_bytes": size_bytes, "variants": variants})


def measured_tasks(placement: CurrentPlacement) -> list[TaskSpec]:
    """The placed tasks with the bytes that their modules really occupy."""
    return with_measured_footprints(placement.placed, placement.facts.footprints)


def measured_copies(placement: CurrentPlacement) -> list[TaskSpec]:
    """The same tasks, in which each further copy is a module of its own."""
    return with_further_copies(measured_tasks(placement), placement.further)


def memory_credit(state: State, placement: CurrentPlacement, facts: Facts) -> dict[DeviceId, int]:
    """Bytes to add to a device's memory for active copies that are ready there in less than their footprint."""
    credit: dict[DeviceId, int] = {}
    for key, home in placement.where.items():
        device, module = state.cluster.devices.get(home), original_key(key)
        if device is None or not device.ready(module):
            continue
        form = runnable(placement.modules[key][1], device.offered)
        if form is not None and form.key is not None and form.key in facts.footprints:
            own = max(device.modules[module].memory_bytes, form.memory_bytes)
            credit[home] = credit.get(home, 0) + max(0, facts.footprints[form.key] - own)
    return {device: size_bytes for device, size_bytes in credit.items() if size_bytes}


def fits(state: State, facts: Facts, homes: Mapping[ModuleKey, Sequence[DeviceId]]) -> bool:
    """Whether the devices of these copies, which are alive, can run them and have the memory for all of them.

    A copy needs its footprint, at least the spec's bytes; one that is ready needs what its own device reports, if that
    is less. It never counts more than in the plan: else no plan would stand, and the next one would be the same.
    """
    modules = distinct_modules(facts.tasks)
    free = {name: profile.memory_bytes for name, profile in facts.candidates}
    for copy, copies in homes.items():
        key = original_key(copy)
        for name in copies:
            device = state.cluster.devices[name]
            form = runnable(modules[key][1], device.offered)
            if form is None:
                return False
            planned_bytes = max(facts.footprints.get(form.key or "", 0), form.memory_bytes)
            own_bytes = device.modules[key].memory_bytes if device.ready(key) else planned_bytes
            free[name] -= min(planned_bytes, max(own_bytes, form.memory_bytes))
    return all(size_bytes >= 0 for size_bytes in free.values())


def copies_at_hand(state: State, only: Collection[DeviceId] | None = None) -> AtHand:
    """The devices, of all or of these, that have a module's weights in memory or on their disk, or are loading them."""
    near = [device for device in state.cluster.alive() if only is None or device.id in only]
    return _by_module((device.id, (*_present(device), *device.cached)) for device in near)


def existing_copies(state: State) -> AtHand:
    """The devices that have a module in memory, or were assigned it: to keep it there costs no load."""
    return _by_module(
        [
            *state.placement.roles.items(),
            *((device.id, _present(device)) for device in state.cluster.alive()),
        ]
    )


def copies_to_adopt(state: State, barred: Bars) -> dict[ModuleKey, DeviceId]:
    """The devices that have each module already: the first of always on, fit, ready, served by the retained routes, id.

    The first one is for the module's first copy; the others, where it is ready, are for further copies, if any.
    """
    serving: dict[ModuleKey, tuple[DeviceId, ...]] = {}
    for route in state.retained_routes.values():
        serving |= route.serving
    copies = [
        (
            not device.always_on,
            device.doubt is not None,
            not device.ready(key),
            _rank(device.id, serving.get(key, ())),
            device.id,
            key,
        )
        for device in state.cluster.alive()
        for key in _present(device)
        if device.id not in barred.get(key, {})
    ]
    homes: dict[ModuleKey, DeviceId] = {}
    count: Counter[ModuleKey] = Counter()
    for _, _, not_ready, _, device, key in sorted(copies):
        if not count[key] or not not_ready:
            count[key] += 1
            homes[copy_key(key, count[key])] = device
    return homes


def longest_loads_s(state: State) -> dict[ModuleKey, float]:
    """The longest time that any device needed to load each module."""
    held = [item for device in state.cluster.alive() for item in device.modules.items()]
    loads = sorted((module.load_s, key) for key, module in held if module.load_s)
    return {key: load_s for load_s, key in loads}  # of several the last one, which is the longest


def _present(device: Device) -> list[ModuleKey]:
    return [key for key, module in device.modules.items() if module.state != "failed"]


def _by_module(modules: Iterable[tuple[DeviceId, Iterable[ModuleKey]]]) -> dict[ModuleKey, set[DeviceId]]:
    found: dict[ModuleKey, set[DeviceId]] = {}
    for device, keys in modules:
        for key in keys:
            found.setdefault(key, set()).add(device)
    return found


def _rank(device: DeviceId, serving: Sequence[DeviceId]) -> int:
    return serving.index(device) if device in serving else len(serving)
