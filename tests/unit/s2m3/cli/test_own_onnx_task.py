"""``s2m3 models task`` for ONNX files, and ``auto`` in task files: what can be counted, and the rest in one line."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from broker.protocol.errors import BadFile, ModuleRefused
from edge_agent.modules import load
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from s2m3.catalogue import load_task
from s2m3.reference import random_weights, zoo
from s2m3.reference.auto_numbers import counted
from s2m3.reference.onnx_cost import cost
from tests.onnx_models import TOKENIZER

Print = Callable[..., str]
VIT = "google/vit-base-patch16-224"
CHANGES = runpy.run_path(str(Path(__file__).parents[3] / "equivalence" / "zoo" / "vit.py"))["ENTRIES"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "models" / "mine" / "net"
    found.mkdir(parents=True)
    return found


def save(
    path: Path, inputs: dict[str, list[Any]], nodes: list[Any], *, kind: int = TensorProto.FLOAT, **shapes: Any
) -> Path:
    """A file with these inputs that gives ``y``, and with weights of these shapes."""
    takes = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
    weights = [numpy_helper.from_array(np.full(shape, 0.1, np.float32), name) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "g", takes, [helper.make_empty_tensor_value_info("y")], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def of_pictures(folder: Path) -> Path:
    """A convolution of 3 x 3 with 4 channels over 8 x 8 pixels, then a matrix of 144 x 5."""
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["maps"]),
        helper.make_node("Flatten", ["maps"], ["row"]),
        helper.make_node("Gemm", ["row", "m"], ["y"]),
    ]
    return save(folder / "model.onnx", {"x": ["n", 3, 8, 8]}, nodes, c=(4, 3, 3, 3), m=(144, 5))


PICTURE_FLOPS = 2 * (4 * 6 * 6) * (3 * 3 * 3) + 2 * 144 * 5


def of_texts(folder: Path, length: object = "t") -> Path:
    """A file that embeds each token in 6 numbers and takes their mean."""
    nodes = [
        helper.make_node("Gather", ["e", "input_ids"], ["each"]),
        helper.make_node("ReduceMean", ["each"], ["y"], axes=[1], keepdims=0),
    ]
    return save(folder / "model.onnx", {"input_ids": ["n", length]}, nodes, kind=TensorProto.INT64, e=(3, 6))


def test_a_classifier_of_pictures_has_all_that_the_file_tells(
    folder: Path, task: Print, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = of_pictures(folder)
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    printed = task(file, "--digest")
    assert printed == task(folder, "--digest"), "the file and its folder are the same"
    assert f"`models: {folder.parents[1]}`" in printed
    assert "# CHECK prepare: the shapes alone told it: pixels are 0 to 1" in printed
    written = tmp_path / "net.yaml"
    written.write_text(printed)
    spec = load_task(str(written))
    (module,) = spec.modules.values()
    assert (spec.task, module.family, module.labels) == ("net", "onnx.classifier", "labels.txt")
    assert (module.memory_bytes, module.flops, module.output_bytes) == (file.stat().st_size, PICTURE_FLOPS, 20)
    assert module.prepare is not None
    assert module.prepare.picture is not None
    assert module.prepare.picture.size == (8, 8)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder.parents[1]))
    load(module)  # an agent takes it, with this digest


def test_what_a_person_says_counts_and_needs_no_check(folder: Path, task: Print) -> None:
    of_pictures(folder)
    said = "picture: {shorter: 8, crop: [8, 8], mean: [0.5, 0.5, 0.5]}"
    printed = task(folder, "--labels", "a, b, c, d, e", "--prepare", said)
    assert "CHECK" not in printed
    (module,) = yaml.safe_load(printed)["modules"].values()
    assert module["prepare"] == {"picture": {"shorter": 8, "crop": [8, 8], "mean": [0.5, 0.5, 0.5]}}
    assert module["labels"] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(("length", "wanted"), [("t", {"longest": 12}), (7, {"longest": 7, "padded": True})])
def test_an_encoder_of_texts_takes_its_length_from_the_file_or_its_tokenizer(
    folder: Path, task: Print, length: object, wanted: dict[str, Any]
) -> None:
    of_texts(folder, length)
    assert "no tokenizer.json lies beside it; put it there" in task(folder, expect=2)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    spec = yaml.safe_load(
        task(folder, *(() if length == "t" else ("--prepare", "text: {longest: 7, padded: true, pad: '[PAD]'}")))
    )
    (module,) = spec["modules"].values()
    assert (spec["answer"], module["family"]) == ("embeddings", "onnx.encoder")
    assert wanted.items() <= module["prepare"]["text"].items()
    assert module["output_bytes"] == 4 * 6 * 4, "four captions of six numbers"


def test_a_file_of_bytes_with_the_colours_last_is_told_by_its_shape_and_a_grey_one_is_asked_for(
    folder: Path, task: Print
) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT), helper.make_node("Flatten", ["z"], ["y"])]
    save(folder / "model.onnx", {"x": ["n", 6, 8, 3]}, nodes, kind=TensorProto.UINT8)
    (module,) = yaml.safe_load(task(folder))["modules"].values()
    assert (module["prepare"], module["output_bytes"]) == ({"picture": {"size": [6, 8], "scale": 1.0}}, 4 * 6 * 8 * 3)
    save(folder / "model.onnx", {"x": ["n", 1, 6, 8]}, nodes)
    told = task(folder, expect=2)
    assert "takes x float32 (any, 1, 6, 8), and its shapes don't tell" in told
    assert "say it, such as --prepare 'picture: {size: [6, 8]}' (docs" in told
    assert "output_bytes: 192" in task(folder, "--prepare", "picture: {size: [6, 8]}")


def test_what_it_cannot_know_is_asked_for_in_one_line(folder: Path, task: Print) -> None:
    nodes = [helper.make_node("MatMul", ["x", "m"], ["y"])]
    assert "is not there; put it at MODELS/ORG/NAME/model.onnx" in task(folder / "model.onnx", expect=2)
    save(folder / "other.onnx", {"x": ["n", 4]}, nodes, m=(4, 5))
    assert "must be called model.onnx; rename it" in task(folder / "other.onnx", expect=2)
    save(folder / "model.onnx", {"x": ["n", 4]}, nodes, m=(4, 5))
    assert "takes rows of 4 numbers, and no picture, text or sound that a sensor sends becomes that; use" in task(
        folder, expect=2
    )
    assert "takes rows of 4 numbers, as another node gives them" in task(folder, "--labels", "a,b,c,d,e", expect=2)
    of_pictures(folder)
    assert "gives 5 numbers, and labels names 2: correct labels; see docs/how-to/own-onnx-model.md" in task(
        folder, "--labels", "a,b", expect=2
    )
    assert "--labels: labels.1: must have at least 1 character; see" in task(folder, "--labels", "a,,c", expect=2)
    assert "--labels: gone.txt is not there beside model.onnx" in task(folder, "--labels", "gone.txt", expect=2)
    assert "--prepare: is not YAML" in task(folder, "--prepare", "[", expect=2)
    assert "--prepare: is one of picture, text and sound" in task(folder, "--prepare", "images: {}", expect=2)
    assert "prepare.picture.sizes: is not a known field" in task(
        folder, "--prepare", "picture: {sizes: [8, 8]}", expect=2
    )
    assert "its input x is float32 (any, 3, 8, 8), and prepare gives float32 (1, 3, 9, 9)" in task(
        folder, "--prepare", "picture: {size: [9, 9]}", expect=2
    )
    assert "--head: is for checkpoints, not for ONNX files; remove it" in task(
        folder, "--head", "embed-image", expect=2
    )
    (folder / "model.onnx").write_bytes(b"\xff" * 100)
    assert "model.onnx: is not an ONNX file" in task(folder, expect=2)


def test_a_file_may_be_a_link_and_a_refusal_names_what_a_person_named(folder: Path, task: Print) -> None:
    of_pictures(folder).rename(folder / "net.onnx")
    (folder / "model.onnx").symlink_to("net.onnx")
    assert "hub: mine/net" in task(folder / "model.onnx")
    outside = folder.parents[2] / "elsewhere.onnx"
    (folder / "net.onnx").rename(outside)
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(outside)
    said = task(folder / "model.onnx", expect=2)
    assert f"{folder / 'model.onnx'}: is a link to {outside}, outside of the models directory" in said
    assert f"write weights: {{directories: [{outside.parent}]}} in the agent's file" in said
    odd = folder.rename(folder.with_name("My Net"))
    assert "write hub: organisation/name, of letters, digits, _, - and single dots" in task(odd, expect=2)


def test_labels_are_printed_as_they_are_written(folder: Path, task: Print) -> None:
    of_pictures(folder)
    assert "labels: [chat, été, née, ü, 猫]" in task(folder, "--labels", "chat,été,née,ü,猫")


def test_products_convolutions_and_cells_count_two_for_each_multiplication(tmp_path: Path) -> None:
    rows = np.zeros((2, 3, 4), np.float32)
    product = save(
        tmp_path / "product.onnx", {"x": ["a", "b", 4]}, [helper.make_node("MatMul", ["x", "m"], ["y"])], m=(4, 5)
    )
    assert cost(product, {"x": rows}).flops == 2 * (2 * 3 * 5) * 4
    assert cost(product, {"x": rows}).output_bytes == 4 * 2 * 3 * 5
    cell = helper.make_node("LSTM", ["x", "w", "r"], ["all", "y"], hidden_size=6)
    lstm = save(tmp_path / "lstm.onnx", {"x": ["t", "n", 4]}, [cell], w=(1, 24, 4), r=(1, 24, 6))
    assert cost(lstm, {"x": rows}).flops == 2 * (2 * 3) * (24 * 4 + 24 * 6)
    last = helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=6)
    save(lstm, {"x": ["t", "n", 4]}, [last], w=(1, 24, 4), r=(1, 24, 6))
    assert cost(lstm, {"x": rows}).flops == 2 * (2 * 3) * (24 * 4 + 24 * 6), "an output that nobody asks for"
    wider = helper.make_node("ConvTranspose", ["x", "c"], ["y"])
    transposed = save(tmp_path / "transposed.onnx", {"x": ["n", 3, "w"]}, [wider], c=(3, 5, 2))
    assert cost(transposed, {"x": rows}).flops == 2 * (2 * 3 * 4) * (5 * 2)
    idle = save(tmp_path / "idle.onnx", {"x": ["n"]}, [helper.make_node("Identity", ["x"], ["y"])])
    assert cost(idle, {"x": np.zeros(3, np.float32)}).flops == 0
    with pytest.raises(ModuleRefused, match="can't run on a sample input"):
        cost(product, {"x": np.zeros((2, 3), np.float32)})


AUTO = {"memory_bytes": "auto", "flops": "auto", "output_bytes": "auto"}


def written(tmp_path: Path, module: dict[str, Any]) -> str:
    content = {
        "task": "t",
        "inputs": {"image": {"kind": "image", "bytes": "auto"}},
        "nodes": {"n": {"module": "m", "needs": ["image"]}},
        "output": "n",
        "modules": {"m": AUTO | module},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "t.yaml")


def test_auto_is_counted_from_what_is_on_this_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder.parents[1]))
    file = of_pictures(folder)
    own = {
        "family": "onnx.encoder",
        "source": {"hub": "mine/net", "part": "encoder"},
        "prepare": {"picture": {"size": [8, 8]}},
    }
    spec = load_task(written(tmp_path, own), counted)
    (module,) = spec.modules.values()
    assert (module.memory_bytes, module.flops, module.output_bytes) == (file.stat().st_size, PICTURE_FLOPS, 20)
    assert spec.inputs["image"].bytes == 150_000
    (module,) = load_task(written(tmp_path, own | {"memory_bytes": "1MiB"}), counted).modules.values()
    assert module.memory_bytes == 2**20, "what is stated stays"
    changes = CHANGES["hub/classification-vit-b16"]["changes"][VIT]
    random_weights.write(zoo.published(VIT), folder.parents[1], changes=changes)
    vit = {"family": "vit.encoder", "source": {"hub": VIT, "part": "encoder"}}
    (tiny,) = load_task(written(tmp_path, vit), counted).modules.values()
    monkeypatch.delenv(DIRECTORY_VARIABLE)
    (real,) = load_task(written(tmp_path, vit), counted).modules.values()
    catalogues = load_task("hub/classification-vit-b16").modules.values()
    assert (real.memory_bytes, real.flops) in {(each.memory_bytes, each.flops) for each in catalogues}
    assert tiny.memory_bytes < real.memory_bytes


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (
            {"family": "onnx.encoder", "source": {"hub": "mine/gone", "part": "encoder"}, "prepare": {"picture": {}}},
            "hub:mine/gone#encoder isn't in",
        ),
        (
            {"family": "vit.encoder", "source": {"hub": "mine/gone", "part": "encoder"}},
            "hub:mine/gone#encoder isn't in",
        ),
        ({"family": "vit.encoder", "source": {"hub": VIT, "part": "door"}}, "that of vit.encoder isn't counted"),
        (
            {"family": "efficientnet.encoder", "source": {"pip": "efficientnet-lite-pytorch", "part": "x"}},
            "isn't counted",
        ),
    ],
)
def test_auto_that_cannot_be_counted_is_refused_in_one_line_with_its_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: dict[str, Any], problem: str
) -> None:
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder.parents[1]))
    with pytest.raises(BadFile) as e:
        load_task(written(tmp_path, module), counted)
    assert "modules.m.memory_bytes: is auto, and " in str(e.value)
    assert problem in str(e.value)
    assert str(e.value).endswith("write the number")
    assert "\n" not in str(e.value)


def test_auto_elsewhere_and_beside_another_mistake_is_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"modules\.m\.memory: .*isn't counted|modules\.m\.source"):
        load_task(written(tmp_path, {"family": "vit.encoder", "source": {"part": "encoder"}}), counted)
    file = Path(written(tmp_path, {"family": "vit.encoder", "memory_bytes": 1, "flops": 1, "output_bytes": 1}))
    file.write_text(file.read_text().replace("kind: image", "kind: smell"))
    with pytest.raises(BadFile, match=r"inputs\.image\."):
        load_task(str(file), counted)
    with pytest.raises(BadFile, match="is auto, and only `s2m3 deploy` and `s2m3 plan` count; write the number"):
        load_task(written(tmp_path, {"family": "vit.encoder", "source": {"hub": VIT, "part": "encoder"}}))
