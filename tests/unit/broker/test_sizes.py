"""Sizes as sentences show them: KiB, MiB and GiB, and different sizes look different."""

from __future__ import annotations

import pytest

from broker.protocol.errors import NoDeviceFits
from broker.protocol.sizes import parse_bytes, show_bytes, show_sizes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1 KiB"),
        (1_000_000, "976.6 KiB"),
        (2**24, "16 MiB"),
        (13_652_096, "13.0 MiB"),
        (3 * 2**30, "3 GiB"),
        (2**40, "1 TiB"),
        (1234.5, "1.2 KiB"),
    ],
)
def test_a_size_is_shown_in_its_largest_unit(size_bytes: float, text: str) -> None:
    assert show_bytes(size_bytes) == text


@pytest.mark.parametrize("missing", [1, 1025, 10_000_004, 2**20 + 1, 5 * 2**30 - 1])
def test_who_adds_what_is_said_to_be_missing_adds_enough(missing: int) -> None:
    shown = show_bytes(missing, up=True)
    added = parse_bytes(shown.replace(" bytes", "").replace(" byte", ""))
    assert isinstance(added, int)
    assert missing <= added <= missing * 1.1


def test_sizes_that_differ_look_different() -> None:
    assert show_sizes(2**24, 2**24) == ("16 MiB", "16 MiB")
    assert show_sizes(17 * 10**6, 2**24) == ("16.2 MiB", "16 MiB")
    assert show_sizes(2**24 + 20_000, 2**24) == ("16.02 MiB", "16 MiB")
    assert show_sizes(2**24 + 1, 2**24) == ("16,777,217 bytes", "16,777,216 bytes")


def test_a_module_that_fits_nowhere_is_told_in_units_that_people_read() -> None:
    refusal = NoDeviceFits(module="see", memory_bytes=900_000_000, short_bytes={"a": 10_000_004, "b": 2**31})
    refusal.change = ("a", 10_000_004)
    told = str(refusal)
    assert told.startswith("no device fits see (858.3 MiB): a lacks 9.6 MiB, b lacks 2 GiB; with 9.6 MiB more on a")
    assert refusal.short_bytes == {"a": 10_000_004, "b": 2**31}
