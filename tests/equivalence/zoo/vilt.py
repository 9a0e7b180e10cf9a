"""ViLT on a tiny model of the published shape; pictures of several sizes, for interpolated position embeddings."""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture

TINY: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 96,
    "num_labels": 11,
    "initializer_range": 0.2,
}
FILES = {"config.json": TINY, "preprocessor_config.json": {"size": {"shortest_edge": 96}}}
QUESTIONS = (b"what is in the cup?", b"what is\nthis horse", "n\xe4ive questions \u732b of many words ".encode() * 20)
PICTURES = ("coffee.png", "horse.png", "rocket.jpg")

ENTRIES = {
    "hub/encoder-vqa-vilt": {
        "changes": {"dandelin/vilt-b32-finetuned-vqa": FILES},
        "requests": [
            {"image": picture(name).raw, "question": RawInput(question)}
            for name, question in zip(PICTURES, QUESTIONS, strict=True)
        ],
    },
}
