"""Named arrays and their bytes: exact bytes, every truncation, every limit, and hostile documents."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from broker.protocol import tensors
from broker.protocol.codec import MAX_CONTROL_BYTES
from broker.protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, RequestFailed
from broker.protocol.tensors import (
    MAX_ANSWERED,
    MAX_HEADER_BYTES,
    MAX_RANK,
    MAX_TENSORS,
    embeddings,
    narrowed,
    pack,
    unpack,
    widened,
)

F32 = np.array([[1.0, -2.0]], dtype=np.float32)
GOLDEN = [
    pytest.param({}, {}, b"\x08\0\0\0\0\0\0\0{}      ", id="nothing"),
    pytest.param(
        {"image": np.array([255, 216], dtype=np.uint8)},
        {},
        b'\x40\0\0\0\0\0\0\0{"image":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}       \xff\xd8',
        id="a byte array",
    ),
    pytest.param(
        {"x": F32},
        {"request": "r-1"},
        b'\x60\0\0\0\0\0\0\0{"__metadata__":{"request":"r-1"},"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
        b"       \0\0\x80\x3f\0\0\0\xc0",
        id="floats and metadata",
    ),
    pytest.param(
        {"s": np.array(7, dtype=np.int64)},
        {},
        b'\x38\0\0\0\0\0\0\0{"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}   \x07\0\0\0\0\0\0\0',
        id="a scalar",
    ),
    pytest.param(
        {"e": np.zeros((0, 3), dtype=np.float32)},
        {},
        b'\x38\0\0\0\0\0\0\0{"e":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]}}',
        id="an array of no elements",
    ),
]


def document(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changed: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changed


@pytest.mark.parametrize(("arrays", "metadata", "expected"), GOLDEN)
def test_arrays_have_exactly_these_bytes_and_come_back(
    arrays: dict[str, Any], metadata: dict[str, str], expected: bytes
) -> None:
    assert pack(arrays, metadata) == expected
    read, read_metadata = unpack(expected)
    assert read_metadata == metadata
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize(("arrays", "metadata", "whole"), GOLDEN)
def test_a_truncated_or_extended_document_is_refused(
    arrays: dict[str, Any], metadata: dict[str, str], whole: bytes
) -> None:
    del arrays, metadata
    for length in range(len(whole)):
        with pytest.raises(RemoteProtocolError):
            unpack(whole[:length])
    with pytest.raises(RemoteProtocolError):
        unpack(whole + b"\0")


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", ">f4"]
)
def test_each_dtype_comes_back_bit_for_bit(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    before = array.tobytes()
    read = unpack(pack({"a": array, "transposed": array.T}))[0]
    np.testing.assert_array_equal(read["a"], array)
    np.testing.assert_array_equal(read["transposed"], array.T)
    assert read["a"].tobytes() == array.astype(np.dtype(dtype).newbyteorder("=")).tobytes()
    assert array.tobytes() == before


@pytest.mark.parametrize(
    ("arrays", "metadata", "complaint"),
    [
        ({"a": np.zeros(1, dtype=np.uint16)}, {}, "dtype outside"),
        ({"a": np.zeros(1, dtype=np.complex64)}, {}, "dtype outside"),
        ({"a": np.zeros(1, dtype=object)}, {}, "can't be written"),
        ({"a": np.array(["text"])}, {}, "can't be written"),
        ({"a": np.zeros((1,) * (MAX_RANK + 1))}, {}, "dimensions"),
        ({str(n): np.zeros(0) for n in range(MAX_TENSORS + 1)}, {}, "arrays in one document"),
        ({"__metadata__": np.zeros(1)}, {}, "can't be written"),
        ({}, {"note": "x" * MAX_HEADER_BYTES}, "a header of"),
        ({}, {"number": 1}, "can't be written"),
        ({"\ud800": np.zeros(1)}, {}, "can't be written"),
    ],
)
def test_a_document_that_a_reader_would_refuse_is_not_written(arrays: Any, metadata: Any, complaint: str) -> None:
    with pytest.raises(LocalProtocolError, match=complaint):
        pack(arrays, metadata)


def test_the_limits_themselves_are_allowed() -> None:
    deep = {"deep": np.zeros((1,) * MAX_RANK, dtype=np.uint8)}
    many = {str(n): np.zeros(0, dtype=np.uint8) for n in range(MAX_TENSORS)}
    assert unpack(pack(deep))[0]["deep"].ndim == MAX_RANK
    assert len(unpack(pack(many))[0]) == MAX_TENSORS


@pytest.mark.parametrize(
    ("hostile", "complaint"),
    [
        pytest.param(b"", "0 bytes is truncated", id="empty"),
        pytest.param(b"\xff" * 8, "a header of", id="a header of 2^64 bytes"),
        pytest.param((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "a header of", id="a header just too long"),
        pytest.param(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0", "a header of|truncated", id="a pickle"),
        pytest.param(document(b"not json"), "not JSON", id="no JSON"),
        pytest.param(document(b"\xff\xfe\xff"), "not JSON", id="no UTF-8"),
        pytest.param(document(b"[" * 100_000), "not JSON", id="deeply nested"),
        pytest.param(document([]), "not an object", id="a list"),
        pytest.param(document({"a": 1}), "dtype", id="an entry that is not an object"),
        pytest.param(document({"a": {}}), "dtype", id="an empty entry"),
        pytest.param(document({"a": entry(dtype=[])}, b"xx"), "dtype", id="a dtype that can't be hashed"),
        pytest.param(document({"a": entry(dtype="F8_E4M3")}, b"xx"), "dtype", id="a dtype outside the list"),
        pytest.param(document({"a": entry(shape="2")}, b"xx"), "shape", id="a shape that is text"),
        pytest.param(document({"a": entry(shape=[1] * 9)}, b"xx"), "dimensions", id="too many dimensions"),
        pytest.param(document({"a": entry(shape=[-1])}, b"xx"), "not a safetensors", id="a negative dimension"),
        pytest.param(document({"a": entry(shape=[2**63, 4])}, b"xx"), "not a safetensors", id="an overflow"),
        pytest.param(document({"a": entry(shape=[1.5])}, b"xx"), "not a safetensors", id="half a dimension"),
        pytest.param(document({"a": entry(shape=[3])}, b"xx"), "not a safetensors", id="a shape unlike its bytes"),
        pytest.param(document({"a": entry(data_offsets=[0, 9])}, b"xx"), "not a safetensors", id="bytes beyond"),
        pytest.param(document({"a": entry(data_offsets=[2, 0])}, b"xx"), "not a safetensors", id="bytes backwards"),
        pytest.param(document({"a": entry(data_offsets=[1, 3])}, b"xxx"), "not a safetensors", id="a hole"),
        pytest.param(document({"a": entry(), "b": entry()}, b"xx"), "not a safetensors", id="an overlap"),
        pytest.param(document({"__metadata__": None}), "not strings", id="no metadata"),
        pytest.param(document({"__metadata__": {"a": 1}}), "not strings", id="metadata of numbers"),
        pytest.param(document({str(n): entry() for n in range(257)}), "257 arrays", id="too many arrays"),
        pytest.param(document({"__metadata__": {"a": float("nan")}}), "not JSON", id="a number that JSON lacks"),
        pytest.param(document(b'{"__metadata__":{"a":"\\ud800"}}'), "not JSON", id="half a character"),
        pytest.param(document(b"\xef\xbb\xbf{}"), "not JSON", id="a mark of UTF-8"),
        pytest.param(document({"a": entry(shape=[True, 2])}, b"xx"), "not a safetensors", id="true as a dimension"),
        pytest.param(document({"a": entry(data_offsets=[0, 2, 2])}, b"xx"), "not a safetensors", id="three places"),
        pytest.param(
            document({"a": entry(data_offsets=[False, 2])}, b"xx"), "not a safetensors", id="false as a place"
        ),
        pytest.param(document({"a": entry(shape=[0, 2**62, 9], data_offsets=[0, 0])}), "not a safetensors", id="huge"),
    ],
)
def test_a_hostile_document_is_refused_with_a_sentence(hostile: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        unpack(hostile)


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        arrays, metadata = unpack(data)
    except RemoteProtocolError:
        return
    packed = pack(arrays, metadata)
    assert pack(*unpack(packed)) == packed


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["U8", "F32", "BOOL", "F64", "X"]) | _JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=9) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 2**64), max_size=3) | _JSON,
    },
)


@given(
    st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), _ENTRY | _JSON, max_size=4), st.binary(max_size=20)
)
def test_random_headers_are_read_or_refused(header: Any, data: bytes) -> None:
    try:
        arrays, metadata = unpack(document(header, data))
    except RemoteProtocolError:
        return
    assert all(isinstance(text, str) for text in metadata.values())
    assert sum(array.nbytes for array in arrays.values()) == len(data)


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=10).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?"]),
            st.lists(st.integers(0, 4), max_size=3),
            st.integers(0, 2**32),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=5),
)
def test_packed_arrays_are_unpacked(shapes: Any, metadata: dict[str, str]) -> None:
    arrays = {
        name: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)
        for name, (dtype, shape, seed) in shapes.items()
    }
    packed = pack(arrays, metadata)
    if len(metadata) < 2:  # the library writes several in any order
        assert packed == save(arrays, metadata or None)
    read, read_metadata = unpack(packed)
    assert read_metadata == metadata
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_a_document_is_not_parsed_by_its_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    for owner, name in ((safetensors.numpy, "load"), (tensors, "from_json")):
        monkeypatch.setattr(owner, name, read.append)
    assert pack({"x": F32}, {"request": "r-1"})
    assert read == []


def test_rounding_to_float16_is_for_float32_alone_and_comes_back_as_float32() -> None:
    given_ = {"x": np.array([1 / 3, -0.0, 65504], np.float32), "ids": np.array([7]), "bits": np.array([1], np.uint8)}
    sent = narrowed(given_, "float16")
    assert {name: array.dtype for name, array in sent.items()} == {"x": np.float16, "ids": np.int64, "bits": np.uint8}
    back = widened(unpack(pack(sent))[0])
    assert back["x"].dtype == np.float32
    assert back["x"].tolist() == [0.333251953125, -0.0, 65504.0]
    assert narrowed(widened(sent), "float16")["x"].tobytes() == sent["x"].tobytes(), "rounding twice changes nothing"
    assert narrowed(given_, "float32") == given_


@pytest.mark.parametrize("number", [65520.0, -1e30, np.inf, np.nan])
def test_a_number_beyond_float16_is_refused(number: float) -> None:
    with pytest.raises(
        LocalProtocolError, match=r"x has numbers beyond float16's 65504\.0: set the task's wire to float32"
    ):
        narrowed({"x": np.array([number], np.float32)}, "float16")


def test_embeddings_are_rows_of_the_shortest_numbers_that_give_the_same_float32() -> None:
    rows = np.array([[0.1, -2.5e-38], [1 / 3, 3.0]], np.float32)
    found = embeddings({"x": rows}, "embeddings")
    assert json.dumps(found) == '{"embeddings": [[0.1, -2.5e-38], [0.33333334, 3.0]]}'
    assert np.array_equal(np.array(found["embeddings"], np.float32), rows)


def test_unit_embeddings_have_length_1_and_a_row_of_zeros_stays() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [3e38, 3e38]], np.float32)
    found = embeddings({"x": rows}, "unit-embeddings")
    assert found == {"embeddings": [[0.6, 0.8], [0.0, 0.0], [1.0, 0.0], [0.70710677, 0.70710677]]}


@pytest.mark.parametrize(
    ("output", "given"),
    [
        ({}, "nothing"),
        ({"a": F32, "b": F32}, "a (float32 [1, 2]), b (float32 [1, 2])"),
        ({"a": F32[0]}, "a (float32 [2])"),
        ({"a": F32.astype(np.int64)}, "a (int64 [1, 2])"),
        ({"a": np.array([[np.nan]], np.float32)}, "a (float32 [1, 1])"),
    ],
)
def test_an_output_that_is_no_rows_of_numbers_is_refused_as_an_embedding(output: Any, given: str) -> None:
    with pytest.raises(RequestFailed) as error:
        embeddings(output, "embeddings")
    assert error.value.code == ErrorCode.MODULE_FAILED
    assert error.value.message.startswith(f"the output is {given}, and answer: embeddings needs one array")


def test_the_most_embeddings_fit_in_a_result() -> None:
    most = np.full((1, MAX_ANSWERED), np.float32(-1.17549435e-38))
    assert len(json.dumps(embeddings({"x": most}, "embeddings"), separators=(",", ":"))) < MAX_CONTROL_BYTES - 50_000
    with pytest.raises(RequestFailed, match=r"2 embeddings have 60002 numbers, at most 60000 .*: send fewer texts"):
        embeddings({"x": np.zeros((2, MAX_ANSWERED // 2 + 1), np.float32)}, "embeddings")
