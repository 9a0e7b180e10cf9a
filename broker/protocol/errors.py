"""The errors that this project raises on purpose.

Owns the hierarchy. Doesn't know the messages, files or devices that fail. Facts are attributes, and the class makes the
sentence. The name says which side is at fault.

    S2M3Error
        LocalProtocolError      this process was about to break the contract
            MessageTooLarge     larger than the broker's limit
        RemoteProtocolError     another process broke the contract
        TransportError          the connection to the broker failed
            NotConnected        there is no connection
            QueueFull           too many messages wait to be sent
            BrokerRefused       the broker refused a message or a subscription
        NoDeviceFits            no device has the memory
        ModuleRefused           this device can't hold the module
        IdInUse                 another process is connected with this id
        RequestFailed           a request ends in an error code (sensors see code and sentence)
        BadFile                 a person's file is wrong: file, line, field, problem, fix
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum

from broker.protocol.sizes import show_bytes, show_sizes

_LOGIN = re.compile(r"(:/+|//).*@")  # of a URL; a path has one slash of its two
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # end a line, or are a terminal's commands
_LONGEST = 4_000  # characters of a sentence with names from a file
_DEVICES_NAMED = 8  # in one sentence; all of them are in the attribute


def first_line(error: BaseException, default: str = "") -> str:
    """The first line of an error's text; the default, or else the error's class, when it has none."""
    return (str(error).strip() or default or type(error).__name__).splitlines()[0]


def without_login(text: str) -> str:
    """A text without the user and the password of a URL: a password stands in no error."""
    return _LOGIN.sub(r"\1…@", text)


def named(texts: Sequence[str]) -> list[str]:
    """As many of these as a sentence can name, and how many more there are."""
    rest = len(texts) - _DEVICES_NAMED
    return [*texts] if rest <= 0 else [*texts[:_DEVICES_NAMED], f"and {rest} more"]


def by_reason(reasons: Mapping[str, str]) -> str:
    """Devices with their reasons, as a phrase: equal reasons stand once, and those of few devices come first."""
    alike: dict[str, list[str]] = {}
    for device, why in sorted(reasons.items()):
        alike.setdefault(why, []).append(device)
    groups = sorted(alike.items(), key=lambda group: len(group[1]))
    separator = ", " if len(groups) == len(reasons) else "; "
    return separator.join(named([f"{', '.join(named(devices))}: {why}" for why, devices in groups]))


class S2M3Error(Exception):
    """Root of all errors raised on purpose."""


class LocalProtocolError(S2M3Error):
    """This process was about to break the contract: a bug in it, or a wrong argument of its caller."""


class MessageTooLarge(LocalProtocolError):
    """A message is larger than the broker's limit; sending it would make the client reconnect for ever."""

    def __init__(self, *, topic: str, size_bytes: int, limit_bytes: int) -> None:
        self.topic = topic
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        size, limit = show_sizes(size_bytes, limit_bytes)
        super().__init__(
            f"the message for {topic} has {size}, and this connection to the broker takes {limit}: "
            "send less, or raise the broker's max_packet_size if that is lower"
        )


class RemoteProtocolError(S2M3Error):
    """Another process broke the contract; its message is counted and dropped."""


class TransportError(S2M3Error):
    """The connection to the broker failed."""


class NotConnected(TransportError):
    """There is no connection to the broker; state is published again after the reconnection."""

    def __init__(self, reason: str, *, is_absent: bool = False) -> None:
        self.is_absent = is_absent  # nothing listens or answers there
        super().__init__(reason)


class QueueFull(TransportError):
    """Too many messages wait to be sent; try again later."""


class BrokerRefused(TransportError):
    """The broker refused a message or a subscription, because of an access rule or a quota."""

    def __init__(self, topic: str, reason: str, fix: str = "") -> None:
        self.topic = topic
        self.reason = reason
        super().__init__(f"the broker refused {topic}: {reason}{fix and f'; {fix}'}")


class NoDeviceFits(S2M3Error):
    """No device has the memory for a module, or may hold it."""

    def __init__(
        self,
        *,
        module: str,
        memory_bytes: int,
        short_bytes: Mapping[str, int],
        excluded: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self.memory_bytes = memory_bytes
        self.short_bytes = dict(short_bytes)  # device -> bytes missing there
        self.excluded = dict(excluded or {})  # device -> why it doesn't count, whatever its memory
        self.absent: dict[str, str] = {}  # devices that are known and not there -> why
        self.yields_to: tuple[str, ...] = ()  # tasks of greater weight, or older ones, that use the memory
        self.change: tuple[str, int] | None = None  # the smallest that makes everything fit: a device, bytes to add
        super().__init__()

    def __str__(self) -> str:
        nearest = sorted(self.short_bytes, key=lambda device: (self.short_bytes[device], device))
        lacking = {device: show_bytes(self.short_bytes[device], up=True) for device in nearest[:_DEVICES_NAMED]}
        parts = [f"{device} lacks {lacking[device]}" for device in sorted(lacking)]
        if len(nearest) > _DEVICES_NAMED:
            parts.append(f"and {len(nearest) - _DEVICES_NAMED} more lack as much or more")
        parts += [by_reason(self.excluded)] if self.excluded else []
        yields = f"; yields to {', '.join(named(self.yields_to))}" if self.yields_to else ""
        fix = "add a device, raise a memory budget, or undeploy a task"
        if self.change:
            device, more_bytes = self.change
            more = show_bytes(more_bytes, up=True)
            fix = f"with {more} more on {device} all would fit; or add a device, or undeploy a task"
        away = by_reason(self.absent)
        missing = ", ".join([*parts, *([away] if away else [])])
        if not parts:
            missing = f"there are no devices ({away})" if away else "there are no devices"
        return f"no device fits {self.module} ({show_bytes(self.memory_bytes)}): {missing}{yields}; {fix}"


class ModuleRefused(S2M3Error):
    """This device can't hold a module: no memory, unknown family, or weights that don't load.

    The sentence is one line, whatever the names in a stranger's file have in them.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_BREAKS.sub(" ", sentence[:_LONGEST]))


class IdInUse(S2M3Error):
    """Another agent is connected with the same id; the broker would disconnect the two in turn."""

    def __init__(self, device: str) -> None:
        self.device = device
        super().__init__(
            f"another agent is connected to the broker as {device}, and the broker disconnects the two in turn: "
            "give one of them another `id:` in its file, or end the other one"
        )


class ErrorCode(StrEnum):
    """The error codes of requests."""

    BAD_INPUT = "bad_input"
    TOO_LARGE = "too_large"
    NO_ROUTE = "no_route"
    OVERLOADED = "overloaded"
    MODULE_FAILED = "module_failed"
    DEADLINE_EXCEEDED = "deadline_exceeded"


class RequestFailed(S2M3Error):
    """A request ends in an error: a code for programs, a sentence for people."""

    def __init__(self, code: ErrorCode, message: str, *, retry_after_s: float | None = None) -> None:
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        super().__init__(f"{code}: {message}")


class BadFile(S2M3Error):
    """A person's file is wrong; the sentence is one line with file, line, field, problem and fix."""

    def __init__(self, *, file: str, problem: str, fix: str, field: str = "", line: int | None = None) -> None:
        self.file = file
        self.field = field
        self.line = line
        self.problem = problem
        self.fix = fix
        place = file if line is None else f"{file}:{line}"
        where = (without_login(part) for part in (place, field))
        super().__init__(": ".join(part for part in (*where, f"{problem}; {fix}") if part))
