"""Captioners, answerers and transcribers: published counts, matrices stored twice, tokens that no vocabulary has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from broker.protocol.errors import ModuleRefused
from edge_agent import modules
from s2m3.catalogue import load_task
from s2m3.reference import random_weights, zoo

POOLER = 768 * 768 + 768  # of ViT-GPT2's encoder, which nothing uses
WORDS = "decoder.transformer.wte.weight"
TINY_CAPTIONER: dict[str, Any] = {
    "encoder": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
    "decoder": {"vocab_size": 600, "n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 32},
}
TINY_WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 1,
    "encoder_ffn_dim": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 16,
}


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("captioning-vit-gpt2", POOLER),
        ("captioning-blip", 0),
        ("encoder-vqa-blip", 0),
        ("encoder-vqa-vilt", 0),
        ("speech-whisper-tiny", 0),
        ("speech-whisper-base", 0),
    ],
)
def test_the_parts_of_a_model_have_all_parameters_of_the_whole_and_none_twice(name: str, unused: int) -> None:
    found = zoo.inventory(f"hub/{name}")
    source = next(iter(load_task(f"hub/{name}").modules.values())).source
    assert source is not None
    assert source.hub is not None
    assert sum(module["parameters"] for module in found["modules"]) == (
        (zoo.published(source.hub).parameters or 0) - unused
    )


def store_twice(directory: Path, change: float) -> None:
    """Store the captioner's matrix of words as its output layer too, as old checkpoints do."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["decoder.lm_head.weight"] = tensors[WORDS] + change
    save_file(tensors, path)


def test_a_matrix_that_is_stored_twice_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = "nlpconnect/vit-gpt2-image-captioning"
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path))
    written = random_weights.write(zoo.published(repository), tmp_path, changes={"config.json": TINY_CAPTIONER})
    spec = load_task("hub/captioning-vit-gpt2").modules["vit-gpt2/decoder"]
    store_twice(written, 0)
    network = modules.load(spec).network
    assert network.lm_head.weight.data_ptr() == network.transformer.wte.weight.data_ptr()
    store_twice(written, 1)
    with pytest.raises(ModuleRefused, match=r"has decoder.lm_head.weight and .*wte.weight, which differ.*: remove"):
        modules.load(spec)


def test_tokens_beyond_the_vocabulary_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path))
    written = random_weights.write(
        zoo.published("openai/whisper-tiny"), tmp_path, changes={"config.json": TINY_WHISPER}
    )
    spec = load_task("hub/speech-whisper-tiny").modules["whisper-tiny/decoder"]
    modules.load(spec)
    path = written / "generation_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(fields | {"suppress_tokens": [60000]}), encoding="utf-8")
    with pytest.raises(ModuleRefused, match=r"generation_config.json names the token 60000, .* 51865 tokens"):
        modules.load(spec)
    del fields["decoder_start_token_id"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ModuleRefused, match=r"doesn't say which tokens start and end .*decoder_start_token_id"):
        modules.load(spec)
