"""The sources of pictures as a person names them: an address, a device, a file or a folder.

Owns telling them apart, and how a source is shown. Invariant: what is shown has no part of an address but its host and
port: cameras take passwords before the @, in the path, and behind the question mark.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from broker.protocol.errors import BadFile

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp")


@dataclass(frozen=True)
class Source:
    """Where frames come from. Its representation has no password."""

    kind: Literal["stream", "device", "file", "folder"]
    place: str = field(repr=False)  # as PyAV takes it
    shown: str


def read_source(text: str) -> Source:
    """The source that a person names.

    Raises:
        BadFile: there is no such scheme, file or device.
    """
    scheme, is_address, rest = text.partition("://")
    if is_address:
        shown = f"{scheme}://{_host(rest)}"
        if scheme.lower() not in SCHEMES:
            fix = f"use one of {', '.join(SCHEMES)}, or name a file, a device or a folder"
            raise BadFile(file=shown, problem="this kind of address is not known", fix=fix)
        if not _host(rest):
            raise BadFile(file=shown, problem="the address names no host", fix=f"write {scheme}://HOST/...")
        return Source("stream", f"{scheme.lower()}://{rest}", shown)
    if not text:  # as a path it would be the current folder
        raise BadFile(file="the source", problem="is empty", fix="name a camera, a video or a folder")
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "can't be read"
        fix = "name a file, a folder, a device such as /dev/video0, or an address such as rtsp://HOST/..."
        raise BadFile(file=text, problem=problem, fix=fix) from error
    if stat.S_ISDIR(mode):
        return Source("folder", str(path), text)
    if stat.S_ISCHR(mode):
        return Source("device", str(path), text)
    if not stat.S_ISREG(mode):
        raise BadFile(file=text, problem="is neither a file nor a folder nor a device", fix="name one of these")
    return Source("file", str(path.resolve()), text)


def _host(rest: str) -> str:
    """The host and the port of an address without its scheme; a password may have any sign, so the last @ counts."""
    host = rest.rpartition("@")[2]
    for sign in "/?#":
        host = host.partition(sign)[0]
    return host
