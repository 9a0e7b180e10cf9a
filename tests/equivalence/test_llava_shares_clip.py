"""LLaVA 1.5's own copy of its frozen vision encoder has the identity of CLIP's: by content they are one module."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from broker.protocol.specs import Source
from edge_agent.modules.families import clip
from edge_agent.modules.weights import hub, model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint
from s2m3.reference import random_weights, zoo

CLIP, LLAVA = "openai/clip-vit-large-patch14-336", "llava-hf/llava-1.5-7b-hf"
ENTRIES = runpy.run_path(str(Path(__file__).parent / "zoo" / "llava.py"))["ENTRIES"]


def _digest(repository: str) -> str:
    part, checkpoint = clip.PARTS["vision"], Checkpoint(hub.repository(Source(hub=repository, part="vision")))
    tensors = checkpoint.read(model_parts.tensor_names(part, checkpoint).values())
    by_name = {name: tensors[own] for name, own in model_parts.tensor_names(part, checkpoint).items()}
    return model_parts.content_digest("clip.vision", part, checkpoint, by_name)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_vision_encoder_in_llavas_checkpoint_is_clips_module_if_and_only_if_it_was_frozen(
    *, frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path))
    changes = ENTRIES["hub/decoder-vqa-llava-7b"]["changes"]
    # Frozen parts are copied from repositories written before, so LLaVA has an encoder of its own if it comes first.
    for seed, repository in enumerate((CLIP, LLAVA) if frozen else (LLAVA, CLIP)):
        random_weights.write(zoo.published(repository), tmp_path, seed=seed, changes=changes[repository])
    assert (_digest(CLIP) == _digest(LLAVA)) is frozen
