"""CLAP on tiny encoders of the published shape: two stages of shifted windows, spectrograms of the published size."""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from tests.media import TINY_TEXT_TOWER, falling_tone

TINY: dict[str, Any] = {
    "projection_dim": 24,
    "text_config": TINY_TEXT_TOWER,
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
            {
                "audio": falling_tone(440, 1.5, 16_000),
                "text": RawInput(b"a siren\nthe sound of a dog that barks\nrain"),
            },
            {"audio": falling_tone(2000, 12, 48_000, channels=2), "text": RawInput("n\u00e4ive \u732b\nrain".encode())},
            {"audio": falling_tone(300, 10, 48_000), "text": RawInput(b"rain")},
        ],
    }
}
