"""Compare this project with what a user would pick instead: one command, one machine, one run.

    python benchmarks/peers/run.py --exports DIR [--ray PYTHON] [--peers NAME…] [--apart] [--json FILE]

``DIR`` holds what ``s2m3 models export pocket/zero-shot --to DIR`` wrote; ``PYTHON`` is an interpreter that has Ray
Serve beside this project. Each peer is started, answers, is measured, and is ended before the next one starts.

Every request has a picture and captions of its own, so that no cache answers. Latency is that of one client with one
request at a time, from sending to the answer. Throughput is with ``IN_FLIGHT`` clients. Memory is the unique set size
(USS) of all processes of a peer, after that; a broker's and an orchestrator's count, the client's doesn't.

``--apart`` gives each of the two processes that encode a processor of its own after the first answer, as two devices
have; all other processes run where the kernel puts them.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from broker.client import Client
from broker.protocol.codec import RawInput
from edge_agent.config import AgentConfig
from s2m3.bench import machine
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.site import Site

HERE = Path(__file__).parent
TASK = "pocket/zero-shot"
PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg")
CAPTIONS = ("a photo of a cat", "a cup of coffee", "a rocket at its launch", "a temple in a garden", "a flower")
WARM_UP, COUNTED, IN_FLIGHT, SECONDS = 10, 100, 6, 15.0
MOST_REQUESTS = 2500  # in these seconds
START_S = 180.0
PROCESSORS = 2
OURS = {
    f"s2m3 {engine}, {broker}": (engine, broker) for broker in ("mosquitto", "embedded") for engine in ("torch", "onnx")
}
PEERS = ("unsplit torch", "unsplit onnx", "ray serve", *OURS)
ENCODING = ("gw-a", "gw-b", "ImageEncoder", "TextEncoder")  # our agents' and Ray's replicas, in their command lines
Answer = dict[str, Any]
Ask = Callable[[bytes, bytes], Answer]
"""Picture and captions to the answer."""


def requests() -> Iterator[tuple[bytes, bytes]]:
    """Requests that never repeat: photographs cut by another margin, JPEG, and captions with a number of their own."""
    whole = [Image.open(picture(name).path).convert("RGB") for name in PICTURES]
    number = 0
    while True:
        each = whole[number % len(whole)]
        margin = 1 + number // len(whole) % 60
        file = io.BytesIO()
        each.crop((margin, margin, each.width - margin, each.height - margin)).save(file, "JPEG", quality=90)
        yield file.getvalue(), "\n".join(f"{caption}, number {number}" for caption in CAPTIONS).encode()
        number += 1


class HttpPeer:
    """A peer that serves over HTTP; each thread has a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port, self._own = port, threading.local()

    def __call__(self, picture: bytes, captions: bytes) -> Answer:
        """Ask once."""
        if getattr(self._own, "connection", None) is None:
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            self._own.connection.connect()
            self._own.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._own.connection.request("POST", "/", captions + b"\n\n" + picture)
            response = self._own.connection.getresponse()
            body = response.read()
        except OSError:
            self._own.connection = None
            raise
        if response.status != http.HTTPStatus.OK:
            raise ConnectionError(f"HTTP {response.status}")
        return dict(json.loads(body))


@contextmanager
def http_peer(command: list[str]) -> Iterator[tuple[Ask, Callable[[], list[psutil.Process]]]]:
    """A peer's process, all that it starts, and the way to ask it. Gone after the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
        )

        def tree() -> list[psutil.Process]:
            return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]

        try:
            yield HttpPeer(port), tree
        finally:
            found = tree() if process.poll() is None else []
            for each in found:
                try:
                    each.send_signal(signal.SIGTERM)
                except psutil.NoSuchProcess:
                    continue
            for each in psutil.wait_procs(found, 10)[1]:
                each.kill()
            process.wait()


@contextmanager
def our_site(engine: str, broker: str, exports: Path) -> Iterator[tuple[Ask, Callable[[], list[psutil.Process]]]]:
    """A whole site of two agents, from nothing."""
    own = {"engine": "onnx", "models": str(exports.resolve())} if engine == "onnx" else {"engine": "torch"}
    agents = [AgentConfig(id=name, cache=0, **own) for name in ("gw-a", "gw-b")]
    before = {each.pid for each in psutil.Process().children(recursive=True)}
    with Site(broker, agents) as site, Client(site.connection) as client:
        site.serve([load_task(TASK)], START_S)

        def ask(picture: bytes, captions: bytes) -> Answer:
            inputs = {"image": RawInput(picture, "image/jpeg"), "text": RawInput(captions, "text/plain")}
            response = client.request("zero-shot", inputs, deadline_s=60.0)
            if not response.ok:
                raise ConnectionError(str(response.result.error))
            return dict(response.result.answer or {})

        yield ask, lambda: [each for each in psutil.Process().children(recursive=True) if each.pid not in before]


def measure(name: str, arguments: argparse.Namespace, sent: Iterator[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Start a peer, measure it, and end it."""
    began_s = time.monotonic()
    with ExitStack() as stack:
        if name in OURS:
            ask, processes = stack.enter_context(our_site(*OURS[name], arguments.exports))
        else:
            ask, processes = stack.enter_context(http_peer(_command(name, arguments)))
        first = next(sent)
        while True:
            try:
                ask(*first)
                break
            except (OSError, http.client.HTTPException):
                if time.monotonic() - began_s > START_S:
                    raise
                time.sleep(0.02)
        first_s = time.monotonic() - began_s
        if arguments.apart and not name.startswith("unsplit"):
            set_apart(processes())
        for _ in range(WARM_UP):
            ask(*next(sent))
        took_s = []
        labels = []
        for _ in range(COUNTED):
            given = next(sent)
            asked_s = time.perf_counter()
            labels.append(ask(*given)["label"].partition(",")[0])
            took_s.append(time.perf_counter() - asked_s)
        per_s = throughput(ask, sent)
        memory = {str(each.pid): (each.name(), each.memory_full_info().uss) for each in processes()}
    return {
        "peer": name,
        "first_answer_s": first_s,
        "p50_s": percentile(took_s, 50),
        "p95_s": percentile(took_s, 95),
        "per_s": per_s,
        "memory_bytes": sum(size for _, size in memory.values()),
        "processes": sorted(memory.values()),
        "labels": labels,
    }


def throughput(ask: Ask, sent: Iterator[tuple[bytes, bytes]]) -> float:
    """Answers per second with ``IN_FLIGHT`` requests always under way. Requests are made before the clock starts."""
    ready = [next(sent) for _ in range(MOST_REQUESTS)]
    began_s, counts, lock = time.monotonic(), [0] * IN_FLIGHT, threading.Lock()

    def work(number: int) -> None:
        while time.monotonic() - began_s < SECONDS:
            with lock:
                given = ready.pop()
            ask(*given)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(IN_FLIGHT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began_s)


def set_apart(processes: list[psutil.Process]) -> None:
    """Give each process that encodes a processor of its own.

    Raises:
        RuntimeError: there aren't two of them, or fewer than two processors.
    """
    processors = sorted(os.sched_getaffinity(0))
    encoding = [each for each in processes if any(name in " ".join(each.cmdline()) for name in ENCODING)]
    if len(encoding) != PROCESSORS or len(processors) < PROCESSORS:
        raise RuntimeError(f"{len(encoding)} processes encode, on {len(processors)} processors: two of each are needed")
    for each, processor in zip(encoding, processors, strict=False):
        for thread in each.threads():
            os.sched_setaffinity(thread.id, {processor})


def _command(name: str, arguments: argparse.Namespace) -> list[str]:
    if name == "ray serve":
        return [str(arguments.ray), str(HERE / "ray_serve.py")]
    engine = name.removeprefix("unsplit ")
    return [
        sys.executable,
        str(HERE / "unsplit.py"),
        "--engine",
        engine,
        *(["--exports", str(arguments.exports)] if engine == "onnx" else []),
    ]


def main() -> int:
    """Measure the chosen peers, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exports", type=Path, required=True)
    parser.add_argument("--ray", type=Path, help="an interpreter with Ray Serve; without one, Ray is left out")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--apart", action="store_true", help="each process that encodes has its own processor")
    parser.add_argument("--json", type=Path, help="write the report here")
    arguments = parser.parse_args()
    if arguments.ray is None:
        arguments.peers = [name for name in arguments.peers if name != "ray serve"]
    if shutil.which("mosquitto") is None and any("mosquitto" in name for name in arguments.peers):
        parser.error("mosquitto is missing: install it, or name other --peers")
    rows = []
    print(f"{'':24} first answer   p50 ms   p95 ms   answers/s   memory MB")
    for name in arguments.peers:
        row = measure(name, arguments, requests())
        rows.append(row)
        print(
            f"{name:24} {row['first_answer_s']:10.1f} s {1e3 * row['p50_s']:8.1f} {1e3 * row['p95_s']:8.1f} "
            f"{row['per_s']:11.1f} {row['memory_bytes'] / 1e6:11.0f}",
            flush=True,
        )
    same = len({tuple(row.pop("labels")) for row in rows}) == 1
    print("all peers gave the same answers" if same else "NO: the peers' answers differ")
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {"machine": machine.description(), "apart": arguments.apart, "same_answers": same, "peers": rows},
                indent=1,
            ),
            encoding="utf-8",
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
