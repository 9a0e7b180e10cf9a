"""systemd units for the services of a site: the agent, the orchestrator, the sources and the HTTP door.

Owns the unit's text, and which files a service gets as credentials: those that its command line, its connection and
its agent's file name. systemd copies each for the service alone, so that all of them may belong to root. Doesn't know
the services' options: their own parsers read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.protocol.errors import BadFile
from broker.transport.connection import ConnectionKeys, Place

SERVICES = {"agent": "edge_agent.__main__", "orchestrator": "orchestrator.__main__"} | {
    name: f"s2m3.cli.{name}" for name in ("sources", "http")
}
"""Service -> the module with its options."""
FILE_KEYS = ("ca", "cert", "key", "password_file", "data_password_file")
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user")))
CREDENTIALS = "${CREDENTIALS_DIRECTORY}"
GPU = Path("/dev/nvidiactl")

UNIT = """\
# {path}; `s2m3 unit` wrote it. Its log: journalctl -u {name}
[Unit]
Description=S2M3 {service}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
# Ready when it serves, or waits as a spare; until then `systemctl status` says for what it waits. Only the turns of its
# main loop feed the watchdog: a service that hangs is restarted.
Type=notify
NotifyAccess=main
WatchdogSec={watchdog_s}
TimeoutStartSec=300
TimeoutStopSec=15
ExecStart={command}
# Also after a wrong file: a file that was corrected is read at the next start.
Restart=always
RestartSec=5
KillMode=mixed
{memory}
# A user of its own, with these directories: {state}, /var/cache/{name}.
DynamicUser=yes
StateDirectory={name}
CacheDirectory={name}
Environment=HF_HOME=/var/cache/{name}/huggingface
# Copies of these files for this service alone, made at its start: they may belong to root, with mode 600.
{credentials}

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
UMask=0077
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
{devices}
ProtectClock={clock}
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclass
class Credentials:
    """The files of a service: the name of each copy -> the file."""

    files: dict[str, Path] = field(default_factory=dict)

    def add(self, path: Path) -> str:
        """Add a file; returns the place of its copy. Raises BadFile when another file has its name."""
        path = path.absolute()
        if self.files.setdefault(path.name, path) != path:
            problem = f"has the name of {self.files[path.name]}, and a service gets copies of both in one folder"
            raise BadFile(file=str(path), problem=problem, fix="rename one of them")
        return f"{CREDENTIALS}/{path.name}"

    def add_named(self, place: Place) -> None:
        """Add the files that the keys of a connection name; raises BadFile for one that its copy couldn't name."""
        for key in FILE_KEYS:
            text, path = getattr(place.keys, key, None), place.path(key)
            if text is None or path is None:
                continue
            if Path(text).name != text:
                problem = "is a path, and a service reads a copy of this file beside a copy of the file that it names"
                raise place.bad(key, problem, f"move it into {Path(place.file).parent}, and write {path.name}")
            if not path.is_file():
                raise place.bad(key, f"{path} isn't there", "copy it there")
            self.add(path)


def unit(
    service: str,
    words: Sequence[str],
    *,
    name: str,
    program: Path,
    places: Sequence[tuple[Path, ConnectionKeys]] = (),
    memory_max_bytes: int | None = None,
) -> str:
    """The text of a unit.

    Args:
        service: one of ``SERVICES``.
        words: its command line, after its name; each word that is a file becomes a credential.
        name: of the unit.
        program: ``s2m3``, as the service sees it.
        places: the files with a connection, which name others.
        memory_max_bytes: the most memory that the service may use; None: no limit.

    Raises:
        BadFile: a file isn't there, or the service couldn't see it.
    """
    credentials = Credentials()
    command = [str(program), service, *(_replaced(words, credentials))]
    for path, keys in places:
        credentials.add_named(Place(keys, str(path)))  # type: ignore[arg-type] # it only reads the keys that both have
    loads = [f"LoadCredential={copy}:{_escaped(str(path))}" for copy, path in credentials.files.items()]
    limit = f"MemoryMax={memory_max_bytes}\n" if memory_max_bytes is not None else ""
    return UNIT.format(
        path=f"/etc/systemd/system/{name}.service",
        name=name,
        service=service,
        watchdog_s=60 if service == "agent" else 30,
        command=" ".join(map(_quoted, command)),
        memory=limit,
        state=f"/var/lib/{name}",
        credentials="\n".join(loads) or "# none",
        devices="# The card's devices are needed." if service == "agent" and GPU.exists() else "PrivateDevices=yes",
        clock="no" if service == "agent" and GPU.exists() else "yes",
    ).replace("\n\n\n", "\n\n")


def require_visible(path: Path, what: str, fix: str) -> None:
    """Raise BadFile for a path that no service sees: below a home."""
    if any(path.is_relative_to(each) for each in HIDDEN):
        raise BadFile(file=what, problem=f"{path} is below a home, which a service doesn't see", fix=fix)


def _replaced(words: Sequence[str], credentials: Credentials) -> Iterator[str]:
    """The words of a command line, with the copies of the files that they name."""
    for word in words:
        option, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_file = value and not value.startswith("-") and Path(value).is_file()
        yield f"{option}{sign}{credentials.add(Path(value))}" if is_file else word


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of ``ExecStart``, which systemd reads with quotes, specifiers and variables."""
    variable = word.startswith((f"{CREDENTIALS}/",)) or f"={CREDENTIALS}/" in word
    text = _escaped(word) if variable else _escaped(word).replace("$", "$$")
    needs_quotes = not text or any(sign in text for sign in " \t\"'\\;")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if needs_quotes else text
