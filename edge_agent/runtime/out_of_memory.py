"""Whether the system refused memory: then neither an input nor a file is at fault, and another device may do it."""

from __future__ import annotations

import errno

_NO_MEMORY = ("Cannot allocate memory", "DefaultCPUAllocator", "bad_alloc")  # in the kernel's words, torch's, C++'s


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it came of, is the system's refusal of memory; libraries word it as they like."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
