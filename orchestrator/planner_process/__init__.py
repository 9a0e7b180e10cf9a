"""The planner's process: it solves the orchestrator's problems, and the orchestrator's loop goes on meanwhile."""

from __future__ import annotations

import struct

NUMBER = struct.Struct("!Q")
"""The form of a problem's number in the pipe of those that must come to an end."""
