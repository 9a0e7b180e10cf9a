"""structlog, imported without rich.

Where rich is installed, structlog imports it for tracebacks at a terminal. These list local variables, and so perhaps
passwords; and rich takes 3.4 MB of each process. This file must be the first one of a process to import structlog.
Lines go to standard error, unless the program configures structlog: standard output is that of a user's program.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

__all__ = ["structlog"]

_hide = "rich" not in sys.modules
if _hide:
    sys.modules["rich"] = cast("ModuleType", None)  # its import fails
import structlog  # noqa: E402 - see above

if _hide:
    del sys.modules["rich"]
if not structlog.is_configured():
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))  # looked up for each line
