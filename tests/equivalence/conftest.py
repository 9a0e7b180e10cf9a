"""The pocket zoo, loaded once: split modules and the whole models, at one thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import pytest
import torch
from pydantic import JsonValue

from broker.protocol.codec import RawInput
from edge_agent import catalog
from s2m3.catalogue import load_task
from s2m3.reference import whole
from s2m3.reference.split import Split


class PocketSplit:
    """The pocket tasks by name, run module by module, every value between two modules through the bytes of the wire."""

    def __init__(self) -> None:
        tasks = [load_task(name) for name in catalog.names() if name.startswith("pocket/")]
        self.specs = {task.task: task for task in tasks}
        self._split = Split()
        self._split.hold(tasks)
        self.modules = self._split.modules

    def answer(self, task: str, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        """The task's answer as a sensor reads it from the result's bytes."""
        answer = self._split.run(self.specs[task], inputs).answer
        assert answer is not None
        return answer


class PocketWhole:
    """The pocket tasks by name, each as a whole model."""

    def __init__(self) -> None:
        self.model = cache(lambda task: whole.load(f"pocket/{task}", load_task(f"pocket/{task}")))

    def answer(self, task: str, inputs: Mapping[str, RawInput]) -> dict[str, JsonValue]:
        """The whole model's answer."""
        answer = self.model(task)(inputs).answer
        assert answer is not None
        return answer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The order of sums depends on the thread count, so that is fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def split(one_thread: None) -> PocketSplit:  # noqa: ARG001 - loads at one thread
    return PocketSplit()


@pytest.fixture(scope="session")
def unsplit(one_thread: None) -> PocketWhole:  # noqa: ARG001 - the same
    return PocketWhole()
