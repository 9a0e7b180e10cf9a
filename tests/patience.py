"""The time that a test waits, for a condition or for a program, before it fails.

No test asserts that something takes less than that: a machine may be busy. S2M3_TEST_PATIENCE multiplies the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

PATIENCE_S = 60.0 * float(os.environ.get("S2M3_TEST_PATIENCE", "1"))


def until(holds: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds; fail when it doesn't in time."""
    end_s, pause = time.monotonic() + timeout_s, threading.Event()
    while not holds():
        assert time.monotonic() < end_s, f"waited for {timeout_s} s"
        pause.wait(0.01)


def run_python(program: str, *arguments: str) -> str:
    """Run a program in a Python process of its own and return its output; fail with its errors when it fails."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
