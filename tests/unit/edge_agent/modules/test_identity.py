"""The identity by content: the same bytes have the same digest, and anything else another."""

from __future__ import annotations

import hashlib

import pytest
import torch

from edge_agent.modules.weights import identity

WEIGHTS = {"b": torch.ones(3), "a": torch.arange(6.0).reshape(2, 3)}


def test_the_digest_is_what_its_docstring_says() -> None:
    content = b'{"eps":1,"name":"x"}\0'
    content += b"a\0F32\0" + b"2,3\0" + WEIGHTS["a"].numpy().tobytes()
    content += b"b\0F32\0" + b"3\0" + WEIGHTS["b"].numpy().tobytes()
    expected = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert identity.digest(WEIGHTS, {"name": "x", "eps": 1.0}) == expected


def test_order_and_memory_layout_do_not_matter() -> None:
    other = {"a": WEIGHTS["a"].t().contiguous().t(), "b": torch.ones(6)[::2]}
    assert identity.digest(other) == identity.digest(WEIGHTS)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": WEIGHTS["a"]},
        WEIGHTS | {"c": torch.ones(1)},
        WEIGHTS | {"a": WEIGHTS["a"].reshape(3, 2)},
        WEIGHTS | {"b": torch.ones(3, dtype=torch.float16)},
        WEIGHTS | {"b": torch.tensor([1.0, 1.0, 1.0000001])},
        {"A": WEIGHTS["a"], "b": WEIGHTS["b"]},
        {"a": WEIGHTS["b"], "b": WEIGHTS["a"]},
    ],
)
def test_any_change_of_names_shapes_dtypes_or_bytes_changes_the_digest(changed: dict[str, torch.Tensor]) -> None:
    assert identity.digest(changed) != identity.digest(WEIGHTS)


def test_every_dtype_and_a_single_number_have_a_digest() -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    found = {identity.digest({"x": torch.tensor(1).to(dtype)}) for dtype in dtypes}
    assert len(found) == len(dtypes)
    assert identity.digest({"x": torch.empty(0)}) != identity.digest({"x": torch.empty(0, 1)})


def test_the_configuration_counts_in_one_spelling() -> None:
    assert identity.digest(WEIGHTS, {"a": 1, "b": [1.0, {"c": None}]}) == identity.digest(
        WEIGHTS, {"b": [1, {"c": None}], "a": 1.0}
    )
    assert identity.digest(WEIGHTS, {"a": 1}) != identity.digest(WEIGHTS, {"a": 2})
    assert identity.canonical_json({"é": [1.5, True, 2.0]}) == b'{"\\u00e9":[1.5,true,2]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        identity.canonical_json({"a": float("nan")})
