"""What this device has to offer: memory and speed, measured; the link, as the operator states it.

Owns the measurement. Knows no model: the speed is that of layers as small networks have them, at the thread
count set. It only serves until forward passes are measured themselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from broker.errors import BadFile
from broker.messages import DeviceProfile

MEASURE_S = 0.15
RESERVE_BYTES = 512 * 1024 * 1024  # left to the system and to activations when no budget is configured
RESERVE_SHARE = 0.2  # of the free memory, when that is more
MEMORY_FILE = Path("/proc/meminfo")
CHANNELS, EXPANDED, SIDE = 24, 144, 56  # of the bottleneck
TOKENS, WIDTH = 28, 384  # of the feed-forward layer

Clock = Callable[[], float]


def profile(
    *,
    memory_bytes: int | None,
    speed: float,
    bandwidth_bits_per_s: float,
    latency_s: float,
    clock: Clock = time.perf_counter,
) -> DeviceProfile:
    """Measure this device.

    Args:
        memory_bytes: The budget for modules; None for what is really free, less a reserve.
        speed: Share of its speed that the device offers, for emulating slower ones.
        bandwidth_bits_per_s: Of the device's link.
        latency_s: Of the device's link, one way to the broker.
        clock: Seconds, rising.
    """
    return DeviceProfile(
        memory_bytes=memory_bytes if memory_bytes is not None else spare_memory_bytes(),
        compute_flops_per_s=compute_flops_per_s(clock) * speed,
        bandwidth_bits_per_s=bandwidth_bits_per_s,
        latency_s=latency_s,
    )


def spare_memory_bytes(source: Path = MEMORY_FILE) -> int:
    """Free memory as the kernel estimates it, less the reserve: 512 MiB or a fifth, whichever is more; at least 1.

    Raises:
        BadFile: the system doesn't say; then an operator must state the budget.
    """
    text = source.read_text(encoding="ascii") if source.is_file() else ""
    for line in text.splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            free_bytes = int(amount.removesuffix("kB")) * 1024
            return max(1, free_bytes - max(RESERVE_BYTES, round(free_bytes * RESERVE_SHARE)))
    raise BadFile(
        file="agent",
        field="memory",
        problem="this system doesn't say how much is free",
        fix="state the device's `memory`",
    )


def compute_flops_per_s(clock: Clock = time.perf_counter, measure_s: float = MEASURE_S) -> float:
    """Floating-point operations a second (two a multiply-add) at the thread count set.

    Runs in turn a mobile inverted bottleneck (Sandler et al. 2018) and a transformer's feed-forward layer over a few
    captions, once to warm up and then until the time is over. The fastest round counts, so that what else the machine
    does at that moment (other programs that start) doesn't make the device look slow. Such layers move more memory than
    one big product, so the figure is far below the processor's peak: it is what small models reach.
    """
    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    image, tokens = weights(1, CHANNELS, SIDE, SIDE), weights(TOKENS, WIDTH)
    expand, depthwise = weights(EXPANDED, CHANNELS, 1, 1), weights(EXPANDED, 1, 3, 3)
    project = weights(CHANNELS, EXPANDED, 1, 1)
    widen, narrow = weights(WIDTH, 4 * WIDTH), weights(4 * WIDTH, WIDTH)
    flops = 2 * SIDE * SIDE * EXPANDED * (2 * CHANNELS + 9) + 2 * TOKENS * 8 * WIDTH * WIDTH  # of one round

    def one_round() -> None:
        x = functional.relu6(functional.conv2d(image, expand))  # (1, 144, 56, 56)
        x = functional.relu6(functional.conv2d(x, depthwise, padding=1, groups=EXPANDED))  # (1, 144, 56, 56)
        functional.conv2d(x, project)  # (1, 24, 56, 56)
        functional.gelu(tokens @ widen) @ narrow  # (28, 384)

    with torch.inference_mode():
        one_round()
        fastest_s, began_s = math.inf, clock()
        before_s = began_s
        while before_s - began_s < measure_s:
            one_round()
            now_s = clock()
            fastest_s, before_s = min(fastest_s, now_s - before_s), now_s
    return flops / max(fastest_s, 1e-9)
