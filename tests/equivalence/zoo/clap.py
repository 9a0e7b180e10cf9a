"""CLAP on tiny towers of the published shape: two stages of shifted windows, spectrograms of the published size."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np

from broker.protocol.codec import RawInput


def tone(hz: float, seconds: float, rate_hz: int, channels: int = 1) -> RawInput:
    """A wav file of a falling tone."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    sound = np.sin(2 * np.pi * hz * time_s * (1 - time_s / seconds / 4)) * np.linspace(0.9, 0.1, len(time_s))
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.repeat((sound * 32767).astype("<i2")[:, None], channels, axis=1).tobytes())
    return RawInput(made.getvalue(), "audio/wav")


TINY: dict[str, Any] = {
    "projection_dim": 24,
    "text_config": {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "audio_config": {
        "depths": [2, 2],
        "num_attention_heads": [2, 4],
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "num_hidden_layers": 2,
    },
}

ENTRIES = {
    "hub/alignment-clap": {
        "changes": {"laion/clap-htsat-unfused": {"config.json": TINY}},
        "requests": [
            {"audio": tone(440, 1.5, 16_000), "text": RawInput(b"a siren\nthe sound of a dog that barks\nrain")},
            {"audio": tone(2000, 12, 48_000, channels=2), "text": RawInput("n\u00e4ive \u732b\nrain".encode())},
            {"audio": tone(300, 10, 48_000), "text": RawInput(b"rain")},
        ],
    }
}
