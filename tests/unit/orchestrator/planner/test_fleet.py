"""Devices as arrays say what their specs say."""

from __future__ import annotations

import pytest

from broker.cost_model import OUTSIDE, Link, Linked, compute_s, crossing_s, transfer_s
from orchestrator.planner.fleet import Fleet
from tests.builders import device, module

MODULE = module("p", memory_bytes=5, flops=3e9, output_bytes=700)
DEVICES = [
    device("c", speed=7e9, bandwidth_bits_per_s=7e7, latency_s=0.007),
    device("a", speed=1e9, bandwidth_bits_per_s=1e7, latency_s=0.001, compute_s={"name": 0.5}),
    device("b", speed=3e9, bandwidth_bits_per_s=3e7, latency_s=0.003, compute_s={MODULE.key: 0.25, "name": 0.5}),
]


@pytest.mark.parametrize("end", [*DEVICES, OUTSIDE, Link("elsewhere", 0.02, 1e5)])
def test_arrays_say_what_the_specs_say_bit_for_bit(end: Linked) -> None:
    fleet = Fleet(DEVICES)
    assert [spec.id for spec in fleet.specs] == ["a", "b", "c"]
    assert fleet.compute_s("name", MODULE).tolist() == [compute_s(spec, "name", MODULE) for spec in fleet.specs]
    assert fleet.crossings_s(1234).tolist() == [crossing_s(1234, spec) for spec in fleet.specs]
    assert fleet.transfers_s(1234, end).tolist() == [transfer_s(1234, end, spec) for spec in fleet.specs]
