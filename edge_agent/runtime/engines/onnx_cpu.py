"""ONNX Runtime on the CPU: arrays to arrays, by the sessions of a module.

Threads and memory are those of a session, set when it was made (``weights.onnx_file``). It takes and gives NumPy's
arrays, so nothing is converted here but floats that aren't float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from broker.protocol.errors import ErrorCode, ModuleRefused, RequestFailed, first_line
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass
from edge_agent.runtime.out_of_memory import is_out_of_memory


def forward(module: Module, chosen: Pass, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Run one forward pass.

    Raises:
        ModuleRefused: the module's files were overwritten, so it can't run here any more.
        RequestFailed: ``module_failed`` with ONNX Runtime's reason.
    """
    try:
        given = chosen.forward(module.network, **arrays)
    except ModuleRefused:
        raise
    except Exception as error:  # the library's errors have no base class of their own
        if is_out_of_memory(error):
            raise
        raise RequestFailed(ErrorCode.MODULE_FAILED, f"ONNX Runtime: {first_line(error)}") from error
    return {name: _float32(array) for name, array in given.items()}


def _float32(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)
