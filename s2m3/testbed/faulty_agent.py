"""An agent with faults from inside: ``python -m s2m3.testbed.faulty_agent --config FILE``.

Owns five faults that no signal causes from outside. A forward pass that never ends, and a load that makes no progress:
each waits for a file beside the agent's configuration, and the fault takes the file away: it comes once, and an agent
that restarts is whole again. A full disk, for as long as its file is there. And what crashes every agent of the site: a
request whose input ends with ``DEADLY``, and the load of a module whose key stands in the file ``DEADLY_LOADS`` beside
the configuration.
Everything else is the real agent.
"""

from __future__ import annotations

import ctypes
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

InnerFault = Literal["hang", "stall", "fill"]
DEADLY = b"deadly"
DEADLY_LOADS = "deadly.loads"


def file_of(config: Path, fault: InnerFault) -> Path:
    """The file that causes a fault in the agent with this configuration."""
    return config.with_suffix(f".{fault}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent, with faults that come when their files are there."""
    from edge_agent import __main__ as agent  # noqa: PLC0415 - the file's name is needed without torch
    from edge_agent.device.calibration import Calibration  # noqa: PLC0415 - the same
    from edge_agent.runtime.runner import Runner  # noqa: PLC0415 - the same

    arguments = list(sys.argv[1:] if argv is None else argv)
    config = Path(arguments[arguments.index("--config") + 1])
    _fails(Runner, file_of(config, "hang"))
    _stands_still(Calibration, "load", file_of(config, "stall"), on_thread=".load[")
    _crashes(Calibration, config.with_name(DEADLY_LOADS))
    let_disk_be_full(file_of(config, "fill"))
    return agent.main(arguments)


def _stands_still(owner: type, method: str, file: Path, *, on_thread: str) -> None:
    """Let one call of a method never end, once the file is there."""
    real: Callable[..., Any] = getattr(owner, method)

    def faulty(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the method takes and gives
        if on_thread in threading.current_thread().name and _taken(file):
            threading.Event().wait()
        return real(*arguments, **named)

    setattr(owner, method, faulty)


def _crashes(calibration: type, file: Path) -> None:
    """Let the load of a module end the process, if the file names its key."""
    real: Callable[..., Any] = calibration.load  # type: ignore[attr-defined]

    def faulty(self: Any, spec: Any, *more: Any) -> Any:  # noqa: ANN401 - as above
        if file.is_file() and spec.key in file.read_text(encoding="utf-8").splitlines():
            ctypes.string_at(0)
        return real(self, spec, *more)

    calibration.load = faulty  # type: ignore[attr-defined]


def let_disk_be_full(file: Path) -> None:
    """Let every disk have no free byte, while the file is there."""
    real: Callable[..., Any] = shutil.disk_usage

    def faulty(path: Any) -> Any:  # noqa: ANN401 - as above
        usage = real(path)
        return usage._replace(used=usage.total, free=0) if file.exists() else usage

    shutil.disk_usage = faulty


def _fails(runner: type, file: Path) -> None:
    """Let a pass on the compute thread never end, once the file is there, and one with a deadly input end the process.

    Both happen when the pass has begun, and the agent has noted it.
    """
    real: Callable[..., Any] = runner.run_all  # type: ignore[attr-defined]

    def faulty(*arguments: Any, before: Callable[[Sequence[int]], object] = lambda _: None) -> Any:  # noqa: ANN401 - as above
        many: Sequence[Sequence[Any]] = arguments[2]

        def begin(indices: Sequence[int]) -> None:
            before(indices)
            if _taken(file):
                threading.Event().wait()
            if any(getattr(value, "data", b"").endswith(DEADLY) for index in indices for value in many[index]):
                ctypes.string_at(0)

        return real(*arguments, before=begin)

    runner.run_all = faulty  # type: ignore[attr-defined]


def _taken(file: Path) -> bool:
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
