"""The choice of an accelerator, and the way of a module to a device, on machines that have none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from broker.protocol.errors import BadFile, ModuleRefused
from edge_agent.config import AgentConfig
from edge_agent.device.about import about
from edge_agent.device.calibration import Calibration
from edge_agent.device.measurements import Measurements
from edge_agent.device.profile import profile
from edge_agent.modules import Module, Pass
from edge_agent.modules.inputs import steps
from edge_agent.runtime import accelerator
from edge_agent.runtime.accelerator import CPU_BATCH, CUDA_BATCH, Accelerator, chosen
from edge_agent.runtime.engines.torch import moved
from edge_agent.runtime.out_of_memory import is_out_of_memory, refused_memory
from edge_agent.runtime.runner import Runner
from tests.builders import module as module_spec


def made_up(device: str = "cpu", free_bytes: int = 10**10, allocated: Callable[[], int] = lambda: 0) -> Accelerator:
    return Accelerator(device, "Some Card 3000", lambda: free_bytes, allocated, lambda: "")


def refusal(wanted: accelerator.Wanted) -> str:
    with pytest.raises(BadFile) as caught:
        chosen(wanted)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def no_cuda(monkeypatch: pytest.MonkeyPatch, told: str = "", *, built: str | None = "13.0") -> None:
    def is_available() -> bool:
        if told:
            warnings.warn(told, stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)


def test_the_cpu_is_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "cuda_problem", lambda: pytest.fail("nobody asked"))
    assert chosen("cpu") is None


def test_auto_is_the_cpu_where_cuda_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda(monkeypatch)
    assert chosen("auto") is None


def test_cuda_without_a_card_is_one_line_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda(monkeypatch)
    text = refusal("cuda")
    assert "accelerator" in text
    assert "torch sees no CUDA device" in text
    assert "nvidia-smi" in text
    assert "accelerator: cpu" in text


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda(monkeypatch, built=None)
    assert "built without CUDA" in refusal("cuda")
    assert "install torch's build for CUDA" in refusal("cuda")


def test_a_driver_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda(monkeypatch, "The NVIDIA driver on your system is too old (found version 11040).\nPlease update")
    text = refusal("cuda")
    assert "found version 11040" in text
    assert "update the NVIDIA driver for CUDA 13.0" in text


def test_a_device_that_fails_to_start_gives_torchs_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    no_cuda(monkeypatch, "CUDA initialization: Unexpected error from cudaGetDeviceCount()")
    assert "Unexpected error from cudaGetDeviceCount()" in refusal("cuda")


def test_a_device_that_is_there_and_cannot_compute_gives_the_reason_with_the_agents_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some Card 3000")

    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(BadFile) as caught:
        chosen("cuda", "gw-a.yaml")
    assert str(caught.value).startswith(
        "gw-a.yaml: accelerator: Some Card 3000 can't be used: CUDA error: no kernel image is available; check that "
    )
    assert chosen("auto") is None


def test_a_card_takes_batches_and_a_cpu_none_unless_the_file_says_so() -> None:
    assert (made_up("cuda").batch, made_up().batch, CPU_BATCH) == (CUDA_BATCH, 1, 1)
    assert AgentConfig(id="gw-a").batch is None
    assert AgentConfig(id="gw-a", batch=8).batch == 8
    assert AgentConfig(id="gw-a").accelerator == "auto"


def test_a_device_offers_the_memory_of_its_accelerator() -> None:
    offered = profile(AgentConfig(id="gw-a"), 1e9, accelerator=made_up(free_bytes=10**12))
    assert 0.7 * 10**12 < offered.memory_bytes < 10**12
    assert about(made_up()).accelerator == "Some Card 3000"
    assert about().accelerator is None


def calibration(free_bytes: int, host_bytes: int, allocated: Callable[[], int] = lambda: 0) -> Calibration:
    on = made_up("cpu", free_bytes, allocated)
    return Calibration(Measurements(), accelerator=on, free_bytes=lambda: host_bytes)


def linear() -> Module:
    network = nn.Linear(4, 4).requires_grad_(requires_grad=False)
    return Module(network, {None: Pass(steps.Steps((steps.Arrays(shapes={"x": (1, 4)}),)), lambda n, x: {"x": n(x)})})


def test_a_module_must_fit_on_the_card_and_while_it_is_read_in_the_machine_too() -> None:
    spec = module_spec("linear", memory_bytes=10**9)
    with pytest.raises(ModuleRefused, match=r"953\.7 MiB and Some Card 3000 has only 1,000 bytes left"):
        calibration(1000, 10**12).load(spec, lambda _: linear())
    with pytest.raises(ModuleRefused, match=r"953\.7 MiB and this machine has only 1,000 bytes left"):
        calibration(10**12, 1000).load(spec, lambda _: linear())


def test_a_footprint_is_what_the_card_holds_more() -> None:
    allocated = iter([50_000, 90_000])
    measuring = calibration(10**12, 10**12, lambda: next(allocated))
    loaded = measuring.load(module_spec("linear", memory_bytes=1000), lambda _: linear())
    assert loaded.memory_bytes == 40_000


@pytest.mark.parametrize("network", [nn.Linear(2, 2), torch.ones(2), {"w": torch.ones(2), "b": torch.ones(1)}])
def test_weights_of_each_form_move_to_another_device(network: object) -> None:
    made = moved(Module(network, {}), "meta")
    assert made.device == "meta"
    tensors = made.network.values() if isinstance(made.network, dict) else [made.network]
    tensors = list(made.network.parameters()) if isinstance(made.network, nn.Module) else tensors
    assert {each.device.type for each in tensors} == {"meta"}


def test_int8_and_other_engines_stay_on_the_cpu() -> None:
    int8, other = replace(linear(), dtype="int8"), replace(linear(), engine="ctranslate2")
    runner = Runner(device="meta")
    assert (runner.placed(int8), runner.placed(other)) == (int8, other)
    assert Runner().placed(made := linear()) is made
    assert np.isfinite(runner.run(runner.placed(int8), [{"x": np.ones((1, 4), np.float32)}]).tensors["x"]).all()


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory on its accelerator"),
        (RuntimeError("CUDA error: out of memory"), "memory on its accelerator"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "memory on its accelerator",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "memory on its accelerator"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), None),
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("shape"), None),
        (None, None),
    ],
)
def test_the_memory_that_was_refused_is_named(error: BaseException | None, memory: str | None) -> None:
    assert refused_memory(error) == memory
    assert is_out_of_memory(error) == (memory is not None)


def test_a_full_card_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(torch, "ones", refuse)
    assert not accelerator._failing()


def test_only_an_error_on_the_card_makes_the_runner_look_at_it() -> None:
    looks: list[str] = []

    def problem() -> str:
        looks.append("looked")
        return "Some Card 3000 can't be used"

    def fail(_: nn.Linear, x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise RuntimeError(f"CUDA error: device-side assert triggered by {len(x)}")

    runner = Runner(batch=4, device="meta", problem=problem)
    made = linear()
    failing = replace(made, passes={None: Pass(made.passes[None].steps, fail, batched=True)})
    values = [[{"x": np.ones((1, 4), np.float32)}]] * 4
    (_, *_), *_ = runner.run_all(failing, values[:1])
    assert (looks, runner.broken) == ([], ""), "on the CPU"
    (ended,) = runner.run_all(replace(failing, device="meta"), values)
    assert [str(each.result) for each in ended] == ["CUDA error: device-side assert triggered by 4"] * 4, "not halved"
    assert (looks, runner.broken) == (["looked"], "Some Card 3000 can't be used")
