"""Sample inputs: of the sizes that the catalogue plans with, and always the same."""

from __future__ import annotations

import tracemalloc

import pytest

from broker.protocol.codec import RawInput
from edge_agent.modules.inputs import decoding, sample_inputs
from edge_agent.modules.weights import packaged
from edge_agent.modules.weights.packaged import is_here
from s2m3.catalogue import load_task

TASKS = {name: load_task(f"pocket/{name}") for name in ("ask", "zero-shot")}


def test_the_picture_has_about_the_bytes_that_the_catalogue_plans_with() -> None:
    planned = TASKS["zero-shot"].inputs["image"].bytes
    assert planned * 0.7 < len(sample_inputs.picture().data) < planned * 1.3
    assert decoding.picture(sample_inputs.picture()).size == sample_inputs.PICTURE


def test_the_picture_is_made_in_little_memory() -> None:
    sample_inputs.picture.cache_clear()
    width, height = sample_inputs.PICTURE
    tracemalloc.start()
    sample_inputs.picture()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 4 * width * height * 3


def test_the_sound_has_about_the_bytes_that_the_catalogue_plans_with() -> None:
    planned = TASKS["ask"].inputs["audio"].bytes
    assert planned * 0.7 < len(sample_inputs.sound().data) < planned * 1.3


def test_texts_are_lines_and_a_question_is_one() -> None:
    assert len(decoding.lines(sample_inputs.texts())) == sample_inputs.TEXTS
    assert len(decoding.lines(sample_inputs.question())) == 1


def test_sample_inputs_are_always_the_same() -> None:
    made = sample_inputs.picture().data, sample_inputs.sound().data
    sample_inputs.picture.cache_clear()
    sample_inputs.sound.cache_clear()
    assert (sample_inputs.picture().data, sample_inputs.sound().data) == made


def test_arrays_are_small_finite_numbers_of_the_wanted_shapes() -> None:
    made = sample_inputs.arrays({"a": (1, 3), "b": (2, 4, 5)})
    assert {name: (array.shape, str(array.dtype)) for name, array in made.items()} == {
        "a": ((1, 3), "float32"),
        "b": ((2, 4, 5), "float32"),
    }
    assert all(0 < abs(array).max() <= 0.1 for array in made.values())


def test_weights_of_pip_and_of_the_catalogue_are_here_when_their_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {name: spec.source for name, spec in TASKS["ask"].modules.items()}
    assert all(is_here(source) for source in sources.values())
    assert is_here(None)
    monkeypatch.setattr(packaged, "PIP_WEIGHTS", {})
    assert [name for name, source in sources.items() if is_here(source)] == ["conse/head"]


def test_a_raw_input_names_its_kind() -> None:
    kinds = [
        value.content_type
        for value in (sample_inputs.picture(), sample_inputs.sound(), sample_inputs.texts(), sample_inputs.question())
    ]
    assert kinds == ["image/jpeg", "audio/wav", "text/plain", "text/plain"]
    assert isinstance(sample_inputs.texts(), RawInput)
