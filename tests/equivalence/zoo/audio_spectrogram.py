"""Sound beside CLIP on tiny encoders of the published shapes: short spectrograms, which cut off most of a sound."""

from __future__ import annotations

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture
from tests.media import falling_tone, tiny_clip

CLIP = tiny_clip()
AST = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_length": 128,
    "num_mel_bins": 64,
}
TEXTS = RawInput(b"a siren\nthe sound of a dog that barks\nrain")

ENTRIES = {
    "hub/alignment-clip-b16-ast": {
        "changes": {
            "openai/clip-vit-base-patch16": {
                "config.json": CLIP,
                "preprocessor_config.json": {"size": 64, "crop_size": 64},
            },
            "MIT/ast-finetuned-audioset-10-10-0.4593": {
                "config.json": AST,
                "preprocessor_config.json": {"max_length": 128, "num_mel_bins": 64},
            },
            "local/ast-clip-b16-projection": {"config.json": {"width": 32, "projected": 24}},
        },
        "requests": [
            {"audio": falling_tone(440, 0.5, 16_000), "image": picture("chelsea.png").raw, "text": TEXTS},
            {"audio": falling_tone(440, 0.5, 16_000), "image": picture("coffee.png").raw, "text": TEXTS},
            {
                "audio": falling_tone(2000, 3, 48_000, channels=2),
                "image": picture("coffee.png").raw,
                "text": RawInput(b"rain"),
            },
        ],
    }
}
