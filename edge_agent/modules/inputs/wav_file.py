"""Wav files, read chunk by chunk: where the samples are, and how they are written.

Owns which wav files are taken: PCM of 8, 16, 24 and 32 bits and floats of 32 and 64 bits, also behind an extensible
header and in RF64 files. It reads the bytes itself because Python's ``wave`` takes other files in each version.

Invariants:
- The samples that are there count where the stated length is a placeholder: a program that writes to a pipe can't know
  the length. A file that was cut short of an honest length is refused.
- Whatever the bytes are, reading them takes time in proportion to their number.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.protocol.sizes import show_sizes
from edge_agent.modules.inputs.file_kinds import kind_of
from edge_agent.modules.inputs.limits import MAX_SOUND_CHANNELS, MAX_SOUND_CHUNKS

_MAGICS, _WAVE = {b"RIFF", b"RF64", b"BW64"}, b"WAVE"
_FIRST_CHUNK = 12  # where it begins, behind RIFF, the length and WAVE
_FORMAT = struct.Struct("<HHIIHH")  # tag, channels, rate, bytes a second, bytes of a frame, bits of a sample
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SUBFORMAT = slice(24, 26)  # of an extensible format: the tag, which begins its GUID
_WIDTHS = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}  # bytes of a sample
_CODES = {
    2: "ADPCM",
    6: "A-law",
    7: "µ-law",
    0x11: "IMA ADPCM",
    0x31: "GSM",
    0x50: "MPEG",
    0x55: "MP3",
    0xFF: "AAC",
    0x161: "Windows Media",
}
_LONG = 0xFFFFFFFF  # stated in an RF64 file whose length stands in its chunk ds64
_PLACEHOLDER = 2**29  # bytes: a stated length from here on states nothing, for no message has a 50th of it
_LOUDEST = 65_536  # of a float sample, where 1 is full scale: the squares of a spectrum stay finite


class UnreadableSound(ValueError):
    """A file can't be read as a wav file; the reason in a few words."""


@dataclass(frozen=True)
class WavFile:
    """A wav file whose samples aren't numbers yet."""

    is_float: bool
    width: int  # bytes of a sample
    channels: int
    rate_hz: int
    content: memoryview  # whole frames

    @property
    def frames(self) -> int:
        """The samples of each channel."""
        return len(self.content) // (self.width * self.channels)

    def samples(self) -> NDArray[np.float32]:
        """The samples float32 (n, channels), where 1 is full scale.

        Raises:
            UnreadableSound: a float isn't finite, or too large for a sound.
        """
        if self.is_float:
            found = np.frombuffer(self.content, f"<f{self.width}")
            if not bool((np.abs(found) <= _LOUDEST).all()):  # which NaN isn't either
                raise UnreadableSound("it has samples that are no finite numbers, or far beyond 1")
            numbers = found.astype(np.float32)
        elif self.width == 1:
            numbers = np.frombuffer(self.content, np.uint8).astype(np.float32) - 128
            numbers /= 128
        else:
            numbers = self._whole_numbers().astype(np.float32)
            numbers /= 2 ** (8 * self.width - 1)
        return numbers.reshape(-1, self.channels)

    def _whole_numbers(self) -> NDArray[np.int16] | NDArray[np.int32]:
        if self.width == 2:  # noqa: PLR2004 - bytes
            return np.frombuffer(self.content, "<i2")
        if self.width == 4:  # noqa: PLR2004 - bytes
            return np.frombuffer(self.content, "<i4")
        wide = np.zeros(
            (len(self.content) // 3, 4), np.uint8
        )  # three bytes above a zero, which shift down with the sign
        wide[:, 1:] = np.frombuffer(self.content, np.uint8).reshape(-1, 3)
        return wide.view("<i4").reshape(-1) >> 8


def read(data: bytes) -> WavFile:
    """A wav file, from its chunks.

    Raises:
        UnreadableSound: it isn't one, is damaged or truncated, or has samples that aren't taken.
    """
    if data[:4] not in _MAGICS or data[8:12] != _WAVE:
        raise UnreadableSound("it is a big-endian wav file" if data[:4] == b"RIFX" else _what(data))
    at, described, long_size = _FIRST_CHUNK, b"", 0
    for _ in range(MAX_SOUND_CHUNKS):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if len(data) < at + 8:
            raise UnreadableSound("it is truncated: it ends before its samples")
        at += 8
        if name == b"data":
            size = long_size or size if size == _LONG else size
            return _read(described, memoryview(data)[at : at + _sample_bytes(data, at, size)])
        if name == b"fmt ":
            described = data[at : at + size]
        elif name == b"ds64":
            long_size = int.from_bytes(data[at + 8 : at + 16], "little")
        at += size
        at += size % 2 and not _is_name(data[at : at + 4])  # some programs leave out the byte that makes a length even
    raise UnreadableSound(f"it has more than {MAX_SOUND_CHUNKS} chunks before its samples")


def _what(data: bytes) -> str:
    return f"it is {kind_of(data) or 'of an unknown format'}"


def _sample_bytes(data: bytes, at: int, size: int) -> int:
    """The bytes of samples from a place on, by their stated length."""
    there = len(data) - at
    if size == 0:
        following = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        return 0 if _is_name(data[at : at + 4]) and following <= len(data) else there
    if size <= there:
        return size
    if size >= _PLACEHOLDER:
        return there
    said, found = show_sizes(size, there)
    raise UnreadableSound(f"it is truncated: {said} of samples were to come, and {found} are there")


def _is_name(name: bytes) -> bool:
    """Whether four bytes can be the name of a chunk."""
    return len(name) == 4 and name.isascii() and name.decode().isprintable()  # noqa: PLR2004 - bytes of a name


def _read(described: bytes, content: memoryview) -> WavFile:
    if len(described) < _FORMAT.size:
        raise UnreadableSound("it is damaged: no whole format stands before its samples")
    tag, channels, rate_hz, _, frame_bytes, bits = _FORMAT.unpack_from(described)
    if tag == _EXTENSIBLE and len(described) >= _SUBFORMAT.stop:
        tag = int.from_bytes(described[_SUBFORMAT], "little")
    if tag not in _WIDTHS:
        raise UnreadableSound(f"its samples are {_CODES.get(tag, f'of the unknown format {tag}')}")
    if not 0 < channels <= MAX_SOUND_CHANNELS:
        raise UnreadableSound(f"it has {channels} channels, 1 to {MAX_SOUND_CHANNELS} are allowed")
    width = -(-bits // 8)
    if frame_bytes % channels == 0 and frame_bytes // channels > width:  # such as 24 bits in the upper bytes of 4
        width = frame_bytes // channels
    if width not in _WIDTHS[tag]:
        raise UnreadableSound(f"it has {bits} bits a sample{' of floats' if tag == _FLOAT else ''}")
    whole = len(content) // (width * channels) * width * channels
    return WavFile(tag == _FLOAT, width, channels, rate_hz, content[:whole])
