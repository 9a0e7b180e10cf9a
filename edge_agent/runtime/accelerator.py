"""The accelerator of this device: whether there is one, and its memory. Today that is the first CUDA device of torch.

Owns the choice, the settings of torch for it, and where its figures come from. Knows no module. On an accelerator the
memory that is planned is the accelerator's: the weights are there, and what passes take. The machine's own memory only
holds a module while it is read; that is checked apart (``device.calibration``). Modules in int8, and modules of
CTranslate2, run on the CPU all the same, and count as if they were on the accelerator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import structlog

from broker.protocol.errors import BadFile, first_line
from edge_agent.runtime.out_of_memory import is_out_of_memory

Wanted = Literal["auto", "cpu", "cuda"]
CUDA = "cuda"
CPU_BATCH, CUDA_BATCH = 1, 32  # requests in one pass, where the agent's file doesn't say

log = structlog.get_logger()


@dataclass(frozen=True)
class Accelerator:
    """A device of torch, and its memory."""

    device: str  # in torch's words
    name: str
    free_bytes: Callable[[], int]
    allocated_bytes: Callable[[], int]  # by this process, for what it holds now
    problem: Callable[[], str]  # why this process can compute nothing on it any more; empty while it can

    @property
    def batch(self) -> int:
        """The most requests in one pass where the agent's file doesn't say."""
        return CUDA_BATCH if self.device == CUDA else CPU_BATCH


def chosen(wanted: Wanted, file: str = "agent") -> Accelerator | None:
    """The accelerator that the agent's file asks for; None: the CPU.

    Raises:
        BadFile: it asks for cuda, and no device works with it.
    """
    if wanted == "cpu":
        return None
    problem, fix = cuda_problem()
    if not problem:
        return _cuda()
    if wanted == CUDA:
        raise BadFile(file=file, field="accelerator", problem=problem, fix=f"{fix}, or write accelerator: cpu")
    log.info("no_accelerator", why=problem)
    return None


def cuda_problem() -> tuple[str, str]:
    """The reason for which CUDA can't be used here, and the remedy; both empty where it can."""
    import torch  # noqa: PLC0415 - an agent starts without it

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA", "install torch's build for CUDA"
    with warnings.catch_warnings(record=True) as told:  # torch says why it sees no device
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    if is_there:
        fix = "check that nvidia-smi shows a card that is free, and that this torch is built for it"
        return (problem, fix) if (problem := _failing()) else ("", "")
    reason = str(told[0].message).partition("\n")[0] if told else "torch sees no CUDA device"
    if "driver" in reason.lower() and "old" in reason.lower():
        return reason, f"update the NVIDIA driver for CUDA {torch.version.cuda}"
    return reason, "check that nvidia-smi shows a card, and that this process may use /dev/nvidia*"


def _failing() -> str:
    """The reason for which nothing can be computed on a device that is there; empty where it can, or is full."""
    import torch  # noqa: PLC0415 - the same

    try:
        torch.ones(1, device=CUDA).add_(1).item()
    except Exception as error:  # noqa: BLE001 - torch's errors have no base class of their own
        if is_out_of_memory(error):
            return ""
        return f"{torch.cuda.get_device_name(0)} can't be used: {first_line(error)}"
    return ""


def _cuda() -> Accelerator:
    import torch  # noqa: PLC0415 - the same

    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    torch.backends.cudnn.allow_tf32 = False

    def free_bytes() -> int:
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch reuses it
        return torch.cuda.mem_get_info()[0] + kept

    return Accelerator(CUDA, torch.cuda.get_device_name(0), free_bytes, torch.cuda.memory_allocated, _failing)
