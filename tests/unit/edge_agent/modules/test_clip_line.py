"""The CLIP line's modules, tiny: what crosses each cut, how one tower serves several tasks, and what is refused."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import modules
from edge_agent.modules.families import clip
from edge_agent.modules.inputs.answers import masks
from edge_agent.modules.weights import hub
from s2m3.reference import random_weights, zoo
from s2m3.reference.pictures import picture
from tests.builders import runs
from tests.patience import PATIENCE_S

Run = Callable[..., modules.Output]

B16, CLIPSEG = "openai/clip-vit-base-patch16", "CIDAS/clipseg-rd64-refined"
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
TINY: dict[str, Any] = {
    "projection_dim": 16,
    "text_config": TOWER | {"num_hidden_layers": 2, "vocab_size": 600, "projection_dim": 16},
    "vision_config": TOWER | {"num_hidden_layers": 11, "image_size": 32, "projection_dim": 16},
}
DECODER = {"reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
CAT = picture("chelsea.png").raw
TEXTS = RawInput(b"a cat\na cup")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny CLIP, CLIPSeg and heads, written once."""
    directory = tmp_path_factory.mktemp("models")
    for name, changes in (
        (B16, {"config.json": TINY, "preprocessor_config.json": {"size": 32, "crop_size": 32}}),
        (CLIPSEG, {"config.json": TINY | DECODER}),
        ("local/clip-b16-linear", {"config.json": {"width": 32, "labels": 3}}),
        ("local/clip-b16-answers", {"config.json": {"width": 32, "text_width": 16, "hidden": 8, "labels": 4}}),
    ):
        random_weights.write(zoo.published(name), directory, changes=changes)
    return directory


@pytest.fixture
def load(models: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Run]:
    """Loads a tiny module of a family from a repository."""
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(models))

    def loading(family: str, name: str = B16) -> Run:
        source = Source(hub=name, part=family.partition(".")[2])
        spec = ModuleSpec(family=family, source=source, memory_bytes=10**7, flops=1, output_bytes=1)
        return runs(modules.load(spec))

    return loading


def failed(call: Callable[..., Any], *values: Any, **kwargs: Any) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        call(*values, **kwargs)
    return caught.value


def shapes(output: modules.Output) -> dict[str, tuple[int, ...]]:
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in output.tensors.values())
    return {name: array.shape for name, array in output.tensors.items()}


def test_each_use_of_the_vision_tower_sends_what_its_consumer_needs_and_no_more(load: Any) -> None:
    vision = load("clip.vision")
    assert shapes(vision(CAT)) == {"pooled": (1, 32)}
    assert shapes(vision(CAT, use="patch-mean")) == {"features": (1, 32)}
    assert shapes(vision(CAT, use="llava")) == {"patches": (1, 4, 32)}
    assert shapes(vision(CAT, use="clipseg")) == {f"layer-{n}": (1, 485, 32) for n in (3, 6, 9)}


def test_a_use_that_a_module_does_not_have_is_a_failure_of_the_wiring(load: Any) -> None:
    vision, text = load("clip.vision"), load("clip.text")
    wrong = failed(vision, CAT, use="backwards")
    assert wrong.code == ErrorCode.MODULE_FAILED
    assert "has no use backwards, only clipseg, llava, patch-mean: correct the task's use" in wrong.message
    assert "only its ordinary one" in failed(text, TEXTS, use="patch-mean").message


def test_texts_longer_than_the_tower_reads_are_cut_not_refused(load: Any) -> None:
    long = RawInput(("the cat " * 249).encode())
    assert shapes(load("clip.text")(long)) == {"text_embeds": (1, 16)}


def test_the_head_ranks_the_texts_by_probability(load: Any) -> None:
    image = load("clip.image_projection")(load("clip.vision")(CAT).tensors)
    output = load("clip.head")(image.tensors, load("clip.text")(TEXTS).tensors, TEXTS)
    assert shapes(image) == {"image_embeds": (1, 16)}
    assert shapes(output) == {"logits": (1, 2)}
    ranked: Any = output.answer["ranked"]
    assert sorted(each["label"] for each in ranked) == ["a cat", "a cup"]
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert sum(each["score"] for each in ranked) == pytest.approx(1)


def test_what_a_sensor_sent_wrongly_is_told_what_to_send(load: Any) -> None:
    text, vision = load("clip.text"), load("clip.vision")
    assert failed(vision, RawInput(b"no picture")).code == ErrorCode.BAD_INPUT
    assert failed(text, RawInput(b"")).code == ErrorCode.BAD_INPUT
    answers = load("heads.answer", "local/clip-b16-answers")
    two = failed(answers, vision(CAT).tensors, text(TEXTS).tensors)
    assert two.code == ErrorCode.BAD_INPUT
    assert "the question has 2 lines: send one question on one line" in two.message


def test_arrays_of_the_wrong_node_are_failures_of_the_wiring(load: Any) -> None:
    vision, text, project, head = (load(f"clip.{part}") for part in ("vision", "text", "image_projection", "head"))
    pooled, embeds = vision(CAT).tensors, text(TEXTS).tensors
    image = project(pooled).tensors
    linear, answers = load("heads.linear", "local/clip-b16-linear"), load("heads.answer", "local/clip-b16-answers")
    wrong: list[tuple[Any, ...]] = [
        (vision, pooled),
        (vision,),
        (text, embeds),
        (project, embeds),
        (project, {"pooled": np.zeros((1, 31), np.float32)}),
        (head, image, embeds),
        (head, embeds, image, TEXTS),
        (head, image, embeds, RawInput(b"one line for two embeddings")),
        (linear, pooled),
        (answers, pooled, image),
        (answers, pooled),
    ]
    for call, *values in wrong:
        error = failed(call, *values)
        assert error.code == ErrorCode.MODULE_FAILED, values
        assert error.message.endswith("correct the task's needs")


def test_heads_name_their_labels(load: Any) -> None:
    vision = load("clip.vision")
    found = load("heads.linear", "local/clip-b16-linear")(vision(CAT, use="patch-mean").tensors)
    assert shapes(found) == {"logits": (1, 3)}
    assert found.answer["label"] in {"label 0", "label 1", "label 2"}
    question = load("clip.text")(RawInput(b"what is this?")).tensors
    answered = load("heads.answer", "local/clip-b16-answers")(vision(CAT).tensors, question)
    assert shapes(answered) == {"logits": (1, 4)}
    assert len(answered.answer["ranked"]) == 4


def test_segments_are_masks_of_the_texts(load: Any) -> None:
    layers = load("clip.vision")(CAT, use="clipseg")
    reduced = load("clipseg.reduce", CLIPSEG)(layers.tensors)
    assert shapes(reduced) == {f"reduced-{index}": (1, 485, 8) for index in range(3)}
    decoder = load("clipseg.decoder", CLIPSEG)
    output = decoder(reduced.tensors, load("clip.text")(TEXTS).tensors, TEXTS)
    assert shapes(output) == {"logits": (2, 352, 352)}
    assert [segment["label"] for segment in output.answer["segments"]] == ["a cat", "a cup"]
    many = RawInput(b"a\n" * 17)
    error = failed(decoder, reduced.tensors, load("clip.text")(many).tensors, many)
    assert (error.code, error.message) == (
        ErrorCode.BAD_INPUT,
        "17 texts, at most 16 are taken at once: send fewer",
    )


def test_a_segment_says_where_and_how_much() -> None:
    logits = torch.full((2, 8, 8), -9.0)
    logits[0, 2:4, 1:5] = 9.0
    segments = masks(["a cat", "nothing"], logits.sigmoid().numpy())["segments"]
    assert isinstance(segments, list)
    cat, nothing = segments
    assert isinstance(cat, dict)
    assert isinstance(nothing, dict)
    assert (cat["area"], cat["box"]) == (8 / 64, [1 / 8, 2 / 8, 5 / 8, 4 / 8])
    assert (nothing["area"], nothing["box"]) == (0.0, None)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(cat["mask"])))))
    assert np.array_equal(mask, (logits[0] > 0).numpy())


def test_a_clipseg_that_takes_other_layers_is_refused(models: Path, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models
    monkeypatch.setattr(clip, "CLIPSEG_LAYERS", (2, 4, 6))
    with pytest.raises(ModuleRefused, match=r"extract_layers are \[3, 6, 9\], and clip.vision gives \(2, 4, 6\)"):
        load("clipseg.reduce", CLIPSEG)


def test_one_tower_may_serve_different_uses_in_two_threads_at_once(load: Any) -> None:
    vision = load("clip.vision")
    uses = [None, "patch-mean", "llava", None, "patch-mean"]
    expected = {use: vision(CAT, use=use).tensors for use in uses}
    found: list[bool] = []

    def compute(use: str | None) -> None:
        tensors = vision(CAT, use=use).tensors
        found.append(all(np.array_equal(tensors[name], array) for name, array in expected[use].items()))

    threads = [threading.Thread(target=compute, args=(use,)) for use in uses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert found == [True] * len(uses)
