"""CLIPSeg on a tiny CLIP of the published shape: ten layers at least, for it takes the outputs of 3, 6 and 9."""

from __future__ import annotations

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture
from tests.media import tiny_clip

TOWERS = tiny_clip(layers=11)
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
