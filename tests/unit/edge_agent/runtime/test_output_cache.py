"""The cache of outputs: equal work is found, what is kept is bounded and can't be changed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.tensors import Array, narrowed
from edge_agent import modules
from edge_agent.modules import Output, Value
from edge_agent.runtime.output_cache import (
    DEFAULT_MOST_BYTES,
    LARGEST_SHARE,
    OutputCache,
    Work,
    size_of,
    with_cache,
    work_of,
)
from tests.builders import profile

KEY = "sha256:1"


def floats(*numbers: float) -> Array:
    return np.array(numbers, dtype=np.float32)


def work(text: str = "x", key: str = KEY) -> Work:
    return work_of(key, None, [RawInput(text.encode())])


def output(count: int = 4, answer: str | None = None) -> Output:
    return Output({"embeddings": np.arange(count, dtype=np.float32)}, None if answer is None else {"label": answer})


def test_equal_values_are_equal_work_whatever_their_content_type_and_order_of_arrays() -> None:
    one = work_of(KEY, None, [RawInput(b"x", "image/jpeg"), {"a": floats(1), "b": floats(2)}])
    same = work_of(KEY, None, [RawInput(b"x"), {"b": floats(2), "a": floats(1)}])
    assert one == same
    assert work_of(KEY, None, [RawInput(b"x", "text/plain; charset=utf-8")]) == work_of(KEY, None, [RawInput(b"x")])
    assert work_of(KEY, None, [RawInput(b"x", "text/plain; charset=cp1252")]) != work_of(KEY, None, [RawInput(b"x")])


def test_modules_read_the_charset_of_a_content_type_only_so_nothing_else_of_it_is_a_part_of_the_work() -> None:
    reads = {
        file.name: re.findall(r"\w+\(\w+\.content_type\)|\bcontent_type\b", file.read_text(encoding="utf-8"))
        for file in Path(modules.__file__).parent.rglob("*.py")
    }
    inside = reads.pop("text_file.py")
    assert inside.count("charset(sent.content_type)") == 1
    assert set(inside) == {"charset(sent.content_type)", "content_type"}, "the others are those of charset itself"
    assert not any(reads.values()), reads


DIFFERENT: list[tuple[str, str | None, list[Value]]] = [
    (KEY, None, []),
    (KEY, None, [RawInput(b"")]),
    (KEY, None, [RawInput(b"x")]),
    ("sha256:2", None, [RawInput(b"x")]),
    (KEY, "question", [RawInput(b"x")]),
    (KEY, None, [RawInput(b"x"), RawInput(b"")]),
    (KEY, None, [RawInput(b""), RawInput(b"x")]),
    (KEY, None, [{"raw": np.frombuffer(b"x", dtype=np.uint8)}]),
    (KEY, None, [{"a": floats(1, 2)}]),
    (KEY, None, [{"b": floats(1, 2)}]),
    (KEY, None, [{"a": floats(2, 1)}]),
    (KEY, None, [{"a": floats(1, 2).reshape(1, 2)}]),
    (KEY, None, [{"a": floats(1, 2).view(np.int32)}]),
    (KEY, None, [{"a": floats(1), "b": floats(2)}]),
    (KEY, None, [{"a": floats(1)}, {"b": floats(2)}]),
    (KEY, None, [{"a": floats(0)}]),
    (KEY, None, [{"a": floats(-0.0)}]),
    (KEY, None, [{"a": floats()}]),
    (KEY, None, [{"a": np.zeros((), dtype=np.float32)}]),
    (KEY, None, [narrowed({"a": floats(1, 2)}, "float16")]),
    (KEY, None, [{"a": np.array([True])}]),
]


def test_any_difference_in_module_use_or_values_is_other_work() -> None:
    found = [work_of(*each) for each in DIFFERENT]
    assert len(set(found)) == len(found)


def test_arrays_that_lie_in_memory_in_another_way_are_equal_work() -> None:
    table = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.ascontiguousarray(table.T).T
    assert not turned.flags.c_contiguous
    assert work_of(KEY, None, [{"a": table}]) == work_of(KEY, None, [{"a": turned}])


def test_a_kept_output_is_the_same_bit_for_bit() -> None:
    cache = OutputCache(1_000_000)
    strange = np.array([np.nan, -0.0, np.inf, 1e-45], dtype=np.float32)
    made = Output(
        {"a": strange, "n": np.array([3], dtype=np.int64), "e": np.zeros((0, 4), dtype=np.float16)},
        {"score": 0.1 + 0.2},
    )
    cache.keep(work(), made)
    found = cache.find(work())
    assert found is not None
    assert found.answer == made.answer
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.tensors.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in made.tensors.items()
    }


def test_nobody_can_change_what_is_kept() -> None:
    cache, made = OutputCache(1_000_000), output(answer="a cat")
    cache.keep(work(), made)
    made.tensors["embeddings"][:] = 9
    first = cache.find(work())
    assert first is not None
    assert first.answer is not None
    first.answer["label"] = "a dog"
    with pytest.raises(ValueError, match="read-only"):
        first.tensors["embeddings"][0] = 9
    again = cache.find(work())
    assert again is not None
    assert again.tensors["embeddings"].tolist() == [0, 1, 2, 3]
    assert again.answer == {"label": "a cat"}


def test_a_view_of_a_large_array_keeps_its_own_elements_only() -> None:
    cache = OutputCache(1_000_000)
    cache.keep(work(), Output({"a": np.zeros((1, 500_000), dtype=np.float32)[:, :4]}))
    found = cache.find(work())
    assert found is not None
    assert found.tensors["a"].base is None


def test_the_least_recently_used_output_makes_room() -> None:
    size_bytes = size_of(output())
    cache = OutputCache(5 * size_bytes)
    for text in "abcde":
        cache.keep(work(text), output())
    assert cache.find(work("a")) is not None
    cache.keep(work("f"), output())
    assert [text for text in "abcdef" if cache.find(work(text)) is None] == ["b"]


def test_an_output_that_would_drive_out_many_is_not_kept() -> None:
    cache = OutputCache(40_000)
    cache.keep(work("small"), output())
    cache.keep(work("large"), output(round(LARGEST_SHARE * 40_000 / 4)))
    assert cache.find(work("large")) is None
    assert cache.find(work("small")) is not None


def test_answers_count_with_their_bytes() -> None:
    cache = OutputCache(1_000_000)
    cache.keep(work("a"), output(answer="x"))
    used = cache.use()
    cache.keep(work("b"), output(answer="x" * 1001))
    more = cache.use()
    assert used is not None
    assert more is not None
    assert more.used_bytes - used.used_bytes == used.used_bytes + 1000


def test_a_module_takes_its_outputs_with_it() -> None:
    cache = OutputCache(1_000_000)
    cache.keep(work(key="sha256:1"), output())
    cache.keep(work(key="sha256:2"), output())
    cache.drop("sha256:1")
    cache.drop("sha256:3")
    assert cache.find(work(key="sha256:1")) is None
    assert cache.find(work(key="sha256:2")) is not None


def test_it_counts_hits_and_computed_nodes() -> None:
    cache = OutputCache(1_000_000)
    assert cache.find(work()) is None
    cache.keep(work(), output())
    cache.find(work())
    used = cache.use()
    assert used is not None
    assert (used.hits, used.computed, used.outputs, used.limit_bytes) == (1, 1, 1, 1_000_000)
    assert used.used_bytes == size_of(output())


def test_without_a_size_nothing_is_digested_kept_or_told() -> None:
    cache = OutputCache(0)
    found = cache.work_of(KEY, None, [RawInput(b"x")])
    assert found is None
    cache.keep(found, output())
    assert cache.find(found) is None
    assert cache.use() is None


@pytest.mark.parametrize(
    ("stated", "memory_bytes", "expected"),
    [(None, 100_000_000, 2_000_000), (None, 2**40, DEFAULT_MOST_BYTES), (None, 10, 0), (0, 100, 0), (99, 100, 99)],
)
def test_the_cache_is_a_part_of_the_memory_as_stated_or_a_small_share(
    stated: int | None, memory_bytes: int, expected: int
) -> None:
    offered, cache = with_cache(profile(memory_bytes), stated, beside=False)
    assert (cache.limit_bytes, offered.memory_bytes) == (expected, memory_bytes - expected)


@pytest.mark.parametrize(("stated", "expected"), [(None, DEFAULT_MOST_BYTES), (0, 0), (2**40, 2**40)])
def test_beside_a_cards_memory_nothing_is_taken_off(stated: int | None, expected: int) -> None:
    offered, cache = with_cache(profile(100), stated, beside=True)
    assert (cache.limit_bytes, offered.memory_bytes) == (expected, 100)


def test_a_cache_that_leaves_nothing_for_modules_is_refused() -> None:
    with pytest.raises(BadFile, match=r"cache: must be less than the 100 bytes of `memory`.*0 turns the cache off"):
        with_cache(profile(100), 100, beside=False)


class CacheMachine(RuleBasedStateMachine):
    """Keeps, finds and drops in any order: an output is found as it was made, and the limit holds."""

    works = Bundle("works")
    LIMIT = 20_000

    def __init__(self) -> None:
        super().__init__()
        self.cache = OutputCache(self.LIMIT)
        self.made: dict[Work, Output] = {}

    @rule(target=works, text=st.text(max_size=2), key=st.sampled_from(["k1", "k2"]))
    def node(self, text: str, key: str) -> Work:
        return work(text, key)

    @rule(each=works, count=st.integers(0, 3000), answer=st.none() | st.text(max_size=200))
    def keep(self, each: Work, count: int, answer: str | None) -> None:
        self.made.setdefault(each, output(count, answer))  # equal work gives equal outputs
        self.cache.keep(each, self.made[each])

    @rule(each=works)
    def find(self, each: Work) -> None:
        found = self.cache.find(each)
        if found is not None:
            assert found.answer == self.made[each].answer
            assert np.array_equal(found.tensors["embeddings"], self.made[each].tensors["embeddings"])

    @rule(each=consumes(works))
    def drop(self, each: Work) -> None:
        self.cache.drop(each[0])
        assert self.cache.find(each) is None

    @invariant()
    def bounded(self) -> None:
        used = self.cache.use()
        assert used is not None
        kept = [found for each in self.made if (found := self.cache.find(each)) is not None]
        assert used.used_bytes == sum(map(size_of, kept)) <= self.LIMIT
        assert used.outputs == len(kept)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
