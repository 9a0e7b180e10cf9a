"""An agent that routes and the orchestrator that planned expect the same seconds."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.cost_model import OUTSIDE, compute_s, latency_s
from broker.protocol.messages import Route, RouteDevice, RouteNode
from broker.protocol.specs import DeviceSpec, TaskSpec
from edge_agent.requests.routing import choose_plan
from tests.strategies import Instance, instances

CALMLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


def route_of(task: TaskSpec, at: dict[str, DeviceSpec]) -> Route:
    """The route of a task whose modules stand on one device each, as the orchestrator says it."""
    nodes = {}
    for name, node in task.nodes.items():
        device, module = at[task.module_of(name).key], task.module_of(name)
        able = RouteDevice(
            device=device.id,
            compute_s=compute_s(device, node.module, module),
            latency_s=device.latency_s,
            bandwidth_bits_per_s=device.bandwidth_bits_per_s,
        )
        nodes[name] = RouteNode(
            module=node.module,
            key=module.key,
            needs=node.needs,
            use=node.use,
            output_bytes=task.sent_bytes(name),
            devices=(able,),
        )
    return Route(
        task=task.task,
        epoch=1,
        generation=1,
        group=1,
        inputs=task.inputs,
        nodes=nodes,
        output=task.output,
        wire=task.wire,
        front_door=("a",),
    )


@CALMLY
@given(instances(most_tasks=1), st.data())
def test_without_queues_routing_expects_the_latency_that_was_planned(instance: Instance, data: st.DataObject) -> None:
    """The route has half of an odd output rounded up: then the answer counts as one byte more."""
    devices, (task,) = instance
    at = {task.module_of(name).key: data.draw(st.sampled_from(devices)) for name in task.nodes}
    sizes = {name: given.bytes for name, given in task.inputs.items()}
    choice = choose_plan(route_of(task, at), here="", input_bytes=sizes)
    assert choice is not None
    planned_s, output = latency_s(task, at, OUTSIDE), task.module_of(task.output)
    if task.wire == "float32" or output.output_bytes % 2 == 0:
        assert choice[1] == planned_s
    else:
        assert 0 <= choice[1] - planned_s <= 8 / at[output.key].bandwidth_bits_per_s * (1 + 1e-6)
