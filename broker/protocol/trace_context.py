"""W3C trace context: the ``traceparent`` with which a sensor's request joins a trace of its own system. Pure.

Owns which values count. A value that doesn't count is ignored, as the recommendation says: no request fails for it.
Source: https://www.w3.org/TR/trace-context/ (sections 3.2 and 4.3).
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

NAME = "traceparent"
"""The name of the MQTT user property and of the HTTP header."""
PATTERN = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
Traceparent = Annotated[str, StringConstraints(pattern=PATTERN)]
_FORM = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03  # sampled, and a trace id that is random


def read_traceparent(*values: str) -> Traceparent | None:
    """The ``traceparent`` of a request in the form of version 00; None where it doesn't count.

    Args:
        values: all that the request has. Of several none counts. A later version counts by the fields of version 00.
    """
    found = _FORM.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return f"00-{found[2]}-{found[3]}-{int(found[4], 16) & _KNOWN_FLAGS:02x}"


def trace_id_of(traceparent: Traceparent) -> str:
    """The id of the whole trace."""
    return traceparent.split("-")[1]
