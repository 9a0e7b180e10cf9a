"""The measurement: hops of both kinds in turn, and requests beside their floor, on one broker after the other.

Owns the order, the figures and the goals. Blocks of hops alternate, so that other load on this machine touches both
kinds alike. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from statistics import median
from typing import Any, Literal

from broker.protocol.sizes import show_bytes
from broker.servers.embedded import EmbeddedBroker
from broker.servers.mosquitto import MosquittoBroker, find_mosquitto
from s2m3.bench.wire.agents import Agents
from s2m3.bench.wire.ends import KINDS, Hops, Kind, payload_bytes
from s2m3.bench.wire.relays import Relays
from s2m3.testbed.percentiles import percentiles

HOP_GOAL = 1.25  # an agents' hop over one of paho alone
REQUEST_GOAL = 4.0  # a request over a hop of paho alone: it crosses the broker four times, one after the other
SIZES = (2_048, 65_536, 524_288, 5_000_000)  # bytes of the arrays
LARGE = 1_000_000  # a size of which fewer hops are enough
WARM_UP = 5
BrokerName = Literal["mosquitto", "embedded"]
BROKERS: tuple[BrokerName, ...] = ("mosquitto", "embedded")

Progress = Callable[[str], None]


def measure(
    *, brokers: Sequence[BrokerName], sizes: Sequence[int], rounds: int, hops: int, progress: Progress
) -> dict[str, Any]:
    """The report: by broker, the hops of each size and the requests, each with ``rounds`` blocks of ``hops``.

    Raises:
        HopLost: a message didn't arrive.
        SiteFailed: the agents don't serve.
    """
    found = {name: _at_broker(name, sizes, rounds=rounds, hops=hops, progress=progress) for name in brokers}
    return {
        "settings": {"sizes": list(sizes), "rounds": rounds, "hops": hops},
        "goals": {"hop": HOP_GOAL, "request": REQUEST_GOAL},
        "brokers": found,
        "ok": all(_holds(each) for each in found.values()),
    }


def _holds(found: dict[str, Any]) -> bool:
    return found["request"]["hops"] <= REQUEST_GOAL and all(row["ratio"] <= HOP_GOAL for row in found["hops"])


def _at_broker(name: BrokerName, sizes: Sequence[int], *, rounds: int, hops: int, progress: Progress) -> dict[str, Any]:
    broker: EmbeddedBroker | MosquittoBroker = MosquittoBroker() if name == "mosquitto" else EmbeddedBroker()
    with broker, ExitStack() as stack:
        progress(f"{name}: starting")
        ends = {kind: stack.enter_context(Hops(broker.url, kind)) for kind in KINDS}
        rows = []
        for size_bytes in sizes:
            progress(f"{name}: hops of {show_bytes(size_bytes)}")
            rows.append(_row(ends, size_bytes, rounds, hops if size_bytes < LARGE else max(1, hops // 10)))
        relays = stack.enter_context(Relays(broker.url, SIZES[0]))
        agents = stack.enter_context(Agents(broker.url))
        progress(f"{name}: requests")
        request = _requests(ends["paho"], relays, agents, rounds, hops)
    return {"version": _version(broker), "hops": rows, "request": request}


def _row(ends: dict[Kind, Hops], size_bytes: int, rounds: int, hops: int) -> dict[str, Any]:
    for each in ends.values():
        each.prepare(size_bytes)
    taken = _in_turn({kind: each.hop for kind, each in ends.items()}, rounds, hops)
    ratios = [median(agents) / median(bare) for bare, agents in zip(taken["paho"], taken["agents"], strict=True)]
    figures = {f"{kind}_s": _figures(blocks) for kind, blocks in taken.items()}
    return {
        "bytes": size_bytes,
        "payload_bytes": payload_bytes(size_bytes),
        **figures,
        "ratio": median(ratios),
        "ratios": ratios,
    }


def _requests(paho: Hops, relays: Relays, agents: Agents, rounds: int, hops: int) -> dict[str, Any]:
    """The requests, and their floor, in hops of paho with as many bytes as an encoder's output has."""
    paho.prepare(SIZES[0])
    taken = _in_turn({"paho": paho.hop, "floor": relays.ask, "request": agents.ask}, rounds, hops)
    figures: dict[str, Any] = {f"{kind}_s": _figures(blocks) for kind, blocks in taken.items()}
    for kind, prefix in (("floor", "floor_"), ("request", "")):
        ratios = [median(mine) / median(bare) for bare, mine in zip(taken["paho"], taken[kind], strict=True)]
        figures |= {f"{prefix}hops": median(ratios), f"{prefix}ratios": ratios}
    return figures


def _in_turn(takes: Mapping[str, Callable[[], float]], rounds: int, number: int) -> dict[str, list[list[float]]]:
    """For each round, a block of each kind."""
    blocks: dict[str, list[list[float]]] = {kind: [] for kind in takes}
    for _ in range(rounds):
        for kind, take in takes.items():
            for _ in range(WARM_UP):
                take()
            blocks[kind].append([take() for _ in range(number)])
    return blocks


def _figures(blocks: Sequence[Sequence[float]]) -> dict[str, Any]:
    seconds = [each for block in blocks for each in block]
    return percentiles(seconds, 50, 95)


def _version(broker: EmbeddedBroker | MosquittoBroker) -> str:
    if isinstance(broker, EmbeddedBroker):
        return f"iotcore {version('iotcore')}"
    said = subprocess.run([find_mosquitto() or "mosquitto", "-h"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].strip()
