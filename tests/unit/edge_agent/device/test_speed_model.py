"""The small ONNX model by which an agent without torch measures its speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edge_agent.device import profile

FLOAT = TensorProto.FLOAT


def _weight(name: str, *shape: int) -> list[onnx.NodeProto]:
    """A weight of equal numbers: the shape is all that the file holds of it."""
    value = helper.make_tensor("value", FLOAT, [1], [0.01])
    lengths = helper.make_tensor("value", TensorProto.INT64, [len(shape)], shape)
    return [
        helper.make_node("Constant", [], [f"{name}_shape"], value=lengths),
        helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=value),
    ]


def _relu6(taken: str, given: str) -> onnx.NodeProto:
    return helper.make_node("Clip", [taken, "zero", "six"], [given])


def built() -> onnx.ModelProto:
    """The layers of ``profile.torch_round``, with the picture and the tokens as inputs."""
    side, channels, expanded, tokens, width = (
        profile.SIDE, profile.CHANNELS, profile.EXPANDED, profile.TOKENS, profile.WIDTH,
    )  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("value", FLOAT, [], [0.0])),
        helper.make_node("Constant", [], ["six"], value=helper.make_tensor("value", FLOAT, [], [6.0])),
        *_weight("expand", expanded, channels, 1, 1),
        *_weight("depthwise", expanded, 1, 3, 3),
        *_weight("project", channels, expanded, 1, 1),
        *_weight("widen", width, 4 * width),
        *_weight("narrow", 4 * width, width),
        helper.make_node("Conv", ["image", "expand"], ["a"]),
        _relu6("a", "b"),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], group=expanded, pads=[1, 1, 1, 1]),
        _relu6("c", "d"),
        helper.make_node("Conv", ["d", "project"], ["projected"]),
        helper.make_node("MatMul", ["tokens", "widen"], ["e"]),
        helper.make_node("Gelu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "narrow"], ["mixed"]),
    ]
    graph = helper.make_graph(
        nodes,
        "speed",
        [
            helper.make_tensor_value_info("image", FLOAT, [1, channels, side, side]),
            helper.make_tensor_value_info("tokens", FLOAT, [tokens, width]),
        ],
        [
            helper.make_tensor_value_info("projected", FLOAT, [1, channels, side, side]),
            helper.make_tensor_value_info("mixed", FLOAT, [tokens, width]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9, producer_name="s2m3")
    onnx.checker.check_model(model, full_check=True)
    return model


def test_the_file_is_the_model_that_is_built_here() -> None:
    assert profile.SPEED_FILE.read_bytes() == built().SerializeToString(deterministic=True)
    assert profile.SPEED_FILE.stat().st_size < 4096


def test_a_round_does_the_operations_that_the_speed_counts() -> None:
    session = onnxruntime.InferenceSession(str(profile.SPEED_FILE), providers=["CPUExecutionProvider"])
    shapes = {each.name: tuple(each.shape) for each in session.get_inputs()}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    projected, mixed = session.run(None, arrays)
    assert projected.shape == (1, profile.CHANNELS, profile.SIDE, profile.SIDE)
    assert mixed.shape == (profile.TOKENS, profile.WIDTH)


if __name__ == "__main__":
    Path(profile.SPEED_FILE).write_bytes(built().SerializeToString(deterministic=True))
