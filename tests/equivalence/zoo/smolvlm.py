"""SmolVLM on a tiny model of the published shape: pictures in tiles of 32 x 32, four vectors each.

Wide initial weights: with the usual narrow ones a random decoder gives the same answer to every picture.
"""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture

TINY: dict[str, Any] = {
    "image_token_id": 598,
    "scale_factor": 2,
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.3,
    },
    "text_config": {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "bos_token_id": 597,
        "eos_token_id": 599,
        "pad_token_id": 599,
        "initializer_range": 0.5,
    },
}

ENTRIES = {
    "hub/decoder-vqa-smolvlm-256m": {
        "changes": {
            "HuggingFaceTB/SmolVLM-256M-Instruct": {
                "config.json": TINY,
                "generation_config.json": {"bos_token_id": 597, "eos_token_id": 599, "pad_token_id": 599},
                "preprocessor_config.json": {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}},
            }
        },
        "requests": [
            {"image": picture("chelsea.png").raw, "text": RawInput(b"what animal is this?")},
            {"image": picture("coffee.png").raw, "text": RawInput(b"what animal is this?")},
            {"image": picture("coffee.png").raw, "text": RawInput("n\u00e4ive words \u732b, and more".encode())},
        ],
    }
}
