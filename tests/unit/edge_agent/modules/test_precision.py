"""Weights in shorter dtypes: what they take, that they give the same each time, and nearly what float32 gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec, Source, TaskSpec
from edge_agent import modules
from edge_agent.modules.families import clip
from edge_agent.modules.weights import hub, model_parts, precision
from s2m3.bench.accuracy import options
from s2m3.catalogue import load_task
from s2m3.reference import random_weights, zoo
from s2m3.reference.pictures import picture
from s2m3.reference.split import Split
from tests.builders import module, runs
from tests.media import SMALLEST_CLIP

NAME = "openai/clip-vit-base-patch16"
# 2 layers, each with four 32 x 32 matrices, one 64 x 32 and one 32 x 64: rows and numbers.
ROWS, NUMBERS = 2 * (4 * 32 + 64 + 32), 2 * (4 * 32 * 32 + 2 * 64 * 32)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny CLIP in a models directory, and its configuration."""
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setattr(precision, "SMALLEST", 1)
    published = zoo.published(NAME)
    random_weights.write(
        published,
        tmp_path,
        changes={"config.json": SMALLEST_CLIP, "preprocessor_config.json": {"size": 32, "crop_size": 32}},
    )
    return random_weights.merged(published.config, SMALLEST_CLIP)


def vision_spec(config: dict[str, Any], dtype: str, **changes: Any) -> ModuleSpec:
    fields: dict[str, Any] = {"family": "clip.vision", "source": Source(hub=NAME, part="vision"), "dtype": dtype}
    size_bytes = model_parts.weight_bytes(clip.PARTS["vision"], config, dtype)
    return module("vision", **fields | {"memory_bytes": size_bytes} | changes)


def test_int8_holds_a_byte_a_number_of_linear_layers_and_five_a_row(config: dict[str, Any]) -> None:
    full, short = (model_parts.weight_bytes(clip.PARTS["vision"], config, dtype) for dtype in ("float32", "int8"))
    assert full - short == 3 * NUMBERS - 5 * ROWS


def test_the_memory_of_a_layers_conversion_is_free_before_the_next_one_is_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory that glibc keeps of one seldom fits another: CLIP B/16's vision took up to 692 MB for 343 in float32."""
    steps: list[str] = []
    monkeypatch.setattr(precision, "SMALLEST", 1)
    monkeypatch.setattr(precision, "return_freed_memory", lambda: steps.append("returned"))
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    precision.quantise(network)
    assert steps == ["returned"] * 2


def test_int8_gives_the_same_bits_each_time_and_nearly_those_of_float32(config: dict[str, Any]) -> None:
    image = picture("chelsea.png").raw
    full, short, again = (
        runs(modules.load(vision_spec(config, dtype)))(image).tensors["pooled"] for dtype in ("float32", "int8", "int8")
    )
    assert np.array_equal(short, again)
    assert short.dtype == np.float32
    assert 0 < np.abs(short - full).max() < 0.1


def test_int8_that_takes_more_than_the_spec_says_is_refused(config: dict[str, Any]) -> None:
    right = vision_spec(config, "int8")
    modules.load(right)
    with pytest.raises(
        ModuleRefused, match=f"have .* and the spec says .*: correct memory_bytes to {right.memory_bytes},"
    ):
        modules.load(vision_spec(config, "int8", memory_bytes=right.memory_bytes - 1))


def test_each_dtype_is_another_module_declared_and_by_content(config: dict[str, Any]) -> None:
    part, specs = clip.PARTS["vision"], [vision_spec(config, dtype) for dtype in precision.DTYPES]
    checkpoint = model_parts.open_part(specs[0], "vision")
    digests = [
        model_parts.content_digest(each.family, part, checkpoint, model_parts.read(each, part, checkpoint), each.dtype)
        for each in specs
    ]
    assert len(set(digests)) == len({each.key for each in specs}) == len(precision.DTYPES)
    modules.load(specs[-1].model_copy(update={"digest": digests[-1]}))
    with pytest.raises(ModuleRefused, match="the spec says sha256:0000"):
        modules.load(specs[-1].model_copy(update={"digest": f"sha256:{'0' * 64}"}))


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that torch copies meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        if func in {torch.ops.aten.clone.default, torch.ops.aten._to_copy.default} and made.device.type == "cpu":
            self.bytes += made.nbytes
        return made


@pytest.mark.parametrize("dtype", precision.FLOATS)
def test_a_load_copies_each_weight_once_in_the_dtype_that_is_held(config: dict[str, Any], dtype: str) -> None:
    specs = [vision_spec(config, dtype), *in_option(dtype).modules.values()]
    for spec in specs:
        with Copies() as copies:
            modules.load(spec)
        assert copies.bytes == spec.memory_bytes


def test_a_sentence_encoder_is_made_without_random_weights() -> None:
    before = torch.get_rng_state()
    modules.load(in_option("float32").modules["minilm/text"])
    assert torch.equal(torch.get_rng_state(), before)


class Tied(nn.Module):
    """Words and an output layer of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 4)
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 8, bias=False)


def test_words_and_an_output_layer_tied_to_them_stay_one_float32_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SMALLEST", 1)
    network = Tied().requires_grad_(requires_grad=False)
    expected = precision.network_bytes(network, "int8", tied=("out.weight",))
    precision.quantise(network, tied=("out.weight",))
    assert type(network.out.weight) is nn.Parameter
    stored = (tensor for name, tensor in network.state_dict().items() if name != "out.weight")
    assert precision.memory_bytes(stored) == expected == 4 * 8 * 4 + (4 * 4 + 5 * 4) + 4 * 4


def test_matrices_of_functions_come_out_in_their_shape_and_near_what_they_were() -> None:
    tensors = {"kernel": torch.randn(64, 128, 3, 3), "small": torch.randn(6, 4, 5, 5), "bias": torch.randn(6)}
    held = precision.Int8Matrices(tensors)
    assert list(held) == list(tensors)
    assert torch.equal(held["bias"], tensors["bias"])
    assert torch.equal(held["small"], tensors["small"])
    rows = tensors["kernel"].flatten(1).abs().amax(dim=1)
    assert ((held["kernel"] - tensors["kernel"]).flatten(1).abs().amax(dim=1) <= rows / 127).all()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert held.memory_bytes == precision.shapes_bytes(shapes, "int8") == 64 * (128 * 9 + 5) + 4 * 6 * 100 + 4 * 6


def test_a_small_linear_layer_stays_float32() -> None:
    network = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 10)).requires_grad_(requires_grad=False)
    expected = precision.network_bytes(network, "int8")
    precision.quantise(network)
    assert [type(layer.weight) is nn.Parameter for layer in network] == [False, True]
    assert precision.memory_bytes(network.state_dict().values()) == expected == 256 * 261 + 1024 + 4 * 2570


def test_without_torchao_int8_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ModuleRefused, match=r"int8 needs the Python package torchao, which is missing.*\[int8\] extra"):
        precision.quantise(Tied())


@pytest.mark.parametrize("dtype", precision.DTYPES)
def test_a_pocket_task_answers_in_every_dtype_with_the_bytes_that_are_counted(dtype: str) -> None:
    task = in_option(dtype)
    changed = [name for name, module in task.modules.items() if module.dtype != "float32"]
    assert len(changed) == {"float32": 0, "int8": 3}.get(dtype, 4), "int8 leaves the table of class names as it is"
    answer = Split().run(task, {"image": picture("coffee.png").raw, "text": RawInput(b"a cat\na cup of coffee")}).answer
    assert answer is not None
    assert answer["label"] == "a cup of coffee"
    for name in changed:
        too_small = task.modules[name].memory_bytes - 1
        with pytest.raises(ModuleRefused, match=f"and the spec says .*: correct memory_bytes to {too_small + 1},"):
            modules.load(task.modules[name].model_copy(update={"memory_bytes": too_small}))


def in_option(dtype: str) -> TaskSpec:
    task = load_task("pocket/zero-shot")
    return options.applied(task, options.Option(dtype)) if dtype != "float32" else task
