"""The profile of this device: its memory and speed, measured, and its link, stated by the operator or assumed.

Owns the measurement at start. Knows no model: the speed is that of layers as small networks have them, at the
configured thread count. It counts until forward passes are measured (``calibration``), and the assumed link until that
is measured (``link_probe``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from broker.protocol.errors import BadFile
from broker.protocol.messages import DeviceProfile
from edge_agent.config import AgentConfig
from edge_agent.device.footprint import free_bytes
from edge_agent.runtime.accelerator import Accelerator

MEASURE_S = 0.15
# For the system when no budget is stated, and for the packages that a family imports with its first module:
# transformers and its imports take 170 MB, which belong to no module.
RESERVE_BYTES = (256 + 192) * 1024 * 1024
ASSUMED_BANDWIDTH_BITS_PER_S, ASSUMED_LATENCY_S = 100e6, 0.001  # until the link is stated or measured: a wired one
CHANNELS, EXPANDED, SIDE = 24, 144, 56  # of the bottleneck
TOKENS, WIDTH = 28, 384  # of the feed-forward layer


def profile(
    config: AgentConfig, clock: Callable[[], float] = time.perf_counter, *, accelerator: Accelerator | None = None
) -> DeviceProfile:
    """Measure this device. What the operator states in ``config`` is taken as it is.

    Without a stated budget it is the free memory, less the system's reserve and the headroom. With an accelerator both
    memory and speed are the accelerator's. The speed is the share
    that ``config.speed`` offers. A link that is not stated is assumed until it is measured.

    Raises:
        BadFile: no budget is stated, and the system doesn't report its free memory.
    """
    free = accelerator.free_bytes() if accelerator else free_bytes()
    memory_bytes, bandwidth_bits_per_s, latency_s = config.memory, config.bandwidth_bits_per_s, config.latency_s
    return DeviceProfile(
        memory_bytes=spare_memory_bytes(free, config.headroom) if memory_bytes is None else memory_bytes,
        compute_flops_per_s=compute_flops_per_s(clock, device=accelerator.device if accelerator else "cpu")
        * config.speed,
        bandwidth_bits_per_s=ASSUMED_BANDWIDTH_BITS_PER_S if bandwidth_bits_per_s is None else bandwidth_bits_per_s,
        latency_s=ASSUMED_LATENCY_S if latency_s is None else latency_s,
    )


def spare_memory_bytes(free: int | None, headroom: float) -> int:
    """The bytes for modules: the free ones less the system's reserve, less the headroom of the rest; at least 1.

    ``BadFile`` when the free memory is unknown: the operator must state the budget.
    """
    if free is None:
        problem, fix = "this system doesn't report its free memory", "state the device's `memory`"
        raise BadFile(file="agent", field="memory", problem=problem, fix=fix)
    return max(1, round((free - RESERVE_BYTES) * (1 - headroom)))


def compute_flops_per_s(
    clock: Callable[[], float] = time.perf_counter, measure_s: float = MEASURE_S, device: str = "cpu"
) -> float:
    """Floating-point operations per second (two per multiply-add) at the configured thread count.

    A round is a mobile inverted bottleneck (Sandler et al. 2018) and a transformer's feed-forward layer over a few
    captions, so small models reach the figure. Rounds run for ``measure_s`` after one to warm up. The fastest counts:
    other programs that start at that moment don't make the device look slow.
    """
    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(device)

    image, tokens = weights(1, CHANNELS, SIDE, SIDE), weights(TOKENS, WIDTH)
    expand, depthwise = weights(EXPANDED, CHANNELS, 1, 1), weights(EXPANDED, 1, 3, 3)
    project = weights(CHANNELS, EXPANDED, 1, 1)
    widen, narrow = weights(WIDTH, 4 * WIDTH), weights(4 * WIDTH, WIDTH)
    flops = 2 * SIDE * SIDE * EXPANDED * (2 * CHANNELS + 9) + 2 * TOKENS * 8 * WIDTH * WIDTH  # of one round

    def one_round() -> None:
        x = functional.relu6(functional.conv2d(image, expand))  # (1, 144, 56, 56)
        x = functional.relu6(functional.conv2d(x, depthwise, padding=1, groups=EXPANDED))  # (1, 144, 56, 56)
        functional.conv2d(x, project)  # (1, 24, 56, 56)
        made = functional.gelu(tokens @ widen) @ narrow  # (28, 384)
        made[0, 0].item()  # waits for an accelerator

    with torch.inference_mode():
        one_round()
        fastest_s, began_s = math.inf, clock()
        before_s = began_s
        while before_s - began_s < measure_s:
            one_round()
            now_s = clock()
            fastest_s, before_s = min(fastest_s, now_s - before_s), now_s
    return flops / max(fastest_s, 1e-9)
