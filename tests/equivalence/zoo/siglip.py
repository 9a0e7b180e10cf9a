"""SigLIP on a tiny model of the published shape."""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}

ENTRIES: dict[str, Any] = {
    "hub/retrieval-siglip-b16": {
        "changes": {
            "google/siglip-base-patch16-224": {
                "config.json": {
                    "text_config": SIZES | {"vocab_size": 600},
                    "vision_config": SIZES | {"image_size": 64},
                },
                "preprocessor_config.json": {"size": {"height": 64, "width": 64}},
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
RETRIEVAL = ENTRIES["hub/retrieval-siglip-b16"]
ENTRIES |= {
    f"hub/embed-{kind}-siglip-b16": {
        "changes": RETRIEVAL["changes"],
        "requests": [{kind: request[kind]} for request in RETRIEVAL["requests"]],
    }
    for kind in ("image", "text")
}
