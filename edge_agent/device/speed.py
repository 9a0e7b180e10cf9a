"""The process in which the speed of an engine is measured at start, and when; how is in ``profile``.

Owns a process of its own for ONNX Runtime, which ends with the figure: an agent without modules then holds no engine in
memory (25 MB), and starts meanwhile. Torch is measured in the agent's process, whose families need it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from broker.protocol.errors import BadFile, first_line
from edge_agent.runtime import engines
from edge_agent.runtime.engines import PACKAGES, AgentEngine


def begin_to_measure(engine: AgentEngine, threads: int, file: str = "agent") -> Callable[[str], float]:
    """Begin, and return what gives the operations per second of torch's device (``cpu`` with ONNX Runtime).

    Call it before the first thread starts. ``threads`` are those of a pass; ``file`` is the agent's.

    Raises:
        BadFile: the engine can't be imported, or can't compute on this machine; also what is returned raises it.
    """
    if engine == "torch":
        engines.imported(engine, file)
        return _measured_here
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _tell(writing, engine, threads)
    os.close(writing)

    def figure(_: str) -> float:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        told = json.loads(said) if said else _cant_compute(engine, how)
        if isinstance(told, float):
            return told
        raise BadFile(file=file, field="engine", **told)

    return figure


def _measured_here(device: str) -> float:
    from edge_agent.device.profile import compute_flops_per_s  # noqa: PLC0415 - after the configuration

    return compute_flops_per_s(device=device)


def _tell(writing: int, engine: AgentEngine, count: int) -> NoReturn:
    """Measure in this process, write the figure or what is wrong, and end."""
    status = 1
    try:
        try:
            engines.imported(engine)
            from edge_agent.device.profile import compute_flops_per_s  # noqa: PLC0415 - numpy, and not needed outside
            from edge_agent.modules import threads  # noqa: PLC0415 - the same

            threads.limit(count)
            told: object = compute_flops_per_s(engine=engine)
        except BadFile as error:
            told = {"problem": error.problem, "fix": error.fix}
        except Exception as error:  # noqa: BLE001 - whatever the engine raises, the agent says it
            told = _cant_compute(engine, first_line(error) or type(error).__name__)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(told).encode())
        status = 0
    finally:
        os._exit(status)


def _cant_compute(engine: AgentEngine, how: str) -> dict[str, str]:
    problem = f"{PACKAGES[engine]} is installed here and can't compute ({how})"
    return {"problem": problem, "fix": engines.fix_of(engine)}
