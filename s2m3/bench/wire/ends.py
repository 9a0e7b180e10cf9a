"""The two ends of a hop, each in a process of its own: with paho alone, or with the code of an agent.

Owns what counts as a hop. It begins when a thread has something to send, and ends when a thread of the other process
has it. An agent has arrays, and gets arrays: it packs them with their envelope, and reads both again. paho has bytes
and gets bytes, as few lines as a program can have: as its callbacks must not block, its own thread takes the message
from a queue. Both ends of both kinds send and acknowledge without the kernel's delays.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from queue import SimpleQueue
from typing import Any, Literal, Self

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.protocol.codec import encode_tensors
from broker.protocol.messages import NodeInputs, Plan, PlannedNode
from broker.protocol.topics import prefix_of
from broker.transport.connect import connect
from broker.transport.connection import parse_url
from broker.transport.dial import acknowledge_now
from broker.transport.mailbox import Mailbox
from broker.transport.port import Delivery, LinkEvent, LinkUp
from edge_agent import wire
from edge_agent.events import Received, Send
from edge_agent.sender import Sender

Kind = Literal["paho", "agents"]
KINDS: tuple[Kind, ...] = ("paho", "agents")
PREFIX = prefix_of("bench-wire")
DEADLINE_S = 30.0
LOST_S = 20.0  # without a message
TOPIC = f"{PREFIX}/hop"
SENDER, RECEIVER = "gw-a", "gw-c"
NEED = "image-encoder"
_REQUEST = "0" * 32


class HopLost(Exception):
    """A message didn't arrive."""


def tensors_of(size_bytes: int) -> dict[str, Any]:
    """An encoder's output of this size."""
    return {"features": np.random.default_rng(0).standard_normal(max(1, size_bytes // 4)).astype(np.float32)}


def message() -> NodeInputs:
    """The envelope of the inputs of a head, as an encoder's device sends it."""
    plan = Plan(
        nodes={
            NEED: PlannedNode(key="efficientnet-lite0/encoder@0123456789ab", needs=("image",), device=SENDER),
            "text-encoder": PlannedNode(key="minilm/encoder@0123456789ab", needs=("text",), device="gw-b"),
            "head": PlannedNode(key="zero-shot/head@0123456789ab", needs=(NEED, "text-encoder"), device=RECEIVER),
        },
        output="head",
    )
    return NodeInputs(
        request=_REQUEST,
        task="zero-shot",
        node="head",
        epoch=1,
        generation=1,
        attempt=0,
        coordinator=SENDER,
        deadline_s=DEADLINE_S,
        reply_to=f"{PREFIX}/clients/bench/results/{_REQUEST}",
        correlation="00" * 16,
        plan=plan,
        payload="0" * 32,
    )


def payload_bytes(size_bytes: int) -> int:
    """The payload of a hop with arrays of this size; paho sends as many bytes."""
    return len(encode_tensors(message(), {f"{NEED}/{name}": each for name, each in tensors_of(size_bytes).items()}))


class Hops:
    """The hops of one kind through a broker, as a context manager."""

    def __init__(self, url: str, kind: Kind) -> None:
        context = get_context("spawn")
        self._pipes, self._processes = [], []
        for serve in (_SERVE[kind, "receive"], _SERVE[kind, "send"]):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            self._processes.append(context.Process(target=serve, args=(url, theirs), daemon=True))
        self._receiving, self._sending = self._pipes

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            next_of(pipe)  # it is connected
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def prepare(self, size_bytes: int) -> None:
        """Make what the next hops carry."""
        self._sending.send(size_bytes)

    def hop(self) -> float:
        """The seconds of one hop.

        Raises:
            HopLost: the message didn't arrive.
        """
        self._sending.send(None)
        began_s = next_of(self._sending)
        return next_of(self._receiving) - began_s  # one clock: that of the machine


def next_of(pipe: Any) -> float:  # noqa: ANN401 - a connection of multiprocessing
    """The next number that a process sends; raises ``HopLost``."""
    if not pipe.poll(LOST_S):
        raise HopLost(f"no message within {LOST_S:g} s")
    return float(pipe.recv())


def _send_on_demand(pipe: Pipe, prepare: Callable[[int], Callable[[], None]]) -> None:
    """Send whenever the pipe says so, and report when that began."""
    send: Callable[[], None] | None = None
    pipe.send(0.0)
    while True:
        size_bytes = pipe.recv()
        if size_bytes is not None:
            send = prepare(size_bytes)
        elif send is not None:
            began_s = time.monotonic()
            send()
            pipe.send(began_s)


# --- paho alone ---


def acknowledge(client: paho.Client, *_: object) -> None:
    """Acknowledge what was read, without the kernel's delay."""
    if isinstance(sock := client.socket(), socket.socket):
        acknowledge_now(sock)


def paho_client(url: str, name: str, on_message: Callable[[Any], None], *topics: str) -> paho.Client:
    """A connected client; its thread is paho's."""
    up: SimpleQueue[None] = SimpleQueue()
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)

    def opened(_: object, __: object, sock: Any) -> None:  # noqa: ANN401 - paho's own type is not public
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connected(*_: object) -> None:
        if topics:
            client.subscribe([(topic, 1) for topic in topics])
        else:
            up.put(None)

    client.on_socket_open, client.on_connect = opened, connected
    client.on_subscribe = lambda *_: up.put(None)

    def received(_: object, __: object, message: paho.MQTTMessage) -> None:
        acknowledge(client)
        on_message(message.payload)

    client.on_message = received
    broker = parse_url(url)
    client.connect(broker.host, broker.port)
    client.loop_start()
    up.get(timeout=LOST_S)
    return client


def _send_with_paho(url: str, pipe: Pipe) -> None:
    client = paho_client(url, "bench-paho-a", lambda _: None)

    def prepare(size_bytes: int) -> Callable[[], None]:
        payload = bytes(payload_bytes(size_bytes))
        return lambda: _ignore(client.publish(TOPIC, payload, 1))

    _send_on_demand(pipe, prepare)


def _receive_with_paho(url: str, pipe: Pipe) -> None:
    taken: SimpleQueue[bytes] = SimpleQueue()
    paho_client(url, "bench-paho-b", taken.put, TOPIC)
    pipe.send(0.0)
    while True:
        taken.get()
        pipe.send(time.monotonic())


def _ignore(_: object) -> None:
    """A callback's result."""


# --- an agent's code ---


def _send_with_agent(url: str, pipe: Pipe) -> None:
    up: SimpleQueue[LinkEvent] = SimpleQueue()
    transport = connect(parse_url(url), client_id="bench-agent-a", inbox=up.put)
    transport.start()
    while not isinstance(up.get(timeout=LOST_S), LinkUp):
        pass
    sender = Sender(SENDER, PREFIX, transport.publish, report=_ignore)
    numbers = iter(range(2**31))

    def prepare(size_bytes: int) -> Callable[[], None]:
        arrays = tensors_of(size_bytes)
        envelope = message()

        def send() -> None:
            inputs = envelope.model_copy(update={"request": f"{next(numbers):032x}"})
            sender.send(Send(RECEIVER, inputs, {NEED: arrays}, time.monotonic() + DEADLINE_S))

        return send

    _send_on_demand(pipe, prepare)


def _receive_with_agent(url: str, pipe: Pipe) -> None:
    mailbox: Mailbox[LinkEvent] = Mailbox()

    def inbox(event: LinkEvent) -> None:
        if isinstance(event, Delivery):
            mailbox.put_data(event, len(event.payload))
        else:
            mailbox.put_control(event)

    transport = connect(parse_url(url), client_id="bench-agent-b", inbox=inbox)
    transport.subscribe(*wire.data_filters(PREFIX, RECEIVER))
    transport.start()
    while True:
        event = mailbox.get(LOST_S)
        if isinstance(event, LinkUp):
            pipe.send(0.0)
        elif isinstance(event, Delivery) and isinstance(wire.event_of(PREFIX, event), Received):
            pipe.send(time.monotonic())


_SERVE: dict[tuple[Kind, str], Callable[[str, Any], None]] = {
    ("paho", "send"): _send_with_paho,
    ("paho", "receive"): _receive_with_paho,
    ("agents", "send"): _send_with_agent,
    ("agents", "receive"): _receive_with_agent,
}
