"""The requests by which exports are compared."""

from __future__ import annotations

import pytest

from edge_agent import catalog
from s2m3.catalogue import load_task
from s2m3.export import observed
from s2m3.reference.pictures import REQUESTS, names
from s2m3.reference.speech import SENTENCES


@pytest.mark.parametrize("name", catalog.names())
def test_each_task_has_requests_with_all_photographs_sounds_and_texts(name: str) -> None:
    task = load_task(name)
    found = observed.requests(task)
    assert all(each.keys() == task.inputs.keys() for each in found)
    for input_, spec in task.inputs.items():
        least = {"image": len(names()), "audio": len(SENTENCES), "text": 3}[spec.kind]
        assert len({each[input_].data for each in found}) >= least


def test_the_demos_requests_come_first() -> None:
    own = [each.inputs for each in REQUESTS if each.task == "vqa"]
    assert observed.requests(load_task("pocket/vqa"))[: len(own)] == own
