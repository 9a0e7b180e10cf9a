"""Parts of published checkpoints: read by prefix, checked against their configuration, and known by their content."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import AssignedModule
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import modules
from edge_agent.modules.families import clip
from edge_agent.modules.weights import hub, model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint
from s2m3.reference import random_weights, zoo
from s2m3.reference.pictures import picture
from tests.builders import module, runs, uncalibrated_store
from tests.media import SMALLEST_CLIP

NAME = "openai/clip-vit-base-patch16"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models directory that holds a tiny CLIP."""
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    changes = {"config.json": SMALLEST_CLIP, "preprocessor_config.json": {"size": 32, "crop_size": 32}}
    random_weights.write(zoo.published(NAME), tmp_path, changes=changes)
    return tmp_path


@pytest.fixture
def own(models: Path) -> Path:
    """That CLIP's directory."""
    return models / NAME


def clip_spec(part: str = "vision", name: str = NAME, **changes: Any) -> ModuleSpec:
    fields: dict[str, Any] = {"memory_bytes": 10**7, "family": f"clip.{part}", "source": Source(hub=name, part=part)}
    return module(part, **fields | changes)


def change_config(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / "model.safetensors")


def digest(part: str = "vision", name: str = NAME, dtype: str = "float32") -> str:
    one = clip_spec(part, name, dtype=dtype)
    checkpoint = model_parts.open_part(one, part)
    return model_parts.content_digest(
        one.family, clip.PARTS[part], checkpoint, model_parts.read(one, clip.PARTS[part], checkpoint)
    )


def test_the_published_layout_is_what_random_weights_are_written_in(own: Path) -> None:
    names = load_file(own / "model.safetensors").keys()
    assert {
        "logit_scale",
        "visual_projection.weight",
        "text_projection.weight",
        "vision_model.embeddings.class_embedding",
        "vision_model.pre_layrnorm.weight",
        "text_model.encoder.layers.1.self_attn.q_proj.bias",
    } <= names
    assert {name.partition(".")[0] for name in names} == {
        "logit_scale",
        "text_model",
        "text_projection",
        "vision_model",
        "visual_projection",
    }


def test_only_the_parts_tensors_are_read(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models
    read: list[str] = []
    real = Checkpoint.read

    def reading(self: Checkpoint, names: Any, dtype: str) -> Any:
        wanted = list(names)
        read.extend(wanted)
        return real(self, wanted, dtype)

    monkeypatch.setattr(Checkpoint, "read", reading)
    modules.load(clip_spec("text"))
    assert {name.partition(".")[0] for name in read} == {"text_model", "text_projection"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda w: w.pop("vision_model.post_layernorm.bias"),
            "lacks post_layernorm.bias of clip.vision: its weights are",
        ),
        (lambda w: w.update({"vision_model.x": torch.ones(1)}), r"has vision_model.x besides what clip.vision takes"),
        (
            lambda w: w.update({"vision_model.post_layernorm.bias": torch.ones(31)}),
            r"is \(31,\), and by its config.json \(32,\)",
        ),
        (
            lambda w: [w.pop(n) for n in list(w) if n.startswith("vision_model.")],
            "has no tensors named vision_model.: ",
        ),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_refused_by_name(own: Path, change: Any, sentence: str) -> None:
    change_weights(own, change)
    with pytest.raises(ModuleRefused, match=sentence) as caught:
        modules.load(clip_spec())
    assert str(own) in str(caught.value)
    modules.load(clip_spec("text"))  # the other parts are as good as ever


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: c["vision_config"].update(num_hidden_layers=3),
            r"lacks encoder.layers.2.* and 15 more of clip.vision",
        ),
        (lambda c: c["vision_config"].update(num_hidden_layers=1), r"has vision_model.encoder.layers.1.* besides"),
        (lambda c: c["vision_config"].update(intermediate_size=65), r"is \(64,\), and by its config.json \(65,\)"),
        (lambda c: c["vision_config"].update(num_attention_heads=5), "makes no such network .*multiple of the number"),
        (lambda c: c["vision_config"].update(hidden_act="no such thing"), "makes no such network .*no such thing"),
        (
            lambda c: c.update(model_type="bert"),
            "is a model of type bert by its config.json, and this part comes from clip",
        ),
        (lambda c: c.pop("model_type"), "is a model of type unknown"),
    ],
)
def test_a_configuration_that_does_not_match_is_refused_with_the_file(own: Path, change: Any, sentence: str) -> None:
    change_config(own, change)
    with pytest.raises(ModuleRefused, match=sentence) as caught:
        modules.load(clip_spec())
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"not weights\x00at all", b"\xff" * 64, None])
def test_a_damaged_file_of_weights_is_refused(own: Path, content: bytes | None) -> None:
    whole = (own / "model.safetensors").read_bytes()
    (own / "model.safetensors").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModuleRefused, match=r"model.safetensors is not a complete safetensors file .*: fetch it again"):
        modules.load(clip_spec())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605157884\n", "run `git lfs pull`"),
        ("\n<!DOCTYPE html>\n<html><body>404</body></html>", "is an HTML page, .*: download the file itself"),
        ("Entry not found", "is a text file, no safetensors file"),
    ],
)
def test_a_file_that_only_stands_for_weights_is_called_what_it_is(own: Path, content: str, told: str) -> None:
    (own / "model.safetensors").write_text(content)
    with pytest.raises(ModuleRefused, match=rf"model\.safetensors {told}|model\.safetensors is a .*{told}"):
        modules.load(clip_spec())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_wrappers_prefix_before_all_names_is_named_with_what_to_do(own: Path, prefix: str) -> None:
    names = load_file(own / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in names.items()}, own / "model.safetensors")
    with pytest.raises(ModuleRefused, match=rf"all its tensors begin with {prefix}: save .*, or rename the tensors"):
        modules.load(clip_spec())


def test_variants_and_left_behind_files_beside_the_weights_are_passed_over(own: Path) -> None:
    """The hub's own loaders take ``model.safetensors``, too; a Mac leaves ``._model.safetensors``."""
    (own / "model.fp16.safetensors").write_bytes((own / "model.safetensors").read_bytes())
    (own / "._model.safetensors").write_bytes(b"\x00\x05\x16\x07")
    config = own / "config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    assert modules.load(clip_spec())


@pytest.mark.parametrize("content", ["", "[]", "{", '"x"', "\x00"])
def test_a_config_that_is_no_object_is_refused(own: Path, content: str) -> None:
    (own / "config.json").write_text(content)
    with pytest.raises(ModuleRefused, match=r"config.json is no"):
        modules.load(clip_spec())


def test_a_repository_without_config_or_tokenizer_is_refused(own: Path) -> None:
    (own / "vocab.json").unlink()
    with pytest.raises(ModuleRefused, match=r"has no tokenizer: add its tokenizer.json, or vocab.json and merges.txt"):
        modules.load(clip_spec("text"))
    modules.load(clip_spec("vision"))
    (own / "config.json").unlink()
    with pytest.raises(ModuleRefused, match=r"has no config.json: complete it"):
        modules.load(clip_spec("vision"))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights.ckpt", "tf_model.h5"])
def test_a_pickle_offered_as_weights_is_refused_by_name_and_does_not_run(own: Path, tmp_path: Path, file: str) -> None:
    victim = tmp_path / "victim"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (victim,)

    (own / "model.safetensors").unlink()
    (own / file).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ModuleRefused, match=rf"{file} is a pickle or the like, .*: convert it to model.safetensors"):
        modules.load(clip_spec())
    assert not victim.exists()


def test_a_repository_without_any_weights_says_so(own: Path) -> None:
    (own / "model.safetensors").unlink()
    with pytest.raises(ModuleRefused, match="has no safetensors: pickles aren't read"):
        modules.load(clip_spec())


def test_several_files_with_an_index_are_one_checkpoint(models: Path) -> None:
    one = digest()
    changes = {"config.json": SMALLEST_CLIP}
    random_weights.write(zoo.published(NAME), models / "cut", changes=changes, max_shard_size="40KB")
    directory = models / "cut" / NAME
    assert len(list(directory.glob("*.safetensors"))) > 2
    (models / "sharded").symlink_to(models / "cut" / "openai")
    assert digest(name="sharded/clip-vit-base-patch16") == one


def test_several_files_without_an_index_are_one_checkpoint_unless_they_overlap(own: Path) -> None:
    before = digest()
    tensors = load_file(own / "model.safetensors")
    (own / "model.safetensors").unlink()
    ours = {name for name in tensors if name.startswith("vision_model.encoder.")}
    save_file({name: tensor for name, tensor in tensors.items() if name in ours}, own / "a.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name not in ours}, own / "b.safetensors")
    assert digest() == before
    save_file({"logit_scale": tensors["logit_scale"]}, own / "c.safetensors")
    with pytest.raises(ModuleRefused, match=r"has logit_scale in b.safetensors and in c.safetensors: leave one"):
        digest()


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({}, "has no weight_map of names and files"),
        ({"weight_map": {"a": 1}}, "has no weight_map of names and files"),
        (
            {"weight_map": {"a": "../../secret.safetensors"}},
            r"names ../../secret.safetensors, which is not a safetensors file",
        ),
        ({"weight_map": {"a": "pytorch_model.bin"}}, r"names pytorch_model.bin, which is not a safetensors file"),
        ({"weight_map": {"vision_model.x": "gone.safetensors"}}, "lacks embeddings.class_embedding and 38 more"),
    ],
)
def test_an_index_that_is_wrong_is_refused(own: Path, index: dict[str, Any], sentence: str) -> None:
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModuleRefused, match=sentence):
        modules.load(clip_spec())


def test_a_file_that_the_index_names_and_nobody_has_is_named(own: Path) -> None:
    names = load_file(own / "model.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    (own / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModuleRefused, match=r"has no model-00001-of-00002.safetensors: complete it"):
        modules.load(clip_spec())


def test_a_spec_that_understates_its_memory_or_contradicts_the_digest_is_refused(models: Path) -> None:
    assert models
    exact = sum(tensor.nbytes for tensor in load_file(models / NAME / "model.safetensors").values())
    with pytest.raises(ModuleRefused, match=r"have \S+ KiB and the spec says 1,000 bytes: correct memory_bytes to"):
        modules.load(clip_spec(memory_bytes=1000))
    assert modules.load(clip_spec(memory_bytes=exact, digest=digest()))
    with pytest.raises(ModuleRefused, match=rf"have the digest {digest()}, the spec says sha256:0{{64}}: correct"):
        modules.load(clip_spec(digest=f"sha256:{'0' * 64}"))


@pytest.mark.parametrize("source", [None, Source(pip="x", part="vision"), Source(hub=NAME, part="text")])
def test_a_source_of_another_kind_or_part_is_refused(source: Source | None) -> None:
    with pytest.raises(ModuleRefused, match=r"from a (source with part: vision|model repository)"):
        modules.load(clip_spec(source=source))


def renamed(own: Path, target: Path, config: dict[str, Any], rename: Callable[[str], str | None]) -> None:
    """Another repository with some of the tensors under other names."""
    target.mkdir(parents=True)
    tensors = load_file(own / "model.safetensors")
    save_file({new: tensor for name, tensor in tensors.items() if (new := rename(name))}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (target / file).write_bytes((own / file).read_bytes())


def test_clipsegs_frozen_towers_are_the_very_modules_of_clip(own: Path, models: Path) -> None:
    config = {
        "model_type": "clipseg",
        "projection_dim": 16,
        "text_config": SMALLEST_CLIP["text_config"] | {"model_type": "clipseg_text_model", "eos_token_id": 599},
        "vision_config": SMALLEST_CLIP["vision_config"] | {"model_type": "clipseg_vision_model", "patch_size": 16},
    }
    renamed(own, models / "org" / "clipseg", config, lambda name: f"clip.{name}")
    for part in ("vision", "text", "image_projection", "head"):
        assert digest(part, "org/clipseg") == digest(part), part


@pytest.mark.parametrize(
    "prefix", ["vision_tower.vision_model.", "model.vision_tower.vision_model.", "model.vision_tower."]
)
def test_llavas_frozen_tower_is_the_very_module_of_clip(own: Path, models: Path, prefix: str) -> None:
    vision = SMALLEST_CLIP["vision_config"] | {"model_type": "clip_vision_model", "patch_size": 16, "vocab_size": 32000}
    config = {"model_type": "llava", "vision_config": vision, "text_config": {"model_type": "llama"}}

    def rename(name: str) -> str | None:
        return prefix + name.removeprefix("vision_model.") if name.startswith("vision_model.") else None

    renamed(own, models / "org" / "llava", config, rename)
    assert digest(name="org/llava") == digest()
    assert digest(name="org/llava", dtype="float16") == digest(dtype="float16") != digest()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(architectures=["Other"], _name_or_path="elsewhere", dtype="float32"),
        lambda c: c.update(initializer_factor=2.0, logit_scale_init_value=1.0),
        lambda c: c["vision_config"].update(attention_dropout=0.5, initializer_range=1.0, projection_dim=99),
        lambda c: c["text_config"].update(hidden_size=999, vocab_size=7),
        lambda c: c.update(projection_dim=99),
    ],
)
def test_what_does_not_change_the_output_does_not_change_the_digest(own: Path, change: Any) -> None:
    before = digest()
    change_config(own, change)
    assert digest() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["vision_config"].update(layer_norm_eps=1e-6),
        lambda c: c["vision_config"].update(hidden_act="gelu"),
        lambda c: c["vision_config"].update(num_attention_heads=4),
    ],
)
def test_what_changes_the_output_changes_the_digest_though_the_weights_are_the_same(own: Path, change: Any) -> None:
    before = digest()
    change_config(own, change)
    assert digest() != before
    modules.load(clip_spec())  # it is a sound model, only another one


def test_one_changed_weight_or_another_vocabulary_is_another_module(own: Path) -> None:
    before = {part: digest(part) for part in ("vision", "text")}
    vocabulary = json.loads((own / "vocab.json").read_text())
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (own / "vocab.json").write_text(json.dumps(vocabulary))
    assert digest("vision") == before["vision"]
    assert digest("text") != before["text"]
    change_weights(own, lambda w: w["vision_model.post_layernorm.bias"].view(-1)[0].add_(1e-3))
    assert digest("vision") != before["vision"]


def test_pictures_prepared_in_another_way_are_refused_not_silently_shared(own: Path) -> None:
    fields = json.loads((own / "preprocessor_config.json").read_text())
    (own / "preprocessor_config.json").write_text(json.dumps(fields | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ModuleRefused, match=r"preprocessor_config.json of .* says image_mean = \[0.5, 0.5, 0.5\]"):
        modules.load(clip_spec())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_shorter_dtype_holds_half_the_bytes_and_gives_nearly_the_same_float32(own: Path, dtype: str) -> None:
    full, half = (
        modules.load(clip_spec()),
        modules.load(
            clip_spec(
                dtype=dtype,
                memory_bytes=model_parts.count(
                    clip.PARTS["vision"], json.loads((own / "config.json").read_text()), dtype=dtype
                ).memory_bytes,
            )
        ),
    )
    image = picture("chelsea.png").raw
    expected, found = (runs(module)(image).tensors["pooled"] for module in (full, half))
    assert found.dtype == expected.dtype == "float32"
    assert 0 < abs(found - expected).max() < 0.1


def test_an_agent_reports_a_bad_checkpoint_and_goes_on(own: Path) -> None:
    store = uncalibrated_store(10**8)
    (own / "model.safetensors").write_bytes(b"damaged")
    bad = AssignedModule(module="clip/vision", spec=clip_spec(), role="active")
    with pytest.raises(ModuleRefused):
        store.load(bad)
    held = store.held()[bad.spec.key]
    assert (held.state, held.memory_bytes) == ("failed", 0)
    assert held.error is not None
    assert held.error.startswith("clip/vision: ")
    assert "model.safetensors is a text file, no safetensors file" in held.error


def test_counts_from_the_configuration_are_those_of_the_weights(own: Path, models: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    total = 0
    for part in clip.PARTS:
        counted = model_parts.count(clip.PARTS[part], config)
        checkpoint = model_parts.open_part(clip_spec(part), part)
        stored = model_parts.read(clip_spec(part), clip.PARTS[part], checkpoint)
        assert counted.memory_bytes == sum(tensor.nbytes for tensor in stored.values())
        assert counted.parameters == sum(tensor.numel() for tensor in stored.values())
        total += counted.parameters
    whole = random_weights.whole_model("CLIPModel", config)
    assert total == sum(parameter.numel() for parameter in whole.parameters())
    assert models


def test_output_bytes_are_those_of_a_real_pass(models: Path) -> None:
    config = json.loads((models / NAME / "config.json").read_text())
    for use in (None, "patch-mean", "llava"):
        output = runs(modules.load(clip_spec()))(picture("chelsea.png").raw, use=use)
        counted = model_parts.count(clip.PARTS["vision"], config, use=use).output_bytes
        assert counted == sum(array.nbytes for array in output.tensors.values()), use
    captions = RawInput(b"a photo of a dog\na photo of a cat\na photo of a cup\na photo of a horse")
    embeds = runs(modules.load(clip_spec("text")))(captions).tensors["text_embeds"]
    assert model_parts.count(clip.PARTS["text"], config).output_bytes == embeds.nbytes
