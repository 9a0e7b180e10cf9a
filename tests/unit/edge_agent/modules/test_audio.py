"""Sounds that sensors send: what is taken, and one sentence for everything else."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from edge_agent.modules import Value
from edge_agent.modules.inputs import audio
from s2m3.reference.speech import SENTENCES, spoken
from tests.media import wav

RATE_HZ = 16_000


def tone(rate_hz: int, length_s: float = 0.5) -> Array:
    time_s = np.arange(int(rate_hz * length_s)) / rate_hz
    return np.round(10_000 * np.sin(2 * np.pi * 440 * time_s)).astype("<i2")


def read(value: Value) -> Array:
    return audio.samples(value, RATE_HZ, 30.0)


SHORT = wav(tone(RATE_HZ))
FORMAT = SHORT.index(b"fmt ") + 8  # where the format's fields begin
LENGTH = SHORT.index(b"data") + 4


def test_one_channel_at_the_right_rate_is_taken_sample_by_sample() -> None:
    found = read(RawInput(SHORT))
    assert found.dtype == np.float32
    assert (found * 32768 == tone(RATE_HZ)).all()


def test_two_channels_become_their_mean() -> None:
    left, right = tone(RATE_HZ), np.zeros(8000, "<i2")
    both = np.stack([left, right], axis=1)
    assert (read(RawInput(wav(both, channels=2))) * 65536 == left).all()


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_another_rate_is_changed_to_the_wanted_one(rate_hz: int) -> None:
    found = read(RawInput(wav(tone(rate_hz), rate_hz)))
    expected = tone(RATE_HZ) / 32768
    assert found.dtype == np.float32
    assert abs(len(found) - len(expected)) <= 1
    middle = slice(1000, 7000)  # the filter has edges
    assert np.abs(found[middle] - expected[middle]).max() < 0.005


def test_the_longest_sound_is_taken_and_one_sample_more_is_not() -> None:
    longest = np.zeros(480_000, "<i2")
    assert len(read(RawInput(wav(longest)))) == 480_000
    with pytest.raises(RequestFailed, match=r"this sound lasts 30\.0 s, at most 30 s are allowed") as caught:
        read(RawInput(wav(np.zeros(480_001, "<i2"))))
    assert caught.value.code == ErrorCode.BAD_INPUT


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "this is not a wav file that can be read (truncated): send a wav file of 16-bit PCM, mono or stereo"),
        (b"a text, not a sound file", "does not start with RIFF id"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "does not start with RIFF id"),
        (b"RIFF\x10\0\0\0AVI " + bytes(16), "not a WAVE file"),
        (SHORT[:30], "this is not a wav file that can be read"),
        (SHORT[:-100], "truncated, or its header says a wrong length"),
        (SHORT[:LENGTH] + b"\xff\xff\xff\x7f" + SHORT[LENGTH + 4 :], "truncated, or its header says a wrong length"),
        (SHORT[:FORMAT] + struct.pack("<H", 3) + SHORT[FORMAT + 2 :], "unknown format: 3"),  # floats
        (SHORT[:FORMAT] + struct.pack("<H", 65534) + SHORT[FORMAT + 2 :], "unknown"),  # extensible
        (wav(np.zeros(100, np.uint8), width=1), "this wav file has 8 bits a sample: send a wav file of 16-bit PCM"),
        (wav(np.zeros(300, np.uint8), width=3), "this wav file has 24 bits a sample"),
        (wav(np.zeros(600, "<i2"), channels=6), "this wav file has 6 channels"),
        (wav(np.zeros(100, "<i2"), rate_hz=4_000), "has 4000 samples a second: send 8000 to 96000"),
        (wav(np.zeros(100, "<i2"), rate_hz=192_000), "has 192000 samples a second"),
        (wav(np.zeros(0, "<i2")), "this wav file has no samples"),
    ],
)
def test_anything_else_is_bad_input_with_the_reason(data: bytes, sentence: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        read(RawInput(data))
    assert caught.value.code == ErrorCode.BAD_INPUT
    assert sentence in str(caught.value)


def test_an_array_instead_of_a_sound_is_the_tasks_mistake() -> None:
    with pytest.raises(RequestFailed, match="needs a sound and was given hidden") as caught:
        read({"hidden": np.zeros((1, 2), np.float32)})
    assert caught.value.code == ErrorCode.MODULE_FAILED


@given(st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_never_makes_another_error_escape(at: int, damage: bytes) -> None:
    damaged = SHORT[:at] + damage + SHORT[at + len(damage) :]
    try:
        found = read(RawInput(damaged))
    except RequestFailed as failed:
        assert failed.code == ErrorCode.BAD_INPUT  # noqa: PT017 - both outcomes are fine, nothing else is
    else:
        assert np.isfinite(found).all()


@pytest.mark.parametrize("name", SENTENCES)
def test_the_spoken_sentences_are_small_files_of_the_right_kind(name: str) -> None:
    raw = spoken(name)
    assert raw.content_type == "audio/wav"
    assert len(raw.data) < 100_000
    assert 1 < len(read(raw)) / RATE_HZ < 4
    with wave.open(io.BytesIO(raw.data)) as file:
        assert file.getparams()[:3] == (1, 2, RATE_HZ)


def test_a_sentence_that_nobody_spoke_is_unknown() -> None:
    with pytest.raises(KeyError):
        spoken("../pocket/pump")
