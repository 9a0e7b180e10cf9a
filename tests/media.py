"""Sounds and pictures as a sensor sends them, and tiny configurations of published models that take them.

Owns their formats. Doesn't know any test. Equal arguments make equal bytes.
"""

from __future__ import annotations

import io
import wave
from typing import TYPE_CHECKING, Any

import numpy as np

from broker.protocol.codec import RawInput

if TYPE_CHECKING:
    from PIL.Image import Image


def wav(samples: np.ndarray[Any, Any], rate_hz: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """A WAV file of samples of ``width`` bytes; those of several channels alternate."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((channels, width, rate_hz, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return out.getvalue()


def falling_tone(hz: float, seconds: float, rate_hz: int, channels: int = 1) -> RawInput:
    """A WAV file of a tone that falls and fades, the same in all channels."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    sound = np.sin(2 * np.pi * hz * time_s * (1 - time_s / seconds / 4)) * np.linspace(0.9, 0.1, len(time_s))
    samples = np.repeat((sound * 32767).astype("<i2")[:, None], channels, axis=1)
    return RawInput(wav(samples, rate_hz, channels), "audio/wav")


def picture_bytes(image: Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file of this kind."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


TINY_TEXT_TOWER = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny_clip(layers: int = 3, **both: int) -> dict[str, Any]:
    """The configuration of a CLIP with tiny towers; ``both`` goes into either tower, too."""
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "image_size": 64,
    }
    return {"projection_dim": 24, "text_config": TINY_TEXT_TOWER | both, "vision_config": vision | both}


_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALLEST_CLIP: dict[str, Any] = {
    "projection_dim": 16,
    "text_config": _TOWER | {"vocab_size": 600, "projection_dim": 16},
    "vision_config": _TOWER | {"image_size": 32, "projection_dim": 16},
}
