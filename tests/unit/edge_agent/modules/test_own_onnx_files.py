"""The families ``onnx.encoder`` and ``onnx.classifier``: a user's own files, described in the task file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import SCORES, load
from edge_agent.modules.families.onnx import probabilities
from edge_agent.modules.inputs import sample_inputs
from edge_agent.modules.weights import hub
from edge_agent.runtime.runner import Runner

PICTURE = {"picture": {"size": [8, 8]}}
CLASSES = 3


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    found = tmp_path / "local" / "mine"
    found.mkdir(parents=True)
    return found


def write(directory: Path, shape: list[Any], nodes: list[Any], width: int, kind: int = TensorProto.FLOAT) -> None:
    """A file that takes ``x`` and gives ``y``, with a matrix ``w`` of this width."""
    numbers = np.random.default_rng(0).standard_normal((width, CLASSES)).astype(np.float32)
    takes, gives = helper.make_tensor_value_info("x", kind, shape), helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph(nodes, "g", [takes], [gives], [numpy_helper.from_array(numbers, "w")])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(directory / "model.onnx"))


def of_pictures(directory: Path) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["row"]), helper.make_node("MatMul", ["row", "w"], ["y"])]
    write(directory, ["n", 3, 8, 8], nodes, 192)


def of_features(directory: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"])]
    write(directory, ["n", 4], nodes, 4)


def spec(part: str, **fields: Any) -> ModuleSpec:
    base = {"memory_bytes": 10_000, "flops": 1, "output_bytes": 12}
    return ModuleSpec.model_validate(
        {"family": f"onnx.{part}", "source": {"hub": "local/mine", "part": part}} | base | fields
    )


CLASSIFIER = {"prepare": PICTURE, "labels": ["a", "b", "c"]}


def test_a_classifier_names_the_likeliest_label(directory: Path) -> None:
    of_pictures(directory)
    module = load(spec("classifier", **CLASSIFIER))
    made = Runner().run(module, [sample_inputs.picture()])
    assert made.answer is not None
    ranked: Any = made.answer["ranked"]
    best = int(made.tensors["logits"].argmax())
    assert made.answer["label"] == "abc"[best]
    assert sum(each["score"] for each in ranked) == pytest.approx(1)
    assert made.tensors.keys() == {"logits"}
    assert module.engine == "onnx"


def test_a_classifier_without_prepare_takes_an_encoders_features(directory: Path) -> None:
    of_features(directory)
    (directory / "names.txt").write_text("a\nb\nc\n")
    made = Runner().run(
        load(spec("classifier", labels="names.txt")), [{"features": np.array([[1, 2, 3, 4]], np.float32)}]
    )
    assert made.answer is not None
    assert made.tensors["logits"].sum() == pytest.approx(1), "probabilities stay as they are"


def test_an_encoder_gives_features(directory: Path) -> None:
    of_pictures(directory)
    made = Runner().run(load(spec("encoder", prepare=PICTURE)), [sample_inputs.picture()])
    assert made.answer is None
    assert made.tensors["features"].shape == (1, CLASSES)


def test_what_the_task_says_belongs_to_the_identity(directory: Path) -> None:
    of_pictures(directory)
    other = {"prepare": {"picture": {"size": [8, 8], "resample": "box"}}}
    first, second = spec("encoder", prepare=PICTURE), spec("encoder", **other)
    assert first.key != second.key
    wrong = spec("encoder", prepare=PICTURE, digest=f"sha256:{'0' * 64}")
    with pytest.raises(ModuleRefused, match="have the digest sha256:") as told:
        load(wrong)
    digest = str(told.value).partition("have the digest ")[2][:71]
    assert load(spec("encoder", prepare=PICTURE, digest=digest))
    with pytest.raises(ModuleRefused, match="have the digest"):
        load(spec("encoder", **other, digest=digest))


@pytest.mark.parametrize(
    ("part", "fields", "told"),
    [
        (
            "encoder",
            {"prepare": {"picture": {"size": [9, 9]}}},
            r"its input x is float32 \(any, 3, 8, 8\), and prepare ",
        ),
        ("encoder", {}, "needs prepare in the task file"),
        ("classifier", {"prepare": PICTURE}, "needs labels in the task file"),
        ("classifier", {"prepare": PICTURE, "labels": ["a"]}, "gives 3 numbers, and labels names 1: correct labels"),
        ("classifier", {"prepare": PICTURE, "labels": "no.txt"}, r"has no no\.txt"),
        ("encoder", {"prepare": PICTURE, "memory_bytes": 10}, "bytes and the spec says 10: correct memory_bytes"),
        ("encoder", {"prepare": PICTURE, "dtype": "int8"}, "set dtype to float32"),
        ("encoder", {"prepare": {"text": {"longest": 8}}}, r"has no tokenizer\.json"),
        ("classifier", {"labels": ["a", "b", "c"]}, "write prepare"),
    ],
)
def test_a_task_that_doesnt_fit_the_file_is_refused_with_the_field(
    directory: Path, part: str, fields: dict[str, Any], told: str
) -> None:
    of_pictures(directory)
    with pytest.raises(ModuleRefused, match=told):
        load(spec(part, **fields))


def test_a_file_that_gives_no_rows_or_is_no_onnx_file_is_refused(directory: Path) -> None:
    write(directory, ["n", 3, 8, 8], [helper.make_node("Identity", ["x"], ["y"])], 1)
    with pytest.raises(ModuleRefused, match=r"its first output y is float32 \(1, 3, 8, 8\), and it must be one row"):
        load(spec("encoder", prepare=PICTURE))
    (directory / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModuleRefused, match="is not an ONNX file"):
        load(spec("encoder", prepare=PICTURE))


def test_only_an_onnx_file_is_described_in_the_task() -> None:
    with pytest.raises(ValueError, match=r"is for onnx\.encoder and onnx\.classifier, and not for clip\.vision"):
        spec("encoder", family="clip.vision", prepare=PICTURE)


def test_numbers_that_are_no_probabilities_become_some() -> None:
    logits = np.array([[0, 1000, 0]], np.float32)
    assert probabilities(logits).tolist() == [[0, 1, 0]]
    given = np.array([[0.25, 0.75]], np.float32)
    assert probabilities(given) is given
    assert SCORES
