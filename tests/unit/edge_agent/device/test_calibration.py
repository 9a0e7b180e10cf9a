"""The measured cost of a module when it is loaded: seconds on the test's clock, bytes in the test's books."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed
from broker.protocol.messages import AssignedModule
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import ModuleKey, ModuleSpec, Source
from edge_agent import modules
from edge_agent.device.calibration import FRESH_BYTES, LONGEST_S, PASSES, Calibration
from edge_agent.device.footprint import resident_bytes
from edge_agent.device.measurements import Measurements
from edge_agent.modules import Module, Output, Value
from edge_agent.modules.inputs import sample_inputs
from edge_agent.runtime.store import Store
from s2m3.bench.memory.processes import memory_of
from s2m3.catalogue import load_task
from tests.builders import computing, module
from tests.patience import PATIENCE_S, run_python

NAMES = "pocket/imagenet-names.safetensors"  # weights that lie in the catalogue
GB = 10**9
LOAD_PEAK, LOAD_NOISE_BYTES = 1.2, 8 * 2**20  # times what a module occupies; what its reading takes besides
NOISE_BYTES = 16 * 2**20  # what else a process allocates and frees meanwhile


def catalogue_spec(
    part: str = "embeddings", *, memory_bytes: int = 1000, flops: float = 1e6, place: str = NAMES
) -> ModuleSpec:
    return module(part, memory_bytes, flops, family="made.up", source=Source(catalog=place, part=part))


def assigned(made: ModuleSpec) -> AssignedModule:
    return AssignedModule(module="a", spec=made)


class Bench:
    """A device on which loading and passes take as much time and memory as the test says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.resident: int | None = 50_000
        self.free: int | None = 100 * GB
        self.load_s, self.grows = 2.0, 1500
        self.passes_s = [0.4, 0.05, 0.06, 0.07, 0.05, 0.06]
        self.passes = 0
        self.failure: Exception | None = None
        self.sample: tuple[Value, ...] = ({},)

    def calibration(self, measured: Measurements | None = None, speed: float = 1.0) -> Calibration:
        return Calibration(
            measured or Measurements(),
            speed=speed,
            flops_per_s=1e9,
            clock=lambda: self.now_s,
            resident_bytes=lambda: self.resident,
            free_bytes=lambda: self.free,
        )

    def store(self, budget_bytes: int = 10_000, calibration: Calibration | None = None) -> Store:
        return Store(budget_bytes, self.load, wait_s=0, calibration=calibration or self.calibration())

    def load(self, _: ModuleSpec) -> Module:
        self.now_s += self.load_s
        if self.resident is not None:
            self.resident += self.grows
        return computing(self.compute, sample=self.sample)

    def compute(self, *values: Value) -> Output:
        assert values == self.sample
        if self.failure is not None:
            raise self.failure
        self.now_s += self.passes_s[self.passes % len(self.passes_s)]
        self.passes += 1
        return Output({})


@pytest.fixture
def bench() -> Bench:
    return Bench()


def key(made: ModuleSpec) -> ModuleKey:
    return made.key


def test_the_first_pass_warms_up_and_the_median_of_the_next_ones_counts(bench: Bench) -> None:
    bench.passes_s = [0.2, 0.05, 0.06, 0.9, 0.05, 0.06]
    held = bench.store().load(assigned(catalogue_spec()))
    assert held.compute_s == pytest.approx(0.06)
    assert bench.passes == 4, "the slow one used up the time"
    bench.passes, bench.passes_s = 0, [0.01]
    bench.store().load(assigned(catalogue_spec()))
    assert bench.passes == 1 + PASSES


def test_a_slow_module_is_run_once_and_that_counts(bench: Bench) -> None:
    bench.passes_s = [3.0]
    assert bench.store().load(assigned(catalogue_spec())).compute_s == 3.0
    assert bench.passes == 1


def test_an_emulated_slower_device_says_what_its_passes_will_take(bench: Bench) -> None:
    bench.passes_s = [0.01]
    held = bench.store(calibration=bench.calibration(speed=0.25)).load(assigned(catalogue_spec()))
    assert held.compute_s == pytest.approx(0.04)


def test_a_module_is_there_though_its_measurement_cannot_be_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    measured = Measurements()
    monkeypatch.setattr(measured, "keep", no_memory)
    store = bench.store(calibration=bench.calibration(measured))
    made = catalogue_spec()
    assert store.load(assigned(made)).state == "ready"
    assert store.held()[made.key].state == "ready"
    store.unload(made.key)
    assert not store.held()


def test_seconds_of_loading_are_measured_with_the_calibration(bench: Bench) -> None:
    bench.passes_s = [0.2, 0.1]
    assert bench.store().load(assigned(catalogue_spec())).load_s == pytest.approx(2.0 + 0.2 + 0.1 + 0.2)


def test_a_module_that_would_run_too_long_is_not_run_only_to_be_measured(bench: Bench) -> None:
    held = bench.store().load(assigned(catalogue_spec(flops=1e9 * (LONGEST_S + 1))))
    assert (held.state, held.compute_s, bench.passes) == ("ready", None, 0)
    assert held.memory_bytes == 1500, "its memory is known all the same"


def test_a_module_without_sample_inputs_is_ready_unmeasured(bench: Bench) -> None:
    store = Store(10_000, lambda _: computing(lambda *_: Output({})), calibration=bench.calibration())
    held = store.load(assigned(catalogue_spec()))
    assert (held.state, held.compute_s) == ("ready", None)


def test_a_pass_on_made_up_arrays_that_fails_does_not_cost_the_module(bench: Bench) -> None:
    bench.failure = RuntimeError("odd")
    held = bench.store().load(assigned(catalogue_spec()))
    assert (held.state, held.compute_s) == ("ready", None)


def test_a_module_that_fails_on_a_usual_picture_is_refused_with_its_reason(bench: Bench) -> None:
    bench.sample, bench.failure = (sample_inputs.picture(),), ValueError("an image of 64 x 64 doesn't fit\nat all")
    with pytest.raises(
        ModuleRefused, match=r"fails on a usual input \(ValueError: an image of 64 x 64 doesn't fit\): its"
    ):
        bench.store().load(assigned(catalogue_spec()))


def test_a_request_that_fails_by_the_module_is_no_reason_to_load_it_and_one_that_is_refused_is(bench: Bench) -> None:
    bench.sample, bench.failure = (sample_inputs.picture(),), RequestFailed(ErrorCode.MODULE_FAILED, "ONNX Runtime: no")
    with pytest.raises(ModuleRefused, match=r"fails on a usual input \(ONNX Runtime: no\): its files don't fit"):
        bench.store().load(assigned(catalogue_spec()))
    bench.failure = RequestFailed(ErrorCode.BAD_INPUT, "too small a picture")
    assert bench.store().load(assigned(catalogue_spec())).state == "ready"


def test_a_sample_pass_without_memory_does(bench: Bench) -> None:
    bench.failure = MemoryError()
    store = bench.store()
    with pytest.raises(ModuleRefused, match="which this device doesn't really have"):
        store.load(assigned(catalogue_spec()))
    assert store.used_bytes == 0


def test_a_footprint_is_what_really_grew_and_never_less_than_the_weights(bench: Bench) -> None:
    store = bench.store()
    assert store.load(assigned(catalogue_spec("big"))).memory_bytes == 1500
    bench.grows = -700  # its weights took the place of what others had let go
    assert store.load(assigned(catalogue_spec("small"))).memory_bytes == 1000
    assert store.used_bytes == 2500


def test_where_nobody_knows_what_is_resident_the_spec_counts(bench: Bench) -> None:
    bench.resident = None
    assert bench.store().load(assigned(catalogue_spec())).memory_bytes == 1000


def test_a_module_that_turns_out_too_large_is_let_go_and_refused_with_both_numbers(bench: Bench) -> None:
    store = bench.store(2000)
    bench.grows = 900
    store.load(assigned(catalogue_spec("first", memory_bytes=900)))
    bench.grows = 1101
    with pytest.raises(
        ModuleRefused, match=r"a really occupies 1\.08 KiB and 1\.07 KiB of 1\.95 KiB are free: .*raise"
    ):
        store.load(assigned(catalogue_spec("second", memory_bytes=900)))
    failed = store.held()[key(catalogue_spec("second"))]
    assert (failed.state, failed.memory_bytes, store.used_bytes) == ("failed", 0, 900)
    with pytest.raises(ModuleRefused, match="failed"), store.use(key(catalogue_spec("second"))):
        pass
    bench.grows = 1100
    assert store.load(assigned(catalogue_spec("second", memory_bytes=900))).state == "ready", "it was a bad moment"


def test_a_known_footprint_is_counted_before_anything_is_loaded(bench: Bench) -> None:
    calibration = bench.calibration()
    store = bench.store(2000, calibration)
    store.load(assigned(catalogue_spec()))
    store.unload(key(catalogue_spec()))
    small, loads = bench.store(1400, calibration), bench.now_s
    with pytest.raises(ModuleRefused, match=r"a needs 1\.5 KiB and 1\.4 KiB of 1\.4 KiB are free"):
        small.load(assigned(catalogue_spec()))
    assert bench.now_s == loads


def test_what_the_machine_does_not_really_have_is_refused_before_it_is_read(bench: Bench) -> None:
    bench.free = FRESH_BYTES + 999
    left = show_bytes(bench.free)
    with pytest.raises(ModuleRefused, match=rf"its weights are 1,000 bytes and this machine has only {left} left"):
        bench.store().load(assigned(catalogue_spec()))
    assert bench.now_s == 0
    bench.free = None
    assert bench.store().load(assigned(catalogue_spec())).state == "ready"


def test_what_was_measured_once_is_ready_as_soon_as_it_is_loaded_in_every_later_life(
    bench: Bench, tmp_path: Path
) -> None:
    path = tmp_path / "gw-a.json"
    first = bench.store(calibration=bench.calibration(Measurements(path), speed=0.5)).load(assigned(catalogue_spec()))
    passes = bench.passes
    bench.grows = 1200
    again = bench.store(calibration=bench.calibration(Measurements(path), speed=0.5)).load(assigned(catalogue_spec()))
    assert bench.passes == passes
    assert (again.compute_s, again.memory_bytes) == (first.compute_s, first.memory_bytes)
    assert again.load_s == pytest.approx(2.0)


def test_an_unloaded_module_whose_weights_are_here_is_cached_with_its_average(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "gw-a.json"
    store = bench.store(calibration=bench.calibration(Measurements(path), speed=0.5))
    here, gone = catalogue_spec(memory_bytes=1001), catalogue_spec("x", place="pocket/nowhere.safetensors")
    for each in (here, gone):
        store.load(assigned(each))
    assert store.cached() == {}, "it is held"
    store.record(here.key, 1.0)
    average = store.held()[here.key].compute_s
    for each in (here, gone):
        store.unload(each.key)
    assert store.cached() == {here.key: pytest.approx(average)}
    assert bench.calibration(Measurements(path), speed=0.5).cached == {here.key: pytest.approx(average)}
    assert bench.calibration(Measurements(path)).cached == {here.key: pytest.approx(average / 2 if average else 0)}


def test_nothing_is_measured_while_a_forward_pass_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.device.calibration.PATIENCE_S", 30.0)
    order: list[str] = []
    about_to_measure = threading.Event()
    calibration = bench.calibration()

    def free() -> int:
        about_to_measure.set()
        return GB

    def resident() -> int:
        order.append("measured")
        return 0

    calibration._free_bytes, calibration._resident_bytes = free, resident
    store = bench.store(calibration=calibration)
    thread = threading.Thread(target=store.load, args=(assigned(catalogue_spec()),))
    with store.passing():
        thread.start()
        assert about_to_measure.wait(PATIENCE_S)
        order.append("passed")
    thread.join(PATIENCE_S)
    assert order[:2] == ["passed", "measured"]


def test_a_measurement_does_not_wait_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.device.calibration.PATIENCE_S", 0.0)
    store = bench.store()
    with store.passing():
        assert store.load(assigned(catalogue_spec())).state == "ready"


@pytest.fixture
def fresh_store() -> Callable[[], Store]:
    """A store that has measured nothing yet, and takes the machine's own clock and memory."""
    return lambda: Store(GB, calibration=Calibration(Measurements(), flops_per_s=1e10))


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet-lite0/encoder",
        "efficientnet-lite0/classifier",
        "minilm/text",
        "conse/head",
        "whisper-tiny.en/encoder",
        "whisper-tiny.en/decoder",
    ],
)
def test_the_pocket_modules_are_measured_for_real(name: str, fresh_store: Callable[[], Store]) -> None:
    made = load_task("pocket/ask").modules[name]
    modules.import_family(made)
    before = resident_bytes()
    assert before is not None
    store = fresh_store()
    held = store.load(AssignedModule(module=name, spec=made))
    assert held.compute_s is not None
    assert held.compute_s > 0
    assert held.load_s is not None
    assert held.load_s >= held.compute_s
    grown = (resident_bytes() or 0) - before
    assert made.memory_bytes <= held.memory_bytes <= max(made.memory_bytes, grown + NOISE_BYTES)
    store.unload(made.key)
    assert store.cached() == {made.key: held.compute_s}


LOADS_WHEN_TOLD = """
import sys
from edge_agent import modules
from edge_agent.device.footprint import resident_bytes, share_one_heap
from s2m3.catalogue import load_task
share_one_heap()
made = load_task("pocket/ask").modules[sys.argv[1]]
modules.import_family(made)
print(resident_bytes(), flush=True)
input()
module = modules.load(made)
print(resident_bytes(), flush=True)
input()
"""


@pytest.mark.parametrize("name", ["minilm/text", "whisper-tiny.en/decoder"])
def test_a_load_needs_little_more_than_the_module_that_it_leaves(name: str) -> None:
    """The peak of the process's own memory, looked at from outside: a peak between two looks may be missed."""
    command = [sys.executable, "-c", LOADS_WHEN_TOLD, name]
    peak_bytes, done = 0, threading.Event()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin
        assert process.stdout
        before = int(process.stdout.readline())

        def look() -> None:
            nonlocal peak_bytes
            while not done.is_set():
                peak_bytes = max(peak_bytes, memory_of(process.pid).anonymous_bytes)

        thread = threading.Thread(target=look)
        thread.start()
        process.stdin.write("\n")
        after = int(process.stdout.readline())
        done.set()
        thread.join(PATIENCE_S)
        process.communicate("\n")
    assert peak_bytes - before <= LOAD_PEAK * (after - before) + LOAD_NOISE_BYTES


LOADS_AND_UNLOADS = """
import os, sys
os.environ["CT2_USE_MKL"] = sys.argv[1]  # what CTranslate2 multiplies with: by itself MKL on Intel processors only
from broker.protocol.messages import AssignedModule
from edge_agent.device.calibration import Calibration
from edge_agent.device.footprint import resident_bytes
from edge_agent.device.measurements import Measurements
from edge_agent.runtime.store import Store
from s2m3.catalogue import load_task
made = load_task("pocket/ask").modules["whisper-tiny.en/decoder"]
for _ in range(3):
    store = Store(10**9, calibration=Calibration(Measurements(), flops_per_s=1e10))
    held = store.load(AssignedModule(module="decoder", spec=made))
    store.unload(made.key)
    print(held.memory_bytes, resident_bytes())
"""


@pytest.mark.parametrize(
    "with_mkl",
    ["0", pytest.param("1", marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="MKL is for x86-64"))],
)
def test_a_module_is_in_memory_once_on_every_processor_and_leaves_nothing_behind(with_mkl: str) -> None:
    """In a process of its own, after a first round, which imports libraries."""
    rounds = [line.split() for line in run_python(LOADS_AND_UNLOADS, with_mkl).splitlines()[1:]]
    measured, left = ([int(figures[column]) for figures in rounds] for column in (0, 1))
    weights_bytes = load_task("pocket/ask").modules["whisper-tiny.en/decoder"].memory_bytes
    assert max(measured) <= 1.5 * weights_bytes, "its weights, two vocabularies and a tokenizer, not its weights twice"
    assert max(measured) <= measured[0] + NOISE_BYTES
    assert left[-1] <= left[0] + NOISE_BYTES
