"""The end of an agent within ``END_S`` of SIGTERM or SIGINT, whatever it computes.

Owns a small process beside the agent, and the pipe to it. An agent ends by itself when it is asked to: that takes some
Python code, which can't run while native code keeps the interpreter's lock, or waits for a thread that never ends. The
handler of the operating system needs no lock: it writes the signal's number into the pipe. The process beside then
waits, and kills the agent if the pipe is still open after ``END_S``. It ends with the agent, whatever ends that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

END_S = 4.5  # the agent's own end takes up to 3.5 s, if its broker doesn't answer

_BESIDE = """
import os, select, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
asked = os.read(0, 1)
until_s = time.monotonic() + float(sys.argv[2])
while asked:
    left_s = until_s - time.monotonic()
    if left_s <= 0:
        os.kill(int(sys.argv[1]), signal.SIGKILL)
        break
    if select.select([0], [], [], left_s)[0]:
        asked = os.read(0, 1)
"""


class EndGuard:
    """Ends this process within ``end_s`` of the next signal that has a handler of Python. It guards until the end."""

    def __init__(self, end_s: float = END_S) -> None:
        read, self._pipe = os.pipe()  # neither end is inherited, not even by this program after ``exec``
        os.set_blocking(self._pipe, False)
        command = [sys.executable, "-I", "-S", "-c", _BESIDE, str(os.getpid()), str(end_s)]
        quiet = subprocess.DEVNULL
        self._beside = subprocess.Popen(command, stdin=read, stdout=quiet, stderr=quiet, start_new_session=True)
        os.close(read)
        signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)

    def ask(self) -> None:
        """Let the time begin as if a signal had come; any thread may call it."""
        with suppress(BlockingIOError):
            os.write(self._pipe, b"!")
