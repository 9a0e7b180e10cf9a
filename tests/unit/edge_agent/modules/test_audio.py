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


# --- how samples are written ---

WIDE = (np.random.default_rng(0).uniform(-0.9, 0.9, 4000) * 2**23).astype("<i4")  # whole numbers of 24 bits


def described(
    tag: int, bits: int, samples: bytes, *, channels: int = 1, rate_hz: int = RATE_HZ, more: bytes = b""
) -> bytes:
    """A wav file with a format of any kind, written by hand."""
    frame = channels * -(-bits // 8)
    fields = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame, frame, bits) + more
    body = b"WAVE" + chunk(b"fmt ", fields) + chunk(b"data", samples)
    return chunk(b"RIFF", body)


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if length is None else length) + content


def extensible(tag: int, bits: int, valid: int | None = None) -> bytes:
    """The fields that an extensible format has behind the ordinary one."""
    guid = struct.pack("<H", tag) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    return struct.pack("<HHI", 22, valid or bits, 4) + guid


def triples(numbers: Array) -> bytes:
    return numbers.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


@pytest.mark.parametrize("is_extensible", [False, True])
@pytest.mark.parametrize(
    ("tag", "bits", "samples", "expected"),
    [
        (1, 8, ((WIDE >> 16) + 128).astype(np.uint8).tobytes(), (WIDE >> 16) / 2**7),
        (1, 16, (WIDE >> 8).astype("<i2").tobytes(), (WIDE >> 8) / 2**15),
        (1, 24, triples(WIDE), WIDE / 2**23),
        (1, 32, (WIDE << 8).astype("<i4").tobytes(), WIDE / 2**23),
        (3, 32, (WIDE / 2**23).astype("<f4").tobytes(), WIDE / 2**23),
        (3, 64, (WIDE / 2**23).astype("<f8").tobytes(), WIDE / 2**23),
    ],
)
def test_samples_of_any_width_are_read_to_the_last_bit(
    tag: int,
    bits: int,
    samples: bytes,
    expected: Array,
    is_extensible: bool,  # noqa: FBT001
) -> None:
    data = (
        described(0xFFFE, bits, samples, more=extensible(tag, bits)) if is_extensible else described(tag, bits, samples)
    )
    assert (read(RawInput(data)) == expected).all()


def test_24_bits_in_the_upper_bytes_of_32_are_read() -> None:
    data = bytearray(described(0xFFFE, 32, (WIDE << 8).astype("<i4").tobytes(), more=extensible(1, 32, 24)))
    data[34:36] = struct.pack("<H", 24)  # the bits of a sample; its frame has four bytes
    assert (read(RawInput(bytes(data))) == WIDE / 2**23).all()


@pytest.mark.parametrize("channels", [2, 3, 6, 8])
def test_several_channels_become_their_mean(channels: int) -> None:
    drawn = np.random.default_rng(1).integers(-9999, 9999, (500, channels)).astype("<i2")
    found = read(RawInput(wav(drawn, channels=channels)))
    assert np.abs(found - drawn.mean(axis=1) / 32768).max() < 1e-7


def test_floats_beyond_full_scale_are_kept_and_those_that_are_no_sound_are_refused() -> None:
    loud = np.array([0.5, 1.5, -1.25] * 200, "<f4")
    assert (read(RawInput(described(3, 32, loud.tobytes()))) == loud).all()
    for wrong in (np.nan, np.inf, 1e30):
        with pytest.raises(RequestFailed, match="samples that are no finite numbers, or far beyond 1") as caught:
            read(RawInput(described(3, 64, np.array([0.5, wrong]).tobytes())))
        assert caught.value.code == ErrorCode.BAD_INPUT


# --- lengths and chunks ---


@pytest.mark.parametrize("length", [0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 2_000_000_000, 0xFFFFFFD3, 0xFFFFFFFF])
def test_the_samples_that_are_there_count_where_the_length_is_a_placeholder(length: int) -> None:
    streamed = SHORT[:LENGTH] + struct.pack("<I", length) + SHORT[LENGTH + 4 :]
    assert (read(RawInput(streamed)) * 32768 == tone(RATE_HZ)).all()
    assert (read(RawInput(streamed[:-1])) * 32768 == tone(RATE_HZ)[:-1]).all(), "a half sample at the end is left out"
    whole = b"RIFF" + struct.pack("<I", length) + streamed[8:]
    assert (read(RawInput(whole)) * 32768 == tone(RATE_HZ)).all()


def test_an_rf64_file_has_its_length_in_a_chunk_of_its_own() -> None:
    sizes = struct.pack("<QQQI", 0, len(SHORT) - LENGTH - 4, 8000, 0)
    data = b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", sizes) + SHORT[12:LENGTH] + b"\xff" * 4 + SHORT[LENGTH + 4 :]
    assert (read(RawInput(data + chunk(b"LIST", b"behind the samples"))) * 32768 == tone(RATE_HZ)).all()


@pytest.mark.parametrize("padded", [True, False])
def test_chunks_of_odd_length_before_the_samples_and_any_behind_them_are_passed_over(padded: bool) -> None:  # noqa: FBT001
    odd = chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf\0") + b"\0" * padded
    data = SHORT[:12] + odd + SHORT[12:36] + odd + SHORT[36:] + chunk(b"id3 ", b"cut", 999)
    assert (read(RawInput(data)) * 32768 == tone(RATE_HZ)).all()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is of an unknown format): send a wav file of PCM or float samples"),
        (b"a text, not a sound file", "it is of an unknown format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "it is a PNG picture"),
        (b"RIFF\x10\0\0\0AVI " + bytes(16), "it is an AVI video"),
        (b"ID3\4\0" + bytes(100), "it is an MP3 sound"),
        (b"\xff\xfb\x90\x64" + bytes(100), "it is an MP3 sound"),
        (b"\xff\xf1\x50\x80" + bytes(100), "it is an AAC sound"),
        (b"fLaC\0\0\0\x22" + bytes(100), "it is a FLAC sound"),
        (b"OggS\0\2" + bytes(22) + b"\1\x13OpusHead", "it is an Ogg sound"),
        (b"\0\0\0\x20ftypM4A \0\0\2\0M4A mp42isom\0\0\0\0", "it is an M4A sound"),
        (b"FORM\0\0\1\0AIFFCOMM" + bytes(100), "it is an AIFF sound"),
        (b"RIFX" + SHORT[4:], "it is a big-endian wav file"),
        (SHORT[:30], "it is truncated: it ends before its samples"),
        (SHORT[:LENGTH], "it is truncated: it ends before its samples"),
        (SHORT[:-100], "it is truncated: 15.6 KiB of samples were to come, and 15.5 KiB are there"),
        (SHORT[:FORMAT] + struct.pack("<H", 7) + SHORT[FORMAT + 2 :], "its samples are µ-law"),
        (SHORT[:FORMAT] + struct.pack("<H", 77) + SHORT[FORMAT + 2 :], "its samples are of the unknown format 77"),
        (
            SHORT[:FORMAT] + struct.pack("<H", 65534) + SHORT[FORMAT + 2 :],
            "its samples are of the unknown format 65534",
        ),
        (described(1, 64, bytes(800)), "it has 64 bits a sample"),
        (described(3, 16, bytes(800)), "it has 16 bits a sample of floats"),
        (described(1, 16, bytes(900), channels=9), "it has 9 channels, 1 to 8 are allowed"),
        (b"RIFF\xff\xff\xff\xffWAVE" + SHORT[LENGTH - 4 :], "no whole format stands before its samples"),
        (wav(np.zeros(100, "<i2"), rate_hz=4_000), "has 4000 samples a second: send 8000 to 96000"),
        (wav(np.zeros(100, "<i2"), rate_hz=192_000), "has 192000 samples a second"),
        (wav(np.zeros(0, "<i2")), "this wav file has no samples"),
        (wav(np.zeros(0, "<i2")) + chunk(b"LIST", bytes(26)), "this wav file has no samples"),
    ],
)
def test_anything_else_is_bad_input_with_the_reason(data: bytes, sentence: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        read(RawInput(data))
    assert caught.value.code == ErrorCode.BAD_INPUT
    assert sentence in str(caught.value)
    assert "not a WAVE file" not in str(caught.value)


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
