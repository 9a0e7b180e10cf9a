"""Whatever part of an input isn't used, a note says so: from the step that cuts it to the sensor's answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import SiglipTokenizer

from broker.protocol.codec import RawInput, decode_result, encode_result
from broker.protocol.messages import MAX_NOTE_CHARACTERS, MAX_NOTES, Result, Timing
from broker.protocol.preparation import SoundPreparation, TextPreparation
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Output, Pass, Prepared
from edge_agent.modules.inputs import prepare, spectrogram, steps
from edge_agent.modules.inputs.notes import gathered, note
from edge_agent.modules.inputs.tokens import FastTokens
from edge_agent.runtime.output_cache import OutputCache
from edge_agent.runtime.runner import Runner
from s2m3.reference import tokenizers

WORDS = ["[CLS]", "[SEP]", "[PAD]", "a", "cat", "by", "the", "sea"]


def said(number: int, longest: int, count: int, shown: str) -> str:
    return f"text {number} has more than the {longest} tokens that are read: {count} characters are cut, {shown}"


CUT = said(2, 5, 7, "'the sea'")


def texts(longest: int = 5, direction: str = "right", *, joined: bool = False) -> steps.Texts:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[PAD]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    tokenizer.enable_truncation(longest, direction=direction)
    how = TextPreparation(longest=longest, joined=joined)
    return steps.Texts.tokenized(how, FastTokens(tokenizer, how, "[PAD]"))


def notes_of(need: steps.Need, text: str) -> list[str]:
    with gathered() as found:
        need.read(RawInput(text.encode()))
    return found


@pytest.mark.parametrize(
    ("need", "text", "notes"),
    [
        (texts(), "a cat\na cat by  the sea\na cat by", [CUT]),
        (texts(6), "a cat by the", []),
        (texts(5, "left"), "a cat by the sea", [said(1, 5, 5, "'a cat'")]),
        (texts(4, joined=True), "a cat\nby", [said(1, 4, 2, "'by'")]),
        (texts(3), "cat " * 20, [said(1, 3, 75, f"'{'cat ' * 10}...'")]),
    ],
)
def test_a_cut_text_is_named_with_what_is_cut(need: steps.Need, text: str, notes: list[str]) -> None:
    assert notes_of(need, text) == notes


def test_a_cut_text_of_siglip_is_named_with_what_is_cut(tmp_path: Path) -> None:
    tokenizers.siglip(tmp_path, {"text_config": {"vocab_size": 600, "max_position_embeddings": 64}})
    need = prepare.texts(SiglipTokenizer.from_pretrained(tmp_path), 8)
    assert isinstance(need, steps.Texts)
    assert notes_of(need, "a") == []
    (found,) = notes_of(need, "a\n" + "zebra quagga okapi " * 3)
    assert found.startswith("text 2 has more than the 8 tokens that are read: ")
    assert found.endswith("...'")


def test_a_tokenizer_with_rules_of_its_own_says_that_it_cuts(tmp_path: Path) -> None:
    tokenizers.siglip(tmp_path, {"text_config": {"vocab_size": 600, "max_position_embeddings": 64}})
    need = prepare.TokenizedTexts(SiglipTokenizer.from_pretrained(tmp_path), TextPreparation(longest=8))
    assert notes_of(need, "a") == []
    found = notes_of(need, "a\n" + "zebra quagga okapi " * 3)
    assert found == ["text 2 has more than the 8 tokens that are read: the rest is cut"]


def test_a_cut_sound_is_named_with_its_seconds() -> None:
    how = SoundPreparation(rate_hz=16_000, samples=16_000, window=400, hop=160, bands=8, highest_hz=8000.0)
    frames = how.model_copy(update={"samples": None, "frames": 100})
    for cutting in (how, frames):
        with gathered() as found:
            spectrogram.features(np.zeros(15_000, np.float32), cutting)
        assert found == []
        with gathered() as found:
            spectrogram.features(np.zeros(40_240, np.float32), cutting)
        assert found == ["the sound lasts 2.5 s, and its first 1.0 s are used: the rest is cut"]


def test_a_sound_that_is_filled_to_a_length_is_not_cut() -> None:
    """Whisper's 30 seconds have 3,000 frames, and one more around the last sample."""
    how = SoundPreparation(rate_hz=16_000, samples=16_000, window=400, hop=160, frames=100, bands=8, highest_hz=8000.0)
    for samples in (1, 8_000, 16_000):
        with gathered() as found:
            spectrogram.features(np.zeros(samples, np.float32), how)
        assert found == []


def test_notes_are_few_and_short_and_go_nowhere_outside() -> None:
    note("to nobody")
    with gathered() as found:
        for _ in range(MAX_NOTES + 5):
            note("x" * 1000)
        with gathered() as inner:
            note("inside")
    assert inner == ["inside"]
    assert found == ["x" * MAX_NOTE_CHARACTERS] * MAX_NOTES


class Steps:
    def prepare(self, values: object) -> Prepared:
        assert isinstance(values, list)
        (value,) = values
        if value.data == b"long":
            note("it is cut")
        return Prepared({"x": np.ones((1, 2), np.float32)})

    def answer(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        return Output(dict(arrays), {"label": "a"})

    def sample(self) -> None:
        return None


def test_a_note_goes_with_the_output_of_its_own_request_and_stays_with_it_in_the_cache() -> None:
    module = Module("network", {None: Pass(Steps(), lambda _, x: {"x": x}, batched=True)})
    assert Runner().run(module, [RawInput(b"long")]).notes == ("it is cut",)
    many = [[RawInput(b"short")], [RawInput(b"long")]]
    ended = {each.index: each.result for batch in Runner(batch=2).run_all(module, many) for each in batch}
    assert [isinstance(ended[index], Output) and ended[index].notes for index in (0, 1)] == [(), ("it is cut",)]  # type: ignore[union-attr]
    cache = OutputCache(1_000_000)
    work = cache.work_of("k", None, many[1])
    cache.keep(work, ended[1])  # type: ignore[arg-type]
    kept = cache.find(work)
    assert kept is not None
    assert (kept.notes, kept.answer) == (("it is cut",), {"label": "a"})


def test_a_note_stands_in_the_timings_of_the_answer() -> None:
    timing = Timing(node="text-encoder", device="gw-a", queue_s=0, compute_s=0, output_bytes=1, attempt=0, notes=(CUT,))
    silent = timing.model_copy(update={"notes": ()})
    result = Result(
        request="a" * 32,
        task="t",
        epoch=1,
        generation=1,
        coordinator="gw-a",
        answer={"label": "a"},
        timings=(timing, silent),
    )
    payload, content_type = encode_result(result, None)
    assert payload.count(b'"notes"') == 1, "only where there are some"
    assert decode_result(payload, content_type)[0].timings == (timing, silent)
