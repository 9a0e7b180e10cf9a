"""Sound beside CLIP on tiny towers of the published shapes: short spectrograms, so that most of a sound is cut."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture


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


CLIP: dict[str, Any] = {
    "projection_dim": 24,
    "text_config": {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 64,
    },
}
AST = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_length": 128,
    "num_mel_bins": 64,
}
TEXTS = RawInput(b"a siren\nthe sound of a dog that barks\nrain")

ENTRIES = {
    "hub/alignment-clip-b16-ast": {
        "changes": {
            "openai/clip-vit-base-patch16": {
                "config.json": CLIP,
                "preprocessor_config.json": {"size": 64, "crop_size": 64},
            },
            "MIT/ast-finetuned-audioset-10-10-0.4593": {
                "config.json": AST,
                "preprocessor_config.json": {"max_length": 128, "num_mel_bins": 64},
            },
            "local/ast-clip-b16-projection": {"config.json": {"width": 32, "projected": 24}},
        },
        "requests": [
            {"audio": tone(440, 0.5, 16_000), "image": picture("chelsea.png").raw, "text": TEXTS},
            {"audio": tone(440, 0.5, 16_000), "image": picture("coffee.png").raw, "text": TEXTS},
            {"audio": tone(2000, 3, 48_000, channels=2), "image": picture("coffee.png").raw, "text": RawInput(b"rain")},
        ],
    }
}
