"""ViT-GPT2's task on a tiny captioner of the published shape.

Wide initial weights: with the usual narrow ones a random decoder gives the same answer to every picture.
"""

from __future__ import annotations

from typing import Any

from s2m3.reference.pictures import picture

END = 599
TINY: dict[str, Any] = {
    "bos_token_id": END,
    "decoder_start_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 48,
        "initializer_range": 0.4,
    },
    "decoder": {
        "vocab_size": END + 1,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "decoder_start_token_id": END,
        "initializer_range": 0.6,
    },
}
ENTRIES = {
    "hub/captioning-vit-gpt2": {
        "changes": {
            "nlpconnect/vit-gpt2-image-captioning": {"config.json": TINY, "preprocessor_config.json": {"size": 48}}
        },
        "requests": [{"image": picture(name).raw} for name in ("chelsea.png", "coffee.png", "rocket.jpg")],
    }
}
