"""Tasks run module by module in this process, as devices run them: every value between two modules has been bytes.

Owns the one way to answer as the running system does, without its processes: requests go through the request codec,
arrays through the tensor codec, answers through the result's. Modules of equal keys are loaded once. Tests, benchmarks
and the fitting of heads call this "split".

With ``remembers``, a node isn't computed again for the same inputs: the same values give the same bits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from broker.protocol.codec import (
    RawInput,
    decode,
    decode_request,
    decode_tensors,
    encode,
    encode_request,
    encode_tensors,
)
from broker.protocol.errors import RemoteProtocolError
from broker.protocol.messages import NodeInputs, Plan, PlannedNode, Result
from broker.protocol.specs import ModuleKey, NodeName, TaskSpec
from broker.protocol.tensors import Array, Tensors, embeddings, narrowed, widened
from edge_agent import modules
from edge_agent.modules import Module, Output, Value
from edge_agent.runtime.runner import Runner

MAX_REMEMBERED = 1024  # outputs; the embeddings of 64 captions have about 130 kB


class Split:
    """Modules in memory, and the tasks that use them; on demand it remembers the newest outputs of nodes."""

    def __init__(self, *, remembers: bool = False) -> None:
        self.modules: dict[ModuleKey, Module] = {}
        self.sent_bytes = 0  # of arrays, from nodes to nodes, since the start
        self._runner = Runner()
        self._remembers = remembers
        self._memory: dict[Hashable, Output] = {}

    def hold(self, tasks: Sequence[TaskSpec]) -> None:
        """Loads the modules of tasks that aren't loaded.

        Raises:
            ModuleRefused: a module can't be loaded.
        """
        for spec in (spec for task in tasks for spec in task.modules.values()):
            if spec.key not in self.modules:
                self.modules[spec.key] = modules.load(spec)

    def run(self, task: TaskSpec, inputs: Mapping[str, RawInput]) -> Output:
        """Answers one request: the arrays of the task's output node, and the answer as a sensor gets it.

        Raises:
            ModuleRefused: a module can't be loaded.
            RequestFailed: as the running system would fail.
        """
        self.hold([task])
        sent = decode_request(*encode_request(inputs), task.inputs)
        values: dict[NodeName, Value] = dict(sent)
        origins: dict[NodeName, Hashable] = dict(sent)
        final = Output({})
        for node in task.order:
            spec = task.nodes[node]
            key = task.module_of(node).key
            origins[node] = (key, spec.use, tuple(origins[need] for need in spec.needs)) if self._remembers else None
            output = self._memory.pop(origins[node], None)
            if output is None:
                output = self._runner.run(self.modules[key], [values[need] for need in spec.needs], spec.use)
            if self._remembers:
                self._memory[origins[node]] = output  # the newest comes last
                if len(self._memory) > MAX_REMEMBERED:
                    del self._memory[next(iter(self._memory))]
            if node == task.output:
                form = task.answer
                final = Output(output.tensors, embeddings(output.tensors, form)) if form else output
            if any(node in other.needs for other in task.nodes.values()):
                given = narrowed(output.tensors, task.wire)
                self.sent_bytes += sum(array.nbytes for array in given.values())
                values[node] = widened(_through_the_wire(task, node, given))
        result = decode(Result, encode(Result(request="r", task=task.task, answer=final.answer)))
        return Output(_through_the_wire(task, task.output, final.tensors), result.answer)


def _through_the_wire(task: TaskSpec, node: NodeName, tensors: Tensors) -> dict[str, Array]:
    """A node's arrays as the next device reads them: encoded in a message with a real envelope, and decoded."""
    plan = Plan(
        nodes={
            name: PlannedNode(key=task.module_of(name).key, needs=planned.needs, use=planned.use, device="d")
            for name, planned in task.nodes.items()
        },
        output=task.output,
        wire=task.wire,
    )
    message = NodeInputs(
        request="r",
        task=task.task,
        node=node,
        epoch=1,
        generation=1,
        attempt=0,
        coordinator="d",
        deadline_s=1,
        reply_to="clients/c/results/r",
        plan=plan,
    )
    payload = encode_tensors(message, {f"{node}/{name}": array for name, array in tensors.items()})
    read, arrays = decode_tensors(payload)
    if read != message:
        raise RemoteProtocolError(f"the envelope of {node} came back changed")
    return {name.removeprefix(f"{node}/"): array for name, array in arrays.items()}
