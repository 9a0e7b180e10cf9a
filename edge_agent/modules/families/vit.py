"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) as an image classifier, cut before its classifier.

    part         weights           takes                      gives (and nothing else crosses the wire)
    encoder      ``vit.``          a picture's bytes          ``features`` float32 (1, d), the normed class token
    classifier   ``classifier.``   ``features``               ``logits`` float32 (1, c), and the answer

Old checkpoints hold a pooler that classification doesn't use: it is neither held nor counted.
"""

from __future__ import annotations

from torch import Tensor
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from edge_agent.modules.families import heads
from edge_agent.modules.inputs import prepare, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import one_picture, ordinary

VISION = f"{prepare.VISION} qkv_bias"
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


def _label_steps(checkpoint: Checkpoint) -> steps.Steps:
    config = _config(checkpoint.config)
    return heads.label_steps("features", config.hidden_size, prepare.labels(config))


PARTS: model_parts.Parts = {
    "encoder": model_parts.Part(
        prefixes={"vit": [{"vit.": ""}]},
        build=lambda config: ViTModel(_config(config), add_pooling_layer=False),
        identity=prepare.identity(_config, VISION, pictures=ViTImageProcessorPil),
        steps=prepare.picture_steps(ViTImageProcessorPil),
        forwards=ordinary(encode_image, "One picture.", one_picture, batched=True),
        renames=RENAMES,
        unread=(".position_ids", "vit.pooler.dense.weight", "vit.pooler.dense.bias"),
    ),
    "classifier": model_parts.Part(
        prefixes={"vit": [{"classifier.": "classifier."}]},
        build=lambda config: heads.Linear(_config(config).hidden_size, len(prepare.labels(_config(config)))),
        identity=lambda checkpoint: {"labels": [*prepare.labels(_config(checkpoint.config))]},
        steps=_label_steps,
        forwards=ordinary(heads.Linear.forward, "One picture.", heads.Linear.shapes, batched=True),
    ),
}


load = model_parts.loader(PARTS)
