"""The compute thread: runs of a group are one pass, each ends in one event, and what a hung pass is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from unittest.mock import Mock

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.messages import AssignedModule
from broker.protocol.tensors import Array
from edge_agent import workers as workers_module
from edge_agent.config import AgentConfig
from edge_agent.device.pass_note import PassNote
from edge_agent.events import Event, ModuleFailed, NodeRun, Ran, Run
from edge_agent.modules import Module, Output, Pass, Prepared, Value
from edge_agent.runtime.runner import Runner
from edge_agent.workers import HUNG_S, Workers
from tests.builders import ENCODER, uncalibrated_store
from tests.patience import PATIENCE_S, until

NEVER_S = 1e12


class Note(PassNote):
    """Which payloads were noted, one entry a call."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str | None, ...]] = []

    def begin(self, *payloads: str | None) -> None:
        self.noted.append(payloads)


class Device:
    """Workers with one module. Its passes wait until the test lets them go on, and are counted.

    With a ``problem`` they fail, on a card that computes nothing more for that reason; with an empty one it does.
    """

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem
        self.go_on, self.began = threading.Event(), threading.Semaphore(0)
        self.passes: list[int] = []
        self.note = Note()
        self._events: SimpleQueue[Event] = SimpleQueue()
        on = "cpu" if problem is None else "meta"
        module = Module(self, {None: Pass(self, Device.forward, batched=True)}, device=on)
        store = uncalibrated_store(10_000, lambda _: module)
        store.load(AssignedModule(module="m/encoder", spec=ENCODER))
        self.store = store
        config = AgentConfig(id="gw-a")
        runner = Runner(batch=4, device=on, problem=lambda: problem or "")
        self.workers = Workers(config, store, runner, report=self._events.put, note=self.note)

    def prepare(self, values: Sequence[Value]) -> Prepared:
        (value,) = values
        assert isinstance(value, RawInput)
        if value.data == b"bad":
            raise RequestFailed(ErrorCode.BAD_INPUT, "bad")
        return Prepared({"x": np.ones((1, len(value.data)), np.float32)})

    def answer(self, arrays: Mapping[str, Array], _: Prepared) -> Output:
        return Output(dict(arrays))

    def sample(self) -> None:
        return None

    def forward(self, x: object) -> dict[str, object]:
        self.passes.append(len(x))  # type: ignore[arg-type]
        self.began.release()
        assert self.go_on.wait(PATIENCE_S)
        if self.problem is not None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {"x": x}

    def submit(self, number: int, group: int, data: bytes = b"a", deadline_s: float = NEVER_S) -> None:
        node = NodeRun(f"r-{number}", "encoder", "w")
        run = Run(node, ENCODER.key, (RawInput(data),), deadline_s, payload=f"p-{number}", group=group)
        self.workers.submit(run)

    def event(self) -> Event:
        return self._events.get(timeout=PATIENCE_S)

    def ended(self, count: int) -> list[Ran]:
        found = [self.event() for _ in range(count)]
        assert self._events.empty()
        return [each for each in found if isinstance(each, Ran)]


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.go_on.set()
    made.workers.close()


def test_runs_of_a_group_that_are_there_are_one_pass_and_a_late_one_is_not_waited_for(device: Device) -> None:
    device.submit(1, 1)
    assert device.began.acquire(timeout=PATIENCE_S)
    for number in (2, 3, 4):
        device.submit(number, 2)
    device.submit(5, 3)
    device.go_on.set()
    found = device.ended(5)
    assert device.passes == [1, 3, 1]
    assert {each.run.request: each.batch for each in found} == {"r-1": 1, "r-2": 3, "r-3": 3, "r-4": 3, "r-5": 1}
    assert all(each.output is not None and each.error is None for each in found)
    device.submit(6, 3)  # its group has been computed
    assert [each.batch for each in device.ended(1)] == [1]


def test_the_note_names_each_payload_while_it_is_prepared_and_all_of_a_pass(device: Device) -> None:
    device.submit(1, 1)
    assert device.began.acquire(timeout=PATIENCE_S)
    device.submit(2, 2)
    device.submit(3, 2)
    device.go_on.set()
    device.ended(3)
    assert device.note.noted == [("p-1",), ("p-1",), ("p-2",), ("p-3",), ("p-2", "p-3")]


def test_bad_input_and_an_expired_deadline_fail_alone(device: Device) -> None:
    device.submit(1, 1)
    assert device.began.acquire(timeout=PATIENCE_S)
    device.submit(2, 2)
    device.submit(3, 2, b"bad")
    device.submit(4, 2, deadline_s=0.0)
    device.submit(5, 2)
    device.go_on.set()
    found = {each.run.request: each for each in device.ended(5)}
    assert device.passes == [1, 2]
    codes = {name: each.error.code for name, each in found.items() if isinstance(each.error, RequestFailed)}
    assert codes == {"r-3": ErrorCode.BAD_INPUT, "r-4": ErrorCode.DEADLINE_EXCEEDED}
    assert found["r-2"].batch == found["r-5"].batch == 2


def test_a_module_that_was_unloaded_is_the_error_of_all_that_waited(device: Device) -> None:
    device.submit(1, 1)
    assert device.began.acquire(timeout=PATIENCE_S)
    device.submit(2, 2)
    device.submit(3, 2)
    device.store.unload(ENCODER.key)
    device.go_on.set()
    errors = {each.run.request: type(each.error) for each in device.ended(3)}
    assert errors == {"r-1": type(None), "r-2": ModuleRefused, "r-3": ModuleRefused}


def test_a_module_that_a_pass_finds_unfit_fails_and_can_be_loaded_again(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose file was overwritten."""
    monkeypatch.setattr(device, "prepare", Mock(side_effect=ModuleRefused("its file was overwritten")))
    device.submit(1, 1)
    ended, failed = device.event(), device.event()
    assert isinstance(ended, Ran)
    assert isinstance(ended.error, ModuleRefused)
    assert isinstance(failed, ModuleFailed)
    assert (failed.key, failed.why) == (ENCODER.key, "m/encoder: its file was overwritten")
    held = device.store.held()[ENCODER.key]
    assert (held.state, held.error, held.memory_bytes) == ("failed", failed.why, 0)
    assert device.store.load(AssignedModule(module="m/encoder", spec=ENCODER)).state == "ready"


def test_a_measurement_is_the_share_of_one_request(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[float] = []
    monkeypatch.setattr(device.store, "record", lambda _, seconds: recorded.append(seconds))
    device.submit(1, 1)
    assert device.began.acquire(timeout=PATIENCE_S)
    device.submit(2, 2)
    device.submit(3, 2)
    device.go_on.set()
    found = {each.run.request: each for each in device.ended(3)}
    assert recorded == [found["r-1"].compute_s, found["r-2"].compute_s / 2]


def test_a_batch_may_take_longer_before_it_counts_as_hung(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.store, "pass_s", lambda _: HUNG_S / workers_module.HUNG_FACTOR)
    device.submit(1, 1)
    assert device.began.acquire(timeout=PATIENCE_S)
    device.submit(2, 2)
    device.submit(3, 2)
    assert device.workers.watch(0.0) is None
    hung = device.workers.watch(HUNG_S + 1)
    assert hung is not None
    assert [each.run.request for each in hung.runs] == ["r-1"]
    device.go_on.set()
    assert device.began.acquire(timeout=PATIENCE_S)
    device.ended(3)


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Iterator[Device]:
    made = Device(request.param)
    yield made
    made.go_on.set()
    made.workers.close()


@pytest.mark.parametrize("failing", ["Some Card 3000 can't be used"], indirect=True)
def test_a_pass_that_broke_the_accelerator_is_lost_with_its_runs_and_nothing_is_computed_after_it(
    failing: Device,
) -> None:
    assert failing.workers.watch(0.0) is None
    failing.submit(1, 1)
    assert failing.began.acquire(timeout=PATIENCE_S)
    failing.submit(2, 2)
    failing.submit(3, 2)
    failing.go_on.set()
    until(lambda: failing.workers.watch(0.0) is not None)
    lost = failing.workers.watch(0.0)
    assert lost is not None
    assert ([each.run.request for each in lost.runs], lost.broken) == (["r-1"], "Some Card 3000 can't be used")
    failing.workers.close()
    assert failing.passes == [1]
    assert failing.ended(0) == []
    assert failing.note.noted[-1] == ("p-1",), "the next process knows"


@pytest.mark.parametrize("failing", [""], indirect=True)
def test_an_error_on_an_accelerator_that_still_computes_is_that_requests_own(failing: Device) -> None:
    failing.go_on.set()
    failing.submit(1, 1)
    (first,) = failing.ended(1)
    failing.submit(2, 2)
    (second,) = failing.ended(1)
    assert "illegal memory access" in str(first.error)
    assert "illegal memory access" in str(second.error)
    assert failing.workers.watch(0.0) is None
