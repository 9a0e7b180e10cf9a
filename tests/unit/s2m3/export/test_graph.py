"""torch's exporter: which lengths are free, and that the file gives torch's numbers for other lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from broker.protocol.errors import ModuleRefused
from broker.protocol.tensors import Array
from s2m3.export import graph
from s2m3.export.compare import Difference, opened, same_answer

NUMBERS = np.random.default_rng(0)


def numbers(*shape: int) -> Array:
    return NUMBERS.standard_normal(shape).astype(np.float32)


class Encoder(nn.Module):
    """Pixels to features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 3)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": self.linear(pixels)}


def run(network: Any, forward: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
    with torch.inference_mode():
        return {k: v.numpy() for k, v in forward(network, **{n: torch.tensor(a) for n, a in arrays.items()}).items()}


def first_row_ranked(network: Tensor, probs: Tensor, texts: Tensor) -> dict[str, Tensor]:
    best = torch.sort(probs, descending=True, stable=True)
    return {"scores": texts @ network[best.indices[0, :2]].sum(0)}


def test_the_first_length_of_an_encoder_is_a_batch(tmp_path: Path) -> None:
    network, examples = Encoder(), [{"pixels": numbers(1, 8)} for _ in range(2)]
    lengths = graph.free_lengths(lambda arrays: run(network, Encoder.forward, arrays), examples)
    assert lengths == {"pixels": (None, 8)}
    written = graph.write(tmp_path / "a.onnx", network, Encoder.forward, examples, lengths)
    assert written.outputs == ("features",)
    batch = {"pixels": numbers(5, 8)}
    found = opened(tmp_path / "a.onnx", written.outputs, {})(batch)
    np.testing.assert_allclose(found["features"], run(network, Encoder.forward, batch)["features"], atol=1e-6)


def test_a_pass_of_one_picture_and_n_texts_is_no_batch_and_sorts_as_torch(tmp_path: Path) -> None:
    network = torch.tensor(numbers(6, 4))
    examples = [{"probs": numbers(1, 6), "texts": numbers(count, 4)} for count in (3, 5)]
    lengths = graph.free_lengths(lambda arrays: run(network, first_row_ranked, arrays), examples)
    assert lengths == {"probs": (1, 6), "texts": (None, 4)}
    written = graph.write(tmp_path / "a.onnx", network, first_row_ranked, examples, lengths)
    by_onnx = opened(tmp_path / "a.onnx", written.outputs, {})
    for probs in (numbers(1, 6), np.ones((1, 6), np.float32), np.array([[1, 2, 2, 1, 2, 0]], np.float32)):
        arrays = {"probs": probs, "texts": numbers(2, 4)}
        expected = run(network, first_row_ranked, arrays)["scores"]
        np.testing.assert_allclose(by_onnx(arrays)["scores"], expected, atol=1e-6)


def test_rows_that_depend_on_each_other_are_no_batch() -> None:
    def softmax(_: object, pixels: Tensor) -> dict[str, Tensor]:
        return {"scores": pixels.softmax(0)}

    examples = [{"pixels": numbers(1, 8)} for _ in range(2)]
    assert graph.free_lengths(lambda arrays: run(None, softmax, arrays), examples) == {"pixels": (1, 8)}


def test_a_pass_that_depends_on_numbers_is_refused_with_the_reason(tmp_path: Path) -> None:
    def loops(_: object, pixels: Tensor) -> dict[str, Tensor]:
        while bool(pixels.sum() > 1):
            pixels = pixels / 2
        return {"halved": pixels}

    examples = [{"pixels": np.ones((1, 8), np.float32)}] * 2
    with pytest.raises(ModuleRefused, match=r"^torch can't export it \(\w+: "):
        graph.write(tmp_path / "a.onnx", None, loops, examples, {"pixels": (1, 8)})


def test_a_name_that_goes_in_and_comes_out_is_refused(tmp_path: Path) -> None:
    def same(_: object, states: Tensor) -> dict[str, Tensor]:
        return {"states": states + 1}

    with pytest.raises(ModuleRefused, match="takes and gives an array states, and an ONNX file has each name once"):
        graph.write(tmp_path / "a.onnx", None, same, [{"states": np.ones((1, 8), np.float32)}], {"states": (1, 8)})


def test_only_matrices_are_quantised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.Flatten(), nn.Linear(16 * 16, 512))

    def forward(network: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": network(pixels)}

    examples = [{"pixels": numbers(1, 3, 32, 32)} for _ in range(2)]
    written = graph.write(tmp_path / "a.onnx", network, forward, examples, {"pixels": (None, 3, 32, 32)})
    graph.quantise(tmp_path / "a.onnx", tmp_path / "b.onnx")
    whole, small = ((tmp_path / name).stat().st_size for name in ("a.onnx", "b.onnx"))
    matrix = 16 * 16 * 512
    assert 2.9 * matrix < whole - small < 3.1 * matrix
    assert b"ConvInteger" not in (tmp_path / "b.onnx").read_bytes()
    found = opened(tmp_path / "b.onnx", written.outputs, {})(examples[0])["features"]
    expected = run(network, forward, examples[0])["features"]
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_large_weights_move_to_a_file_beside_and_the_numbers_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 33), nn.Linear(33, 64), nn.Linear(64, 2))
    path, name = tmp_path / "a.onnx", "a.onnx.data"

    def forward(network: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": network(pixels)}

    examples = [{"pixels": numbers(1, 8)} for _ in range(2)]
    written = graph.write(path, network, forward, examples, {"pixels": (None, 8)})
    whole, before = path.stat().st_size, opened(path, written.outputs, {})(examples[0])["features"]
    assert graph.move_weights(path) == (name,)
    kept = onnx.load(path, load_external_data=False).graph.initializer
    moved = [{each.key: each.value for each in tensor.external_data} for tensor in kept if tensor.external_data]
    assert [int(each["length"]) for each in moved] == [4 * 8 * 33, 4 * 33 * 64], "the rest is too small"
    assert {each["location"] for each in moved} == {name}
    assert all(int(each["offset"]) % 64 == 0 for each in moved)
    assert whole - path.stat().st_size > 0.9 * 4 * 33 * (8 + 64)
    np.testing.assert_array_equal(opened(path, written.outputs, {}, {name})(examples[0])["features"], before)
    with pytest.raises(ModuleRefused, match=r"takes data from the file 'a\.onnx\.data', and no other file may"):
        opened(path, written.outputs, {})


def test_a_file_of_small_weights_keeps_them(tmp_path: Path) -> None:
    written = graph.write(
        tmp_path / "a.onnx", Encoder(), Encoder.forward, [{"pixels": numbers(1, 8)}], {"pixels": (1, 8)}
    )
    assert graph.move_weights(tmp_path / "a.onnx") == ()
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert opened(tmp_path / "a.onnx", written.outputs, {})({"pixels": numbers(1, 8)})["features"].shape == (1, 3)


def test_a_difference_is_the_largest_of_all_arrays() -> None:
    ones = {"a": np.ones(3, np.float32), "b": np.full(2, 100, np.float32)}
    found = Difference().with_(ones, {"a": ones["a"] + 0.25, "b": ones["b"] - 0.5})
    assert (found.largest, found.relative) == (0.5, 0.25)
    assert found.with_(ones, ones) == found
    assert math.isinf(found.with_(ones, ones | {"a": np.ones(4, np.float32)}).relative)
    assert math.isinf(found.with_(ones, ones | {"a": np.full(3, np.nan, np.float32)}).relative)


def test_the_same_answer_names_the_same() -> None:
    cat: dict[str, JsonValue] = {"label": "cat", "score": 0.5, "ranked": []}
    assert same_answer(cat, cat | {"score": 0.6})
    assert not same_answer(cat, cat | {"label": "dog"})
    assert not same_answer(cat, None)
    segments: dict[str, JsonValue] = {"segments": [{"label": "cat", "area": 0.5}]}
    assert same_answer(segments, {"segments": [{"label": "cat", "area": 0.5004}]})
    assert not same_answer(segments, {"segments": [{"label": "cat", "area": 0.52}]})
