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


def model(
    nodes: Sequence[NodeProto] = (),
    *,
    inputs: Mapping[str, Sequence[int | str | None]] = SHAPES,
    dtypes: Mapping[str, int] = {},
    outputs: Sequence[str] = ("scaled",),
    opsets: Mapping[str, int] = {"": 17},
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
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


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
