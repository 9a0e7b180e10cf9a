"""CTranslate2's weights file, and Whisper's halves of it: what is read, written, and refused."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from edge_agent.modules import load
from edge_agent.modules.families import whisper_ctranslate2
from edge_agent.modules.weights import ctranslate2_file, packaged
from edge_agent.modules.weights.ctranslate2_file import ModelFile, Variable, parse
from s2m3.catalogue import load_task
from s2m3.reference.speech import spoken
from tests.builders import runs

SPEECH = load_task("pocket/speech").modules
SMALL = ModelFile(
    "WhisperSpec",
    3,
    {
        "a/weight": Variable((2, 3), "float16", np.arange(6, dtype="<f2").tobytes()),
        "a/heads": Variable((), "int16", np.array(6, "<i2").tobytes()),
        "a/odd": Variable((1,), "bfloat16", b"\x80\x3f"),
    },
    {"b/weight": "a/weight"},
)


def written(file: ModelFile) -> bytes:
    return b"".join(ctranslate2_file.chunks(file))


@pytest.fixture(scope="module")
def published() -> ModelFile:
    source = SPEECH["whisper-tiny.en/encoder"].source
    assert source
    return whisper_ctranslate2.read_file(packaged.path_of(source))


def test_a_file_is_read_as_it_was_written() -> None:
    again = parse(written(SMALL), "model.bin")
    assert again == SMALL
    assert again.variables["a/weight"].array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert again.variables["a/heads"].array == 6
    assert ctranslate2_file.size_bytes(again.variables.values(), 4) == 28


def test_the_published_file_is_written_byte_by_byte_as_it_was(published: ModelFile) -> None:
    source = SPEECH["whisper-tiny.en/encoder"].source
    assert source
    assert written(published) == packaged.path_of(source).read_bytes()


@given(st.integers(0, len(written(SMALL)) - 1))
def test_every_prefix_is_refused(length: int) -> None:
    with pytest.raises(ModuleRefused, match="truncated or damaged"):
        parse(written(SMALL)[:length], "model.bin")


@given(st.integers(0, len(written(SMALL)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_but_nothing_else(at: int, value: int) -> None:
    content = bytearray(written(SMALL))
    content[at] = value
    try:
        assert parse(bytes(content), "model.bin").variables
    except ModuleRefused as refused:
        assert "model.bin" in str(refused)  # noqa: PT017 - both outcomes are fine, nothing else is


def test_what_follows_or_another_version_is_refused() -> None:
    with pytest.raises(ModuleRefused, match=r"model\.bin is truncated or damaged: install it again"):
        parse(written(SMALL) + b"\0", "model.bin")
    with pytest.raises(ModuleRefused, match="not a CTranslate2 file of version 6"):
        parse(b"\x07" + written(SMALL)[1:], "model.bin")


def test_a_half_keeps_its_own_weights_and_next_to_nothing_of_the_other(published: ModelFile) -> None:
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        half = whisper_ctranslate2.reduced(published, part)
        for name in whisper_ctranslate2.shapes(part):
            assert half.variables[name] == published.variables[name]
        foreign = [variable for name, variable in half.variables.items() if name.startswith(f"{other}/")]
        assert ctranslate2_file.size_bytes(foreign, 4) < 4096


def test_the_digest_makes_one_array_at_a_time(published: ModelFile) -> None:
    spec = SPEECH["whisper-tiny.en/encoder"]
    held = {name: published.variables[name] for name in whisper_ctranslate2.shapes("encoder")}
    tracemalloc.start()
    digest = whisper_ctranslate2._digest(held, Path(), "encoder")
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert digest == spec.digest
    assert most_bytes < spec.memory_bytes / 4


Change = Callable[[ModelFile], ModelFile]


def without(name: str) -> Change:
    return lambda file: replace(file, variables={n: v for n, v in file.variables.items() if n != name})


def having(name: str, variable: Variable) -> Change:
    return lambda file: replace(file, variables={**file.variables, name: variable})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("encoder/layer_3/ffn/linear_1/bias"), "lacks encoder/layer_3/ffn/linear_1/bias"),
        (without("decoder/layer_2/attention/linear_0/weight"), "lacks decoder/layer_2/attention/linear_0/weight"),
        (having("encoder/layer_4/ffn/linear_0/bias", Variable((1,), "float16", bytes(2))), "besides"),
        (having("encoder/conv1/bias", Variable((383,), "float16", bytes(766))), "float16 (383,), whisper_ctranslate2"),
        (having("encoder/conv1/bias", Variable((384,), "float32", bytes(1536))), "is float32 (384,)"),
        (lambda file: replace(file, aliases={}), "doesn't share its embeddings"),
    ],
)
def test_a_file_that_is_not_this_network_is_refused_by_name(
    published: ModelFile, change: Change, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper_ctranslate2, "read_file", lambda _: change(published))
    with pytest.raises(ModuleRefused) as caught:
        load(SPEECH["whisper-tiny.en/encoder"])
    assert sentence in str(caught.value)
    assert "model.bin" in str(caught.value)


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"dtype": "float16"}, "computes in float32, not float16: set dtype to float32"),
        ({"memory_bytes": 1000}, "have 31.3 MiB and the spec says 1,000 bytes: correct memory_bytes to 32839680,"),
        ({"source": SPEECH["whisper-tiny.en/decoder"].source}, "takes its weights from a source with part: encoder"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(update: dict[str, object], sentence: str) -> None:
    with pytest.raises(ModuleRefused, match=sentence):
        load(SPEECH["whisper-tiny.en/encoder"].model_copy(update=update))


def test_no_room_for_the_temporary_file_is_told_with_the_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ctranslate2_file, "chunks", full)
    with pytest.raises(ModuleRefused, match=r"can't be written to .* \(No space left on device\): free some room"):
        load(SPEECH["whisper-tiny.en/encoder"])
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_library_dislikes_is_refused(monkeypatch: pytest.MonkeyPatch, published: ModelFile) -> None:
    monkeypatch.setattr(whisper_ctranslate2, "reduced", lambda *_: replace(published, kind="NobodysSpec"))
    with pytest.raises(ModuleRefused, match=r"CTranslate2 [0-9.]+ can't load the encoder: "):
        load(SPEECH["whisper-tiny.en/encoder"])


def test_an_empty_or_absent_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    for path in (tmp_path / "model.bin", tmp_path / "nobody.bin"):
        with pytest.raises(ModuleRefused, match="can't be read as weights"):
            whisper_ctranslate2.read_file(path)


def test_nothing_stays_in_the_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    encoder = runs(load(SPEECH["whisper-tiny.en/encoder"]))
    assert not list(tmp_path.iterdir())
    assert encoder(spoken("pump")).tensors["hidden"].shape == (1, 1500, 384)


def test_the_decoder_refuses_what_is_no_encoders_output() -> None:
    decoder = runs(load(SPEECH["whisper-tiny.en/decoder"]))
    nan = np.full((1, 1500, 384), np.nan, np.float32)
    for wrong in ({"hidden": np.zeros((1, 100, 384), np.float32)}, {"hidden": nan}, spoken("pump")):
        with pytest.raises(RequestFailed, match="this module needs hidden") as caught:
            decoder(wrong)
        assert caught.value.code == ErrorCode.MODULE_FAILED
