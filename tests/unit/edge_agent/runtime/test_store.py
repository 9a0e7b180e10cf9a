"""The store holds each module once, within the budget, while a pass uses it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import AssignedModule
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import Module, Output, Value
from edge_agent.runtime.store import Store
from tests.builders import computing, module, runs, uncalibrated_store
from tests.patience import PATIENCE_S


def assigned(name: str, memory_bytes: int = 100) -> AssignedModule:
    return AssignedModule(module=name, spec=module(name, memory_bytes))


class Loads:
    """A loader that counts, and waits or fails when told to."""

    def __init__(self) -> None:
        self.specs: list[ModuleSpec] = []
        self.failure: BaseException | None = None
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.started = threading.Event()

    def __call__(self, spec: ModuleSpec) -> Module:
        self.specs.append(spec)
        self.started.set()
        assert self.may_finish.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure

        def module(*values: Value) -> Output:
            return Output({}, {"values": len(values)})

        return computing(module)


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def store(loads: Loads) -> Store:
    return uncalibrated_store(250, loads, wait_s=0)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_loaded_module_can_be_used_and_is_reported(store: Store) -> None:
    held = store.load(assigned("a"))
    assert (held.module, held.state, held.memory_bytes) == ("a", "ready", 100)
    with store.use(assigned("a").spec.key) as module:
        assert runs(module)({}).answer == {"values": 1}
        assert store.held()[assigned("a").spec.key].uses == 1
    assert store.held()[assigned("a").spec.key].uses == 0
    assert store.used_bytes == 100


def test_the_same_key_twice_is_held_once_under_the_newer_name(store: Store, loads: Loads) -> None:
    store.load(assigned("a"))
    again = store.load(assigned("a").model_copy(update={"module": "alias"}))
    assert (again.module, len(loads.specs), store.used_bytes) == ("alias", 1, 100)


def test_two_threads_that_load_one_key_load_it_once(store: Store, loads: Loads) -> None:
    loads.may_finish.clear()
    states: list[str] = []
    threads = [in_thread(lambda: states.append(store.load(assigned("a")).state)) for _ in range(2)]
    assert loads.started.wait(PATIENCE_S)
    assert store.held()[assigned("a").spec.key].state == "loading"
    loads.may_finish.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert states == ["ready", "ready"]
    assert len(loads.specs) == 1


def test_a_module_over_the_budget_is_refused_by_name_with_both_numbers(store: Store, loads: Loads) -> None:
    store.load(assigned("a"))
    with pytest.raises(ModuleRefused, match=r"big needs 200 bytes and 150 bytes of 250 bytes are free: .*raise"):
        store.load(assigned("big", 200))
    assert len(loads.specs) == 1
    assert store.used_bytes == 100
    failed = store.held()[assigned("big").spec.key]
    assert (failed.state, failed.memory_bytes) == ("failed", 0)
    assert "150 bytes of 250 bytes" in str(failed.error)


def test_the_budget_may_be_used_to_its_last_byte(store: Store) -> None:
    store.load(assigned("a", 250))
    assert store.used_bytes == 250


def test_unloading_frees_the_bytes_and_is_safe_to_repeat(store: Store) -> None:
    store.load(assigned("a", 250))
    store.unload(assigned("a").spec.key)
    store.unload(assigned("a").spec.key)
    assert (store.used_bytes, store.held()) == (0, {})
    store.load(assigned("b", 250))


def test_a_module_in_use_is_freed_when_its_last_use_ends(store: Store) -> None:
    key = assigned("a").spec.key
    store.load(assigned("a"))
    with store.use(key) as module:
        with store.use(key):
            store.unload(key)
            assert runs(module)().answer == {"values": 0}
        assert store.used_bytes == 100
        assert store.held() == {}  # for the orchestrator it is gone
        with pytest.raises(ModuleRefused, match="on its way out"), store.use(key):
            pass
    assert store.used_bytes == 0


def test_a_use_that_fails_ends_too(store: Store) -> None:
    key = assigned("a").spec.key
    store.load(assigned("a"))
    with pytest.raises(ZeroDivisionError), store.use(key):
        _ = 1 / 0
    store.unload(key)
    assert store.used_bytes == 0


def test_a_module_on_its_way_out_that_is_assigned_again_stays(store: Store, loads: Loads) -> None:
    key = assigned("a").spec.key
    store.load(assigned("a"))
    with store.use(key):
        store.unload(key)
        store.load(assigned("a"))
    assert store.held()[key].state == "ready"
    assert len(loads.specs) == 1


def test_a_load_waits_for_memory_that_is_on_its_way_out(loads: Loads) -> None:
    store = uncalibrated_store(100, loads, wait_s=30)
    store.load(assigned("old"))
    done = threading.Event()

    def load_new() -> None:
        store.load(assigned("new"))
        done.set()

    with store.use(assigned("old").spec.key):
        store.unload(assigned("old").spec.key)
        thread = in_thread(load_new)
        assert not done.is_set()
        assert len(loads.specs) == 1
    thread.join(PATIENCE_S)
    assert done.is_set()
    assert list(store.held()) == [assigned("new").spec.key]


def test_a_load_does_not_wait_when_nothing_is_on_its_way_out(loads: Loads) -> None:
    store = uncalibrated_store(100, loads, wait_s=3600)
    store.load(assigned("a"))
    with pytest.raises(ModuleRefused):
        store.load(assigned("b"))


def test_a_module_unloaded_while_loading_is_dropped_and_its_memory_counts_until_then(
    store: Store, loads: Loads
) -> None:
    loads.may_finish.clear()
    refused: list[str] = []

    def load() -> None:
        try:
            store.load(assigned("a"))
        except ModuleRefused as error:
            refused.append(str(error))

    thread = in_thread(load)
    assert loads.started.wait(PATIENCE_S)
    store.unload(assigned("a").spec.key)
    assert store.used_bytes == 100
    assert store.held() == {}
    loads.may_finish.set()
    thread.join(PATIENCE_S)
    assert refused == ["a was unloaded while it was loading"]
    assert store.used_bytes == 0


def refusal_of(cause: Exception) -> ModuleRefused:
    """The error that a reader of weights raises for any error of its library."""
    refusal = ModuleRefused("model.safetensors can't be read as weights: install it again")
    refusal.__cause__ = cause
    return refusal


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ModuleRefused("unknown family"), r"^a: unknown family$"),
        (MemoryError(), r"^a needs 100 bytes, which this device doesn't really have$"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), r"^a needs 100 bytes, which this"),
        (refusal_of(OSError(errno.ENOMEM, "Cannot allocate memory")), r"^a needs 100 bytes, which this device"),
        (RuntimeError("first line\n  File x, line 3"), r"^a can't be loaded \(RuntimeError: first line\)$"),
        (KeyError(), r"^a can't be loaded \(KeyError: no reason given\)$"),
        (
            type("PanicException", (BaseException,), {})("index"),
            r"^a can't be loaded \(RuntimeError: a library panicked: i",
        ),
    ],
)
def test_whatever_goes_wrong_is_one_sentence_and_stays_listed_until_unloaded(
    store: Store, loads: Loads, failure: BaseException, sentence: str
) -> None:
    key = assigned("a").spec.key
    loads.failure = failure
    with pytest.raises(ModuleRefused, match=sentence) as caught:
        store.load(assigned("a"))
    assert store.held()[key].error == str(caught.value)
    assert store.used_bytes == 0
    with pytest.raises(ModuleRefused, match="failed"), store.use(key):
        pass
    store.unload(key)
    assert store.held() == {}


def test_a_failed_module_can_be_loaded_again(store: Store, loads: Loads) -> None:
    loads.failure = RuntimeError("once")
    with pytest.raises(ModuleRefused):
        store.load(assigned("a"))
    loads.failure = None
    assert store.load(assigned("a")).state == "ready"
    assert store.held()[assigned("a").spec.key].error is None


def test_a_module_that_is_not_held_or_still_loading_can_not_be_used(store: Store, loads: Loads) -> None:
    with pytest.raises(ModuleRefused, match="not held"), store.use("nobody"):
        pass
    loads.may_finish.clear()
    thread = in_thread(lambda: store.load(assigned("a")))
    assert loads.started.wait(PATIENCE_S)
    with pytest.raises(ModuleRefused, match="loading"), store.use(assigned("a").spec.key):
        pass
    loads.may_finish.set()
    thread.join(PATIENCE_S)


def test_measured_seconds_are_a_moving_average(store: Store) -> None:
    key = assigned("a").spec.key
    store.record(key, 1.0)  # nobody's: forgotten
    store.load(assigned("a"))
    assert store.held()[key].compute_s is None
    store.record(key, 1.0)
    assert store.held()[key].compute_s == 1.0
    store.record(key, 2.0)
    assert store.held()[key].compute_s == pytest.approx(1.2)
