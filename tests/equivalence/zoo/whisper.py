"""Whisper's tasks on tiny models of the published shape with inputs of two seconds, and the whole published vocabulary.

Wide initial weights: with the usual narrow ones a random decoder gives the same answer to every sound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from broker.protocol.codec import RawInput
from tests.media import wav

TINY: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "max_source_positions": 100,
    "init_std": 0.5,
}
FILES = {"config.json": TINY, "preprocessor_config.json": {"chunk_length": 2}}
SOON = (
    40964  # this random decoder gives the token after a few others: as the end token it ends texts of several lengths
)
ENDS = {"tiny": {}, "base": {"generation_config.json": {"eos_token_id": SOON, "pad_token_id": SOON}}}


def sound(rate_hz: int, *channels: np.ndarray[Any, Any]) -> RawInput:
    """A file of 16 bits of samples from -1 to 1."""
    return RawInput(wav((np.stack(channels, axis=1) * 32767).astype("<i2"), rate_hz, len(channels)))


def tone(hertz: float, rate_hz: int, length_s: float) -> np.ndarray[Any, Any]:
    """A rising tone."""
    at_s = np.arange(int(rate_hz * length_s)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * hertz * at_s * (1 + at_s))


SOUNDS = [
    sound(16_000, tone(220, 16_000, 1.5)),
    sound(8_000, tone(600, 8_000, 1.0), tone(90, 8_000, 1.0)),
    sound(16_000, np.random.default_rng(1).uniform(-0.8, 0.8, 32_000)),
]

ENTRIES = {
    f"hub/speech-whisper-{size}": {
        "changes": {f"openai/whisper-{size}": FILES | ends},
        "requests": [{"audio": each} for each in SOUNDS],
    }
    for size, ends in ENDS.items()
}
