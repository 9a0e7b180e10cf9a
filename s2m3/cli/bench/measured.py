"""The end of a measurement that stands by itself: its report with the machine, its exit status, and cells of tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from s2m3.bench import machine
from s2m3.cli.output import print_result


def print_measured(
    arguments: argparse.Namespace, found: dict[str, Any], show: Callable[[dict[str, Any]], object]
) -> int:
    """Print a report with the machine that it is of; returns 0 if it is ``ok``, else 1."""
    print_result(arguments, found | {"machine": machine.description()}, show)
    return 0 if found["ok"] else 1


def cells_of(latency_s: Mapping[str, float | None]) -> Iterator[str]:
    """The milliseconds of p50 and p95, as far as anything was measured."""
    return ("-" if each is None else f"{1000 * each:.0f}" for each in (latency_s["p50"], latency_s["p95"]))


def cell_of(errors: Mapping[str, int]) -> str:
    """The errors by their codes, with how often each came."""
    return ", ".join(f"{code} {times}" for code, times in errors.items()) or "-"
