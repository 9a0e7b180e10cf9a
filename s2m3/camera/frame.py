"""One picture of a source, as the loop sees it."""

from __future__ import annotations

from typing import Protocol

from broker.protocol.codec import RawInput
from s2m3.camera.change import Thumbnail


class Frame(Protocol):
    """One picture of a source."""

    @property
    def at_s(self) -> float:
        """The time when it was read, in seconds since 1970."""

    def thumbnail(self) -> Thumbnail:
        """The picture, small."""

    @property
    def picture(self) -> RawInput:
        """The picture as it is sent."""
