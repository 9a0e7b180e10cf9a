"""Runs modules: prepare, the forward pass on the module's engine, answer.

Owns the way of one request through a module, and the choice of its engine. Knows no family, and no engine's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.protocol.errors import ErrorCode, RequestFailed
from edge_agent.modules import Module, Output, Value
from edge_agent.runtime.engines import engine, limit_threads


class Runner:
    """Runs one pass at a time, on the thread that calls.

    ``threads`` are those of each pass, for this whole process; None leaves them as they are.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            limit_threads(threads)

    def run(self, module: Module, values: Sequence[Value], use: str | None = None) -> Output:
        """Run a module in a node's use; None is its ordinary one.

        Raises:
            RequestFailed: as the module's steps do, and ``module_failed`` for a use that it doesn't have.
        """
        chosen = module.passes.get(use)
        if chosen is None:
            known = ", ".join(sorted(each for each in module.passes if each)) or "its ordinary one"
            raise RequestFailed(
                ErrorCode.MODULE_FAILED, f"this module has no use {use}, only {known}: correct the task's use"
            )
        prepared = chosen.steps.prepare(values)
        return chosen.steps.answer(engine(module.engine).forward(module, chosen, prepared.arrays), prepared)
