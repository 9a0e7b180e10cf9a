"""The passes of a task's modules: the arrays that each is given, and its output, on the engine of its own weights.

Owns the requests: the photographs of ``reference.pictures``, the sentences of ``reference.speech``, and texts. All have
them in turn, so an input meets each of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from broker.protocol.codec import RawInput, decode_request, encode_request
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.specs import ModuleKey, NodeName, TaskSpec
from broker.protocol.tensors import Array, narrowed, widened
from edge_agent import modules
from edge_agent.modules import Module, Output, Prepared, Value
from edge_agent.runtime.engines import engine
from s2m3.reference.pictures import REQUESTS, names, picture
from s2m3.reference.speech import SENTENCES, spoken

Request = Mapping[str, RawInput]

_CAPTIONS = (
    "a photo of a cat\na cup of coffee\nthe night sky over a town",
    "x",
    "¿Qué es esto? 猫 🙂\nA photograph of the Summer Palace in Beijing, seen from across the lake on a hazy day.",
    "n\u00e4ive words \u732b, and far more of them " * 40,
)
_QUESTIONS = ("What is this?", "What is in the cup?", "How many people are there in front of the old building?")


@dataclass(frozen=True)
class Seen:
    """One pass of a node."""

    prepared: Prepared
    arrays: Mapping[str, Array]  # of forward
    output: Output


Pass = Callable[[Module, str | None, Prepared], Mapping[str, Array]]
"""Makes a pass's arrays of what was prepared for it, for a use of a module."""


def on_its_engine(module: Module, use: str | None, prepared: Prepared) -> Mapping[str, Array]:
    """The arrays of a module's own forward pass."""
    return engine(module.engine).forward(module, module.passes[use], prepared.arrays)


class Loaded:
    """Modules in memory, by key; each is loaded when a node needs it."""

    def __init__(self) -> None:
        self._modules: dict[ModuleKey, Module] = {}

    def of(self, task: TaskSpec, node: NodeName) -> Module:
        """A node's module.

        Raises:
            ModuleRefused: it can't be loaded.
        """
        spec = task.module_of(node)
        if spec.key not in self._modules:
            self._modules[spec.key] = modules.load(spec)
        return self._modules[spec.key]


def requests(task: TaskSpec) -> list[Request]:
    """Requests for a task: the demo's, where they are for it, and each photograph, sound and text."""
    own: list[Request] = [
        each.inputs for each in REQUESTS if each.task == task.task and each.inputs.keys() == task.inputs.keys()
    ]
    media: dict[str, Sequence[RawInput]] = {name: _media(name, each.kind) for name, each in task.inputs.items()}
    count = max(map(len, media.values()))
    return own + [{name: each[at % len(each)] for name, each in media.items()} for at in range(count)]


def _media(name: str, kind: str) -> Sequence[RawInput]:
    if kind == "image":
        return [picture(each).raw for each in names()]
    if kind == "audio":
        return [spoken(each) for each in SENTENCES]
    return [RawInput(text.encode(), "text/plain") for text in (_QUESTIONS if name == "question" else _CAPTIONS)]


def see(
    task: TaskSpec,
    nodes: Sequence[NodeName],
    asked: Sequence[Request],
    loaded: Loaded,
    run: Pass = on_its_engine,
) -> list[dict[NodeName, Seen]]:
    """The passes of some nodes and of all that they need, for each request that the task takes.

    Raises:
        ModuleRefused: a module can't be loaded.
        RequestFailed: the task takes none of the requests.
    """
    needed = _needed(task, nodes)
    found, refusal = [], RequestFailed(ErrorCode.BAD_INPUT, "there are no requests for this task")
    for request in asked:
        try:
            found.append(_answer(task, needed, request, loaded, run))
        except RequestFailed as error:  # such as several lines where a model takes one
            refusal = error
    if not found:
        raise refusal
    return found


def _answer(task: TaskSpec, needed: set[NodeName], request: Request, loaded: Loaded, run: Pass) -> dict[NodeName, Seen]:
    values: dict[NodeName, Value] = dict(decode_request(*encode_request(request), task.inputs))
    found: dict[NodeName, Seen] = {}
    for node in (each for each in task.order if each in needed):
        spec, module = task.nodes[node], loaded.of(task, node)
        steps = module.passes[spec.use].steps
        prepared = steps.prepare([values[need] for need in spec.needs])
        arrays = run(module, spec.use, prepared)
        found[node] = Seen(prepared, arrays, steps.answer(arrays, prepared))
        values[node] = widened(narrowed(found[node].output.tensors, task.wire))
    return found


def _needed(task: TaskSpec, nodes: Sequence[NodeName]) -> set[NodeName]:
    found = set(nodes)
    for node in reversed(task.order):
        if node in found:
            found |= set(task.nodes[node].needs) & task.nodes.keys()
    return found
