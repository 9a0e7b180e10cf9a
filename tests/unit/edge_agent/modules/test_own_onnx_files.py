"""The families ``onnx.encoder`` and ``onnx.classifier``: a user's own files, described in the task file."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from structlog.testing import capture_logs

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import SCORES, load
from edge_agent.modules.families.onnx import probabilities
from edge_agent.modules.inputs import sample_inputs
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.digests import DigestDiffers, Recorded, record_in
from edge_agent.runtime.runner import Runner
from tests.onnx_models import TOKENIZER

PICTURE = {"picture": {"size": [8, 8]}}
CLASSES = 3


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    found = tmp_path / "local" / "mine"
    found.mkdir(parents=True)
    return found


def write(
    directory: Path, shape: list[Any] | None, nodes: list[Any], width: int, kind: int = TensorProto.FLOAT
) -> None:
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
    (directory / "names.txt").write_text(
        "\ufeffa\nb\u2028or more\nc\n", encoding="utf-8"
    )  # three lines, as Windows has them
    made = Runner().run(
        load(spec("classifier", labels="names.txt")), [{"features": np.array([[1, 2, 3, 4]], np.float32)}]
    )
    assert made.answer is not None
    assert made.tensors["logits"].sum() == pytest.approx(1), "probabilities stay as they are"
    ranked: Any = made.answer["ranked"]
    assert {each["label"] for each in ranked} == {"a", "b\u2028or more", "c"}


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


def test_what_the_task_says_may_be_corrected_and_the_file_may_not_change(directory: Path, tmp_path: Path) -> None:
    of_pictures(directory)
    (directory / "names.txt").write_text("a\nb\nc\n")
    record_in(Recorded(tmp_path / "gw-a.weights.json"))
    try:
        corrected: tuple[dict[str, Any], ...] = (
            {"labels": ["a", "b", "d"]},
            {"prepare": {"picture": {"size": [8, 8], "resample": "box"}}},
            {"labels": "names.txt"},
        )
        told = []
        for fields in ({}, *corrected):
            with capture_logs() as logs:
                load(spec("classifier", **CLASSIFIER | fields))
            told += [(log["event"], log["digest"]) for log in logs if "digest" in log]
        assert [event for event, _ in told] == ["weights_trusted_at_first_load", *["weights_known"] * 3]
        assert len({digest for _, digest in told}) == 4, "each has its own identity, which the log says"
        (directory / "names.txt").write_text("a\nb\ncorrected\n")
        load(spec("classifier", **CLASSIFIER | {"labels": "names.txt"}))
        with pytest.raises(DigestDiffers, match=r"spec says sha256:b+ \(it covers prepare and labels"):
            load(spec("classifier", **CLASSIFIER, digest=f"sha256:{'b' * 64}"))
        file = directory / "model.onnx"
        changed = onnx.load(file)
        changed.producer_name = "another"
        onnx.save(changed, str(file))
        for fields in ({}, *corrected):
            with pytest.raises(DigestDiffers, match=r"the model\.onnx of hub:local/mine#classifier have the digest"):
                load(spec("classifier", **CLASSIFIER | fields))
    finally:
        record_in(None)


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
        ("encoder", {"prepare": PICTURE, "memory_bytes": 10}, "and the spec says 10 bytes: correct memory_bytes to"),
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


FLAT = [helper.make_node("Flatten", ["x"], ["row"]), helper.make_node("MatMul", ["row", "w"], ["y"])]
LISTED = [
    *FLAT[:1],
    helper.make_node("MatMul", ["row", "w"], ["z"]),
    helper.make_node("SequenceConstruct", ["z"], ["y"]),
]
ROOT = [*FLAT[:1], helper.make_node("MatMul", ["row", "w"], ["z"]), helper.make_node("Sqrt", ["z"], ["y"])]
TOKENS = [helper.make_node("Cast", ["x"], ["row"], to=TensorProto.FLOAT), FLAT[1]]
WHOLE = [helper.make_node("Flatten", ["x"], ["row"], axis=0), FLAT[1]]
SHAPE: list[Any] = ["n", 3, 8, 8]


@pytest.mark.parametrize(
    ("shape", "nodes", "prepare", "told"),
    [
        (SHAPE, LISTED, PICTURE, r"the output y is seq\(tensor\(float\)\), and a module gives tensor\(bool\)"),
        (None, FLAT, PICTURE, "doesn't say the shape of its input x: export it with that shape"),
        ([3, 8, 8], WHOLE, PICTURE, r"its input x is float32 \(3, 8, 8\), and prepare gives float32 \(1, 3, 8, 8\)"),
        (
            ["n", "c", "h", "w"],
            FLAT,
            {"picture": {"size": [9, 9]}},
            r"a sample input \(.*\): correct prepare in the task",
        ),
        (SHAPE, ROOT, PICTURE, "gives numbers that aren't finite on a usual input: correct prepare"),
        (
            ["n", 192],
            FLAT,
            {"text": {"longest": 8}},
            "takes x, and texts give ids, .*: export it with these names only",
        ),
    ],
    ids=["list", "no-shape", "rank", "inner-shape", "not-finite", "names"],
)
def test_a_file_that_a_preparation_or_an_answer_cannot_fit_is_refused_with_the_fix(
    directory: Path, shape: list[Any] | None, nodes: list[Any], prepare: dict[str, Any], told: str
) -> None:
    write(directory, shape, nodes, 192)
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    for refused in (spec("encoder", prepare=prepare), spec("classifier", prepare=prepare, labels=["a", "b", "c"])):
        with pytest.raises(ModuleRefused, match=told) as caught:
            load(refused)
        assert str(caught.value).startswith(f"{directory / 'model.onnx'}")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (["n", 8, 8, 4], TensorProto.FLOAT),
        ([8, 3, 8, 8], TensorProto.FLOAT),
        ([3, 8, 8], TensorProto.FLOAT),
        (SHAPE, TensorProto.INT32),
    ],
    ids=["four-colours", "a-batch-of-8", "no-batch", "integers"],
)
def test_a_file_that_takes_no_picture_of_any_preparation_is_to_be_exported_again(
    directory: Path, shape: list[Any], dtype: int
) -> None:
    cast = helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT)
    flat = [cast, helper.make_node("Flatten", ["numbers"], ["row"]), FLAT[1]]
    write(directory, shape, flat, math.prod(shape[1:]), dtype)
    with pytest.raises(ModuleRefused, match=r"; a picture becomes float32 or uint8, .*: export it for that$"):
        load(spec("encoder", prepare=PICTURE))


BYTES = {"picture": {"size": [8, 8], "scale": 1}}


@pytest.mark.parametrize(
    ("shape", "dtype", "prepare"),
    [
        (["n", 8, 8, 3], TensorProto.FLOAT, PICTURE),
        (["n", "h", "w", 3], TensorProto.FLOAT, PICTURE),
        ([1, 1, 8, 8], TensorProto.FLOAT, PICTURE),
        (["n", 8, 8, 1], TensorProto.FLOAT, PICTURE),
        (["n", 8, 8, 3], TensorProto.UINT8, BYTES),
        ([1, 1, 8, 8], TensorProto.UINT8, BYTES),
    ],
    ids=["colours-last", "of-any-size", "grey", "grey-last", "bytes", "grey-bytes"],
)
def test_a_picture_is_laid_out_as_the_file_takes_it(
    directory: Path, shape: list[Any], dtype: int, prepare: dict[str, Any]
) -> None:
    """The file gives back its input in a row."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["row"]),
        helper.make_node("Cast", ["row"], ["y"], to=TensorProto.FLOAT),
    ]
    write(directory, shape, nodes, 1, dtype)
    drawn = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    made = Runner().run(load(spec("encoder", prepare=prepare)), [RawInput(file.getvalue(), "image/png")])
    wanted = drawn if 3 in shape else np.asarray(Image.fromarray(drawn).convert("L"))
    factor = 1 if prepare is BYTES else 255
    off = 0 if 3 in shape else 0.51  # Pillow's greys are whole numbers, rounded
    (row,) = made.tensors["features"] * factor
    assert row == pytest.approx(wanted.ravel(), abs=off + 1e-4)


def test_bytes_are_asked_for_where_a_file_takes_bytes(directory: Path) -> None:
    cast = [helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT), helper.make_node("Flatten", ["z"], ["y"])]
    write(directory, ["n", 8, 8, 3], cast, 1, TensorProto.UINT8)
    with pytest.raises(ModuleRefused, match=r"prepare gives float32 \(1, 8, 8, 3\): write scale: 1, and neither mean"):
        load(spec("encoder", prepare=PICTURE))


def test_lengths_that_fit_the_sample_only_by_chance_are_refused(directory: Path) -> None:
    write(directory, ["n", 3, 8, 14], FLAT, 3 * 8 * 14)
    wide = {"picture": {"shorter": 8}}
    with pytest.raises(ModuleRefused, match=r"gives float32 \(1, 3, 8, 10\) of a smaller picture: correct prepare"):
        load(spec("encoder", prepare=wide))
    assert load(spec("encoder", prepare={"picture": {"shorter": 8, "crop": [8, 14]}}))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    write(directory, ["n", 5], TOKENS, 5, TensorProto.INT64)
    renamed = onnx.load(directory / "model.onnx")
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "input_ids"
    onnx.save(renamed, str(directory / "model.onnx"))
    with pytest.raises(ModuleRefused, match=r"gives int64 \(1, 1\) of one short text: correct prepare"):
        load(spec("encoder", prepare={"text": {"longest": 5}}))
    assert load(spec("encoder", prepare={"text": {"longest": 5, "padded": True}}))


def test_a_pass_that_runs_on_the_sample_only_by_chance_is_refused(directory: Path) -> None:
    write(directory, ["n", 3, "height", "width"], FLAT, 3 * 8 * 14)
    with pytest.raises(
        ModuleRefused, match=r"can't run on a sample input of a smaller picture \(.*\): correct prepare"
    ):
        load(spec("encoder", prepare={"picture": {"shorter": 8}}))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    four = helper.make_node("Reshape", ["row", "four"], ["rows"])
    write(
        directory, ["n", 5], [TOKENS[0], four, helper.make_node("MatMul", ["rows", "w"], ["y"])], 5, TensorProto.INT64
    )
    made = onnx.load(directory / "model.onnx")
    made.graph.initializer.append(numpy_helper.from_array(np.array([4, 5]), "four"))
    made.graph.input[0].name = made.graph.node[0].input[0] = "input_ids"
    onnx.save(made, str(directory / "model.onnx"))
    with pytest.raises(ModuleRefused, match=r"can't run on a sample input of one short text \(.*cannot be reshaped"):
        load(spec("encoder", prepare={"text": {"longest": 5, "padded": True}}))


@pytest.mark.parametrize(("part", "array"), [("classifier", "logits"), ("encoder", "features")])
def test_numbers_that_are_not_finite_are_no_answer(directory: Path, part: str, array: str) -> None:
    parts = [("Div", ["x", "x"], ["one"]), ("Flatten", ["one"], ["row"])]  # of a black pixel: nothing by nothing
    write(directory, SHAPE, [*(helper.make_node(*each) for each in parts), FLAT[1]], 192)
    module = load(spec(part, **CLASSIFIER if part == "classifier" else {"prepare": PICTURE}))
    assert Runner().run(module, [sample_inputs.other_picture()]).tensors
    black = io.BytesIO()
    Image.new("RGB", (8, 8)).save(black, "PNG")
    with pytest.raises(RequestFailed, match=rf"this module's {array} has numbers that aren't finite") as told:
        Runner().run(module, [RawInput(black.getvalue(), "image/png")])
    assert told.value.code == ErrorCode.MODULE_FAILED


def test_more_labels_than_an_answer_may_have_are_refused(directory: Path) -> None:
    of_pictures(directory)
    (directory / "names.txt").write_text("a\n" * 65_537)
    with pytest.raises(ModuleRefused, match=r"names\.txt has 65537 labels, at most 65536 are allowed: name another"):
        load(spec("classifier", prepare=PICTURE, labels="names.txt"))


@pytest.mark.parametrize("part", ["encoder", "classifier"])
def test_a_file_without_an_input_is_refused(directory: Path, part: str) -> None:
    write(directory, SHAPE, [helper.make_node("Identity", ["w"], ["y"])], 192)
    made = onnx.load(directory / "model.onnx")
    del made.graph.input[:]
    onnx.save(made, str(directory / "model.onnx"))
    for fields in (CLASSIFIER, {"labels": ["a"]}) if part == "classifier" else ({"prepare": PICTURE},):
        with pytest.raises(ModuleRefused, match=r"model\.onnx takes no input, .*: export it with an input"):
            load(spec(part, **fields))


@pytest.mark.parametrize("name", [b"height", b"MatMul"])
def test_names_that_are_no_text_are_refused_and_nothing_is_printed(
    directory: Path, name: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    write(directory, ["n", 3, "height", 8], FLAT, 192)
    file = directory / "model.onnx"
    file.write_bytes(file.read_bytes().replace(name, b"\xf8" * len(name)))
    with pytest.raises(ModuleRefused, match=r"model\.onnx can't be loaded by ONNX Runtime \S+ \('utf-8' codec"):
        load(spec("encoder", prepare=PICTURE))
    assert capfd.readouterr() == ("", "")


def test_a_file_without_an_output_is_refused(directory: Path) -> None:
    of_pictures(directory)
    made = onnx.load(directory / "model.onnx")
    del made.graph.output[:]
    onnx.save(made, str(directory / "model.onnx"))
    with pytest.raises(ModuleRefused, match=r"model\.onnx gives no output: export it with one"):
        load(spec("encoder", prepare=PICTURE))


def test_numbers_in_another_file_are_refused_with_the_way_to_one_file(directory: Path) -> None:
    of_pictures(directory)
    made = onnx.load(directory / "model.onnx")
    onnx.save(made, str(directory / "model.onnx"), save_as_external_data=True, location="w.data", size_threshold=0)
    with pytest.raises(
        ModuleRefused, match=r"takes data from the file 'w\.data'.*\(torch.onnx.export: external_data=F"
    ):
        load(spec("encoder", prepare=PICTURE))


def test_float16_goes_in_and_float32_comes_out(directory: Path) -> None:
    write(directory, SHAPE, FLAT, 192, TensorProto.FLOAT16)
    made = onnx.load(directory / "model.onnx")
    narrow = numpy_helper.to_array(made.graph.initializer[0]).astype(np.float16)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(narrow, "w"))
    onnx.save(made, str(directory / "model.onnx"))
    found = Runner().run(load(spec("encoder", prepare=PICTURE)), [sample_inputs.picture()]).tensors["features"]
    assert found.dtype == np.float32
    assert found.shape == (1, CLASSES)


def test_only_an_onnx_file_is_described_in_the_task() -> None:
    with pytest.raises(ValueError, match=r"is for onnx\.encoder and onnx\.classifier, and not for clip\.vision"):
        spec("encoder", family="clip.vision", prepare=PICTURE)


def test_numbers_that_are_no_probabilities_become_some() -> None:
    logits = np.array([[0, 1000, 0]], np.float32)
    assert probabilities(logits).tolist() == [[0, 1, 0]]
    given = np.array([[0.25, 0.75]], np.float32)
    assert probabilities(given) is given
    assert SCORES
