"""LLaVA's tasks on tiny models of the published shapes: CLIP and Llama, SigLIP and Qwen 2 with tied matrices.

Wide initial weights: with the usual narrow ones a random decoder gives the same answer to every picture.
"""

from __future__ import annotations

from typing import Any

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture
from tests.media import TINY_TEXT_TOWER

VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "initializer_range": 0.3,
}
LANGUAGE: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 597,
    "eos_token_id": 599,
    "initializer_range": 0.5,
}
WHOLE: dict[str, Any] = {"image_token_index": 598, "vision_config": VISION, "text_config": LANGUAGE}
GENERATION = {"bos_token_id": 597, "eos_token_id": 599, "pad_token_id": 599}
CLIP: dict[str, Any] = {
    "projection_dim": 24,
    "vision_config": VISION,
    "text_config": TINY_TEXT_TOWER,
}
REQUESTS = [
    {"image": picture("chelsea.png").raw, "text": RawInput(b"what animal is this?")},
    {"image": picture("coffee.png").raw, "text": RawInput(b"what animal is this?")},
    {"image": picture("coffee.png").raw, "text": RawInput("näive words \u732b, and more".encode())},
]

ENTRIES = {
    "hub/decoder-vqa-llava-7b": {
        "changes": {
            "openai/clip-vit-large-patch14-336": {
                "config.json": CLIP,
                "preprocessor_config.json": {"size": 56, "crop_size": 56},
            },
            "llava-hf/llava-1.5-7b-hf": {
                "config.json": WHOLE,
                "generation_config.json": GENERATION,
                "preprocessor_config.json": {
                    "size": {"shortest_edge": 56},
                    "crop_size": {"height": 56, "width": 56},
                },
            },
        },
        "requests": REQUESTS,
    },
    "hub/decoder-vqa-llava-interleave": {
        "changes": {
            "local/llava-interleave-qwen-0.5b-hf": {
                "config.json": WHOLE,
                "generation_config.json": GENERATION,
                "preprocessor_config.json": {"size": {"height": 56, "width": 56}},
            }
        },
        "requests": REQUESTS,
    },
}
