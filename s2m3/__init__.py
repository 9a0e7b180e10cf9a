"""The face of S2M3: the command line and the client, over a testbed, benchmarks and reference models.

The names of ``__all__`` are loaded at their first use: ``import s2m3`` alone imports no other package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.client import Answer, Client, Response
    from broker.protocol.codec import RawInput
    from broker.protocol.errors import (
        BadFile,
        BrokerRefused,
        LocalProtocolError,
        NotConnected,
        RequestFailed,
        S2M3Error,
    )

__all__ = [
    "Answer",
    "BadFile",
    "BrokerRefused",
    "Client",
    "LocalProtocolError",
    "NotConnected",
    "RawInput",
    "RequestFailed",
    "Response",
    "S2M3Error",
]
_CLIENT = {"Answer", "Client", "Response"}

if not TYPE_CHECKING:  # or a type checker would take any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "client" if name in _CLIENT else "protocol.codec" if name == "RawInput" else "protocol.errors"
        return getattr(import_module(f"broker.{module}"), name)
