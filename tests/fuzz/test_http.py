"""Mutated HTTP requests into the door's application: each gets a response, never an error of the program."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fuzz.mutate import HUGE_DIGITS, INTERESTING
from tests.http_site import IMAGE, TEXT, DoorSite

SHORT, LONG = 600, 60_000
LOOK_S = 2.0  # of processor time: a request takes milliseconds
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\nabc\r\n'
BODIES = (
    (b"\xff\xd8\xff picture", b"image/jpeg"),
    (PART + PART.replace(b"image", b"question") + b"--x--\r\n", b"multipart/form-data; boundary=x"),
    (b'{"image": "/9j/", "question": "what is this?"}', b"application/json"),
    (b'{"model": "embed", "input": ["a cat", "a dog"], "encoding_format": "base64"}', b"application/json"),
    (b"", b""),
)
PATHS = (
    "/v1/tasks/vqa",
    "/v1/tasks/embed",
    "/v1/tasks/nothing",
    "/v1/embeddings",
    "/v1/models",
    "/v1/tasks",
    "/healthz",
)
HEADERS = (
    "content-type",
    "content-length",
    "content-encoding",
    "deadline",
    "accept",
    "host",
    "authorization",
    "origin",
)
VALUES = (
    *(b"", b"5", b"-1", b"nan", b"1e400", b"gzip", b"identity", b"*/*;q=\xff", b";;;=;", b"x" * 5_000, b"\xff\xfe"),
    *(b"multipart/form-data; boundary=", b"application/json; charset=\x00", HUGE_DIGITS.encode()),
)
METHODS = ("POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "\xe9")


class Mutants:
    """Requests, each with some changes; equal seeds make equal ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - the same each time

    def next(self) -> tuple[str, str, list[tuple[bytes, bytes]], list[bytes]]:
        """Method, path, headers, and the body in pieces."""
        pick: Any = self._random.choice
        body, content_type = pick(BODIES)
        headers = {b"host": b"127.0.0.1", b"content-type": content_type, b"deadline": b"0.5"}
        for _ in range(pick((0, 1, 1, 2, 3))):
            if pick((True, False)):
                headers[pick(HEADERS).encode()] = pick(VALUES)
            else:
                body = self._changed(body)
        path = pick(PATHS) if pick((True, True, False)) else f"/v1/tasks/{pick(('é', '..', '%', 'a' * 5_000, '+', ''))}"
        cut = self._random.randrange(len(body) + 1)
        return pick(METHODS), path, list(headers.items()), [body[:cut], body[cut:]]

    def _changed(self, body: bytes) -> bytes:
        pick: Any = self._random.choice
        at = self._random.randrange(len(body) + 1)
        try:
            document = json.loads(body)
            if isinstance(document, dict):
                document[pick((*document, "image", "input"))] = pick(INTERESTING)
                return json.dumps(document).encode()
        except (ValueError, RecursionError):
            pass
        ways = (body[:at], body[:at] + b"[" * 5_000 + body[at:], body * 3, body.replace(b"x", b"y", 1), body + b"\x00")
        flipped = body[:at] + bytes([self._random.randrange(256)]) + body[at + 1 :]
        return bytes(pick((*ways, flipped, flipped)))


@pytest.fixture
def site() -> Iterator[DoorSite]:
    with DoorSite() as made:
        made.front_door.serve("vqa", {"image": IMAGE, "question": TEXT})
        made.front_door.serve("embed", {"text": TEXT}, answer="embeddings")
        made.front_door.answer = lambda *_: {"embeddings": [[0.5, 1.0], [0.0, 1.0]]}
        yield made


def test_mutated_requests_break_nothing(site: DoorSite) -> None:
    fuzz(site, 7, SHORT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_mutated_requests_break_nothing(site: DoorSite) -> None:
    fuzz(site, 8, LONG)


def fuzz(site: DoorSite, seed: int, count: int) -> None:
    """Let the application answer this many mutants."""
    mutants, statuses = Mutants(seed), dict[int, int]()
    for number in range(count):
        method, path, headers, pieces = mutants.next()
        began_s = time.thread_time()
        status = site.call(method, path, headers, pieces)
        assert 200 <= status < 600
        assert status != 500, (seed, number, method, path, headers, pieces)
        assert time.thread_time() - began_s < LOOK_S, (seed, number, method, path, headers, pieces)
        statuses[status] = statuses.get(status, 0) + 1
    sys.stdout.write(f"seed {seed}: {count} mutants, by status: {dict(sorted(statuses.items()))}\n")
    assert len(statuses) > 5
