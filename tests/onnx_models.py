"""Small ONNX models and exports for tests: one place that writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, save_model

from broker.protocol.specs import ModuleSpec
from edge_agent.modules.weights import exports
from tests.builders import module

KEY = "sha256:" + "a" * 64
WIDTH = 3
SHAPES: Mapping[str, Sequence[int | str | None]] = {"features": ["n", WIDTH]}
TOKENIZER = {
    "version": "1.0",
    "truncation": {"max_length": 12, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "[PAD]": 1, "cat": 2}, "unk_token": "[UNK]"},
}
"""The content of a ``tokenizer.json``."""


def model(
    nodes: Sequence[NodeProto] = (),
    *,
    inputs: Mapping[str, Sequence[int | str | None]] = SHAPES,
    dtypes: Mapping[str, int] = {},
    outputs: Sequence[str] = ("scaled",),
    opsets: Mapping[str, int] = {"": 17},
    version: int = 9,
) -> ModelProto:
    """A model that by default gives ``scaled``: ``features`` (n, 3) times a weight of twos."""
    weight = numpy_helper.from_array(np.full((WIDTH,), 2.0, np.float32), "weight")
    made = nodes or [helper.make_node("Mul", ["features", "weight"], ["scaled"])]
    given = [
        helper.make_tensor_value_info(name, dtypes.get(name, TensorProto.FLOAT), list(shape))
        for name, shape in inputs.items()
    ]
    taken = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(made), "small", given, taken, [weight])
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=version)


def with_data_at(location: str, base: ModelProto | None = None) -> ModelProto:
    """A model whose weight's data is said to lie in another file."""
    made = base or model()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * WIDTH))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    return made


def hidden_in_an_attribute() -> ModelProto:
    """A model that takes data from ../secret.bin, in an attribute of a node."""
    value = with_data_at("../secret.bin").graph.initializer[0]
    constant = helper.make_node("Constant", [], ["two"])
    constant.attribute.append(helper.make_attribute("value", value))
    return model([constant, helper.make_node("Mul", ["features", "two"], ["scaled"])])


def hidden_in_a_branch() -> ModelProto:
    """A model that takes data from ../secret.bin, in a branch of If."""
    inner = with_data_at("../secret.bin").graph
    del inner.input[:]
    choose = helper.make_node("If", ["yes"], ["scaled"], then_branch=inner, else_branch=inner)
    made = model([choose])
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return made


def looping() -> ModelProto:
    """A model that adds the features up again and again: 2 ** 40 times."""
    start, kept = (helper.make_tensor_value_info("acc", TensorProto.FLOAT, None) for _ in range(2))
    given = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        start,
    ]
    steps = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["acc", "acc"], ["more"])]
    kept.name = "more"
    body = helper.make_graph(steps, "body", given, [helper.make_tensor_value_info("on", TensorProto.BOOL, []), kept])
    made = model([helper.make_node("Loop", ["often", "", "features"], ["scaled"], body=body)])
    made.graph.initializer.append(numpy_helper.from_array(np.array(2**40), "often"))
    return made


def scanning() -> ModelProto:
    """A model that goes over its features with Scan."""
    row = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [WIDTH]) for name in ("row", "same")]
    body = helper.make_graph([helper.make_node("Identity", ["row"], ["same"])], "body", row[:1], row[1:])
    return model([helper.make_node("Scan", ["features"], ["scaled"], body=body, num_scan_inputs=1)])


def looping_in_a_branch() -> ModelProto:
    """A model that loops in a branch of If."""
    inner = looping().graph
    del inner.input[:]
    made = model([helper.make_node("If", ["yes"], ["scaled"], then_branch=inner, else_branch=inner)])
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return made


def looping_in_a_function() -> ModelProto:
    """A model that loops in a function of its own."""
    made = model([helper.make_node("Again", ["features"], ["scaled"], domain="mine")], opsets={"": 17, "mine": 1})
    inner = looping().graph
    often = helper.make_node("Constant", [], ["often"], value=inner.initializer[1])
    nodes = [often, *inner.node]
    made.functions.append(helper.make_function("mine", "Again", ["features"], ["scaled"], nodes, made.opset_import[:1]))
    return made


def calling(functions: int, calls: int, *, itself: bool = False, domain: str = "mine") -> ModelProto:
    """A model with functions that each call the one before so often: calls ** functions nodes. The first adds."""
    made = model(
        [helper.make_node(f"F{functions}", ["features"], ["scaled"], domain=domain)], opsets={"": 17, "mine": 1}
    )
    for number in range(functions + 1):
        name = f"F{number if itself else number - 1}"
        inner = [helper.make_node(name, [f"x{call}"], [f"x{call + 1}"], domain=domain) for call in range(calls)]
        nodes = inner if number else [helper.make_node("Add", ["x0", "x0"], [f"x{calls}"])]
        own = helper.make_function("mine", f"F{number}", ["x0"], [f"x{calls}"], nodes, made.opset_import)
        own.domain = domain
        made.functions.append(own)
    return made


def hidden_in_a_sparse_weight() -> ModelProto:
    """A model that takes data from ../secret.bin, in a sparse weight."""
    made = model()
    sparse = made.graph.sparse_initializer.add()
    sparse.values.CopyFrom(with_data_at("../secret.bin").graph.initializer[0])
    return made


def hidden_in_a_function() -> ModelProto:
    """A model that takes data from ../secret.bin, in a function of its own."""
    made = model()
    own = helper.make_function("", "Own", ["a"], ["b"], list(hidden_in_an_attribute().graph.node), [])
    made.functions.append(own)
    return made


def arrays(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The description of steps that take arrays of one other node."""
    return {"kind": "steps", "needs": [{"kind": "arrays", "shapes": shapes}], "answer": {"kind": "as it is"}}


def write_export(models: Path, made: ModelProto | bytes | None = None, **changes: Any) -> Path:
    """Write an export of one use into a models directory; ``changes`` are fields of export.json, or of its use."""
    directory = models / exports.directory_name(str(changes.get("module", "small")))
    directory.mkdir(parents=True, exist_ok=True)
    made = model() if made is None else made
    if isinstance(made, bytes):
        (directory / "main.onnx").write_bytes(made)
    else:
        save_model(made, directory / "main.onnx")
    use = {
        "file": "main.onnx",
        "sha256": exports.sha256_of(directory / "main.onnx"),
        "inputs": {"features": [None, WIDTH]},
        "outputs": ["scaled"],
        "steps": arrays({"features": [1, WIDTH]}),
        "largest_difference": 0.0,
    }
    use |= {name: changes.pop(name) for name in list(changes) if name in {*use, "optional"}}
    content = {
        "format": 1,
        "module": "small",
        "key": KEY,
        "family": "heads.linear",
        "memory_bytes": 4096,
        "opset": 17,
        "uses": {"": use},
    }
    (directory / exports.MANIFEST).write_text(json.dumps(content | changes), encoding="utf-8")
    return directory


def spec(**changes: Any) -> ModuleSpec:
    """The module of which ``write_export`` writes an export."""
    fields: dict[str, Any] = {"family": "heads.linear", "digest": KEY, "memory_bytes": 4096}
    return module("small", **fields | changes)
