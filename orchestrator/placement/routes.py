"""Routes: from a placement to the devices that each task's requests may use.

Owns a route's content: the devices able to run each node now, the front door, the backup coordinator. Doesn't know how
the placement was found, nor publishing.

Invariants:
- a route names a device for a node only if the task may run there, an active copy is placed there, and the living
  device reports it as ready; standbys are in no route;
- a node without a device is pending, not unavailable: its module loads, and requests wait;
- ``unavailable`` says why, and what to do;
- an unresponsive device is named only for nodes that no other device can run;
- a device that is on only sometimes is a front door or a backup coordinator only where no device that is always on can
  be: the coordinator must be there until the answer is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from broker.cost_model import compute_s, may_run
from broker.protocol.messages import Route, RouteDevice, RouteNode
from broker.protocol.specs import DeviceId, ModuleKey, NodeName, Revision, TaskSpec
from orchestrator.membership.device import Device, Fitness

Actives = Mapping[ModuleKey, tuple[DeviceId, ...]]
"""The devices with an active copy of each placed module."""
Fence = tuple[int, int]
"""Epoch and generation, in every route and assignment."""
DRIFT_FACTOR = 1.5  # measured seconds waver by some ten percent; only more than this may change the fastest device
_SECONDS = {"nodes": {"__all__": {"devices": {"__all__": {"compute_s"}}}}}


def front_door_node(task: TaskSpec) -> NodeName:
    """The node that needs the most bytes of raw input directly; ties go to the smaller name."""

    def raw_bytes(name: NodeName) -> int:
        return sum(task.inputs[need].bytes for need in task.nodes[name].needs if need in task.inputs)

    return min(task.nodes, key=lambda name: (-raw_bytes(name), name))


def build_route(
    task: TaskSpec,
    fence: Fence,
    actives: Actives,
    devices: Mapping[DeviceId, Device],
    last_doors: Sequence[DeviceId] = (),
    *,
    one_door: bool = False,
) -> Route:
    """The route of a placed task, with all devices that are known; its ``group`` is left 0.

    ``last_doors``: the front door so far. With ``one_door`` it is one device: a broker without shared subscriptions
    gives each request to all of them.
    """
    nodes = {name: _node(task, name, actives, devices) for name in task.order}
    doors = _front_door(task, nodes[front_door_node(task)], devices, last_doors)
    if one_door and len(doors) > 1:
        doors = _coordinator(task, (), {name: devices[name] for name in doors}, last_doors)
    epoch, generation = fence
    return Route(
        task=task.task,
        epoch=epoch,
        generation=generation,
        group=0,
        inputs=task.inputs,
        nodes=nodes,
        output=task.output,
        answer=task.answer,
        wire=task.wire,
        front_door=doors,
        revision=task.revision,
    )


def backup_coordinators(
    task: TaskSpec, front_door: Collection[DeviceId], devices: Mapping[DeviceId, Device], last: Sequence[DeviceId]
) -> tuple[DeviceId, ...]:
    """The backup coordinator, or none: outside the front door, with the best link for the task's inputs.

    It keeps a copy of each request, and needs no module. The last one stays while it can; otherwise each newly measured
    link would make a new share group.
    """
    if task.redundancy == 1 or not front_door:
        return ()
    return _coordinator(task, front_door, _readers(task, devices), last)


def _front_door(
    task: TaskSpec, node: RouteNode, devices: Mapping[DeviceId, Device], last: Sequence[DeviceId]
) -> tuple[DeviceId, ...]:
    """The devices that run this node, or another device if none of them is always on."""
    readers = _readers(task, devices)
    holders = tuple(able.device for able in node.devices if able.device in readers)
    always = tuple(name for name in holders if devices[name].always_on)
    if always or not node.devices:
        return always
    other = _coordinator(task, holders, readers, last)
    return other if other and devices[other[0]].always_on else holders


def _readers(task: TaskSpec, devices: Mapping[DeviceId, Device]) -> Mapping[DeviceId, Device]:
    """The devices that can read the task's route: agents of the first version refuse one with defaults of inputs."""
    if all(given.default is None for given in task.inputs.values()):
        return devices
    return {name: device for name, device in devices.items() if device.ignores_unknown}


def _coordinator(
    task: TaskSpec, others: Collection[DeviceId], devices: Mapping[DeviceId, Device], last: Sequence[DeviceId]
) -> tuple[DeviceId, ...]:
    """A coordinator besides these others, or none; one that is always on where there is one."""
    for name in last:
        known = devices.get(name) if name not in others else None
        if known is not None and known.fitness == Fitness.FIT and known.always_on and may_run(task, known.spec):
            return (name,)
    able = [device for name, device in devices.items() if device.fitness > Fitness.DRAINING and name not in others]
    able = [device for device in able if may_run(task, device.spec)]
    able = [device for device in able if device.always_on] or able
    able = [device for device in able if device.fitness == Fitness.FIT] or able
    if staying := [device.id for device in able if device.id in last]:
        return tuple(staying[:1])
    bits = 8.0 * sum(given.bytes for given in task.inputs.values())
    links = {device.id: device.profile.latency_s + bits / device.profile.bandwidth_bits_per_s for device in able}
    return (min(links, key=lambda name: (links[name], name)),) if links else ()


def unavailable_route(task: str, fence: Fence, why: str, revision: Revision | None = None) -> Route:
    """The route of a task that can't be served; its ``group`` is left 0."""
    return Route(task=task, epoch=fence[0], generation=fence[1], group=0, unavailable=why, revision=revision)


def same_route(a: Route, b: Route) -> bool:
    """Whether two routes are equal but for their generation and the drift of measured seconds.

    The seconds count only where there is a choice.
    """
    a = a.model_copy(update={"generation": b.generation})
    if a.model_dump(exclude=_SECONDS) != b.model_dump(exclude=_SECONDS):
        return False
    pairs = [
        (old.compute_s, new.compute_s)
        for name, node in a.nodes.items()
        if len(node.devices) > 1
        for old, new in zip(node.devices, b.nodes[name].devices, strict=True)
    ]
    return all(max(pair) <= DRIFT_FACTOR * min(pair) for pair in pairs)


def has_drifted(route: Route, device: Device) -> bool:
    """Whether a device's measured seconds differ from a route's so much that another device may be the fastest."""
    return any(
        max(measured_s, able.compute_s) > DRIFT_FACTOR * min(measured_s, able.compute_s)
        for node in route.nodes.values()
        if len(node.devices) > 1 and (measured_s := device.measured.get(node.key)) is not None
        for able in node.devices
        if able.device == device.id
    )


def _node(task: TaskSpec, name: NodeName, actives: Actives, devices: Mapping[DeviceId, Device]) -> RouteNode:
    node, module = task.nodes[name], task.module_of(name)
    holders = [devices[name] for name in actives.get(module.key, ()) if name in devices]
    able = [holder for holder in holders if holder.alive and holder.ready(module.key) and may_run(task, holder.spec)]
    able = [holder for holder in able if not holder.unresponsive] or able
    return RouteNode(
        module=node.module,
        key=module.key,
        needs=node.needs,
        use=node.use,
        output_bytes=task.sent_bytes(name),
        devices=tuple(
            RouteDevice(
                device=device.id,
                compute_s=compute_s(device.spec, node.module, module),
                latency_s=device.profile.latency_s,
                bandwidth_bits_per_s=device.profile.bandwidth_bits_per_s,
            )
            for device in able
        ),
    )
