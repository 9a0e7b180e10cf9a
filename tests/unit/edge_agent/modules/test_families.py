"""The families with the pocket zoo's weights: shapes at the cut, answers, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from edge_agent.modules import Output, Value, load
from edge_agent.modules.inputs import answers
from edge_agent.modules.inputs.imagenet import class_names
from s2m3.catalogue import load_task
from tests.builders import runs
from tests.media import picture_bytes

Run = Callable[..., Output]

CAPTIONS = RawInput(b"a cat\na dog\na cat")


def vqa_module(name: str) -> Run:
    return runs(load(load_task("pocket/vqa").modules[name]))


@pytest.fixture(scope="module")
def head() -> Run:
    return vqa_module("conse/head")


@pytest.fixture(scope="module")
def text() -> Run:
    return vqa_module("minilm/text")


def assert_plain(array: Array, shape: tuple[int, ...]) -> None:
    assert array.shape == shape
    assert array.dtype == np.float32
    assert array.flags.c_contiguous


def probabilities(*likely: int) -> dict[str, Array]:
    probs = np.zeros((1, 1000), np.float32)
    probs[0, list(likely)] = 1 / len(likely)
    return {"probs": probs}


def test_the_class_names_are_those_of_imagenet_in_order() -> None:
    names = class_names()
    assert (len(names), names[0], names[282], names[999]) == (1000, "tench", names[282], names[999])
    assert names[872] == "tripod"
    assert names[967] == "espresso"


def test_efficientnet_is_cut_after_its_pooling() -> None:
    thin = Image.new("RGB", (20, 320), "green")  # as thin as a picture can be
    encoded = vqa_module("efficientnet-lite0/encoder")(RawInput(picture_bytes(thin), "image/png"))
    (features,) = encoded.tensors.values()
    assert_plain(features, (1, 1280))
    assert encoded.answer is None
    classified = vqa_module("efficientnet-lite0/classifier")(encoded.tensors)
    (probs,) = classified.tensors.values()
    assert_plain(probs, (1, 1000))
    assert probs.sum() == pytest.approx(1, abs=1e-5)
    assert classified.answer is not None
    assert classified.answer["label"] == class_names()[int(probs.argmax())]
    assert classified.answer["score"] == float(probs.max())
    ranked = classified.answer["ranked"]
    assert isinstance(ranked, list)
    assert len(ranked) == 5


def test_embeddings_have_length_one_and_like_texts_are_near(text: Run) -> None:
    found = text(RawInput(b"a cat\na kitten\nthe stock market")).tensors["embeddings"]
    assert_plain(found, (3, 384))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    near = found @ found.T
    assert near[0, 1] > 0.7
    assert near[0, 2] < 0.3


def test_the_head_gives_the_class_itself_as_the_best_caption(head: Run, text: Run) -> None:
    tripod = class_names().index("tripod")
    captions = RawInput(b"a tripod\na banana\ntripod")
    answer = head(probabilities(tripod), text(captions).tensors, captions).answer
    assert answer is not None
    assert answer["label"] == "tripod"
    assert answer["score"] == pytest.approx(1, abs=1e-5)  # the class alone: its name's embedding is the picture's


def test_ties_stay_in_the_order_sent() -> None:
    ranked = answers.ranking("label", ["b", "a", "c"], torch.tensor([0.5, 0.5, 0.75]))
    assert ranked == {
        "label": "c",
        "score": 0.75,
        "ranked": [{"label": "c", "score": 0.75}, {"label": "b", "score": 0.5}, {"label": "a", "score": 0.5}],
    }


def test_a_question_turns_the_picture_towards_what_it_asks_for(head: Run, text: Run) -> None:
    seen = probabilities(class_names().index("tripod"), class_names().index("banana"))
    offered = RawInput(b"banana\ntripod")
    for question, expected in ((b"Which fruit is this?", "banana"), (b"What holds the camera?", "tripod")):
        asked = text(RawInput(question)).tensors
        answer = head(seen, asked, text(offered).tensors, offered).answer
        assert answer is not None
        assert answer["answer"] == expected
        assert isinstance(answer["score"], float)
        assert -1 <= answer["score"] <= 1


def test_two_questions_at_once_are_refused(head: Run, text: Run) -> None:
    two = text(RawInput(b"What is this?\nWhat is that?")).tensors
    with pytest.raises(RequestFailed, match="the question has 2 lines: send one question on one line") as caught:
        head(probabilities(1), two, text(CAPTIONS).tensors, CAPTIONS)
    assert caught.value.code == ErrorCode.BAD_INPUT


def test_values_in_the_wrong_order_or_number_are_failures_of_the_wiring(head: Run, text: Run) -> None:
    embeddings = text(CAPTIONS).tensors
    wrong: list[tuple[Value, ...]] = [
        (),
        (probabilities(1), embeddings),
        (embeddings, probabilities(1), CAPTIONS),
        (probabilities(1), embeddings, RawInput(b"one line where there are three embeddings")),
        (probabilities(1), embeddings, embeddings),
    ]
    for values in wrong:
        with pytest.raises(RequestFailed) as caught:
            head(*values)
        assert caught.value.code == ErrorCode.MODULE_FAILED
        assert caught.value.message.endswith("correct the task's needs")
