"""Steps as values: they give the bits of transformers' processors, and are made again from their description."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    BertTokenizer,
    BlipImageProcessorPil,
    ClapFeatureExtractor,
    CLIPImageProcessorPil,
    CLIPTokenizer,
    EfficientNetImageProcessorPil,
    RobertaTokenizer,
    SiglipImageProcessorPil,
    SiglipTokenizer,
    ViltImageProcessorPil,
    ViTImageProcessorPil,
    WhisperFeatureExtractor,
)
from transformers.image_processing_backends import PilBackend

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused
from broker.protocol.preparation import PicturePreparation, SoundPreparation, TextPreparation
from edge_agent.modules import RequestSteps
from edge_agent.modules.families import audio_spectrogram, clap, clip, conse, efficientnet, whisper_ctranslate2
from edge_agent.modules.inputs import decoding, prepare, spectrogram, steps, tokens
from edge_agent.modules.inputs.answers import Likeliest, Masks, Ranked
from edge_agent.modules.inputs.pixels import pixels
from s2m3.reference import tokenizers
from s2m3.reference.pictures import names, picture
from tests.described import made_again

PICTURES: tuple[PilBackend, ...] = (
    CLIPImageProcessorPil(),
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 37, "width": 41}),
    CLIPImageProcessorPil(do_resize=False),
    CLIPImageProcessorPil(do_center_crop=False, do_normalize=False),
    ViTImageProcessorPil(do_rescale=False, image_mean=[1.0, 2.0, 3.0], image_std=0.25),
    ViTImageProcessorPil(resample=0, size={"height": 40, "width": 55}),
    SiglipImageProcessorPil(),
    BlipImageProcessorPil(),
)
SIZES = ((640, 480), (37, 23), (23, 37), (1, 1), (100, 1600), (223, 225), (224, 224))
SENTENCES = (
    "a photo of a cat",
    "  The CAT, naïvely; it's 42!  ",
    "猫が好き。 кошка на коврике",
    "قطة 🐈‍⬛ on\ta\u3000mat",
    "İstanbul ǅ ﬁne e\u0301 \x1c x",
    "</s> a cat </s></s>",
    "a<unk>cat <unk> the dog</s>",
    "<|endoftext|> cat [SEP] <pad>",
    "▁a▁▁cat ▁",
    "...",
    "cup of coffee in the picture " * 30,
)


def noisy(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rules(processor: PilBackend) -> PicturePreparation:
    found = prepare.picture_preparation(processor)
    assert found is not None
    return found


@pytest.mark.parametrize("processor", PICTURES, ids=lambda processor: type(processor).__name__)
def test_the_pixels_of_any_picture_are_those_of_transformers(processor: PilBackend) -> None:
    for size in SIZES:
        expected = processor(images=noisy(size), return_tensors="np")["pixel_values"]
        found = pixels(noisy(size), rules(processor))
        assert found.dtype == np.float32
        assert np.array_equal(found, np.asarray(expected, dtype=np.float32)), size


def test_the_pixels_of_the_photographs_are_those_of_transformers() -> None:
    for name in names():
        photograph = picture(name)
        for processor in (CLIPImageProcessorPil(), ViTImageProcessorPil()):
            (found,) = steps.Picture(preparation=rules(processor)).read(photograph.raw).values()
            expected = processor(images=decoding.picture(photograph.raw), return_tensors="np")["pixel_values"]
            assert np.array_equal(found, expected), name


@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_of_the_first_part_of_a_picture_are_those_of_its_crop(size: tuple[int, int]) -> None:
    side = max(1, int(min(size) * 0.875))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = noisy(size).crop((left, top, left + side, top + side)).resize((224, 224))
    expected = (np.asarray(square, dtype=np.float32).transpose(2, 0, 1)[None] - 127) / 128
    assert np.array_equal(pixels(noisy(size), efficientnet.PREPARATION), expected)


def test_what_clipseg_sees_is_prepared_as_transformers_does() -> None:
    processor = ViTImageProcessorPil(
        size={"height": 352, "width": 352},
        resample=2,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    assert rules(processor) == clip.CLIPSEG_PICTURES


@pytest.mark.parametrize(
    "processor",
    [
        EfficientNetImageProcessorPil(),
        ViltImageProcessorPil(),
        CLIPImageProcessorPil(do_pad=True),
        CLIPImageProcessorPil(size={"shortest_edge": 30, "longest_edge": 90}),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_an_image_processor_with_rules_of_its_own_is_run_itself_and_cannot_be_described(processor: PilBackend) -> None:
    need = prepare.picture(processor)
    assert isinstance(need, prepare.ProcessedPicture)
    with pytest.raises(ModuleRefused, match="can't be described: ProcessedPicture of"):
        steps.described(steps.Steps((need,)))


def config(**text: int) -> dict[str, Any]:
    return {"text_config": {"vocab_size": 600, "max_position_embeddings": 77, **text}, "vocab_size": 600}


TOKENIZERS: dict[str, tuple[Any, Callable[[Path, dict[str, Any]], None]]] = {
    "bert": (BertTokenizer, tokenizers.bert),
    "clip": (CLIPTokenizer, tokenizers.clip),
    "roberta": (RobertaTokenizer, tokenizers.roberta),
    "siglip": (SiglipTokenizer, tokenizers.siglip),
}


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def tokenizer(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    kind, write = TOKENIZERS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    write(directory, config())
    return lambda: kind.from_pretrained(directory)


@pytest.mark.filterwarnings("ignore:This sequence already has")  # SigLIP's tokenizer, of a text that ends so
@pytest.mark.parametrize(("longest", "padded"), [(77, False), (7, False), (64, True)])
def test_the_tokens_of_texts_in_any_script_are_those_of_transformers(
    tokenizer: Callable[[], Any],
    longest: int,
    padded: bool,  # noqa: FBT001 - a parameter
    tmp_path: Path,
) -> None:
    theirs, need = tokenizer(), prepare.texts(tokenizer(), longest, padded=padded)
    assert isinstance(need, steps.Texts)
    made = steps.Steps((need,))
    again = made_again(made, tmp_path)
    for text in (*SENTENCES, "\n".join(SENTENCES)):
        lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
        expected = theirs(
            lines,
            padding="max_length" if padded else True,
            truncation=True,
            max_length=longest,
            return_attention_mask=True,
            return_tensors="np",
        )
        for each in (made, again):
            found = each.prepare([RawInput(text.encode())]).arrays
            assert found["ids"].dtype == found["mask"].dtype == np.int64
            assert np.array_equal(found["ids"], expected["input_ids"]), text
            assert np.array_equal(found["mask"], expected["attention_mask"]), text


def test_a_question_of_several_lines_is_one_text(tokenizer: Callable[[], Any]) -> None:
    need = prepare.texts(tokenizer(), 20, joined=True)
    one, several = (need.read(RawInput(text)) for text in (b"a cat of the cup", b"a cat\nof the cup"))
    assert np.array_equal(one["ids"], several["ids"])
    assert one["ids"].shape[0] == 1


def test_a_tokenizer_with_rules_of_its_own_is_run_itself(tmp_path: Path) -> None:
    tokenizers.siglip(tmp_path, config())
    for changed in ({"do_lower_case": False}, {"additional_special_tokens": ["<here>"]}, {"padding_side": "left"}):
        need = prepare.texts(SiglipTokenizer.from_pretrained(tmp_path, **changed), 16)
        assert isinstance(need, prepare.TokenizedTexts)
    tokenizers.clip(tmp_path, config())
    left = prepare.texts(CLIPTokenizer.from_pretrained(tmp_path, padding_side="left"), 16)
    assert isinstance(left, steps.Texts)
    assert left.read(RawInput(b"cat\na cat of the cup"))["mask"][0, 0] == 0


def sounds(rate_hz: int, longest: int) -> Iterator[NDArray[np.float32]]:
    numbers = np.random.default_rng(5)
    for length in (400, 12_345, rate_hz, longest // 2, longest // 2 + 1, longest):
        yield numbers.normal(0, 0.1, length).astype(np.float32)
    yield np.zeros(longest // 3, np.float32)
    yield np.sin(np.arange(2 * rate_hz) / 20).astype(np.float32)


@pytest.mark.parametrize("fill", ["repeatpad", "repeat", "pad"])
def test_the_features_of_clap_are_those_of_transformers(fill: str) -> None:
    theirs = ClapFeatureExtractor(truncation="rand_trunc", padding=fill, max_length_s=2, frequency_min=50)
    how = clap.preparation(theirs)
    for samples in sounds(48_000, 96_000):
        expected = theirs(samples, sampling_rate=48_000, return_tensors="np")["input_features"]
        assert np.array_equal(spectrogram.features(samples, how), np.asarray(expected, np.float32))
    longer = np.random.default_rng(1).normal(0, 0.1, 100_000).astype(np.float32)
    assert np.array_equal(spectrogram.features(longer, how), spectrogram.features(longer[:96_000], how))


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # of AST's 128, as published
@pytest.mark.parametrize("normal", [True, False])
def test_the_features_of_ast_are_those_of_transformers(normal: bool) -> None:  # noqa: FBT001 - a parameter
    theirs = ASTFeatureExtractor(do_normalize=normal, max_length=300)  # type: ignore[no-untyped-call]
    for samples in sounds(16_000, 80_000):
        expected = theirs(samples, sampling_rate=16_000, return_tensors="np")["input_values"]
        found = spectrogram.features(samples, audio_spectrogram.preparation(theirs))
        assert np.array_equal(found, np.asarray(expected, np.float32))


def test_the_features_of_whisper_are_those_of_transformers_in_numpy_and_near_those_in_torch() -> None:
    theirs = WhisperFeatureExtractor()  # type: ignore[no-untyped-call]
    for samples in sounds(16_000, 480_000):
        found = spectrogram.features(samples, whisper_ctranslate2.PREPARATION)
        padded = np.pad(samples, (0, 480_000 - len(samples)))[None]
        assert np.array_equal(found, theirs._np_extract_fbank_features(padded, "cpu").astype(np.float32))
        in_torch = theirs(samples, sampling_rate=16_000, return_tensors="np")["input_features"]
        assert np.abs(found - in_torch).max() < 1e-4  # of numbers from -1 to 2; a pure tone differs most


SOUND = SoundPreparation(rate_hz=16_000, samples=16_000, window=400, hop=160, bands=8, highest_hz=8000.0)
VALUES: dict[str, RequestSteps] = {
    "a picture": steps.Steps((steps.Picture(preparation=efficientnet.PREPARATION),)),
    "a sound and arrays": steps.Steps(
        (steps.Sound(preparation=SOUND), steps.Arrays(shapes={"pooled": (1, 3)}, names={"pooled": "image"})),
        Likeliest(what="answer", labels=("ja", "nein"), most=1),
    ),
    "ranking": conse.STEPS,
    "masks": steps.Ranking(needs=(steps.Arrays(shapes={"a": (1, 2, 3)}, free=True),), width=2, most=16, result=Masks()),
    "similarity": steps.Ranking(
        needs=(steps.Arrays(shapes={"a": (1, 2)}),), width=2, sampled=1, result=Ranked(also=("similarity",))
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_steps_are_made_again_from_their_description(name: str, tmp_path: Path) -> None:
    made = VALUES[name]
    text = json.dumps(steps.described(made))
    again = steps.from_description(json.loads(text), tmp_path)
    assert again == made
    assert json.dumps(steps.described(again)) == text
    ours, theirs = made.sample(), again.sample()
    assert ours is not None
    assert theirs is not None
    first, second = (each.prepare(values).arrays for each, values in ((made, ours), (again, theirs)))
    assert {name: array.tobytes() for name, array in first.items()} == {n: a.tobytes() for n, a in second.items()}


def refusal(content: object, directory: Path) -> str:
    with pytest.raises(ModuleRefused) as refused:
        steps.from_description(content, directory)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def with_need(**fields: object) -> dict[str, object]:
    return {"kind": "steps", "needs": [fields], "answer": {"kind": "as it is"}}


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (3, ""),
        ({}, ""),
        ({"kind": "steps"}, "needs"),
        (with_need(kind="picture", preparation={"size": [0, 5]}), "size"),
        (with_need(kind="picture", preparation={"size": [5, 5], "shorter": 5}), "one of shorter and size"),
        (with_need(kind="picture", preparation={"std": [0, 1, 1]}), "std"),
        (with_need(kind="arrays", shapes={"a": [2**26, 2]}), "at most 67108864 are allowed"),
        (with_need(kind="texts", preparation={"longest": 4, "tokenizer": "../secret"}), "tokenizer"),
        (with_need(kind="sound", preparation=SOUND.model_dump() | {"fft": 3}), "must be at least the window, 400"),
        (with_need(kind="sound", preparation=SOUND.model_dump() | {"highest_hz": 9000}), "at most 8000"),
        (with_need(kind="sound", preparation=SOUND.model_dump() | {"samples": None}), "at least the window"),
        (with_need(kind="sound", preparation=SOUND.model_dump() | {"samples": 480_000, "hop": 1}), "a larger hop"),
        (with_need(kind="sound", preparation=SOUND.model_dump() | {"fft": 65_536, "bands": 1024}), "a shorter fft"),
        (with_need(kind="sound", preparation=SOUND.model_dump() | {"samples": 2**25, "hop": 65_536}), "fewer seconds"),
    ],
)
def test_a_wrong_description_is_refused_by_the_name_of_its_field(content: object, field: str, tmp_path: Path) -> None:
    assert field in refusal(content, tmp_path)


def test_a_wrong_tokenizer_is_refused_with_its_file_and_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, object] = {"longest": 4}
    assert "put the model's tokenizer there" in refusal(with_need(kind="texts", preparation=how), tmp_path)
    tokenizers.bert(tmp_path, config())
    path = tmp_path / "tokenizer.json"
    path.write_text(BertTokenizer.from_pretrained(tmp_path).backend_tokenizer.to_str(), encoding="utf-8")
    other = with_need(kind="texts", preparation=how | {"pad": "<none>"})
    assert f"{path}: it has no token <none> to pad texts: write pad:" in refusal(other, tmp_path)
    tokens.read(tmp_path, TextPreparation(longest=4, pad="[SEP]"))
    path.write_text("{}", encoding="utf-8")
    assert f"{path} makes no tokenizer" in refusal(with_need(kind="texts", preparation=how), tmp_path)
    model = with_need(kind="texts", preparation=how | {"tokenizer": "spiece.model"})
    (tmp_path / "spiece.model").write_bytes(b"nothing")
    assert "spiece.model makes no tokenizer" in refusal(model, tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "need the Python package sentencepiece, which is missing: pip install" in refusal(model, tmp_path)


def test_steps_import_neither_torch_nor_transformers_nor_what_they_do_not_use() -> None:
    code = (
        "import sys; import edge_agent.modules.inputs.steps; "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'sentencepiece', 'scipy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"
