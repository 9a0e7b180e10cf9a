"""The numbers that planning reads from the catalogue are those of the modules."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from broker.protocol.codec import RawInput
from edge_agent import modules
from edge_agent.modules import Output, Value
from edge_agent.modules.weights import packaged_tensors
from s2m3.reference.pictures import picture
from tests.builders import runs
from tests.patience import PATIENCE_S

CAPTIONS = RawInput(b"a photo of a dog\na photo of a cat\na photo of a horse\na photo of a bird")  # 7 tokens each


@pytest.fixture(scope="module")
def counted(split: Any) -> dict[str, tuple[int, Output]]:
    """Module -> operations and output of one pass of the typical request."""
    spec = split.specs["zero-shot"]
    values: dict[str, Value] = {"image": picture("chelsea.png").raw, "text": CAPTIONS}
    found = {}
    for node in spec.order:
        # The fused attention hides its products from the counter, the plain one shows them.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = runs(split.modules[spec.module_of(node).key])(*(values[need] for need in spec.nodes[node].needs))
        values[node] = output.tensors
        found[spec.nodes[node].module] = (counter.get_total_flops(), output)
    return found


@pytest.mark.parametrize("task", ["classify", "zero-shot", "vqa"])
def test_flops_and_output_bytes_are_counted(split: Any, counted: dict[str, tuple[int, Output]], task: str) -> None:
    for name, module in split.specs[task].modules.items():
        flops, output = counted[name]
        assert module.flops == flops, name
        assert module.output_bytes == sum(array.nbytes for array in output.tensors.values()), name


@pytest.mark.parametrize("task", ["classify", "zero-shot", "vqa"])
def test_memory_bytes_are_those_of_the_weights_read(split: Any, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    read: list[int] = []
    real = packaged_tensors.read

    def reading(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        read.append(sum(tensor.nbytes for tensor in found.values()))
        return found

    monkeypatch.setattr(packaged_tensors, "read", reading)
    for module in split.specs[task].modules.values():
        modules.load(module)
        assert read.pop() == module.memory_bytes


@pytest.mark.parametrize("task", ["classify", "zero-shot", "vqa"])
def test_the_parts_of_a_task_weigh_what_the_whole_model_weighs(split: Any, unsplit: Any, task: str) -> None:
    parts = sum(module.memory_bytes for module in split.specs[task].modules.values())
    model = unsplit.model(task)
    held = list(model.network.weights.values())
    if task != "classify":
        held += [*model.sentences.network.state_dict().values(), model.names]
    assert parts == sum(tensor.nbytes for tensor in held)


def test_modules_of_one_name_are_one_module_in_all_tasks(split: Any) -> None:
    seen: dict[str, object] = {}
    for spec in split.specs.values():
        for name, module in spec.modules.items():
            assert seen.setdefault(name, module) == module
    assert len({module.key for spec in split.specs.values() for module in spec.modules.values()}) == len(seen)


def test_a_module_may_run_in_two_threads_at_once(split: Any) -> None:
    encoder = runs(split.modules[split.specs["zero-shot"].modules["minilm/text"].key])
    expected = encoder(CAPTIONS).tensors["embeddings"].tobytes()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(encoder(CAPTIONS).tensors["embeddings"].tobytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert found == [expected] * 4
