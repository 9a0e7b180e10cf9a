"""Sound that a sensor sent: wav bytes to samples at the rate a network was trained with.

Owns the accepted kinds of wav files, and the error sentences about them. Knows no network. The standard
library's ``wave`` reads them: plain PCM (its format tag 1) of 16 bits, one or two channels, 8 to 96 kHz. A polyphase
filter (``scipy.signal.resample_poly``) changes other rates; a file at the wanted rate is taken as it is.
"""

from __future__ import annotations

import io
import math
import wave

import numpy as np
from numpy.typing import NDArray

from edge_agent.modules import Value
from edge_agent.modules.inputs.decoding import bad_input, sent
from edge_agent.modules.inputs.limits import FASTEST_HZ, MAX_SOUND_CHUNKS, SLOWEST_HZ
from edge_agent.runtime.out_of_memory import is_out_of_memory

_SAMPLE_BYTES = 2
_FIRST_CHUNK = 12  # where it begins, behind RIFF, the length and WAVE
_CHANNELS = (1, 2)
_FULL_SCALE = 32768
_WANTED = "send a wav file of 16-bit PCM, mono or stereo"


def samples(value: Value, rate_hz: int, most_s: float) -> NDArray[np.float32]:
    """Decode a wav file of at most ``most_s``: one channel (n,) at ``rate_hz``, -1 to 1; two become their mean.

    Raises:
        RequestFailed: ``bad_input`` when it isn't such a file, is truncated, has no samples, or is too long;
            ``module_failed`` when the task gives something else than an input.
    """
    pcm, file_rate_hz = _decode(sent(value, "a sound"))  # (n, channels)
    if (length_s := len(pcm) / file_rate_hz) > most_s:
        raise bad_input(
            f"this sound lasts {length_s:.1f} s, at most {most_s:g} s are allowed: send a shorter part of it"
        )
    mono = pcm.astype(np.float32).mean(axis=1, dtype=np.float32) / _FULL_SCALE  # (n,)
    if file_rate_hz != rate_hz:
        from scipy.signal import resample_poly  # noqa: PLC0415 - 40 MB, which a sound at the right rate doesn't need

        common = math.gcd(file_rate_hz, rate_hz)
        mono = resample_poly(mono, rate_hz // common, file_rate_hz // common)  # float32 stays float32
    return np.ascontiguousarray(mono, dtype=np.float32)


def _decode(data: bytes) -> tuple[NDArray[np.int16], int]:
    """Samples (n, channels), n at least 1, and their rate."""
    _check_chunks(data)
    try:
        with wave.open(io.BytesIO(data)) as sound:
            told = sound.getparams()
            content = sound.readframes(told.nframes)
    except Exception as error:  # hostile bytes make a decoder raise anything
        if is_out_of_memory(error):
            raise
        raise bad_input(f"this is not a wav file that can be read ({_kind(error)}): {_WANTED}") from error
    if told.sampwidth != _SAMPLE_BYTES:
        raise bad_input(f"this wav file has {8 * told.sampwidth} bits a sample: {_WANTED}")
    if told.nchannels not in _CHANNELS:
        raise bad_input(f"this wav file has {told.nchannels} channels: {_WANTED}")
    if not SLOWEST_HZ <= told.framerate <= FASTEST_HZ:
        raise bad_input(f"this wav file has {told.framerate} samples a second: send {SLOWEST_HZ} to {FASTEST_HZ}")
    if not told.nframes:
        raise bad_input(f"this wav file has no samples: {_WANTED}")
    if len(content) != told.nframes * told.nchannels * _SAMPLE_BYTES:
        raise bad_input("this wav file is truncated, or its header says a wrong length: send all of a finished file")
    return np.frombuffer(content, "<i2").reshape(-1, told.nchannels), told.framerate


def _check_chunks(data: bytes) -> None:
    """Refuse a file with more chunks before its samples than any program writes: ``wave`` reads them one by one."""
    at = _FIRST_CHUNK
    for _ in range(MAX_SOUND_CHUNKS):
        if data[at : at + 4] in {b"data", b""}:
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    raise bad_input(f"this wav file has more than {MAX_SOUND_CHUNKS} chunks before its samples: {_WANTED}")


def _kind(error: Exception) -> str:
    """The kind of error in a few words. Messages of libraries but ``wave`` may name an object in memory."""
    if isinstance(error, wave.Error):
        return str(error)
    return "truncated" if isinstance(error, EOFError) else "damaged"
