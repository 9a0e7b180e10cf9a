"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) as an image classifier, cut before its classifier.

    part         weights           takes                      gives (and nothing else crosses the wire)
    encoder      ``vit.``          a picture's bytes          ``features`` float32 (1, d), the normed class token
    classifier   ``classifier.``   ``features``               ``logits`` float32 (1, c), and the answer

Old checkpoints hold a pooler that classification doesn't use: it is neither held nor counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from broker.specs import ModuleSpec
from edge_agent.modules import Module, Output, Value, answers, cut, heads, inputs, prepare, typical
from edge_agent.modules.checkpoint import Checkpoint, Config

RENAMES = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda found: f".attention.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def see(network: ViTModel, pixels: Tensor) -> dict[str, Tensor]:
    """The normed class token (1, d) of a picture (1, 3, s, s)."""
    return {"features": network(pixel_values=pixels).last_hidden_state[:, 0, :]}


def _config(config: Config) -> ViTConfig:
    return ViTConfig.from_dict(dict(config))


def _identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _config(checkpoint.config)
    wanted = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size"
    fields = {name: getattr(config, name) for name in (*wanted.split(), "hidden_act", "layer_norm_eps", "qkv_bias")}
    return fields | {"pictures": prepare.effective(prepare.image_processor(checkpoint, ViTImageProcessorPil))}


def _labels(config: Config) -> list[str]:
    names = cast("dict[int, str]", _config(config).id2label)
    return [names[index] for index in range(len(names))]


def _typical_encoder(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - it has only one
    """One picture."""
    encoder = cast("ViTModel", network)
    side = prepare.side(encoder.config.image_size)
    return see(encoder, torch.empty(1, encoder.config.num_channels, side, side))


def _typical_classifier(network: nn.Module, use: str | None) -> dict[str, Tensor]:  # noqa: ARG001 - the same
    """One picture."""
    classifier = cast("heads.Linear", network)
    return classifier.forward(torch.empty(1, classifier.width))


PARTS: Mapping[str, cut.Part] = MappingProxyType(
    {
        "encoder": cut.Part(
            prefixes={"vit": [{"vit.": ""}]},
            build=lambda config: ViTModel(_config(config), add_pooling_layer=False),
            identity=_identity,
            typical=_typical_encoder,
            renames=RENAMES,
            unread=(".position_ids", "vit.pooler.dense.weight", "vit.pooler.dense.bias"),
        ),
        "classifier": cut.Part(
            prefixes={"vit": [{"classifier.": "classifier."}]},
            build=lambda config: heads.Linear(_config(config).hidden_size, len(_labels(config))),
            identity=lambda checkpoint: {"labels": [*_labels(checkpoint.config)]},
            typical=_typical_classifier,
        ),
    }
)


class EncoderModule:
    """The encoder with its weights and its image processor."""

    def __init__(self, network: ViTModel, processor: ViTImageProcessorPil) -> None:
        self._network = network
        self._processor = processor

    def typical(self) -> tuple[Value, ...]:
        """A picture."""
        return (typical.picture(),)

    def __call__(self, *values: Value) -> Output:
        """A picture's bytes to ``features`` (1, d)."""
        inputs.count(values, 1)
        pixels = prepare.pixels(self._processor, inputs.picture(values[0])).to(self._network.dtype)
        with torch.inference_mode():
            return Output(answers.arrays(see(self._network, pixels)))


def load(spec: ModuleSpec) -> Module:
    """Load one of the two parts.

    Raises:
        ModuleRefused: the weights aren't there or don't fit.
    """
    name = spec.family.partition(".")[2]
    checkpoint = cut.open_part(spec, name)
    network = cut.load_network(spec, PARTS[name], checkpoint)
    if isinstance(network, ViTModel):
        return EncoderModule(network, prepare.image_processor(checkpoint, ViTImageProcessorPil))
    return heads.LinearModule(cast("heads.Linear", network), "features", _labels(checkpoint.config))
