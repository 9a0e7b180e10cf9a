"""The MQTT client ids of S2M3's own connections.

Owns their form, ``s2m3[.SITE].KIND.NAME[.CONNECTION]``: a broker ends the older of two connections with one id, so no
two sites, devices or connections may share one. No name contains a dot, and the last names tell the kind (a client's is
random, and no connection's), so different names never make equal ids. The sign between them is the dot because many
brokers with an access plugin, Home Assistant's for one, refuse client ids with ``/``, ``+`` or ``#``.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["devices", "orchestrators", "clients"]


def client_id(kind: Kind, *names: str, site: str | None = None) -> str:
    """The client id of a connection.

    A device's names are its id, and the connection: ``control``, ``data`` or ``drops``. Those of an orchestrator are a
    random one, and ``control`` or ``data``. That of a client is random.
    """
    levels = site.strip("/").split("/") if site else ()
    return ".".join(("s2m3", *levels, kind, *names))
