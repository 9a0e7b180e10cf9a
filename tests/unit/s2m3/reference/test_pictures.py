"""The photographs that pip delivers."""

from __future__ import annotations

import importlib.util

import pytest

from broker.protocol.codec import MAX_INPUT_BYTES
from edge_agent.modules.inputs import decoding
from s2m3.catalogue import load_task
from s2m3.reference import pictures
from tests.patience import run_python


@pytest.mark.parametrize("name", pictures.names())
def test_every_picture_exists_decodes_and_has_the_right_content_type(name: str) -> None:
    raw = pictures.picture(name).raw
    assert 0 < len(raw.data) <= MAX_INPUT_BYTES
    magic = {"image/jpeg": b"\xff\xd8\xff", "image/png": b"\x89PNG"}[raw.content_type]
    assert raw.data.startswith(magic)
    assert decoding.picture(raw).mode == "RGB"


def test_the_demo_asks_at_least_twelve_things_over_all_three_tasks_and_eight_pictures() -> None:
    assert len(pictures.REQUESTS) >= 12
    assert {request.task for request in pictures.REQUESTS} == {"classify", "zero-shot", "vqa"}
    assert len({request.picture for request in pictures.REQUESTS}) == 8


@pytest.mark.parametrize("request_", pictures.REQUESTS, ids=lambda request: f"{request.task}-{request.picture}")
def test_every_request_has_the_inputs_of_its_task_and_offers_the_right_answer(request_: pictures.DemoRequest) -> None:
    spec = load_task(f"pocket/{request_.task}")
    assert request_.inputs.keys() == spec.inputs.keys()
    if request_.texts:
        offered = dict(request_.texts)[list(spec.inputs)[-1]].splitlines()
        assert offered.count(request_.expected) == 1
        assert len(set(offered)) == len(offered) >= 3


def test_the_position_of_the_right_answer_tells_nothing() -> None:
    offered = [(request.expected, dict(request.texts)) for request in pictures.REQUESTS if request.texts]
    places = {(texts.get("answers") or texts["text"]).splitlines().index(right) for right, texts in offered}
    assert len(places) >= 3


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(pictures.PicturesMissing, match=r"chelsea.png is missing: install the \[pocket\] extra"):
        pictures.picture("chelsea.png")


def test_finding_a_picture_does_not_import_its_package() -> None:
    code = "import sys; from s2m3.reference import pictures as p; list(map(p.picture, p.names())); print(*sys.modules)"
    found = run_python(code).split()
    assert not {"skimage", "sklearn", "torch"} & set(found)
