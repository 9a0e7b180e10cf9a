"""The note of what is computed and loaded now: evidence that survives the process, and not the power.

Owns one small file in memory (tmpfs) for this device. The compute thread writes the payload's digest into it before a
pass, those of all payloads before a pass of several, and removes them after. The thread of a load does the same with
the digest of its module's key. A crash adds the stacks of all threads (``faulthandler``). The next process of this
device reads both, and its birth names what the process before ended of: a crash of the thread that computed or loaded
it, a hung pass, or want of memory. A process that was killed or asked to end, and a machine that lost its power, died
of nothing that they computed or loaded.

Where there is no such memory there is no note; the log says so, and the birth says that it can't know.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import hashlib
import mmap
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from broker.protocol.messages import MAX_BATCH, MAX_DIED_WITH
from broker.protocol.specs import DeviceId
from broker.transport.connection import Connection

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the file in it is ours, and no other user can open it
BOOT_ID, VMSTAT = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/vmstat")
MAX_STACKS_BYTES = 64 * 1024  # that are read
STACK_BYTES = 64 * 1024  # for the handler of a crash, where the stack itself is full
_BOOT, _KILLS, _THREAD, _HUNG, _PAYLOADS, _LOADS, _SIZE = 0, 40, 64, 88, 128, 2304, 4096  # offsets; then the stacks
_SLOTS, _SLOT_BYTES = 16, 48  # of loads: a thread, and a digest
_CURRENT = re.compile(rb"^Current thread 0x([0-9a-f]+)", re.MULTILINE)
_PAYLOAD = re.compile(r"[0-9a-f]{32}")
_NONE = b" " * 32

log = structlog.get_logger()


class PassNote:
    """The note of one device, for one process.

    Args:
        path: of the file; None for no note.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.died_with: tuple[str, ...] | None = None
        """The payloads and loads of which the process before crashed, if any; None where that can't be known."""
        self.file: int | None = None
        """The descriptor of the file to which the stacks of a crash go; None without a note."""
        self._path, self._memory = path, None if path is None else self._open(path)
        self._thread = 0
        self._slots, self._loading = list(range(_SLOTS)), threading.Lock()

    def begin(self, *payloads: str | None) -> None:
        """Note that this thread computes something of these payloads now, in one pass."""
        noted = "".join(payload for payload in payloads[:MAX_BATCH] if payload is not None).encode()
        if self._memory is None or not noted:
            return
        if self._thread != (ident := threading.get_ident()):
            self._thread = ident
            self._memory[_THREAD : _THREAD + 16] = f"{ident:016x}".encode()
        self._memory[_PAYLOADS : _PAYLOADS + len(noted) + len(_NONE)] = noted + _NONE

    def end(self) -> None:
        """Note that it is over."""
        if self._memory is not None:
            self._memory[_PAYLOADS : _PAYLOADS + 32] = _NONE

    @contextmanager
    def loading(self, digest: str) -> Iterator[None]:
        """Note that this thread loads something, while the block lasts."""
        with self._loading:
            slot = self._slots.pop() if self._memory is not None and self._slots else None
        if self._memory is None or slot is None:
            yield
            return
        begin = _LOADS + slot * _SLOT_BYTES
        self._memory[begin : begin + _SLOT_BYTES] = f"{threading.get_ident():016x}{digest}".encode()
        try:
            yield
        finally:
            self._memory[begin : begin + _SLOT_BYTES] = bytes(_SLOT_BYTES)
            with self._loading:
                self._slots.append(slot)

    def hang(self) -> None:
        """Note that the present pass hangs: the next process has to know."""
        if self._memory is not None:
            self._memory[_HUNG : _HUNG + 1] = b"!"

    def remove(self) -> None:
        """Leave no note: this process ends in good order."""
        if self._path is not None and self._memory is not None:
            self._memory[_PAYLOADS : _PAYLOADS + 32] = _NONE
            self._memory[_LOADS : _LOADS + _SLOTS * _SLOT_BYTES] = bytes(_SLOTS * _SLOT_BYTES)
            self._path.unlink(missing_ok=True)

    def _open(self, path: Path) -> mmap.mmap | None:
        file: int | None = None
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            memory = self._begun(file)
        except OSError as error:
            log.warning("no_pass_note", file=str(path), error=error.strerror or str(error))
            if file is not None:
                os.close(file)
            return None
        self.file = file  # open as long as the process lives, and with it the lock
        return memory

    def _begun(self, file: int) -> mmap.mmap:
        """Read what the process before left in the file, and begin a new note in it."""
        told = os.fstat(file)
        if not stat.S_ISREG(told.st_mode) or told.st_uid != os.geteuid() or told.st_mode & 0o077:
            raise OSError("it belongs to another user, or others may use it: remove it")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a second agent of this id must not read it
        head, stacks = os.pread(file, _SIZE, 0), os.pread(file, MAX_STACKS_BYTES, _SIZE)
        boot, kills = _boot_id(), _kills_for_memory()
        if len(head) == _SIZE and head[_BOOT : _BOOT + len(boot)] == boot:
            self.died_with = _died_with(head, stacks, kills)
            if stacks:
                log.error("crashed_before", payload=self.died_with, stacks=_shown(stacks))
        os.ftruncate(file, 0)
        os.ftruncate(file, _SIZE)
        memory = mmap.mmap(file, _SIZE)
        memory[_KILLS : _KILLS + 16] = f"{kills:016d}".encode()
        memory[_BOOT : _BOOT + len(boot)] = boot
        return memory


def note_of(device: DeviceId, connection: Connection) -> PassNote:
    """The note of a device at a broker; without a file where there is no memory for one."""
    own = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # of the service, where systemd gives it one
    directories = [Path(own)] if own else []
    place = (connection.host, str(connection.port), connection.site or "", device)
    name = hashlib.sha256("\0".join(place).encode()).hexdigest()[:16]
    for directory in (*directories, SHARED_MEMORY):
        if _is_memory(directory):
            return PassNote(directory / f"s2m3-{os.geteuid()}-{name}.pass")
    log.warning("no_pass_note", error="there is no directory in memory: a crash doesn't tell what was computed")
    return PassNote()


def report_crashes(note: PassNote) -> None:
    """Have the stacks of a crash written to the note, or without one to standard error."""
    faulthandler.enable(file=note.file) if note.file is not None else faulthandler.enable()


_KEPT: list[object] = []  # the stacks of threads that last as long as the process


def survive_full_stack(kept: list[object] = _KEPT) -> None:
    """Give this thread a stack for the handler of a crash: a crash for want of stack leaves stacks, too.

    ``kept`` holds its memory, and must live as long as the thread.
    """

    class Stack(ctypes.Structure):
        _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    with suppress(OSError, AttributeError):
        memory = ctypes.create_string_buffer(STACK_BYTES)
        ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, STACK_BYTES)), None)
        kept.append(memory)


def machine_up_s() -> float:
    """The seconds since this machine was switched on, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _died_with(head: bytes, stacks: bytes, kills: int) -> tuple[str, ...]:
    current = _CURRENT.search(stacks) if stacks.startswith(b"Fatal Python error") else None
    crashed = None if current is None else current[1].rjust(16, b"0")  # the thread; None: all, if there are stacks
    short = f"{kills:016d}".encode() > head[_KILLS : _KILLS + 16]
    noted = [(head[_THREAD : _THREAD + 16], payload, head[_HUNG : _HUNG + 1] == b"!") for payload in _payloads(head)]
    noted += [(thread, load, False) for thread, load in _loads(head)]
    guilty = [each for thread, each, hung in noted if short or hung or (stacks and crashed in {None, thread})]
    return tuple(dict.fromkeys(guilty))[:MAX_DIED_WITH]


def _payloads(head: bytes) -> tuple[str, ...]:
    noted = head[_PAYLOADS:_LOADS].partition(_NONE)[0].decode(errors="replace")
    payloads = tuple(_PAYLOAD.findall(noted))
    return payloads if len("".join(payloads)) == len(noted) else ()


def _loads(head: bytes) -> Iterator[tuple[bytes, str]]:
    """Each load with its thread; a slot that was just being written counts for nothing."""
    for begin in range(_LOADS, _LOADS + _SLOTS * _SLOT_BYTES, _SLOT_BYTES):
        thread, digest = head[begin : begin + 16], head[begin + 16 : begin + _SLOT_BYTES].decode(errors="replace")
        if _PAYLOAD.fullmatch(digest):
            yield thread, digest


def _shown(stacks: bytes) -> str:
    """The reason of a crash and the stack of its thread, or else the first stacks."""
    reason, _, _ = stacks.partition(b"\n")
    current = _CURRENT.search(stacks)
    own = stacks[current.start() :].partition(b"\n\n")[0] if current else stacks
    return b"\n".join((reason, own)).decode(errors="replace")[:4000]


def _boot_id() -> bytes:
    return BOOT_ID.read_bytes().strip()[:36]


def _kills_for_memory() -> int:
    """How many processes this machine has killed since its boot because it was short of memory."""
    with suppress(OSError):
        found = re.search(rb"^oom_kill (\d+)$", VMSTAT.read_bytes(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _is_memory(directory: Path) -> bool:
    """Whether a directory is in memory, and can be written to."""
    with suppress(OSError):
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        kinds = {fields[1]: fields[2] for line in mounts if len(fields := line.split()) > 2}  # noqa: PLR2004
        real = directory.resolve(strict=True)
        mount = next(str(each) for each in (real, *real.parents) if str(each) in kinds)
        return kinds[mount] in {"tmpfs", "ramfs"} and os.access(real, os.W_OK)
    return False
