"""The real server over an in-memory broker: its limits of headers, of lengths and of time, and its end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from s2m3.http import bodies, server
from tests.http_site import IMAGE, DoorSite
from tests.patience import PATIENCE_S

BODY = b"\xff\xd8\xff picture"
LENGTH = f"Content-Length: {len(BODY)}\r\n\r\n".encode()
HEAD = b"POST /v1/tasks/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def site() -> Iterator[DoorSite]:
    with DoorSite() as made:
        made.front_door.serve("classify", {"image": IMAGE})
        yield made


@pytest.fixture(scope="module")
def port(site: DoorSite) -> Iterator[int]:
    with site.served() as served:
        yield served


def said(port: int, sent: bytes, *, end: bool = False) -> bytes:
    """All that the server says to these bytes, until it ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as link:
        link.sendall(sent)
        if end:
            link.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while chunk := link.recv(65_536):
                found += chunk
        except ConnectionResetError:
            pass  # with bytes that were not read
        return found


def asked(port: int) -> int:
    link = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        link.request("POST", "/v1/tasks/classify", BODY)
        response = link.getresponse()
        assert json.load(response)["answer"] == {"got": ["image"]}
        return response.status
    finally:
        link.close()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        HEAD + b"X: y\r\n" * 20_000 + b"\r\n",
        HEAD + b"Content-Length: 5, 6\r\n\r\nabcde",
        HEAD + b"Content-Length: -1\r\n\r\nabcde",
        HEAD + b"Content-Length: 9" + b"9" * 5000 + b"\r\n\r\nabcde",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\nabcde",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"X:\x00\r\n\r\n",
        b"\x16\x03\x01 a TLS hello",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_malformed_request_is_refused_and_the_next_one_is_served(port: int, sent: bytes) -> None:
    answer = said(port, sent)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    assert asked(port) == 200


def test_a_body_that_is_shorter_than_its_length_is_no_request(port: int, site: DoorSite) -> None:
    before = len(site.front_door.requests)
    assert b"HTTP/1.1 200" not in said(port, HEAD + b"Content-Length: 50\r\n\r\nabcde", end=True)
    assert asked(port) == 200
    assert len(site.front_door.requests) == before + 1


def test_headers_and_bodies_that_take_too_long_end_the_connection(
    port: int, site: DoorSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server, "HEADERS_S", 0.2)
        assert said(port, b"") == b""
        assert said(port, HEAD + b"X: y") == b""
    whole = HEAD + LENGTH + BODY
    with monkeypatch.context() as patch:
        patch.setattr(bodies, "BODY_S", 0.2)
        assert said(port, whole[:-1]).startswith(b"HTTP/1.1 408")
    assert said(port, whole + HEAD).count(b"HTTP/1.1 200") == 1  # the second request's headers don't end
    assert site.front_door.requests


def test_the_end_answers_what_can_be_answered_and_refuses_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ANSWER_S", 0.2)
    with DoorSite() as site:
        site.front_door.serve("classify", {"image": IMAGE})
        site.front_door.answer = lambda *_: None
        answers: list[bytes] = []
        whole = HEAD + LENGTH + BODY
        with site.served() as port:
            asking = threading.Thread(target=lambda: answers.append(said(port, whole)))
            asking.start()
            assert site.front_door.arrived.wait(PATIENCE_S)
        asking.join(PATIENCE_S)
        assert answers[0].startswith(b"HTTP/1.1 503")
        assert b"ending" in answers[0]
