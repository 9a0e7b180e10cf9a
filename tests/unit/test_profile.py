"""What a device says it has to offer."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from broker.errors import BadFile
from edge_agent.profile import RESERVE_BYTES, compute_flops_per_s, profile, spare_memory_bytes

GIB = 1024**3


ROUND_FLOPS = 2 * 56 * 56 * 144 * 57 + 2 * 28 * 8 * 384 * 384


def test_speed_is_operations_over_the_seconds_that_the_clock_says() -> None:
    slow, fast = itertools.count(0, 1.0), itertools.count(0, 0.25)
    assert compute_flops_per_s(clock=lambda: next(slow), measure_s=4) == ROUND_FLOPS
    assert compute_flops_per_s(clock=lambda: next(fast), measure_s=1) == 4 * ROUND_FLOPS


def test_the_fastest_round_counts_whatever_else_the_machine_does() -> None:
    ticks = iter([0.0, 3.0, 3.5, 100.0])
    assert compute_flops_per_s(clock=lambda: next(ticks), measure_s=10) == 2 * ROUND_FLOPS


def test_a_configured_budget_wins_over_what_is_free_and_speed_scales() -> None:
    full, half = (
        profile(
            memory_bytes=123,
            speed=speed,
            bandwidth_bits_per_s=1e6,
            latency_s=0.01,
            clock=itertools.count(0, 0.1).__next__,
        )
        for speed in (1.0, 0.5)
    )
    assert (full.memory_bytes, full.bandwidth_bits_per_s, full.latency_s) == (123, 1e6, 0.01)
    assert half.compute_flops_per_s == full.compute_flops_per_s / 2


@pytest.mark.parametrize(
    ("free_kib", "expected"),
    [
        (1024 * 1024, GIB - RESERVE_BYTES),  # 1 GiB: the fixed reserve is more than a fifth
        (10 * 1024 * 1024, 8 * GIB),  # 10 GiB: a fifth is more
        (1024, 1),  # less than the reserve
    ],
)
def test_free_memory_less_a_reserve_is_the_default_budget(tmp_path: Path, free_kib: int, expected: int) -> None:
    source = tmp_path / "meminfo"
    source.write_text(f"MemTotal:  99999999 kB\nMemFree:  1 kB\nMemAvailable:   {free_kib} kB\n")
    assert spare_memory_bytes(source) == expected


def test_a_system_that_does_not_say_asks_for_a_budget(tmp_path: Path) -> None:
    source = tmp_path / "meminfo"
    source.write_text("MemTotal:  99999999 kB\n")
    for missing in (source, tmp_path / "none"):
        with pytest.raises(BadFile, match="state the device's `memory`"):
            spare_memory_bytes(missing)
