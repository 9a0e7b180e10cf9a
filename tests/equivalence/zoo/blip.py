"""BLIP's tasks on tiny models of the published shape.

Wide initial weights: with the usual narrow ones a random decoder gives the same answer to every picture.
"""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture

TINY: dict[str, Any] = {
    "initializer_range": 0.4,
    "text_config": {
        "vocab_size": 600,
        "hidden_size": 48,
        "encoder_hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "bos_token_id": 2,
        "sep_token_id": 3,
        "initializer_range": 0.4,
    },
    "vision_config": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 64,
        "initializer_range": 0.2,
    },
}
FILES = {"config.json": TINY, "preprocessor_config.json": {"size": {"height": 64, "width": 64}}}
QUESTIONS = (b"what is in the cup?", b"what is\nthis horse", "n\xe4ive questions \u732b of many words ".encode() * 20)
PICTURES = ("coffee.png", "horse.png", "chelsea.png")

ENTRIES: dict[str, dict[str, Any]] = {
    "hub/encoder-vqa-blip": {
        "changes": {"Salesforce/blip-vqa-base": FILES},
        "requests": [
            {"image": picture(name).raw, "question": RawInput(question)}
            for name, question in zip(PICTURES, QUESTIONS, strict=True)
        ],
    },
    "hub/captioning-blip": {
        "changes": {"Salesforce/blip-image-captioning-base": FILES},
        "requests": [{"image": picture(name).raw} for name in PICTURES],
    },
}
