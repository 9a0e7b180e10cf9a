"""The runner and its engines: the three steps in their order, and what a family never has to think of."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from edge_agent.modules import FAMILIES, Module, Output, Pass, Prepared, Value
from edge_agent.modules.weights import model_parts
from edge_agent.runtime.engines import ENGINES, engine
from edge_agent.runtime.runner import Runner

UNALIGNED = np.frombuffer(b"\0" * 4 + np.arange(6, dtype=np.float32).tobytes(), np.float32)[1:].reshape(2, 3)


class Steps:
    """Takes an array and whole numbers; answers with the text that ``prepare`` kept."""

    def prepare(self, values: Sequence[Value]) -> Prepared:
        assert values == [RawInput(b"x")]
        return Prepared({"x": UNALIGNED, "ids": np.array([[1, 2]])}, ["kept"])

    def answer(self, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
        return Output(dict(arrays), {"text": prepared.texts[0]})

    def sample(self) -> None:
        return None


def module(dtype: str = "float32") -> tuple[Module, list[Tensor]]:
    seen: list[Tensor] = []

    def forward(network: str, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        assert network == "network"
        assert torch.is_inference_mode_enabled()
        seen.extend((x, ids))
        return {"turned": x.t(), "ids": ids}

    return Module("network", {None: Pass(Steps(), forward), "other": Pass(Steps(), forward)}, dtype=dtype), seen


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_forward_pass_takes_aligned_tensors_of_its_dtype_and_gives_contiguous_float32(dtype: str) -> None:
    made, seen = module(dtype)
    output = Runner().run(made, [RawInput(b"x")])
    x, ids = seen
    assert x.data_ptr() % 64 == 0
    assert x.dtype == (torch.float32 if dtype == "int8" else getattr(torch, dtype))
    assert ids.dtype == torch.int64
    assert output.tensors["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert output.tensors["turned"].dtype == np.float32
    assert output.tensors["turned"].flags.c_contiguous
    assert output.tensors["ids"].dtype == np.int64
    assert output.answer == {"text": "kept"}


def test_an_output_keeps_no_memory_of_its_pass() -> None:
    output = Runner().run(module()[0], [RawInput(b"x")])
    assert all(array.flags.owndata for array in output.tensors.values())


def test_a_use_chooses_its_own_steps_and_forward_pass() -> None:
    made, seen = module()
    assert Runner().run(made, [RawInput(b"x")], "other").answer == {"text": "kept"}
    assert len(seen) == 2
    with pytest.raises(RequestFailed, match="has no use third, only other") as caught:
        Runner().run(made, [RawInput(b"x")], "third")
    assert caught.value.code == ErrorCode.MODULE_FAILED


def test_the_runner_sets_the_threads_of_a_pass_where_it_is_given_some(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", limits.append)
    Runner()
    Runner(threads=3)
    assert limits == [3]


def test_every_engine_of_the_table_is_there() -> None:
    assert all(callable(engine(name).forward) for name in ENGINES)


def test_every_generating_family_says_that_its_pass_is_a_loop() -> None:
    files: set[Any] = {importlib.import_module(place) for place in FAMILIES.values()}
    parts: list[model_parts.AnyPart] = [
        part for file in files if isinstance(file.__dict__.get("PARTS"), Mapping) for part in file.PARTS.values()
    ]
    loops = [each for part in parts for each in part.forwards.values() if each.unrolled is not None]
    assert len(loops) == 7
