"""ALIGN on a tiny model of the published shape: each stage of the EfficientNet once."""

from __future__ import annotations

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture

ENTRIES = {
    "hub/retrieval-align": {
        "changes": {
            "kakaobrain/align-base": {
                "config.json": {
                    "projection_dim": 80,
                    "text_config": {
                        "vocab_size": 600,
                        "hidden_size": 48,
                        "intermediate_size": 96,
                        "num_hidden_layers": 2,
                        "num_attention_heads": 3,
                    },
                    "vision_config": {
                        "width_coefficient": 0.25,
                        "depth_coefficient": 0.3,
                        "hidden_dim": 80,
                        "image_size": 65,
                    },
                },
                "preprocessor_config.json": {
                    "size": {"height": 80, "width": 80},
                    "crop_size": {"height": 65, "width": 65},
                },
            }
        },
        "requests": [
            {
                "image": picture("chelsea.png").raw,
                "text": RawInput(b"a photo of a cat\na cup of coffee\nthe night sky"),
            },
            {"image": picture("coffee.png").raw, "text": RawInput("a cup, na\u00efvely seen \u732b ".encode() * 40)},
        ],
    }
}
