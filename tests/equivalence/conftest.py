"""The pocket zoo, loaded once: split modules and the unsplit reference, at one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from pydantic import JsonValue

import catalog
from broker.codec import RawInput, decode, decode_tensors, encode, encode_tensors
from broker.files import load_spec
from broker.messages import NodeInputs, Plan, PlannedNode, Result
from broker.specs import TaskSpec
from broker.tensors import Array, Tensors
from edge_agent.modules import Module, Value, load
from s2m3.unsplit import Unsplit


class Split:
    """Runs a pocket task module by module, every value between two modules through the bytes of the wire."""

    def __init__(self) -> None:
        self.specs = {
            name: load_spec(catalog.path(name), TaskSpec) for name in catalog.names() if name.startswith("pocket/")
        }
        self.specs = {spec.task: spec for spec in self.specs.values()}
        self.modules: dict[str, Module] = {}
        for spec in self.specs.values():
            for module in spec.modules.values():
                if module.key not in self.modules:
                    self.modules[module.key] = load(module)

    def answer(self, task: str, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        """The task's answer as a sensor reads it from the result's bytes."""
        spec = self.specs[task]
        values: dict[str, Value] = dict(inputs)
        answer: dict[str, JsonValue] | None = None
        for node in spec.order:
            output = self.modules[spec.module_of(node).key](*(values[need] for need in spec.nodes[node].needs))
            values[node] = through_the_wire(spec, node, output.tensors)
            answer = output.answer
        result = decode(Result, encode(Result(request="r", task=task, answer=answer)))
        assert result.answer is not None
        return result.answer


def through_the_wire(spec: TaskSpec, node: str, tensors: Tensors) -> dict[str, Array]:
    """Arrays as the next device reads them."""
    plan = Plan(
        nodes={
            name: PlannedNode(key=spec.module_of(name).key, needs=planned.needs, use=planned.use, device="d")
            for name, planned in spec.nodes.items()
        },
        output=spec.output,
    )
    message = NodeInputs(
        request="r",
        task=spec.task,
        node=node,
        epoch=1,
        generation=1,
        attempt=0,
        coordinator="d",
        deadline_s=1,
        reply_to="clients/c/results/r",
        plan=plan,
    )
    read, arrays = decode_tensors(encode_tensors(message, {f"{node}/{name}": array for name, array in tensors.items()}))
    assert read == message
    return {name.removeprefix(f"{node}/"): array for name, array in arrays.items()}


@pytest.fixture
def wire() -> Callable[..., dict[str, Array]]:
    """What an output is at the next device: see ``through_the_wire``."""
    return through_the_wire


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The order of sums depends on the thread count, so that is fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def split(one_thread: None) -> Split:  # noqa: ARG001 - loads at one thread
    return Split()


@pytest.fixture(scope="session")
def unsplit(one_thread: None) -> Unsplit:  # noqa: ARG001 - the same
    return Unsplit()
