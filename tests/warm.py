"""Starts the agents and orchestrators of the tests' sites from a process that has their imports already.

torch's import takes an agent two seconds of a core, and the scenarios start a hundred agents. Owns a parent process for
each program, which imports what the program imports and then waits; and the start of a process from it. Invariants: the
process is a real one, with its own id, session, environment and standard streams, and a child of the process that
starts it. It shares with others only what was imported. What a parent can't do (other programs, another engine, another
environment, another system than Linux) starts as always.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).parents[1]
_AGENT = (
    "edge_agent.service",
    "edge_agent.device.about",
    "edge_agent.device.profile",
    "edge_agent.runtime.engines.torch",
    "edge_agent.modules.families.efficientnet",
    "edge_agent.modules.families.sentence",
    "edge_agent.modules.families.conse",
)
IMPORTS = {
    "edge_agent": ("edge_agent.__main__", *_AGENT),
    "orchestrator": ("orchestrator.__main__",),
    "s2m3.testbed.faulty_agent": ("s2m3.testbed.faulty_agent", "edge_agent.__main__", *_AGENT),
}
"""Program -> its module with ``main``, and what it imports before it serves."""
_ADOPTS = 36  # PR_SET_CHILD_SUBREAPER
LOOK_S = 0.01  # between looks whether a process ended
_MOST_BYTES = 1 << 20  # of a message to a parent
_READ_AT_IMPORT = ("HF_", "HOME", "LD_", "MALLOC_", "MKL_", "OMP_", "OPENBLAS_", "ORT_", "PYTHON", "TORCH", "XDG_")


def start(args: list[str], **settings: Any) -> subprocess.Popen[bytes] | Warm:
    """Start a program as ``subprocess.Popen`` would."""
    _, flag, program, *arguments = args
    is_known = flag == "-m" and program in IMPORTS and _at_import(settings["env"]) == _AT_IMPORT
    if sys.platform != "linux" or not is_known or _is_for_onnx(arguments):
        return subprocess.Popen(args, **settings)
    with _LOCK:
        if program not in _PARENTS:
            _PARENTS[program] = _Parent(program)
        return _PARENTS[program].start(arguments, settings["env"], settings["stdout"], settings["stderr"])


def _at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a package reads when it is imported, without a folder that torch names by itself."""
    read = {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}
    return {name: value for name, value in read.items() if not name.startswith("TORCHINDUCTOR_")}


def _is_for_onnx(arguments: list[str]) -> bool:
    """Whether an agent's file asks for an engine, which may be one that must not meet torch's modules."""
    return "--config" in arguments and "engine: onnx" in Path(arguments[arguments.index("--config") + 1]).read_text()


class Warm:
    """A process that was started so; it has those members of ``subprocess.Popen`` that sites use."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid, self.stdin = pid, stdin
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stdin.close()
        self.wait()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; gives the exit code."""
        until_s = time.monotonic() + (math.inf if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > until_s:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(LOOK_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Parent:
    """A process with a program's imports done, which starts the program on request."""

    def __init__(self, program: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", program, str(theirs.fileno())]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("S2M3_")} | _AT_IMPORT,
        )
        theirs.close()
        atexit.register(self._end)

    def start(self, arguments: list[str], environment: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]) -> Warm:
        """Start the program."""
        order = json.dumps([arguments, dict(environment), str(Path.cwd())]).encode()
        read, write = os.pipe()
        prctl = ctypes.CDLL(None).prctl
        prctl(_ADOPTS, 1, 0, 0, 0)  # the parent's grandchild becomes the child of this process
        try:
            socket.send_fds(self._control, [order], [read, stdout.fileno(), stderr.fileno()])
            pid = int(self._control.recv(100))
        finally:
            prctl(_ADOPTS, 0, 0, 0, 0)
            os.close(read)
        return Warm(pid, os.fdopen(write, "wb", buffering=0))

    def _end(self) -> None:
        self._control.close()
        self.process.wait()


_AT_IMPORT = _at_import(os.environ)  # before any test changes it
_LOCK = threading.Lock()
_PARENTS: dict[str, _Parent] = {}


def main(program: str, control: socket.socket) -> int:
    """Import what a program needs, and start it whenever that is asked for, until the other end is closed."""
    before = set(os.environ)
    modules = [importlib.import_module(name) for name in IMPORTS[program]]
    set_by_imports = {name: value for name, value in os.environ.items() if name not in before}
    gc.freeze()
    while True:
        order, streams, *_ = socket.recv_fds(control, _MOST_BYTES, 3)
        if not order:
            return 0
        read, write = os.pipe()
        between = os.fork()
        if between == 0:
            if pid := os.fork():
                os.write(write, str(pid).encode())
                os._exit(0)  # so the new process gets another parent
            break
        os.waitpid(between, 0)
        control.send(os.read(read, 100))
        for each in (read, write, *streams):
            os.close(each)
    arguments, environment, directory = json.loads(order)
    control.close()
    os.close(read)
    os.close(write)
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(set_by_imports | environment)
    sys.argv[1:] = arguments
    sys.orig_argv[:] = [sys.executable, "-m", program, *arguments]
    result: int = modules[0].main()
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))))
