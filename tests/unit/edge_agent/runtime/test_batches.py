"""The runner with several requests: what one pass gets, what each request gets back, and what fails alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ErrorCode, RequestFailed
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Output, Pass, Prepared, Value
from edge_agent.runtime import runner as runner_module
from edge_agent.runtime.runner import Ended, Runner


class Numbers:
    """A text of numbers to an array of one row a line; a line of letters is bad input."""

    def prepare(self, values: Sequence[Value]) -> Prepared:
        (value,) = values
        assert isinstance(value, RawInput)
        try:
            rows = [[float(each) for each in line.split()] for line in value.data.decode().splitlines()]
        except ValueError as error:
            raise RequestFailed(ErrorCode.BAD_INPUT, "no number") from error
        return Prepared({"x": np.array(rows, np.float32), "whole": np.ones((len(rows), 1), np.int64)}, ["kept"])

    def answer(self, arrays: Mapping[str, Array], prepared: Prepared) -> Output:
        if (arrays["y"] == 13).any():
            raise ValueError("unlucky")
        return Output(dict(arrays), {"text": prepared.texts[0]})

    def sample(self) -> None:
        return None


class Layer(np.ndarray[Any, Any]):
    """An array that weak references may name."""


class CountingEngine:
    """An engine that doubles numbers, and counts its passes by how many rows each had."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.fail: Callable[[Array], Exception | None] = lambda _: None

    def forward(self, module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
        assert module.network == "network"
        assert isinstance(chosen, Pass)
        self.passes.append(len(arrays["x"]))
        if failure := self.fail(arrays["x"]):
            raise failure
        return {"y": arrays["x"] * 2, "sums": arrays["x"].sum(1)}


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    made = CountingEngine()
    monkeypatch.setattr(runner_module, "engine", lambda _: made)
    return made


MODULE = Module("network", {None: Pass(Numbers(), lambda _: {}, batched=True), "loop": Pass(Numbers(), lambda _: {})})


def run(*texts: str, batch: int = 8, use: str | None = None, **fields: Any) -> list[Ended]:
    many = [[RawInput(text.encode())] for text in texts]
    passes = list(Runner(batch=batch).run_all(MODULE, many, use, **fields))
    found = sorted((each for ended in passes for each in ended), key=lambda each: each.index)
    assert [each.index for each in found] == list(range(len(texts))), "each request ends once"
    return found


def tensor(ended: Ended, name: str = "y") -> list[Any]:
    assert isinstance(ended.result, Output), ended.result
    array = ended.result.tensors[name]
    assert array.base is None or ended.batch == 1, "no request keeps the memory of the whole batch"
    assert array.flags.c_contiguous
    return list(array.tolist())


def test_requests_of_equal_shapes_are_one_pass_and_each_gets_its_own_rows(counting: CountingEngine) -> None:
    found = run("1 2", "3 4", "5 6")
    assert counting.passes == [3]
    assert [tensor(each) for each in found] == [[[2, 4]], [[6, 8]], [[10, 12]]]
    assert [tensor(each, "sums") for each in found] == [[3], [7], [11]]
    assert {each.batch for each in found} == {3}
    assert len({each.seconds for each in found}) == 1
    assert found[0].result.answer == {"text": "kept"}  # type: ignore[union-attr]


def test_requests_of_several_rows_are_split_by_request(counting: CountingEngine) -> None:
    found = run("1 2\n3 4", "5 6\n7 8")
    assert counting.passes == [4]
    assert tensor(found[1]) == [[10, 12], [14, 16]]


def test_requests_of_other_shapes_are_passes_of_their_own(counting: CountingEngine) -> None:
    found = run("1 2", "3 4 5", "6 7", "8 9\n1 2")
    assert sorted(counting.passes) == [1, 2, 2]
    assert [each.batch for each in found] == [2, 1, 2, 1]
    assert tensor(found[3]) == [[16, 18], [2, 4]]


def test_no_pass_has_more_requests_than_the_batch(counting: CountingEngine) -> None:
    run(*("1 2",) * 7, batch=3)
    assert counting.passes == [3, 3, 1]


def test_a_batch_of_one_and_a_use_that_takes_none_are_passes_of_one(counting: CountingEngine) -> None:
    run("1 2", "3 4", batch=1)
    run("1 2", "3 4", use="loop")
    assert counting.passes == [1, 1, 1, 1]


def test_bad_input_fails_alone_before_the_pass(counting: CountingEngine) -> None:
    found = run("1 2", "one", "3 4")
    assert counting.passes == [2]
    assert isinstance(found[1].result, RequestFailed)
    assert (found[1].result.code, found[1].batch) == (ErrorCode.BAD_INPUT, 1)
    assert tensor(found[2]) == [[6, 8]]


def test_of_a_failing_batch_only_the_bad_request_fails(counting: CountingEngine) -> None:
    counting.fail = lambda x: ValueError("seven") if (x == 7).any() else None
    found = run("1 2", "3 4", "7 8", "5 6")
    assert counting.passes == [4, 2, 2, 1, 1], "halves of the batch"
    assert [isinstance(each.result, Output) for each in found] == [True, True, False, True]
    assert str(found[2].result) == "seven"
    assert [each.batch for each in found] == [2, 2, 1, 1]


def test_a_batch_that_is_too_large_for_the_memory_runs_in_smaller_ones(counting: CountingEngine) -> None:
    counting.fail = lambda x: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB") if len(x) > 2 else None
    found = run(*("1 2",) * 8)
    assert all(isinstance(each.result, Output) for each in found)
    assert counting.passes == [8, 4, 2, 2, 4, 2, 2]


def test_a_pass_that_failed_holds_no_memory_while_its_halves_run(counting: CountingEngine) -> None:
    held: list[weakref.ref[Array]] = []

    def fail(x: Array) -> None:
        layer = np.ones(8).view(Layer)  # of a network; the frames of its pass hold it
        assert [each for each in held if each() is not None] == []
        held.append(weakref.ref(layer))
        if len(x) > 1:
            try:
                np.empty(-1)
            except ValueError as error:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB") from error

    counting.fail = fail
    assert all(isinstance(each.result, Output) for each in run(*("1 2",) * 4))
    assert counting.passes == [4, 2, 1, 1, 2, 1, 1]


def test_an_answer_that_fails_does_so_alone(counting: CountingEngine) -> None:
    found = run("1 2", "6.5 1")
    assert counting.passes == [2]
    assert [str(each.result) for each in found if not isinstance(each.result, Output)] == ["unlucky"]


def test_a_pass_whose_outputs_are_not_of_the_requests_is_computed_request_by_request(counting: CountingEngine) -> None:
    counting.forward = lambda *_: {"y": np.ones((1, 1), np.float32), "sums": np.ones(1, np.float32)}  # type: ignore[method-assign]
    assert [each.batch for each in run("1 2", "3 4", "5 6")] == [1, 1, 1]


def test_it_says_what_begins_and_an_unknown_use_is_everybodys_error(counting: CountingEngine) -> None:
    begun: list[tuple[int, ...]] = []
    run("1 2", "3", "4 5", before=lambda indices: begun.append(tuple(indices)))
    assert begun == [(0,), (1,), (2,), (0, 2), (1,)]
    assert {type(each.result) for each in run("1 2", "3 4", use="none")} == {RequestFailed}
    assert len(counting.passes) == 2
