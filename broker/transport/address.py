"""The address of a broker: ``mqtt://[user:password@]host[:port]`` and its parts.

Owns this format. Doesn't know connections. A password never appears in a representation or an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from broker.protocol.errors import BadFile


@dataclass(frozen=True)
class BrokerAddress:
    """Host and port of a broker, with the login of this client."""

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_url(url: str) -> BrokerAddress:
    """Read a broker's address.

    Raises:
        BadFile: the address is not valid.
    """
    try:
        parts = urlsplit(url)
        port = 1883 if parts.port is None else parts.port
    except ValueError:  # the port isn't a number, or is greater than 65535
        raise _bad(url) from None
    if parts.scheme != "mqtt" or not parts.hostname or parts.path not in {"", "/"} or parts.query or port == 0:
        raise _bad(url)
    return BrokerAddress(
        host=parts.hostname,
        port=port,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _bad(url: str) -> BadFile:
    return BadFile(
        file="broker address",
        problem=f"{url.rsplit('@', maxsplit=1)[-1]!r} is not valid",
        fix="write mqtt://host, mqtt://host:port or mqtt://user:password@host:port",
    )
