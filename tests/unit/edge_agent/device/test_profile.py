"""The profile that a device measures of itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from broker.protocol.messages import DeviceProfile
from broker.protocol.specs import DeviceSpec
from edge_agent.config import AgentConfig
from edge_agent.device.profile import (
    ASSUMED_BANDWIDTH_BITS_PER_S,
    ASSUMED_LATENCY_S,
    RESERVE_BYTES,
    compute_flops_per_s,
    profile,
    spare_memory_bytes,
)
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from edge_agent.runtime.engines import AgentEngine
from orchestrator.planner.placement import place_most
from s2m3.catalogue import load_task
from tests.onnx_models import KEY, write_export

GIB = 1024**3


ROUND_FLOPS = 2 * 56 * 56 * 144 * 57 + 2 * 28 * 8 * 384 * 384


def test_speed_is_operations_per_second_of_the_clock() -> None:
    slow, fast = itertools.count(0, 1.0), itertools.count(0, 0.25)
    assert compute_flops_per_s(clock=lambda: next(slow), measure_s=4) == ROUND_FLOPS
    assert compute_flops_per_s(clock=lambda: next(fast), measure_s=1) == 4 * ROUND_FLOPS


def test_the_fastest_round_counts_whatever_else_the_machine_does() -> None:
    ticks = iter([0.0, 3.0, 3.5, 100.0])
    assert compute_flops_per_s(clock=lambda: next(ticks), measure_s=10) == 2 * ROUND_FLOPS


def offered(**config: float) -> DeviceProfile:
    return profile(AgentConfig.model_validate({"id": "gw-a"} | config), 1e9)


def test_a_configured_budget_wins_over_what_is_free_and_speed_scales() -> None:
    full, half = (offered(memory=123, speed=speed, bandwidth_bits_per_s=1e6, latency_s=0.01) for speed in (1.0, 0.5))
    assert (full.memory_bytes, full.bandwidth_bits_per_s, full.latency_s) == (123, 1e6, 0.01)
    assert (full.compute_flops_per_s, half.compute_flops_per_s) == (1e9, 0.5e9)


def test_a_stated_budget_is_for_modules_alone_and_no_headroom_is_taken_off_it() -> None:
    assert offered(memory=1000, headroom=0.5).memory_bytes == 1000


def test_a_link_that_is_not_stated_is_assumed() -> None:
    assumed = offered(memory=1)
    assert (assumed.latency_s, assumed.bandwidth_bits_per_s) == (ASSUMED_LATENCY_S, ASSUMED_BANDWIDTH_BITS_PER_S)
    stated = offered(memory=1, latency_s=0.0)
    assert (stated.latency_s, stated.bandwidth_bits_per_s) == (0.0, ASSUMED_BANDWIDTH_BITS_PER_S)


@pytest.mark.parametrize("slower", ["gw-a", "gw-b"])
def test_before_links_are_measured_two_equal_devices_share_two_encoders_whichever_measured_itself_faster(
    slower: str,
) -> None:
    link = offered(memory=1)
    devices = [
        DeviceSpec(
            id=name,
            memory_bytes=GIB,
            compute_flops_per_s=60e9 * (0.97 if name == slower else 1.0),
            bandwidth_bits_per_s=link.bandwidth_bits_per_s,
            latency_s=link.latency_s,
        )
        for name in ("gw-a", "gw-b")
    ]
    task = load_task("pocket/zero-shot")
    placement, _ = place_most(devices, [task])
    image, text = (task.module_of(node).key for node in ("image-encoder", "text-encoder"))
    assert placement.where[image] != placement.where[text]


@pytest.mark.parametrize(
    ("free_bytes", "headroom", "expected"),
    [
        (GIB, 0.0, GIB - RESERVE_BYTES["torch"]),
        (GIB, 0.2, round((GIB - RESERVE_BYTES["torch"]) * 0.8)),
        (RESERVE_BYTES["torch"], 0.2, 1),
        (0, 0.2, 1),
    ],
)
def test_the_default_budget_is_what_is_free_less_the_reserve_less_the_headroom(
    free_bytes: int, headroom: float, expected: int
) -> None:
    assert spare_memory_bytes(free_bytes, headroom) == expected


def test_an_agent_without_torch_keeps_less_for_packages() -> None:
    assert spare_memory_bytes(GIB, 0.0, "onnx") == GIB - 256 * 1024**2


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_both_engines_count_the_operations_of_one_round(engine: AgentEngine) -> None:
    assert compute_flops_per_s(itertools.count(0, 1.0).__next__, measure_s=4, engine=engine) == ROUND_FLOPS


def test_a_device_names_its_engines_and_what_its_models_directory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_export(tmp_path)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path))
    config = AgentConfig.model_validate({"id": "gw-a", "memory": 1})
    made = profile(config, 1e9, engine="onnx")
    assert (made.engines, made.exports) == (("onnx", "ctranslate2"), {KEY: 4096})
    assert profile(config, 1e9).exports == {}


def test_a_system_that_does_not_report_its_free_memory_needs_a_budget() -> None:
    with pytest.raises(BadFile, match="state the device's `memory`"):
        spare_memory_bytes(None, 0.2)
