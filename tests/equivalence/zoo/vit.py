"""ViT as a classifier, on a tiny model of the published shape."""

from __future__ import annotations

from s2m3.reference.pictures import picture

ENTRIES = {
    "hub/classification-vit-b16": {
        "changes": {
            "google/vit-base-patch16-224": {
                "config.json": {
                    "hidden_size": 48,
                    "intermediate_size": 96,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 3,
                    "image_size": 64,
                    "num_labels": 7,
                },
                "preprocessor_config.json": {"size": {"height": 64, "width": 64}},
            }
        },
        "requests": [{"image": picture("chelsea.png").raw}, {"image": picture("coffee.png").raw}],
    }
}
