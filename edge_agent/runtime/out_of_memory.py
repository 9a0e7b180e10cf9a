"""Errors and memory: whether it was refused, when neither an input nor a file is at fault, and what an error holds."""

from __future__ import annotations

import errno

_CUDA = ("CUDA out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")  # torch's words; its libraries'
_NO_MEMORY = ("Cannot allocate memory", "DefaultCPUAllocator", "bad_alloc", *_CUDA)  # the kernel's, torch's, C++'s


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that it came of, is a refusal of memory; libraries word it as they like."""
    return refused_memory(error) is not None


def refused_memory(error: BaseException | None) -> str | None:
    """The memory that was refused, in words: the machine's, or its accelerator's; None for any other error."""
    while error is not None:
        if any(words in str(error) for words in _CUDA):
            return "memory on its accelerator"
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return "memory"
        if any(words in str(error) for words in _NO_MEMORY):
            return "memory"
        error = error.__cause__
    return None


def without_frames(error: Exception) -> Exception:
    """The error, and those that it came of, without their tracebacks, whose frames hold all arrays of a failed pass."""
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and each.__traceback__ is not None:
            each.__traceback__ = None
            left += [each.__cause__, each.__context__]
    return error
