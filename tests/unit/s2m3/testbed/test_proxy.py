"""The proxy: it loses and reorders no byte, keeps delay and bandwidth, and its cuts are silent."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.transport.connection import parse_url
from s2m3.testbed import proxy as proxy_module
from s2m3.testbed.proxy import CHUNK_BYTES, UNSHAPED, Lane, LinkShape, Proxy
from tests.patience import PATIENCE_S, until

HOST = "127.0.0.1"


class Far:
    """The far end of proxies: takes connections, and hands them out in the order they came."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.listener.settimeout(PATIENCE_S)
        self.url = f"mqtt://{HOST}:{self.listener.getsockname()[1]}"

    def take(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE_S)
        return connection


Opened = tuple[Proxy, socket.socket, socket.socket]
Open = Callable[[LinkShape], Opened]


@pytest.fixture
def far() -> Iterator[Far]:
    end = Far()
    yield end
    end.listener.close()


@pytest.fixture
def opened(far: Far) -> Iterator[Open]:
    """Opens a proxy with one connection through it: the proxy, the near end, the far end."""
    with ExitStack() as stack:

        def make(shape: LinkShape) -> Opened:
            proxy = stack.enter_context(Proxy(parse_url(far.url), shape))
            near = stack.enter_context(dial(proxy))
            end = stack.enter_context(far.take())
            until(lambda: proxy.connections == 1)  # the far end may know of it before
            return proxy, near, end

        yield make


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, parse_url(proxy.url).port), PATIENCE_S)


def receive(end: socket.socket, size_bytes: int) -> bytes:
    got = bytearray()
    while len(got) < size_bytes and (chunk := end.recv(65536)):
        got += chunk
    return bytes(got)


sizes = st.lists(st.integers(1, 10**7), min_size=1, max_size=20)
moments = st.floats(0, 10, allow_nan=False)


@given(sizes, st.floats(1e3, 1e9), st.floats(0, 2))
def test_bytes_that_come_at_once_leave_one_after_the_other(
    chunks: list[int], bits_per_s: float, delay_s: float
) -> None:
    lane = Lane(delay_s, bits_per_s)
    arrivals = [lane.enter(5.0, size) for size in chunks]
    assert arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(5.0 + 8 * sum(chunks) / bits_per_s + delay_s)


@given(st.lists(st.tuples(moments, st.integers(1, 10**6)), min_size=1), st.floats(1e3, 1e9))
def test_a_lane_never_sends_faster_than_its_bandwidth_and_never_idles_with_work(
    steps: list[tuple[float, int]], bits_per_s: float
) -> None:
    lane, now_s, free_s = Lane(0.0, bits_per_s), 0.0, 0.0
    for pause_s, size in steps:
        now_s += pause_s
        free_s = max(free_s, now_s) + 8 * size / bits_per_s
        assert lane.enter(now_s, size) == pytest.approx(free_s)


def test_a_lane_without_a_bandwidth_only_delays() -> None:
    assert Lane(0.05, None).enter(1.0, 10**9) == pytest.approx(1.05)


@pytest.mark.parametrize("field", ["delay_s", "up_bits_per_s", "down_bits_per_s"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_an_impossible_link_shape_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        LinkShape.model_validate({field: value})


@pytest.mark.parametrize(
    "shape",
    [UNSHAPED, LinkShape(delay_s=0.01), LinkShape(up_bits_per_s=50e6, down_bits_per_s=80e6, delay_s=0.003)],
    ids=["unshaped", "delayed", "narrow"],
)
def test_bytes_arrive_whole_and_in_order_both_ways_at_once(opened: Open, shape: LinkShape) -> None:
    proxy, near, far = opened(shape)
    chance = random.Random(7)  # noqa: S311 - the same each time
    up, down = chance.randbytes(700_001), chance.randbytes(400_003)

    def send(end: socket.socket, data: bytes) -> None:
        while data:
            size = chance.randint(1, 50_000)
            end.sendall(data[:size])
            data = data[size:]

    with ThreadPoolExecutor(4) as pool:
        sends = [pool.submit(send, near, up), pool.submit(send, far, down)]
        arrived = pool.submit(receive, far, len(up)), pool.submit(receive, near, len(down))
        assert (arrived[0].result(), arrived[1].result()) == (up, down)
        for sending in sends:
            sending.result()
    until(lambda: proxy.passed_bytes == (len(up), len(down)) and proxy.waiting_bytes == (0, 0))


def test_a_shorter_link_overtakes_a_longer_one(opened: Open) -> None:
    long, slow, slow_end = opened(LinkShape(delay_s=2 * PATIENCE_S))
    _, fast, fast_end = opened(UNSHAPED)
    slow.sendall(b"first")
    until(lambda: long.waiting_bytes[0] == 5)
    fast.sendall(b"second")
    assert receive(fast_end, 6) == b"second"
    slow_end.setblocking(False)
    with pytest.raises(BlockingIOError):
        slow_end.recv(5)
    assert long.passed_bytes == (0, 0)


def test_each_way_has_its_own_bandwidth(opened: Open) -> None:
    proxy, near, far = opened(LinkShape(up_bits_per_s=80_000))  # 10 kB a second
    near.sendall(bytes(100_000))
    far.sendall(bytes(100_000))
    assert len(receive(near, 100_000)) == 100_000
    assert proxy.passed_bytes[0] < 100_000


def test_connections_share_one_bandwidth_in_turn(far: Far, opened: Open) -> None:
    proxy, bulk, _ = opened(LinkShape(up_bits_per_s=2_400_000))  # for all of it, 6.7 s
    with dial(proxy) as small, far.take() as small_end:
        bulk.sendall(bytes(2_000_000))
        until(lambda: proxy.passed_bytes[0] > 0)
        small.sendall(b"ping")
        assert receive(small_end, 4) == b"ping"
        assert proxy.passed_bytes[0] < 2_000_000


def test_a_sender_waits_when_too_many_bytes_are_under_way(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "MAX_WAITING_BYTES", 100_000)
    proxy, near, far = opened(UNSHAPED)
    near.settimeout(4 * PATIENCE_S)  # for all the bytes together
    proxy.cut()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(near.sendall, bytes(40_000_000))  # more than the system's own buffers hold
        until(lambda: proxy.waiting_bytes[0] > 100_000)
        assert proxy.waiting_bytes[0] <= 100_000 + CHUNK_BYTES
        assert not sending.done()
        proxy.restore()
        assert len(receive(far, 40_000_000)) == 40_000_000
        sending.result()


def test_bytes_wait_during_a_cut_and_arrive_after_it(opened: Open) -> None:
    proxy, near, far = opened(UNSHAPED)
    near.sendall(b"before")
    assert receive(far, 6) == b"before"
    until(lambda: proxy.passed_bytes == (6, 0))
    proxy.cut()
    near.sendall(b"during")
    far.sendall(b"answer")
    until(lambda: proxy.waiting_bytes == (6, 6))
    assert proxy.passed_bytes == (6, 0)
    proxy.restore()
    assert (receive(far, 6), receive(near, 6)) == (b"during", b"answer")


def test_the_end_of_a_connection_waits_during_a_cut(opened: Open) -> None:
    proxy, near, far = opened(UNSHAPED)
    proxy.cut()
    near.sendall(b"last words")
    near.close()
    until(lambda: proxy.waiting_bytes[0] == 10)
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    far.settimeout(PATIENCE_S)
    proxy.restore()
    assert receive(far, 1000) == b"last words"
    far.close()
    until(lambda: proxy.connections == 0)


def test_connections_begun_during_a_cut_never_reach_the_broker(far: Far) -> None:
    with Proxy(parse_url(far.url)) as proxy:
        proxy.cut()
        with dial(proxy) as stale:
            stale.settimeout(PATIENCE_S)
            until(lambda: bool(proxy._serving))
            proxy.restore()
            assert receive(stale, 1) == b""
        with dial(proxy) as fresh, far.take() as end:
            fresh.sendall(b"hello")
            assert receive(end, 5) == b"hello"


def test_disconnect_ends_both_ends_and_new_connections_are_accepted(far: Far, opened: Open) -> None:
    proxy, near, end = opened(UNSHAPED)
    near.settimeout(PATIENCE_S)
    proxy.disconnect()
    assert (receive(near, 1), receive(end, 1)) == (b"", b"")
    until(lambda: proxy.connections == 0)
    with dial(proxy) as again, far.take() as new_end:
        again.sendall(b"x")
        assert receive(new_end, 1) == b"x"


def test_disconnect_ends_a_connection_that_is_just_reaching_the_broker(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    reaching, go_on, connect = threading.Event(), threading.Event(), socket.create_connection

    def connect_late(*arguments: Any) -> socket.socket:
        reaching.set()
        assert go_on.wait(PATIENCE_S)
        return connect(*arguments)

    monkeypatch.setattr(socket, "create_connection", connect_late)
    with Proxy(parse_url(far.url)) as proxy, socket.socket() as near:
        near.settimeout(PATIENCE_S)
        near.connect((HOST, parse_url(proxy.url).port))
        assert reaching.wait(PATIENCE_S)
        proxy.disconnect()
        go_on.set()
        assert receive(near, 1) == b""
        assert proxy.connections == 0


def test_a_half_closed_connection_still_sends_the_other_way(opened: Open) -> None:
    _, near, far = opened(LinkShape(delay_s=0.001))
    near.sendall(b"question")
    near.shutdown(socket.SHUT_WR)
    assert receive(far, 100) == b"question"
    far.sendall(b"answer")
    far.close()
    assert receive(near, 100) == b"answer"


def test_a_broker_that_is_down_ends_the_connection(far: Far) -> None:
    with Proxy(parse_url(far.url)) as proxy:
        far.listener.close()
        with dial(proxy) as near:
            assert receive(near, 1) == b""


def test_a_closed_proxy_leaves_no_thread_and_accepts_no_connection(far: Far) -> None:
    before = set(threading.enumerate())
    proxy = Proxy(parse_url(far.url))
    with dial(proxy) as near, far.take():
        proxy.close()
        proxy.close()
        assert receive(near, 1) == b""
        assert set(threading.enumerate()) <= before
        with pytest.raises(OSError, match="refused"):
            dial(proxy)


def test_the_name_and_password_of_the_broker_stay_in_the_connection_and_not_in_the_url() -> None:
    with Proxy(parse_url("mqtt://gw%40a:p%2Fw@127.0.0.1:1")) as proxy:
        connection, url = proxy.connection, proxy.url
    assert (connection.user, connection.password, connection.host) == ("gw@a", "p/w", HOST)
    assert url == f"mqtt://{HOST}:{connection.port}"
