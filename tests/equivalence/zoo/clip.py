"""CLIP's tasks on tiny encoders of the published shape."""

from __future__ import annotations

from broker.protocol.codec import RawInput
from s2m3.reference.pictures import picture
from tests.media import tiny_clip

TINY = tiny_clip(projection_dim=24)
PREPROCESSOR = {"size": 64, "crop_size": 64}
REPOSITORIES = {
    "b16": "openai/clip-vit-base-patch16",
    "b32": "openai/clip-vit-base-patch32",
    "l14": "openai/clip-vit-large-patch14",
    "l14-336": "openai/clip-vit-large-patch14-336",
}
REQUESTS = [
    {
        "image": picture("chelsea.png").raw,
        "text": RawInput(b"a photo of a cat\na cup of coffee\nthe night sky over a town"),
    },
    {"image": picture("coffee.png").raw, "text": RawInput("näive words \u732b, and far more of them ".encode() * 40)},
]

QUESTIONS = [
    {"image": picture("chelsea.png").raw, "question": RawInput(b"What is this?")},
    {"image": picture("coffee.png").raw, "question": RawInput(b"What is in the cup?")},
]
PICTURES = [{"image": picture("chelsea.png").raw}, {"image": picture("coffee.png").raw}]
LINEAR = {"width": 48, "labels": 7}
ANSWERS = {"width": 48, "text_width": 24, "hidden": 40, "labels": 9}

ENTRIES = {
    f"hub/retrieval-clip-{size}": {
        "changes": {repository: {"config.json": TINY, "preprocessor_config.json": PREPROCESSOR}},
        "requests": REQUESTS,
    }
    for size, repository in REPOSITORIES.items()
}
ENTRIES |= {
    f"hub/encoder-vqa-clip-{size}": {
        "changes": {
            REPOSITORIES[size]: {"config.json": TINY, "preprocessor_config.json": PREPROCESSOR},
            f"local/clip-{size}-answers": {"config.json": ANSWERS},
        },
        "requests": QUESTIONS,
    }
    for size in ("b16", "l14-336")
}
ENTRIES |= {
    f"hub/embed-{kind}-clip-{size}": {
        "changes": {REPOSITORIES[size]: {"config.json": TINY, "preprocessor_config.json": PREPROCESSOR}},
        "requests": [{kind: request[kind]} for request in REQUESTS],
    }
    for size in ("b16", "b32")
    for kind in ("image", "text")
}
ENTRIES["hub/classification-clip-b16"] = {
    "changes": {
        REPOSITORIES["b16"]: {"config.json": TINY, "preprocessor_config.json": PREPROCESSOR},
        "local/clip-b16-linear": {"config.json": LINEAR},
    },
    "requests": PICTURES,
}
