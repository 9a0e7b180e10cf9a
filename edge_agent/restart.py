"""How an agent with a hung pass or a broken accelerator restarts: a new process with the same id replaces its own.

Owns the count of such restarts, which the environment carries from one process to the next, and the end after too many.
No supervisor is needed: the process id, the arguments and standard input stay.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, MutableMapping

import structlog

from broker.protocol.errors import S2M3Error

VARIABLE = "S2M3_AGENT_RESTARTS"  # the times of the last restarts, on the clock of this machine since its boot
MOST = 3  # restarts
WITHIN_S = 600.0
EXIT_HUNG = 3  # the exit code after too many restarts; 1 and 2 have other meanings

log = structlog.get_logger()


class PassLost(S2M3Error):
    """A forward pass doesn't end, or it broke the accelerator. Only a new process gets rid of it."""


def restart(
    now_s: float | None = None,
    *,
    environ: MutableMapping[str, str] = os.environ,
    execute: Callable[[str, list[str]], object] = os.execv,
) -> int:
    """Restart this program; doesn't return then.

    Returns ``EXIT_HUNG`` after ``MOST`` restarts in ``WITHIN_S``, or if the system can't run the program any more.
    """
    now_s = time.monotonic() if now_s is None else now_s
    before_s = [at_s for at_s in _times(environ.get(VARIABLE, "")) if 0 <= now_s - at_s < WITHIN_S]
    if len(before_s) >= MOST:
        log.error("restarted_too_often", restarts=len(before_s), within_s=WITHIN_S, exit_code=EXIT_HUNG)
        return EXIT_HUNG
    environ[VARIABLE] = ",".join(f"{at_s:.0f}" for at_s in (*before_s, now_s))
    log.warning("restarting", restarts=len(before_s) + 1, within_s=WITHIN_S)
    sys.stderr.flush()
    try:
        execute(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:  # an upgrade has removed it, or there is no memory for it
        reason = error.strerror or type(error).__name__
    else:
        reason = "it didn't begin"
    log.error("cannot_restart", program=sys.executable, reason=reason, exit_code=EXIT_HUNG)
    return EXIT_HUNG


def _times(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        return []
