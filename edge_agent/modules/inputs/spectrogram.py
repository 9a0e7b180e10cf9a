"""The mel bands of a sound as a network takes them, by the values of ``SoundPreparation``.

Owns the arithmetic, in numpy, which gives the bits of transformers' feature extractors where these compute in numpy,
too. Knows no network and no file. Frames are transformed a few at a time: those of a long sound take much memory.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from broker.protocol.preparation import SoundPreparation
from broker.protocol.tensors import Array
from edge_agent.modules.inputs.notes import note

_FRAMES_AT_ONCE = 256
_SLANEY_HZ, _SLANEY_MELS = 1000.0, 15.0  # up to here Slaney's scale is linear
_SLANEY_STEP = np.log(6.4) / 27.0  # of the logarithm, a mel

Samples = NDArray[np.float32]
_Floats = NDArray[np.float64]


def features(samples: Samples, how: SoundPreparation) -> Array:
    """The features float32 of samples (n,), n at least 1: ``how.layout`` says of which lengths."""
    _note_cut(len(samples), how)
    if how.samples is not None:
        samples = _filled(samples[: how.samples], how.samples, how.fill)
    found = _logarithm(_energies(samples, how), how).astype(np.float32)  # (bands, frames)
    if how.frames is not None:
        found = found[:, : how.frames]
    if how.range is not None:
        found = np.maximum(found, found.max() - how.range)
    if how.frames is not None and (missing := how.frames - found.shape[1]):
        found = np.pad(found, ((0, 0), (0, missing)))
    made = (found - how.mean) / how.std
    laid_out = {"bands x frames": made[None], "frames x bands": made.T[None], "1 x frames x bands": made.T[None, None]}
    return np.ascontiguousarray(laid_out[how.layout], dtype=np.float32)


def _note_cut(there: int, how: SoundPreparation) -> None:
    """Tell a cut of at least one hop: a sound of exactly the length may have a frame more, of its last sample."""
    edge = 0 if how.centred else how.window - how.hop
    limits = [] if how.frames is None else [how.frames * how.hop + edge]
    used = min(limits if how.samples is None else [*limits, how.samples], default=there)
    if there - used >= how.hop:
        lasts_s, used_s = there / how.rate_hz, used / how.rate_hz
        note(f"the sound lasts {lasts_s:.1f} s, and its first {used_s:.1f} s are used: the rest is cut")


def _filled(samples: Samples, length: int, fill: str) -> Samples:
    times = length // len(samples)
    if fill == "repeats":
        return np.tile(samples, times + 1)[:length]
    whole = np.tile(samples, times) if fill == "whole repeats" else samples
    return np.pad(whole, (0, length - len(whole)))


def _energies(samples: Samples, how: SoundPreparation) -> _Floats:
    """The energy of each mel band in each frame, (bands, frames), at least ``how.floor``."""
    if how.centred:
        samples = np.pad(samples, how.window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), how.window)[:: how.hop]
    fft = how.fft or how.window
    powers = np.empty((len(frames), fft // 2 + 1))
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        some = frames[start : start + _FRAMES_AT_ONCE].copy()
        if how.without_mean:
            some -= some.mean(axis=1, keepdims=True)
        if how.emphasis:
            some[:, 1:] -= how.emphasis * some[:, :-1]
            some[:, 0] *= 1 - how.emphasis
        transformed = np.fft.rfft(some * _window(how), fft).astype(np.complex64)
        powers[start : start + len(some)] = np.abs(transformed, dtype=np.float64) ** 2.0
    energies: _Floats = np.maximum(how.floor, np.dot(_triangles(how).T, powers.T))
    return energies


def _logarithm(energies: _Floats, how: SoundPreparation) -> _Floats:
    if how.log == "natural":
        return np.log(energies)
    return 10.0 * np.log10(energies) if how.log == "decibel" else np.log10(energies)


@lru_cache(maxsize=8)
def _window(how: SoundPreparation) -> _Floats:
    """The Hann window (window,)."""
    return np.hanning(how.window) if how.symmetric else np.hanning(how.window + 1)[:-1]


@lru_cache(maxsize=8)
def _triangles(how: SoundPreparation) -> _Floats:
    """The share that each frequency has in each mel band, (frequencies, bands)."""
    lowest, highest = (float(_mels(np.array([hz]), how.scale)[0]) for hz in (how.lowest_hz, how.highest_hz))
    mels = np.linspace(lowest, highest, how.bands + 2)
    edges = mels if how.scale == "kaldi" else _hz(mels, how.scale)
    fft = how.fft or how.window
    if how.scale == "kaldi":
        frequencies = _mels(how.rate_hz / (fft // 2 * 2) * np.arange(fft // 2 + 1, dtype=np.float64), how.scale)
    else:
        frequencies = np.linspace(0, how.rate_hz // 2, fft // 2 + 1)
    slopes = edges[None, :] - frequencies[:, None]
    widths = np.diff(edges)
    triangles = np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    if how.equal_area:
        triangles *= 2.0 / (edges[2:] - edges[: how.bands])
    return triangles


def _mels(hz: _Floats, scale: str) -> _Floats:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    if scale == "kaldi":
        return 1127.0 * np.log(1.0 + hz / 700.0)
    high = _SLANEY_MELS + np.log(np.maximum(hz, _SLANEY_HZ) / _SLANEY_HZ) * (27.0 / np.log(6.4))
    return np.where(hz >= _SLANEY_HZ, high, 3.0 * hz / 200.0)


def _hz(mels: _Floats, scale: str) -> _Floats:
    if scale == "htk":
        return 700.0 * (np.power(10, mels / 2595.0) - 1.0)
    high = _SLANEY_HZ * np.exp(_SLANEY_STEP * (np.maximum(mels, _SLANEY_MELS) - _SLANEY_MELS))
    return np.where(mels >= _SLANEY_MELS, high, 200.0 * mels / 3.0)
