"""The nearest-rank percentile."""

from __future__ import annotations

from s2m3.testbed.percentiles import percentile


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([3.0], 99) == 3.0


def test_the_order_of_the_values_does_not_matter() -> None:
    assert percentile([0.4, 0.1, 0.2, 0.3], 50) == 0.2
    assert percentile([0.4, 0.1, 0.2, 0.3], 51) == 0.3


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 50) is None
