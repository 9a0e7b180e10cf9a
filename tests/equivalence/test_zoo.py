"""Every task of catalog/hub, cut into modules with the wire's bytes between them, answers as the whole model does.

Tiny configurations of the published architectures, random weights in the published layout. A family's entries stand
in ``zoo/FAMILY.py``: ``ENTRIES[catalogue name]`` has
- ``changes``: repository -> file -> changes that make the model tiny;
- ``requests``: inputs by name, as a sensor sends them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edge_agent import catalog, modules
from edge_agent.modules import Module, Output
from edge_agent.runtime.runner import Runner
from s2m3.catalogue import KINDS, kind_of, load_task, numbers
from s2m3.reference import random_weights, whole, zoo
from s2m3.reference.split import Split
from tests.described import assert_made_again


def _entries() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((Path(__file__).parent / "zoo").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert not found.keys() & module.ENTRIES.keys()
        found |= module.ENTRIES
    return found


ENTRIES = _entries()


DESCRIBED = {"audio_spectrogram", "clap", "clip", "clipseg", "heads", "siglip", "vit"}
"""Families whose steps need nothing of transformers, so that another engine has the same ones."""


def write_models(name: str, directory: Path) -> None:
    """The repositories of a task in a models directory, tiny, each with a seed of its own."""
    changes = ENTRIES[name]["changes"]
    sources = {module.source.hub for module in load_task(name).modules.values() if module.source}
    assert sources - {None} <= changes.keys(), "every repository must be made tiny"
    for seed, repository in enumerate(changes):  # in this order: one may hold frozen copies of an earlier one
        published = zoo.published(repository)
        random_weights.write(published, directory, seed=seed, changes=changes[repository])


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_split_equals_the_whole_transformers_model_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(name, tmp_path)
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path))
    task = load_task(name)
    runner = Split()
    unsplit = whole.load(name, task)
    answers = []
    for request in ENTRIES[name]["requests"]:
        assert request.keys() == task.inputs.keys()
        split, expected = runner.run(task, request), unsplit(request)
        assert split.tensors.keys() == expected.tensors.keys()
        for key, array in expected.tensors.items():
            assert array.dtype == split.tensors[key].dtype, key
            assert np.array_equal(array, split.tensors[key]), key
        assert split.answer == expected.answer
        answers.append((repr(split.answer), {key: array.tobytes() for key, array in split.tensors.items()}))
    assert all(answers[0] != other for other in answers[1:]), "different requests must have different answers"


def test_every_task_of_the_hub_has_an_entry_and_a_whole_model() -> None:
    assert ENTRIES.keys() == set(zoo.hub_names()) == {name for name in whole.CLASSES if name.startswith("hub/")}


@pytest.mark.parametrize("name", zoo.hub_names())
def test_the_catalogues_numbers_are_those_of_the_real_configurations(name: str) -> None:
    task = load_task(name)
    assert kind_of(name) in KINDS
    for module, spec in task.modules.items():
        counted = zoo.count(task, module)
        written = (spec.memory_bytes, spec.flops, spec.output_bytes)
        assert written == (counted.memory_bytes, counted.flops or 1, counted.output_bytes), module
        assert numbers(spec)["parameters"] == counted.parameters, module


@pytest.mark.parametrize("name", zoo.hub_names())
def test_the_catalogue_pins_the_revisions_of_its_configurations(name: str) -> None:
    for module in load_task(name).modules.values():
        if module.source is not None and module.source.hub is not None:
            assert module.source.revision == zoo.published(module.source.hub).revision


def test_modules_of_one_name_are_one_module_in_all_tasks() -> None:
    seen: dict[str, str] = {}
    for name in catalog.names():
        content = yaml.safe_load(catalog.path(name).read_text(encoding="utf-8"))
        for module, fields in content["modules"].items():
            key = str({field: fields.get(field) for field in ("family", "source", "dtype", "memory_bytes", "digest")})
            assert seen.setdefault(module, key) == key, f"{name}: {module}"


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_each_module_takes_its_own_sample_inputs_and_several_together_where_its_family_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(name, tmp_path)
    monkeypatch.setenv("S2M3_MODELS", str(tmp_path))
    for spec in load_task(name).modules.values():
        module = modules.load(spec)
        values = module.passes[None].steps.sample()
        assert values is not None, spec.family
        output = Runner().run(module, values)
        assert output.tensors, spec.family
        assert all(np.isfinite(array).all() for array in output.tensors.values()), spec.family
        for use in (use for use, each in module.passes.items() if each.batched):
            together_is_alone(module, use)
        if spec.family.partition(".")[0] in DESCRIBED:
            assert_made_again(module, tmp_path)


def test_the_pocket_encoders_take_several_requests_together() -> None:
    loaded = [modules.load(spec) for spec in load_task("pocket/zero-shot").modules.values()]
    uses = [(module, use) for module in loaded for use, each in module.passes.items() if each.batched]
    assert len(uses) == 3, "both encoders, and the classifier"
    for module, use in uses:
        together_is_alone(module, use)


def together_is_alone(module: Module, use: str | None) -> None:
    """Three requests in one pass get what each gets alone, but for the order of sums."""
    values = module.passes[use].steps.sample()
    assert values is not None
    alone = Runner().run(module, values, use)
    ((first, *others),) = Runner(batch=3).run_all(module, [values] * 3, use)
    for each in (first, *others):
        assert each.batch == 3
        assert isinstance(each.result, Output), each.result
        assert each.result.tensors.keys() == alone.tensors.keys()
        for array, own in alone.tensors.items():
            assert each.result.tensors[array].shape == own.shape
            assert each.result.tensors[array] == pytest.approx(own, rel=1e-3, abs=1e-4)
