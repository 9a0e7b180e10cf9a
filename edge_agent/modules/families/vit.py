"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) as an image classifier, cut before its classifier.

    part         weights           takes                      gives (and nothing else crosses the wire)
    encoder      ``vit.``          a picture's bytes          ``features`` float32 (1, d), the normed class token
    classifier   ``classifier.``   ``features``               ``logits`` float32 (1, c), and the answer

Old checkpoints hold a pooler that classification doesn't use: it is neither held nor counted.
"""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from edge_agent.modules.families import heads
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import one_picture, ordinary

RENAMES = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda found: f".attention.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def encode_image(network: ViTModel, pixels: Tensor) -> dict[str, Tensor]:
    """A picture (1, 3, s, s) to ``features`` (1, d), the normed class token."""
    return {"features": network(pixel_values=pixels).last_hidden_state[:, 0, :]}


def _config(config: Config) -> ViTConfig:
    return ViTConfig.from_dict(dict(config))


def identity_of(config: ViTConfig, checkpoint: Checkpoint) -> dict[str, JsonValue]:
    """The part of a tower's configuration, and of its repository, that changes its output."""
    wanted = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size "
        "hidden_act layer_norm_eps qkv_bias"
    )
    return prepare.fields(config, wanted) | {"pictures": prepare.pictures(checkpoint, ViTImageProcessorPil)}


def _labels(config: Config) -> list[str]:
    names = cast("dict[int, str]", _config(config).id2label)
    return [names[index] for index in range(len(names))]


def picture_steps(checkpoint: Checkpoint) -> steps.Picture:
    """The steps of a tower."""
    return steps.Picture(prepare.image_processor(checkpoint, ViTImageProcessorPil))


def _label_steps(checkpoint: Checkpoint) -> heads.LabelSteps:
    config = _config(checkpoint.config)
    return heads.LabelSteps("features", config.hidden_size, _labels(checkpoint.config))


PARTS: model_parts.Parts = {
    "encoder": model_parts.Part(
        prefixes={"vit": [{"vit.": ""}]},
        build=lambda config: ViTModel(_config(config), add_pooling_layer=False),
        identity=lambda checkpoint: identity_of(_config(checkpoint.config), checkpoint),
        steps=picture_steps,
        forwards=ordinary(encode_image, one_picture),
        renames=RENAMES,
        unread=(".position_ids", "vit.pooler.dense.weight", "vit.pooler.dense.bias"),
    ),
    "classifier": model_parts.Part(
        prefixes={"vit": [{"classifier.": "classifier."}]},
        build=lambda config: heads.Linear(_config(config).hidden_size, len(_labels(config))),
        identity=lambda checkpoint: {"labels": [*_labels(checkpoint.config)]},
        steps=_label_steps,
        forwards=ordinary(heads.Linear.forward, heads.one_row),
    ),
}


load = model_parts.loader(PARTS)
