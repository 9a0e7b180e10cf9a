"""SmolVLM (Marafioti et al. 2025, arXiv:2504.05299), published as an Idefics 3: what sees, and what answers.

    part       weights                             takes                    gives (nothing else crosses the wire)
    vision     ``model.vision_model.``,            a picture's bytes        ``image_embeds`` float32 (1, p, h) and
               ``model.connector.``                                         ``grid`` float32 (2,): rows, columns
    language   ``model.text_model.``, ``lm_head.`` both, and the question   ``tokens`` int64 (1, t), and the answer

A picture is cut into rows x columns tiles, and all of it makes one more, as published; 0 x 0 when it isn't cut. The
connector stays with the tower, which was trained with it and which nobody else has: it makes a sixteenth of the
vectors, and a twenty-first of the bytes. ``causal`` has the rest of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn
from transformers import Idefics3Config, Idefics3ImageProcessorPil
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector, Idefics3VisionTransformer

from broker.protocol.tensors import Array
from edge_agent.modules import Value
from edge_agent.modules.families import causal
from edge_agent.modules.inputs import decoding, prepare, sample_inputs, steps
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint, Config
from edge_agent.modules.weights.model_parts import ordinary

PROMPT = "<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:"
_AROUND, _WHOLE = "<fake_token_around_image>", "<global-img>"
GRID = (3, 4)  # rows and columns of tiles, of the picture of 4:3 that is counted
TILES = 13  # these, and the whole


class Seeing(nn.Module):
    """The tower and the connector, transformers' own."""

    def __init__(self, config: Idefics3Config) -> None:
        super().__init__()
        vision: Any = config.vision_config
        self.vision_model = Idefics3VisionTransformer(vision)
        self.connector = cast("Any", Idefics3Connector)(config)
        self.side = int(vision.image_size)
        self.patches = self.side // int(vision.patch_size)  # a side

    def forward(self, pixels: Tensor, grid: Tensor) -> dict[str, Tensor]:
        """Tiles (n, 3, s, s), all of their patches real, to ``image_embeds`` (1, p, h); ``grid`` (2,) as it is."""
        real = torch.ones(len(pixels), self.patches, self.patches, dtype=torch.bool, device=pixels.device)
        hidden = self.vision_model.embeddings(pixel_values=pixels, patch_attention_mask=real)
        hidden = self.vision_model.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        made: Tensor = self.connector(self.vision_model.post_layernorm(hidden))  # (n, p / n, h)
        return {"image_embeds": made.reshape(1, -1, made.shape[-1]), "grid": grid}


def _config(config: Config) -> Idefics3Config:
    return Idefics3Config.from_dict(config)


def tile_vectors(config: Config) -> int:
    """How many vectors one tile makes."""
    vision, factor = config["vision_config"], int(config["scale_factor"])
    return int((vision["image_size"] // vision["patch_size"]) ** 2) // factor**2


def placeholder(rows: int, columns: int, vectors: int) -> str:
    """The placeholder of a picture in the prompt."""
    tile = causal.IMAGE * vectors
    lines = [
        "".join(f"{_AROUND}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
        for row in range(1, rows + 1)
    ]
    return "".join([*lines, "\n" if rows else "", _AROUND, _WHOLE, tile, _AROUND])


def _vision_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    config = _config(checkpoint.config)
    own = prepare.identity(lambda _: config.vision_config, prepare.VISION, pictures=Idefics3ImageProcessorPil)
    return own(checkpoint) | {"scale_factor": config.scale_factor}


def _language_identity(checkpoint: Checkpoint) -> dict[str, JsonValue]:
    return causal.identity(checkpoint) | {"prompt": PROMPT, "vectors": tile_vectors(checkpoint.config)}


def _language(config: Config) -> causal.Language:
    network = causal.build(config)
    network.config.picture_tokens = TILES * tile_vectors(config)  # of the pass that is counted
    return network


@dataclass(frozen=True)
class TiledPicture:
    """A picture's bytes to the ``pixels`` of its tiles (n, 3, s, s) and ``grid`` (2,)."""

    processor: Any

    def read(self, value: Value) -> dict[str, Array]:
        """The tiles."""
        picture = decoding.picture(value)
        made = self.processor(images=[[picture]], return_row_col_info=True, return_tensors="np")
        tiles = np.ascontiguousarray(made["pixel_values"][0], dtype=np.float32)
        return {"pixels": tiles, "grid": np.array([made["rows"][0][0], made["cols"][0][0]], np.float32)}

    def sample(self) -> Value:
        """A photograph."""
        return sample_inputs.picture()


def _vision_steps(checkpoint: Checkpoint) -> steps.Steps:
    processor = prepare.resizing_first(prepare.processor(checkpoint, Idefics3ImageProcessorPil))
    return steps.Steps((TiledPicture(processor),))


def _language_steps(checkpoint: Checkpoint) -> causal.PromptSteps:
    vectors = tile_vectors(checkpoint.config)

    def image(value: Value, count: int) -> str:
        rows, columns = (int(each) for each in decoding.array(value, "grid", (2,)))
        if count != (rows * columns + 1) * vectors:
            raise decoding.wrong_needs(f"{count} vectors are not those of {rows} x {columns} tiles and one")
        return placeholder(rows, columns, vectors)

    shape = (1, TILES * vectors, causal.text_config(checkpoint.config).hidden_size)
    sample = {**sample_inputs.arrays({"image_embeds": shape}), "grid": np.array(GRID, np.float32)}
    return causal.PromptSteps(checkpoint, PROMPT, image, sample)


PARTS: model_parts.Parts = {
    "vision": model_parts.Part(
        prefixes={"idefics3": [{"model.vision_model.": "vision_model.", "model.connector.": "connector."}]},
        build=lambda config: Seeing(_config(config)),
        identity=_vision_identity,
        steps=_vision_steps,
        forwards=ordinary(
            Seeing.forward,
            "One picture of 4:3, in thirteen tiles.",
            lambda network: {"pixels": (TILES, 3, network.side, network.side), "grid": (2,)},
        ),
    ),
    "language": model_parts.Part(
        prefixes={"idefics3": [{"model.text_model.": "model.", "lm_head.": "lm_head."}]},
        build=_language,
        identity=_language_identity,
        steps=_language_steps,
        forwards=causal.answering(
            "One picture in thirteen tiles, a prompt of 24 tokens besides it, and an answer of 16."
        ),
        settings=causal.settings,
        unread=(".rotary_emb.inv_freq",),
    ),
}

load = model_parts.loader(PARTS)
