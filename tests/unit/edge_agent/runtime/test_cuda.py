"""torch on CUDA, where there is a card: weights and passes there, its memory, its answers, and what it refuses.

``benchmarks/engines/gpu.sh`` runs these on a machine with a card; elsewhere they are skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import AssignedModule
from edge_agent.config import AgentConfig
from edge_agent.device.about import about
from edge_agent.device.calibration import Calibration
from edge_agent.device.measurements import Measurements
from edge_agent.device.profile import compute_flops_per_s, profile
from edge_agent.modules import Module, Output, Pass
from edge_agent.modules.inputs import steps
from edge_agent.runtime.accelerator import CUDA, Accelerator, chosen, cuda_problem
from edge_agent.runtime.out_of_memory import refused_memory
from edge_agent.runtime.runner import Ended, Runner
from edge_agent.runtime.store import Store
from tests.builders import module as module_spec

_PROBLEM = cuda_problem()[0]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_PROBLEM), reason=f"no CUDA here: {_PROBLEM}")]
WIDTH = 1024


@pytest.fixture
def card() -> Iterator[Accelerator]:
    found = chosen("cuda")
    assert found is not None
    yield found
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


class Seen(list[Tensor]):
    """The tensors that a forward pass was given."""

    def forward(self, network: nn.Linear, x: Tensor) -> dict[str, Tensor]:
        self.append(x)
        return {"x": network(x)}


def linear(dtype: str = "float32", seen: Seen | None = None) -> Module:
    """A module of 4 MB that tells where it computes, and in what."""
    torch.manual_seed(0)
    network = nn.Linear(WIDTH, WIDTH).to(getattr(torch, dtype)).requires_grad_(requires_grad=False)
    needs = steps.Steps((steps.Arrays(shapes={"x": (1, WIDTH)}),))
    return Module(network, {None: Pass(needs, (seen or Seen()).forward, batched=True)}, dtype=dtype)


def values(count: int) -> list[list[Any]]:
    random = np.random.default_rng(0)
    return [[{"x": random.standard_normal((1, WIDTH)).astype(np.float32)}] for _ in range(count)]


def run(runner: Runner, module: Module, count: int) -> tuple[list[Ended], list[Any]]:
    ended = [each for found in runner.run_all(module, values(count)) for each in found]
    outputs = [each.result.tensors["x"] for each in ended if isinstance(each.result, Output)]
    assert len(outputs) == count, [each.result for each in ended]
    return ended, outputs


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2), ("float16", 5e-3)])
def test_a_module_computes_on_the_card_in_its_dtype_and_answers_as_the_cpu_does(
    card: Accelerator, dtype: str, tolerance: float
) -> None:
    _, expected = run(Runner(), linear(), 5)
    runner, seen = Runner(batch=4, device=card.device), Seen()
    placed = runner.placed(linear(dtype, seen))
    assert placed.device == CUDA
    assert next(placed.network.parameters()).is_cuda
    ended, found = run(runner, placed, 5)
    assert [each.batch for each in ended] == [4, 4, 4, 4, 1]
    assert all(x.is_cuda and x.dtype == getattr(torch, dtype) for x in seen)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert float(np.abs(ours - theirs).max()) < tolerance


def test_float32_is_not_tf32(card: Accelerator) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert card.name


def test_weights_that_are_a_table_of_tensors_move_too(card: Accelerator) -> None:
    made = Module({"w": torch.ones(2, 2)}, {None: Pass(steps.Steps(()), lambda w: {"x": w["w"]})})
    placed = Runner(device=card.device).placed(made)
    assert placed.network["w"].is_cuda
    assert Runner(device=card.device).run(placed, []).tensors["x"].tolist() == [[1, 1], [1, 1]]


def test_the_memory_of_a_module_is_measured_on_the_card(card: Accelerator) -> None:
    spec = module_spec("linear", memory_bytes=1000, flops=2.0 * WIDTH * WIDTH)
    calibration = Calibration(Measurements(), flops_per_s=1e12, runner=Runner(device=card.device), accelerator=card)
    store = Store(10**9, lambda _: linear(), calibration=calibration)
    held = store.load(AssignedModule(module="m/linear", spec=spec))
    weights = 4 * (WIDTH * WIDTH + WIDTH)
    assert weights <= held.memory_bytes < weights + 256 * 2**20, "and what the first product keeps"
    assert held.compute_s is not None
    before = card.allocated_bytes()
    store.unload(spec.key)
    assert card.allocated_bytes() <= before - weights


def test_the_card_is_what_a_device_offers(card: Accelerator) -> None:
    offered = profile(AgentConfig(id="gw-a"), compute_flops_per_s(device=card.device), accelerator=card)
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0.3 * total < offered.memory_bytes < total
    assert offered.compute_flops_per_s > 1e9
    assert about(card).accelerator == torch.cuda.get_device_name(0)


def test_too_little_memory_on_the_card_is_told_as_such_and_the_next_pass_works(card: Accelerator) -> None:
    runner = Runner(batch=2, device=card.device)
    placed = runner.placed(linear())
    torch.cuda.empty_cache()
    limit = (torch.cuda.memory_reserved() + 2**25) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit)

    def greedy(network: nn.Linear, x: Tensor) -> dict[str, Tensor]:
        return {"x": network(x) + torch.zeros(2**28, device=x.device)[0]}

    made = Module(placed.network, {None: Pass(placed.passes[None].steps, greedy)}, device=placed.device)
    ((ended,),) = runner.run_all(made, values(1))
    assert isinstance(ended.result, Exception)
    assert refused_memory(ended.result) == "memory on its accelerator"
    torch.cuda.set_per_process_memory_fraction(1.0)
    run(runner, placed, 2)


def test_a_module_larger_than_the_cards_memory_is_refused_before_it_is_read(card: Accelerator) -> None:
    runner = Runner(device=card.device)
    calibration = Calibration(Measurements(), runner=runner, accelerator=card, free_bytes=lambda: 10**13)
    with pytest.raises(ModuleRefused, match=f"931.3 GiB and {card.name} has only"):
        calibration.load(module_spec("huge", memory_bytes=10**12), lambda _: linear())


def test_a_decoder_generates_the_same_tokens_on_the_card(card: Accelerator) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - slow, and only here

    from edge_agent.modules.families import generation  # noqa: PLC0415 - the same

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config: Any = GPT2Config.from_dict(sizes | {"is_decoder": True, "add_cross_attention": True})
    network: Any = GPT2LMHeadModel(config)
    network.train(mode=False).requires_grad_(requires_grad=False)
    states = torch.randn(1, 5, 32)
    with torch.inference_mode():
        expected = generation.greedy(network, states, start=1, end=63, pad=63, most=8)["tokens"]
        found = generation.greedy(network.to(CUDA), states.to(CUDA), start=1, end=63, pad=63, most=8)["tokens"]
    assert found.is_cuda
    assert found.cpu().tolist() == expected.tolist()
    assert card.device == CUDA
