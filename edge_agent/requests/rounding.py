"""Rounding of the arrays that nodes exchange; the compute thread does it beside the forward pass. Pure.

Invariants:
- A node takes the same rounded numbers wherever it runs: an answer doesn't depend on the placement.
- What the sensor gets is never rounded.
"""

from __future__ import annotations

from broker.protocol.codec import RawInput
from broker.protocol.tensors import Tensors, narrowed, widened
from edge_agent.actions import Run
from edge_agent.modules import Output, Value


def widened_values(run: Run) -> tuple[Value, ...]:
    """The values of a forward pass, as modules take them: float16 arrays are float32 again."""
    return tuple(value if isinstance(value, RawInput) else widened(value) for value in run.values)


def rounded_output(run: Run, output: Output) -> tuple[Output, Tensors | None]:
    """The output to keep, and what other nodes take of it where that differs.

    Raises:
        LocalProtocolError: a number is too large for the plan's ``wire``.
    """
    if run.wire == "float32":
        return output, None
    given = narrowed(output.tensors, run.wire)
    return (output, given) if run.answers else (Output(given, output.answer), None)
