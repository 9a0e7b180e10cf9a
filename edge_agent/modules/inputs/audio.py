"""Sound that a sensor sent: wav bytes to samples at the rate a network was trained with.

Owns the accepted rates, and the error sentences about sounds. Knows no network; ``wav_file`` reads the files. A
polyphase filter (``scipy.signal.resample_poly``) changes other rates; a file at the wanted rate is taken as it is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_agent.modules import Value
from edge_agent.modules.inputs import wav_file
from edge_agent.modules.inputs.decoding import bad_input, sent
from edge_agent.modules.inputs.limits import FASTEST_HZ, SLOWEST_HZ

_WANTED = "send a wav file of PCM or float samples"


def samples(value: Value, rate_hz: int, most_s: float) -> NDArray[np.float32]:
    """Decode a wav file of at most ``most_s``: the mean of its channels (n,) at ``rate_hz``; 1 is full scale.

    Raises:
        RequestFailed: ``bad_input`` when it isn't such a file, is truncated, has no samples, or is too long;
            ``module_failed`` when the task gives something else than an input.
    """
    data = sent(value, "a sound")
    try:
        file = wav_file.read(data)
        _check(file, most_s)
        mono = file.samples().mean(axis=1, dtype=np.float32)  # (n,)
    except wav_file.UnreadableSound as error:
        raise bad_input(f"this sound can't be read ({error}): {_WANTED}") from error
    if file.rate_hz != rate_hz:
        from scipy.signal import resample_poly  # noqa: PLC0415 - 40 MB, which a sound at the right rate doesn't need

        common = math.gcd(file.rate_hz, rate_hz)
        mono = resample_poly(mono, rate_hz // common, file.rate_hz // common)  # float32 stays float32
    return np.ascontiguousarray(mono, dtype=np.float32)


def _check(file: wav_file.WavFile, most_s: float) -> None:
    """Refuse what would take too long, before any sample is read."""
    if not SLOWEST_HZ <= file.rate_hz <= FASTEST_HZ:
        raise bad_input(f"this wav file has {file.rate_hz} samples a second: send {SLOWEST_HZ} to {FASTEST_HZ}")
    if not file.frames:
        raise bad_input(f"this wav file has no samples: {_WANTED}")
    if (length_s := file.frames / file.rate_hz) > most_s:
        raise bad_input(
            f"this sound lasts {length_s:.1f} s, at most {most_s:g} s are allowed: send a shorter part of it"
        )
