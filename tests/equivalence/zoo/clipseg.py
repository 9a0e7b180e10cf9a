"""CLIPSeg on a tiny CLIP of the published shape: ten layers at least, for it takes the outputs of 3, 6 and 9."""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture

TOWERS: dict[str, Any] = {
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
        "num_hidden_layers": 11,
        "num_attention_heads": 3,
        "image_size": 64,
    },
}
DECODER = {"reduce_dim": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}

ENTRIES = {
    "hub/segmentation-clipseg": {
        "changes": {
            "openai/clip-vit-base-patch16": {
                "config.json": TOWERS,
                "preprocessor_config.json": {"size": 64, "crop_size": 64},
            },
            "CIDAS/clipseg-rd64-refined": {"config.json": TOWERS | DECODER},
        },
        "requests": [
            {"image": picture("chelsea.png").raw, "text": RawInput(b"a cat")},
            {"image": picture("coffee.png").raw, "text": RawInput(b"a cup\na spoon\nthe table under both of them")},
        ],
    }
}
