"""The profile of this device: its memory and speed, measured, and its link, stated by the operator or assumed.

Owns the measurement at start. Knows no model: the speed is that of layers as small networks have them, at the
configured thread count. It counts until forward passes are measured (``calibration``), and the assumed link until that
is measured (``link_probe``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from broker.process import return_freed_memory
from broker.protocol.errors import BadFile
from broker.protocol.messages import DeviceProfile
from edge_agent.config import AgentConfig
from edge_agent.device.footprint import free_bytes
from edge_agent.modules import threads
from edge_agent.modules.weights import exports
from edge_agent.modules.weights.hub import models_directory
from edge_agent.runtime.accelerator import Accelerator
from edge_agent.runtime.engines import AgentEngine, usable

MEASURE_S = 0.15
# For the system when no budget is stated; with torch also for the packages that a family imports with its first module:
# transformers and its imports take 170 MB, which belong to no module.
RESERVE_BYTES = {"torch": (256 + 192) * 1024 * 1024, "onnx": 256 * 1024 * 1024}
SPEED_FILE = Path(__file__).with_name("speed.onnx")
"""The layers of a round as a model, which tests/unit/edge_agent/device/test_speed_model.py writes."""
# Until the link is stated or measured: a good wired one. Where it is slower, a later move gains much; if it was assumed
# too slow, modules would stay together that gain only milliseconds by a move.
ASSUMED_BANDWIDTH_BITS_PER_S, ASSUMED_LATENCY_S = 1e9, 0.001
CHANNELS, EXPANDED, SIDE = 24, 144, 56  # of the bottleneck
TOKENS, WIDTH = 28, 384  # of the feed-forward layer


def profile(
    config: AgentConfig,
    flops_per_s: float,
    *,
    engine: AgentEngine = "torch",
    accelerator: Accelerator | None = None,
) -> DeviceProfile:
    """Describe this device, with the measured speed of its modules' engine. What the operator states is taken as it is.

    Without a stated budget it is the free memory, less the system's reserve and the headroom. With an accelerator both
    memory and speed are the accelerator's. The speed is the share
    that ``config.speed`` offers. A link that is not stated is assumed until it is measured.

    Raises:
        BadFile: no budget is stated, and the system doesn't report its free memory.
    """
    free = accelerator.free_bytes() if accelerator else free_bytes()
    memory_bytes, bandwidth_bits_per_s, latency_s = config.memory, config.bandwidth_bits_per_s, config.latency_s
    return DeviceProfile(
        memory_bytes=memory_bytes or spare_memory_bytes(free, config.headroom, engine),
        compute_flops_per_s=flops_per_s * config.speed,
        bandwidth_bits_per_s=ASSUMED_BANDWIDTH_BITS_PER_S if bandwidth_bits_per_s is None else bandwidth_bits_per_s,
        latency_s=ASSUMED_LATENCY_S if latency_s is None else latency_s,
        engines=usable(engine),
        exports=exports.sizes(models_directory()) if engine == "onnx" else {},
    )


def spare_memory_bytes(free: int | None, headroom: float, engine: AgentEngine = "torch") -> int:
    """The bytes for modules: the free ones less the system's reserve, less the headroom of the rest; at least 1.

    ``BadFile`` when the free memory is unknown: the operator must state the budget.
    """
    if free is None:
        problem, fix = "this system doesn't report its free memory", "state the device's `memory`"
        raise BadFile(file="agent", field="memory", problem=problem, fix=fix)
    return max(1, round((free - RESERVE_BYTES[engine]) * (1 - headroom)))


def compute_flops_per_s(
    clock: Callable[[], float] = time.perf_counter,
    measure_s: float = MEASURE_S,
    *,
    engine: AgentEngine = "torch",
    device: str = "cpu",
) -> float:
    """Floating-point operations per second (two per multiply-add) of an engine, at the configured thread count.

    A round is a mobile inverted bottleneck (Sandler et al. 2018) and a transformer's feed-forward layer over a few
    captions, so small models reach the figure. Rounds run for ``measure_s`` after one to warm up. The fastest counts:
    other programs that start at that moment don't make the device look slow. Both engines count the same
    operations: the faster one has the higher figure, as its modules take less time.
    """
    one_round = torch_round(device) if engine == "torch" else onnx_round()
    one_round()
    fastest_s, began_s = math.inf, clock()
    before_s = began_s
    while before_s - began_s < measure_s:
        one_round()
        now_s = clock()
        fastest_s, before_s = min(fastest_s, now_s - before_s), now_s
    del one_round
    return_freed_memory()  # 10 MB
    flops = 2 * SIDE * SIDE * EXPANDED * (2 * CHANNELS + 9) + 2 * TOKENS * 8 * WIDTH * WIDTH
    return flops / max(fastest_s, 1e-9)


def torch_round(device: str) -> Callable[[], None]:
    """A round by torch."""
    import torch  # noqa: PLC0415 - an agent with another engine starts without it
    from torch.nn import functional  # noqa: PLC0415 - the same

    threads.limit_torch()
    generator = torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(device)

    image, tokens = weights(1, CHANNELS, SIDE, SIDE), weights(TOKENS, WIDTH)
    expand, depthwise = weights(EXPANDED, CHANNELS, 1, 1), weights(EXPANDED, 1, 3, 3)
    project = weights(CHANNELS, EXPANDED, 1, 1)
    widen, narrow = weights(WIDTH, 4 * WIDTH), weights(4 * WIDTH, WIDTH)

    def one_round() -> None:
        x = functional.relu6(functional.conv2d(image, expand))  # (1, 144, 56, 56)
        x = functional.relu6(functional.conv2d(x, depthwise, padding=1, groups=EXPANDED))  # (1, 144, 56, 56)
        functional.conv2d(x, project)  # (1, 24, 56, 56)
        made = functional.gelu(tokens @ widen) @ narrow  # (28, 384)
        made[0, 0].item()  # waits for an accelerator

    run: Callable[[], None] = torch.inference_mode()(one_round)
    return run


def onnx_round() -> Callable[[], None]:
    """A round by ONNX Runtime."""
    from edge_agent.modules.weights.onnx_file import open_session  # noqa: PLC0415 - an agent with torch may lack it

    session = open_session(SPEED_FILE)
    arrays = {name: np.full([n or 1 for n in shape], 0.5, dtype) for name, (shape, dtype) in session.inputs.items()}

    def one_round() -> None:
        session.run(arrays, session.outputs)

    return one_round
