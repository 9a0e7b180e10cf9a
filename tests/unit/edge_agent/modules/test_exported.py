"""Modules from exports: what loads, what it gives, and how a wrong or hostile file is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, load_model, numpy_helper

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from edge_agent.device.calibration import Calibration, Loaded
from edge_agent.device.measurements import Measurements
from edge_agent.modules import exported
from edge_agent.modules.loader import Loader
from edge_agent.modules.weights import exports, onnx_file
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from edge_agent.runtime.runner import Runner
from tests.builders import profile
from tests.onnx_models import (
    KEY,
    WIDTH,
    arrays,
    calling,
    hidden_in_a_branch,
    hidden_in_a_function,
    hidden_in_a_sparse_weight,
    hidden_in_an_attribute,
    looping,
    looping_in_a_branch,
    looping_in_a_function,
    model,
    scanning,
    spec,
    with_data_at,
    write_export,
)

FEATURES = np.array([[1.0, 2.0, 3.0]], np.float32)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models directory of the agent."""
    directory = tmp_path / "models"
    directory.mkdir()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory))
    return directory


def scaled() -> list[float]:
    found = Runner().run(exported.load(spec()), ({"features": FEATURES},))
    assert found.tensors["scaled"].dtype == np.float32
    return [float(each) for each in found.tensors["scaled"][0]]


def refused(**changes: Any) -> str:
    """The one line with which a load is refused."""
    with pytest.raises(ModuleRefused) as caught:
        exported.load(spec(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_export_is_found_by_the_modules_key_and_gives_what_its_file_computes(models: Path) -> None:
    write_export(models)
    assert scaled() == [2.0, 4.0, 6.0]
    assert exports.sizes(models) == {KEY: 4096}


def test_an_agent_with_onnx_takes_the_export_and_plans_with_its_memory(models: Path) -> None:
    write_export(models, memory_bytes=2048)
    loader = Loader(offered=profile(engines=("onnx",), exports=exports.sizes(models)))
    assert loader.load(spec()).engine == "onnx"
    assert loader.memory_bytes(spec()) == 2048
    assert loader.is_here(spec())
    assert (
        Loader(offered=profile(engines=("torch", "onnx"), exports=exports.sizes(models))).memory_bytes(spec()) == 4096
    )
    assert Loader("torch").memory_bytes(spec()) == 4096
    assert Loader("onnx").memory_bytes(spec()) == 2048


def test_what_was_measured_of_another_variant_says_nothing_of_an_export(models: Path) -> None:
    write_export(models, memory_bytes=2048)
    measured = Measurements()
    before = Calibration(measured, resident_bytes=lambda: None, free_bytes=lambda: None)
    before.keep(spec(), Loaded(exported.load(spec()), 5000, 0.1, 0.5))
    loader = Loader(offered=profile(engines=("onnx",), exports=exports.sizes(models)))
    now = Calibration(measured, loader=loader, resident_bytes=lambda: None, free_bytes=lambda: None)
    assert (before.expected_bytes(spec()), now.expected_bytes(spec())) == (5000, 2048)
    assert now.cached == {}, "until it is measured"
    now.keep(spec(), Loaded(exported.load(spec()), 3000, 0.1, 0.25))
    now.look()
    assert (now.expected_bytes(spec()), now.cached) == (3000, {spec().key: 0.25})


def test_a_module_without_an_export_is_refused_with_the_command_that_makes_one(models: Path) -> None:
    assert f"{models} has none of this module: run `s2m3 models export`" in refused()


def test_whole_numbers_truth_values_and_floats_reach_the_model_in_its_own_dtypes(models: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["mask"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "features"], ["scaled"]),
    ]
    shapes = {"ids": [1, WIDTH], "mask": [1, WIDTH], "features": [1, WIDTH]}
    made = model(nodes, inputs=shapes, dtypes={"ids": TensorProto.INT32, "mask": TensorProto.BOOL})
    write_export(models, made, inputs=shapes, steps=arrays(shapes))
    session = onnx_file.open_session(models / "small" / "main.onnx")
    given = {"ids": np.array([[1, 2, 3]]), "mask": np.array([[True, False, True]]), "features": FEATURES}
    assert session.run(given, ("scaled",))["scaled"].tolist() == [[2.0, 2.0, 6.0]]


def test_an_optional_array_that_a_request_lacks_is_empty(models: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["question", "axis"], ["sum"], keepdims=0),
        helper.make_node("Add", ["features", "sum"], ["scaled"]),
    ]
    made = model(nodes, inputs={"features": [1, WIDTH], "question": ["q", WIDTH]})
    made.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    write_export(
        models,
        made,
        inputs={"features": [1, WIDTH], "question": [None, WIDTH]},
        optional=["question"],
        file="main.onnx",
    )
    assert scaled() == [1.0, 2.0, 3.0]


def test_weights_in_a_file_beside_are_read_when_export_json_names_it(models: Path) -> None:
    data = np.full((WIDTH,), 5.0, np.float32).tobytes()
    directory = write_export(models, with_data_at("weights.bin"))
    (directory / "weights.bin").write_bytes(data)
    found = refused()
    assert "takes data from the file 'weights.bin', and no other file may hold data of it" in found
    assert found.endswith("save the data in the ONNX file itself, or in a file beside it that export.json names")
    write_export(
        models, with_data_at("weights.bin"), files={"weights.bin": exports.sha256_of(directory / "weights.bin")}
    )
    assert scaled() == [5.0, 10.0, 15.0]
    (directory / "weights.bin").write_bytes(bytes(len(data)))
    assert "weights.bin has the SHA-256" in refused()


@pytest.mark.parametrize("size_bytes", [4 * WIDTH, 0])
def test_weights_that_are_overwritten_in_their_file_give_no_output_and_renamed_ones_change_nothing(
    models: Path, size_bytes: int
) -> None:
    directory = models / "small"
    directory.mkdir()
    weights, fresh = directory / "weights.bin", directory / "fresh"
    weights.write_bytes(np.full((WIDTH,), 5.0, np.float32).tobytes())
    write_export(models, with_data_at(weights.name), files={weights.name: exports.sha256_of(weights)})
    loaded = exported.load(spec())
    fresh.write_bytes(bytes(4 * WIDTH))
    first, after = weights.open("r+b"), weights.stat().st_mtime_ns + 1
    with first:
        fresh.rename(weights)
        assert Runner().run(loaded, ({"features": FEATURES},)).tensors["scaled"].tolist() == [[5.0, 10.0, 15.0]]
        first.truncate(size_bytes)
        os.utime(first.fileno(), ns=(after, after))
    with pytest.raises(ModuleRefused, match=r"weights\.bin was overwritten while its module was in use"):
        Runner().run(loaded, ({"features": FEATURES},))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "./weights.bin", ""])
def test_data_outside_of_the_exports_directory_is_never_read(models: Path, location: str) -> None:
    (models / "secret.bin").write_bytes(bytes(4 * WIDTH))
    directory = write_export(models)
    (directory / "weights.bin").write_bytes(bytes(4 * WIDTH))
    digest = exports.sha256_of(directory / "weights.bin")
    write_export(models, with_data_at(location), files={"weights.bin": digest})
    assert f"takes data from the file {location!r}" in refused()


def test_a_link_out_of_the_models_directory_is_refused(models: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4 * WIDTH))
    directory = write_export(models)
    (directory / "weights.bin").symlink_to(secret)
    write_export(models, with_data_at("weights.bin"), files={"weights.bin": exports.sha256_of(secret)})
    assert f"is a link to {secret}" in refused()


@pytest.mark.parametrize(
    "make", [hidden_in_an_attribute, hidden_in_a_branch, hidden_in_a_sparse_weight, hidden_in_a_function]
)
def test_data_elsewhere_is_found_wherever_a_file_may_name_it(models: Path, make: Callable[[], ModelProto]) -> None:
    write_export(models, make())
    assert "takes data from the file '../secret.bin'" in refused()


def test_operators_of_other_libraries_are_refused(models: Path) -> None:
    own = helper.make_node("Steal", ["features"], ["scaled"], domain="evil.ops")
    write_export(models, model([own], opsets={"": 17, "evil.ops": 1}))
    assert "has operators of the domain 'evil.ops', and no library of operators is loaded" in refused()


def test_a_function_that_the_file_defines_itself_may_be_of_any_domain(models: Path) -> None:
    made = model([helper.make_node("Double", ["features"], ["scaled"], domain="mine")], opsets={"": 17, "mine": 1})
    double = helper.make_node("Add", ["a", "a"], ["b"])
    made.functions.append(helper.make_function("mine", "Double", ["a"], ["b"], [double], made.opset_import[:1]))
    write_export(models, made)
    assert scaled() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("make", [looping, scanning, looping_in_a_branch, looping_in_a_function])
def test_what_runs_a_graph_many_times_is_refused_wherever_it_is(models: Path, make: Callable[[], ModelProto]) -> None:
    write_export(models, make())
    name = "Scan" if make is scanning else "Loop"
    assert f"has the operator {name!r}, which may run a graph without end" in refused()


def test_a_branch_without_a_loop_may_be_there(models: Path) -> None:
    made = hidden_in_a_branch()
    for attribute in made.graph.node[0].attribute:
        attribute.g.initializer[0].CopyFrom(model().graph.initializer[0])
    write_export(models, made)
    assert scaled() == [2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    "made",
    [calling(40, 2), calling(3, 2, itself=True), calling(3, 2, itself=True, domain="ai.onnx"), calling(100, 1)],
    ids=["very-often", "itself", "onnx-itself", "very-deep"],
)
def test_functions_that_become_very_many_nodes_are_refused(models: Path, made: ModelProto) -> None:
    write_export(models, made)
    assert "more than 1000000 nodes" in refused()


def test_functions_that_call_each_other_a_few_times_are_run(models: Path) -> None:
    write_export(models, calling(3, 2))
    assert scaled() == [2.0**8, 2.0**9, 3 * 2.0**8]


@pytest.mark.parametrize(("numbers", "folded"), [(1000, True), (2**28, False)])
def test_what_onnx_runtime_computes_at_load_is_bounded(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: int,
    folded: bool,  # noqa: FBT001 - a parameter
) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        helper.make_node("Add", ["features", "most"], ["scaled"]),
    ]
    made = model(nodes)
    made.graph.initializer.append(numpy_helper.from_array(np.array([numbers]), "shape"))
    path = write_export(models, made) / "main.onnx"
    real = onnxruntime.InferenceSession

    def kept(path: str, options: Any, **more: Any) -> Any:
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        return real(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", kept)
    onnx_file.open_session(path)
    operators = {node.op_type for node in load_model(tmp_path / "optimised.onnx").graph.node}
    assert ("ConstantOfShape" not in operators) == folded


def deep() -> bytes:
    content = b""
    for _ in range(200):  # graphs in attributes of nodes
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + _length(len(content)) + content
    return b"\x3a" + _length(len(content)) + content


def _length(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not an ONNX file"),
        (b"this is a text", "is not an ONNX file"),
        (b"\x08\x09", "it has no graph"),
        (model().SerializeToString()[:-7], "is not an ONNX file"),
        (deep(), "messages lie in each other"),
        (b"\x08" + b"\xff" * 11, "a number of more than 64 bits"),
    ],
    ids=["empty", "text", "no-graph", "truncated", "deep", "long-number"],
)
def test_what_is_no_onnx_file_is_refused(models: Path, content: bytes, why: str) -> None:
    write_export(models, content)
    found = refused()
    assert "main.onnx is not an ONNX file" in found
    assert why in found


def test_a_file_of_very_many_fields_ends_early(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 1000)
    write_export(models, b"\x08\x09" * 2000)
    assert "more than 1000 fields" in refused()


@pytest.mark.parametrize(
    "made",
    [
        model(opsets={"": 99}),
        model([helper.make_node("NoSuchOperator", ["features"], ["scaled"])]),
        model([helper.make_node("Mul", ["features", "nobody"], ["scaled"])]),
        model(outputs=["nobody"]),
        model(version=99),
    ],
    ids=["opset", "operator", "graph", "output", "version"],
)
def test_what_onnx_runtime_lacks_is_told_in_one_line(models: Path, made: ModelProto) -> None:
    write_export(models, made)
    found = refused()
    assert "main.onnx can't be loaded by ONNX Runtime" in found
    assert "or update onnxruntime" in found
    assert ".cc:" not in found, "places of its own code"


def two_uses(models: Path, other: ModelProto | None = None) -> Path:
    """An export with the uses ``main`` and ``other``, and none that is ordinary; gives the file of ``other``."""
    directory = write_export(models, other)
    file = directory / "other.onnx"
    (directory / "main.onnx").rename(file)
    sha256 = exports.sha256_of(file)
    write_export(models)
    manifest = json.loads((directory / exports.MANIFEST).read_text())
    use = manifest["uses"][""]
    manifest["uses"] = {"main": use, "other": use | {"file": file.name, "sha256": sha256}}
    (directory / exports.MANIFEST).write_text(json.dumps(manifest))
    return file


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of which sessions were opened that stay."""
    found: list[str] = []

    def opened(path: Path, beside: Collection[str]) -> onnx_file.Session:
        found.append(path.name)
        return real(path, beside)

    real = onnx_file.open_session
    monkeypatch.setattr(onnx_file, "open_session", opened)
    return found


def test_of_several_uses_only_those_that_run_have_weights_in_memory(models: Path, sessions: list[str]) -> None:
    two_uses(models)
    loaded = exported.load(spec())
    assert sessions == []
    for _ in range(2):
        assert Runner().run(loaded, ({"features": FEATURES},), "other").tensors["scaled"].tolist() == [[2.0, 4.0, 6.0]]
    assert sessions == ["other.onnx"]
    Runner().run(loaded, ({"features": FEATURES},), "main")
    assert sessions == ["other.onnx", "main.onnx"]


def test_the_only_use_is_in_memory_when_its_module_is_loaded(models: Path, sessions: list[str]) -> None:
    write_export(models)
    loaded = exported.load(spec())
    assert sessions == ["main.onnx"]
    Runner().run(loaded, ({"features": FEATURES},))
    assert sessions == ["main.onnx"]


def test_a_broken_file_of_a_use_that_nobody_runs_is_told_at_the_load(models: Path) -> None:
    for broken, why in (
        (model([helper.make_node("NoSuchOperator", ["features"], ["scaled"])]), "can't be loaded by ONNX Runtime"),
        (model([helper.make_node("Mul", ["features", "nobody"], ["scaled"])]), "can't be loaded by ONNX Runtime"),
        (model(opsets={"": 99}), "can't be loaded by ONNX Runtime"),
        (model([helper.make_node("Neg", ["features"], ["x"])], outputs=["x"]), "gives x, and export.json says scaled"),
        (model(inputs={"features": ["n", 4]}, nodes=[helper.make_node("Neg", ["features"], ["scaled"])]), "(any, 4)"),
        (with_data_at("weights.bin"), "takes data from the file 'weights.bin'"),
    ):
        two_uses(models, broken)
        found = refused()
        assert "other.onnx" in found
        assert why in found


def test_a_file_that_was_replaced_after_the_load_is_not_opened(models: Path, sessions: list[str]) -> None:
    file = two_uses(models)
    loaded = exported.load(spec())
    file.write_bytes(with_data_at("/etc/passwd").SerializeToString())
    with pytest.raises(ModuleRefused, match=r"other\.onnx has the SHA-256 \w+, and export\.json says"):
        Runner().run(loaded, ({"features": FEATURES},), "other")
    assert sessions == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": {"other": [None, WIDTH]}}, "takes features, and export.json says other: correct inputs"),
        (
            {"inputs": {"features": [None, 4]}},
            "has the shape (any, 3), and export.json says (any, 4)",
        ),
        ({"outputs": ["probs"]}, "gives scaled, and export.json says probs: correct outputs"),
        ({"optional": ["other"]}, "takes features, and export.json says that other is optional: correct optional"),
        (
            {"steps": arrays({"features": [1, 4]})},
            "the input features has the shape (any, 3), and the preparation gives (1, 4): correct the steps",
        ),
        (
            {"steps": arrays({"pixels": [1, WIDTH]})},
            "takes features, and the preparation gives pixels: correct the steps",
        ),
        ({"steps": {"kind": "magic"}}, "export.json: uses.(ordinary).steps: "),
        ({"sha256": "0" * 64}, f"and export.json says {'0' * 64}"),
        ({"file": "gone.onnx"}, "gone.onnx is not a file, and export.json names it"),
        ({"memory_bytes": 1}, ""),
        ({"format": 2}, ""),
        ({"uses": {}}, ""),
        ({"file": "../main.onnx"}, ""),
    ],
)
def test_an_export_that_does_not_fit_is_refused_with_its_file_and_field(
    models: Path, changes: dict[str, Any], said: str
) -> None:
    write_export(models, **changes)
    if said:
        assert said in refused()
    elif changes == {"memory_bytes": 1}:
        write_export(models, model(), **changes)
        (models / "small" / "main.onnx").write_bytes(bytes(onnx_file_bytes()))
        assert "and export.json allows" in refused()
    else:
        assert exports.sizes(models) == {}
        assert "has none of this module" in refused()


def test_a_list_in_place_of_an_array_is_refused_where_a_use_gives_it(models: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["features", "weight"], ["scaled"]),
        helper.make_node("SequenceConstruct", ["scaled"], ["all"]),
    ]
    made = model(nodes)
    made.graph.output.append(helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None))
    write_export(models, made)
    assert scaled() == [2.0, 4.0, 6.0]
    write_export(models, made, outputs=["scaled", "all"])
    assert "main.onnx: the output all is seq(tensor(float)), and a module gives tensor(bool), " in refused()


def onnx_file_bytes() -> int:
    return exported.GRAPH_BYTES + exported.FILES_BYTES + 2


def test_a_whole_number_for_an_input_of_floats_is_refused(models: Path) -> None:
    made = model([helper.make_node("Cast", ["features"], ["scaled"], to=1)], dtypes={"features": TensorProto.INT64})
    write_export(models, made)
    assert "the input features is int64, and the preparation gives float32: correct the steps" in refused()


def test_a_pass_that_onnx_runtime_refuses_fails_the_request_in_one_line(models: Path) -> None:
    node = helper.make_node("Reshape", ["features", "shape"], ["scaled"])
    made = model([node])
    made.graph.initializer.append(numpy_helper.from_array(np.array([2, 2]), "shape"))
    write_export(models, made)
    loaded = exported.load(spec())
    with pytest.raises(RequestFailed, match="ONNX Runtime: ") as caught:
        Runner().run(loaded, ({"features": FEATURES},))
    assert caught.value.code == ErrorCode.MODULE_FAILED
    assert "\n" not in caught.value.message


def test_pipes_and_broken_files_in_the_models_directory_stop_no_agent(models: Path) -> None:
    (models / "pipe").mkdir()
    os.mkfifo(models / "pipe" / exports.MANIFEST)
    (models / "text").mkdir()
    (models / "text" / exports.MANIFEST).write_text("[1, 2]", encoding="utf-8")
    write_export(models)
    assert exports.sizes(models) == {KEY: 4096}
