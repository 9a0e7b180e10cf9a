"""The cost of each hostile input: ``python -m tests.hostile.measure [PART OF A NAME]`` prints a table in Markdown.

Each input is read in a process of its own, a copy of one that has read nothing, as a module reads it: pictures are
decoded and prepared for CLIP, sounds become 16 kHz (at most 60 s), texts become lines and tokens of sentence pieces.
Memory is what the process takes more than before, at its peak. A process has ``LONGEST_S`` and ``MOST_BYTES``.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from transformers import CLIPImageProcessorPil, SiglipTokenizer

from broker.protocol.codec import RawInput
from broker.protocol.errors import RequestFailed
from edge_agent.modules.inputs import audio, decoding, prepare
from s2m3.reference import tokenizers
from tests.hostile.cases import CASES

LONGEST_S = 30
MOST_BYTES = 8 * 2**30  # of address space


def read(kind: str, data: bytes, tokenizer: SiglipTokenizer) -> str:
    """Read an input as a module does; the outcome in a few words."""
    value = RawInput(data)
    try:
        match kind:
            case "sound":
                return f"{len(audio.samples(value, 16_000, 60.0))} samples"
            case "text":
                lines = decoding.lines(value)
                prepare.texts(tokenizer, 64).read(value)
                return f"{len(lines)} lines"
            case _:
                prepare.picture(CLIPImageProcessorPil()).read(value)
                return "read"
    except RequestFailed as failed:
        return f"{failed.code}: {failed.message}"
    except MemoryError:
        return f"more than {MOST_BYTES // 2**30} GiB"


def measured(kind: str, path: Path, tokenizer: SiglipTokenizer) -> tuple[str, float, float, float]:
    """The outcome of an input, the seconds of the clock and of the processor, and the MB at the peak."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        signal.alarm(LONGEST_S)
        data = path.read_bytes()
        before, began_s, used_s = _status("VmRSS"), time.monotonic(), time.process_time()
        outcome = read(kind, data, tokenizer)
        wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - used_s
        os.write(theirs, f"{wall_s}|{cpu_s}|{_status('VmHWM') - before}|{outcome}".encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        told = pipe.read().decode()
    _, _, used = os.wait4(child, 0)
    if not told:
        return f"ended after {LONGEST_S} s", LONGEST_S, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
    wall, cpu, memory, outcome = told.split("|", 3)
    return outcome, float(wall), float(cpu), float(memory)


def made(make: Callable[[], bytes], path: Path) -> int:
    """Make an input in a process of its own, whose memory goes with it; its bytes."""
    if not (child := os.fork()):
        path.write_bytes(make())
        os._exit(0)
    os.waitpid(child, 0)
    return path.stat().st_size


def _status(field: str) -> float:
    """A field of this process in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{field}:")[1].split()[0]) * 1024 / 1e6


def main() -> None:
    """Print the table."""
    write = sys.stdout.write
    write("| input | bytes | s | CPU s | MB | outcome |\n|---|---:|---:|---:|---:|---|\n")
    with tempfile.TemporaryDirectory() as directory:
        tokenizers.siglip(Path(directory), {"text_config": {"vocab_size": 600, "max_position_embeddings": 64}})
        tokenizer, path = SiglipTokenizer.from_pretrained(directory), Path(directory, "input")
        for name, case in CASES.items():
            if len(sys.argv) < 2 or any(part in name for part in sys.argv[1:]):
                size = made(case.make, path)
                outcome, wall_s, cpu_s, mb = measured(case.kind, path, tokenizer)
                write(f"| {name} | {size:,} | {wall_s:.2f} | {cpu_s:.2f} | {mb:.0f} | {outcome} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
