"""``downloads:`` in the agent's file: where and how fast an agent fetches weights by URL, and what it shows for them.

Owns the fields and their checks. Knows no network.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from broker.directories import in_home
from broker.protocol.errors import BadFile
from broker.protocol.sizes import parse_bytes
from broker.protocol.specs import Bytes
from broker.protocol.values import Spec
from broker.transport.connection import read_password
from edge_agent.modules.weights.allowed import UrlBeginning

LEAST_BYTES_PER_S = 128 * 1024
_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Downloads(Spec):
    """How an agent fetches weights by URL.

    Args:
        directory: Where they are kept; None: ``weights`` in the agent's state directory.
        limit: The most bytes there. Weights that no assignment names are removed first, the longest unused ones.
        bytes_per_s: The highest rate; None: as fast as it goes.
        tokens: The files of tokens, by the beginning of the URLs that they are shown for.
        ca: The file of the authorities whose certificates are trusted; None: those of the system.
    """

    directory: _Path | None = None
    limit: Bytes = 32 * 1024**3
    bytes_per_s: Annotated[int, BeforeValidator(parse_bytes), Field(ge=LEAST_BYTES_PER_S, le=2**60)] | None = None
    tokens: Annotated[Mapping[UrlBeginning, _Path], Field(max_length=64)] = {}
    ca: _Path | None = None

    def check_files(self, file: str) -> None:
        """Check the files that are named, when an agent starts.

        Raises:
            BadFile: one can't be used.
        """
        for path in self.tokens.values():
            read_password(in_home(path), "token")
        if self.ca is not None:
            try:
                ssl.create_default_context(cafile=self.ca)
            except (OSError, ValueError) as error:
                problem = f"downloads.ca: {self.ca} can't be used: {getattr(error, 'strerror', None) or error}"
                fix = "name a file with certificates in PEM"
                raise BadFile(file=file, problem=problem, fix=fix) from error
