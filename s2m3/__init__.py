"""The face of S2M3: the command line and the client, over a testbed, benchmarks and reference models.

The names of ``__all__`` are loaded at their first use: ``import s2m3`` alone imports no other package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.client import Client, Response
    from broker.protocol.codec import RawInput

__all__ = ["Client", "RawInput", "Response"]

if not TYPE_CHECKING:  # or a type checker would take any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("broker.protocol.codec" if name == "RawInput" else "broker.client"), name)
