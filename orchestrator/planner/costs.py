"""What a placement costs, in seconds: compute, transfer, the latency of a task, the objective.

Owns DESIGN section 6, to the letter, so that anyone can recompute a plan. Knows nothing of liveness, memory budgets or
how a placement was found; reads no clock.

Invariants:
- every time is in seconds, every size in bytes, every bandwidth in bits per second;
- a task's latency is that of one request alone: tasks don't queue behind each other here;
- a placement may be partial: a node whose module isn't placed neither delays nor costs, so that a greedy rule can
  compare unfinished placements. On a complete placement this changes nothing.

Source of the model: "S2M3: Split-and-Share Multi-Modal Models for Distributed Multi-Task Inference on the Edge"
(ICDCS 2025), with list scheduling (Graham 1969) for nodes that meet on one device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from broker.cost_model import transfer_s
from broker.protocol.specs import DeviceId, DeviceSpec, ModuleKey, ModuleName, ModuleSpec, NodeName, TaskName, TaskSpec

# Where requests start that no planned device publishes: the broker's side of every link. Its empty id can't be a
# device's, and it holds no modules.
OUTSIDE = DeviceSpec.model_construct(
    id="", memory_bytes=0, compute_flops_per_s=1.0, bandwidth_bits_per_s=1e12, latency_s=0.0, compute_s={}
)


__all__ = ["OUTSIDE", "compute_s", "latency_s", "objective_s", "source_of", "transfer_s"]


def compute_s(device: DeviceSpec, name: ModuleName, module: ModuleSpec) -> float:
    """Seconds of one forward pass: the device's measurement (by key, else by name) if there is one, else the estimate.

    Args:
        device: where it runs.
        name: what the task calls the module.
        module: its flops, and its key.
    """
    measured = device.compute_s.get(module.key) or device.compute_s.get(name)
    return measured or module.flops / device.compute_flops_per_s


def source_of(task: TaskSpec, devices: Mapping[DeviceId, DeviceSpec], default: DeviceSpec | None = None) -> DeviceSpec:
    """Where a task's requests start: its own source if that is one of the devices, else the default, else outside."""
    return devices.get(task.source or "") or default or OUTSIDE


def latency_s(task: TaskSpec, where: Mapping[ModuleKey, DeviceSpec], source: DeviceSpec) -> float:
    """Seconds from a request's start at its source to the answer there, for one request alone.

    While the output's module isn't placed, it is the time at which the last placed node finishes.

    Args:
        task: the graph.
        where: the device of each placed module.
        source: where the inputs are, and where the answer goes.
    """
    finish: dict[NodeName, float] = {}
    free: dict[DeviceId, float] = {}

    def earliest(name: NodeName) -> tuple[float, float, NodeName]:
        """The node's start, its compute time negated, its name: the least of these goes first."""
        node, module = task.nodes[name], task.module_of(name)
        device = where[module.key]
        ready = 0.0
        for need in node.needs:
            if need in task.inputs:
                ready = max(ready, transfer_s(task.inputs[need].bytes, source, device))
            elif need in finish:
                sender = task.module_of(need)
                ready = max(ready, finish[need] + transfer_s(task.sent_bytes(need), where[sender.key], device))
        return max(ready, free.get(device.id, 0.0)), -compute_s(device, node.module, module), name

    todo = {name for name in task.nodes if task.module_of(name).key in where}
    while todo:
        start, minus_compute, name = min(earliest(name) for name in todo if todo.isdisjoint(task.nodes[name].needs))
        todo.remove(name)
        finish[name] = start - minus_compute
        free[where[task.module_of(name).key].id] = finish[name]
    if task.output not in finish:
        return max(finish.values(), default=0.0)
    output = task.module_of(task.output)
    return finish[task.output] + transfer_s(output.output_bytes, where[output.key], source)


def objective_s(
    tasks: Iterable[TaskSpec], where: Mapping[ModuleKey, DeviceSpec], sources: Mapping[TaskName, DeviceSpec]
) -> float:
    """The weighted sum of the tasks' latencies, in seconds: what a placement minimises.

    Args:
        tasks: the tasks, in any order; the sum is made in the order of their names.
        where: the device of each placed module.
        sources: the device where each task's requests start.
    """
    by_name = sorted(tasks, key=lambda task: task.task)
    return sum(task.weight * latency_s(task, where, sources[task.task]) for task in by_name)
