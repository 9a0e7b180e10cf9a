"""A web server that cuts, lies and is slow: nothing wrong is kept, what came is kept, and the reason is one sentence.

The server is a small one on this machine that answers as each test says; the fetching is the agent's.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.protocol.codec import decode, encode
from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import Heartbeat
from broker.protocol.specs import ModuleSpec, Source
from broker.protocol.topics import DEVICE_ASSIGNMENT
from broker.transport.port import Delivery, Outgoing
from edge_agent.modules.weights import hub, web
from edge_agent.modules.weights.allowed import AllowedWeights, allow
from edge_agent.modules.weights.download_settings import Downloads
from edge_agent.modules.weights.file_list import FileList, ListedFile
from edge_agent.modules.weights.progress import Progress, reporting_to
from edge_agent.modules.weights.stored import Cache, keep_in
from edge_agent.modules.weights.web import Web
from s2m3.reference import random_weights, zoo
from tests.builders import PREFIX, assignment, module, profile, uncalibrated_store
from tests.media import SMALLEST_CLIP
from tests.patience import PATIENCE_S
from tests.threads import agent_in_memory

CLIP = "openai/clip-vit-base-patch16"
WEIGHTS = bytes(range(256)) * 2048  # 512 KiB
CONFIG = b'{"model_type": "clip"}'
LIMIT_BYTES = 2_000_000
TOKEN = "a-token-that-stands-in-no-error"  # noqa: S105 - of this test

Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listed(**files: bytes) -> bytes:
    """The list of these files, whose names have ``_`` in place of the point."""
    entries = {name.replace("_", "."): ListedFile(sha256=sha256(each), bytes=len(each)) for name, each in files.items()}
    return FileList(files=entries).encoded()


LIST = listed(config_json=CONFIG, model_safetensors=WEIGHTS)


@dataclass
class Site:
    """The files of the server, its answers for some of them, and the requests that it got."""

    files: dict[str, bytes] = field(default_factory=lambda: {sha256(each): each for each in (LIST, CONFIG, WEIGHTS)})
    answers: dict[str, Answer] = field(default_factory=dict)  # by the name of a file
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)  # name, headers
    base: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def source(self, content: bytes = LIST, **changes: Any) -> Source:
        digest = sha256(content)
        return Source(url=f"{self.base}/sha256/{digest}", part="vision", digest=f"sha256:{digest}").model_copy(
            update=changes
        )

    def count(self, content: bytes) -> int:
        return sum(name == sha256(content) for name, _ in self.asked)


def serve(site: Site, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Answer as a correct server does, with ranges."""
    name = handler.path.rpartition("/")[2]
    content = site.files.get(name)
    if content is None:
        handler.send_error(404)
        return
    site.answers.get(name, send)(handler, content)


def send(handler: http.server.BaseHTTPRequestHandler, content: bytes, *, cut: int | None = None) -> None:
    """The whole file, or its rest; ``cut`` after so many bytes of the file."""
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range") or "")
    begin = int(found[1]) if found else 0
    if begin >= len(content) > 0:
        handler.send_response(416)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(206 if begin else 200)
    if begin:
        handler.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
    handler.send_header("Content-Length", str(len(content) - begin))
    handler.end_headers()
    handler.wfile.write(content[begin:cut])


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path.rpartition("/")[2], dict(self.headers)))
            try:
                serve(state, self)
            except OSError:  # its client is gone
                return

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    state.base = f"http://127.0.0.1:{server.server_port}"
    allow(AllowedWeights(url=(f"{state.base}/",)))
    yield state
    allow(None)
    keep_in(None)
    state.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def cache(tmp_path: Path, **settings: Any) -> Cache:
    wanted = Downloads(**settings)
    made = Cache(tmp_path / "cache", wanted, Web(wanted, sleep=lambda _: None))
    keep_in(made)
    return made


def refusal(made: Cache, source: Source, progress: Progress | None = None) -> str:
    with reporting_to(progress or Progress(limit_bytes=LIMIT_BYTES)), pytest.raises(ModuleRefused) as caught:
        made.directory_of(source)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def kept(tmp_path: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (tmp_path / "cache" / "begun").glob("*/*")}


def whole(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


def test_all_files_of_a_list_are_fetched_once(site: Site, tmp_path: Path) -> None:
    made, progress = cache(tmp_path), Progress(limit_bytes=LIMIT_BYTES)
    assert not made.has(site.source())
    with reporting_to(progress):
        directory = made.directory_of(site.source())
    assert whole(directory) == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    assert progress.fetched_bytes == len(LIST) + len(CONFIG) + len(WEIGHTS)
    assert made.has(site.source())
    assert made.directory_of(site.source()) == directory
    assert len(site.asked) == 3
    assert kept(tmp_path) == {}


@pytest.mark.parametrize("end", ["safetensors", "onnx"])
def test_a_single_file_needs_no_list(site: Site, tmp_path: Path, end: str) -> None:
    site.files[f"yolo.{end}"] = WEIGHTS
    source = site.source(WEIGHTS, url=f"{site.base}/models/yolo.{end}")
    directory = cache(tmp_path).directory_of(source)
    assert whole(directory) == {f"model.{end}": WEIGHTS}
    assert cache(tmp_path).directory_of(source) == directory
    assert len(site.asked) == 1


def test_a_file_that_is_cut_off_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    cuts = iter([100_000, 100_000, 300_000, None])
    site.answers[sha256(WEIGHTS)] = lambda handler, content: send(handler, content, cut=next(cuts))
    progress = Progress(limit_bytes=LIMIT_BYTES)
    with reporting_to(progress):
        assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS
    ranges = [headers.get("Range") for name, headers in site.asked if name == sha256(WEIGHTS)]
    assert ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=300000-"]
    assert progress.fetched_bytes == len(LIST) + len(CONFIG) + len(WEIGHTS)


def test_a_server_that_cuts_for_ever_fails_and_the_next_load_goes_on(site: Site, tmp_path: Path) -> None:
    site.answers[sha256(WEIGHTS)] = lambda handler, content: send(handler, content, cut=100_000)
    error = refusal(cache(tmp_path), site.source())
    assert f"its server sent 100000 bytes of {len(WEIGHTS)}, 3 times: 100000 bytes are kept" in error
    assert kept(tmp_path)["model.safetensors.incomplete"] == 100_000
    site.answers.clear()
    site.asked.clear()
    assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS
    assert [headers.get("Range") for _, headers in site.asked] == ["bytes=100000-"]


def test_a_server_without_ranges_sends_all_again(site: Site, tmp_path: Path) -> None:
    cuts = iter([100_000, None])

    def plain(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        del handler.headers["Range"]
        send(handler, content, cut=next(cuts))

    site.answers[sha256(WEIGHTS)] = plain
    assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS


def headed(status: int = 200, **headers: str) -> Answer:
    """An answer with these headers, in which ``_`` stands for ``-``, and the whole file."""

    def answer(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (headed(401), "its server answers 401, it wants another token or none came: name a file with the token"),
        (headed(403), "its server answers 403"),
        (headed(404), "its server has no such file (404): store it there, or correct the URL"),
        (headed(410), "its server has no such file (410)"),
        (headed(500), "its server answers 500, 3 times: 0 bytes are kept"),
        (headed(429), "its server answers 429, 3 times"),
        (headed(204), "its server answers 204, and a file was asked for"),
        (headed(418), "its server answers 418"),
        (headed(Content_Encoding="gzip"), "comes compressed (gzip), which isn't read"),
        (headed(Content_Length="7"), f"has 7 bytes by its server, and {len(WEIGHTS)} by its list"),
        (headed(Content_Length="9" * 18), f"has {'9' * 18} bytes by its server"),
        (headed(206, Content_Range="bytes 5-9/10"), "answered with another part than was asked for"),
        (headed(206), "answered with another part than was asked for"),
        (headed(302), "leads to '', which is not a URL of weights"),
        (headed(302, Location="http://127.0.0.1:1/x"), "leads to http://127.0.0.1:1/x, on another host, port or"),
        (headed(302, Location="//evil.example/x"), "leads to http://evil.example/x, on another host"),
        (headed(301, Location="file:///etc/passwd"), "leads to 'file:///etc/passwd', which is not a URL of weights"),
        (headed(302, Location=f"http://u:{TOKEN[:1]}@h/x"), "which is not a URL of weights"),
        (headed(307, Location="/%2e%2e/x"), "which is not a URL of weights"),
        (lambda handler, _: handler.wfile.write(b"no HTTP\r\n\r\n"), "no whole answer"),
        (lambda handler, _: handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000), "no whole answer"),
        (lambda handler, content: headed()(handler, content + b"more"), "has more than the"),
        (lambda handler, content: headed()(handler, content[:-1] + b"x"), "has the SHA-256"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_one_sentence_and_nothing_of_it_is_kept(
    site: Site, tmp_path: Path, answer: Answer, sentence: str
) -> None:
    site.answers[sha256(WEIGHTS)] = answer
    error = refusal(cache(tmp_path), site.source())
    assert sentence in error
    assert f"{site.base}/sha256/{sha256(WEIGHTS)}" in error
    assert kept(tmp_path).get("model.safetensors.incomplete", 0) == 0
    site.answers.clear()
    assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS


def test_chunks_are_read_and_bounded(site: Site, tmp_path: Path) -> None:
    def chunked(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        handler.protocol_version = "HTTP/1.1"
        headed(Transfer_Encoding="chunked")(handler, b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))

    site.answers[sha256(WEIGHTS)] = chunked
    assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS


def test_a_redirect_on_the_same_host_is_followed_where_it_is_allowed(site: Site, tmp_path: Path) -> None:
    site.files["other"] = WEIGHTS
    site.answers[sha256(WEIGHTS)] = headed(302, Location="/moved/other")
    allow(AllowedWeights(url=(f"{site.base}/sha256/",)))
    assert "/moved/other is not allowed on this device" in refusal(cache(tmp_path), site.source())
    allow(AllowedWeights(url=(f"{site.base}/",)))
    assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS


def test_redirects_in_a_circle_end(site: Site, tmp_path: Path) -> None:
    site.answers[sha256(LIST)] = headed(302, Location=f"/sha256/{sha256(LIST)}")
    assert "leads from one place to the next" in refusal(cache(tmp_path), site.source())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "JSON"),
        (b"[]", "must have fields"),
        (b"<html>not found</html>", "JSON"),
        (json.dumps({"format": 2, "files": {}}).encode(), "format"),
        (json.dumps({"format": 1, "files": {}}).encode(), "files"),
        (json.dumps({"format": 1, "files": {"../x": {"sha256": "a" * 64, "bytes": 1}}}).encode(), "files"),
        (json.dumps({"format": 1, "files": {".list.json": {"sha256": "a" * 64, "bytes": 1}}}).encode(), "files"),
        (json.dumps({"format": 1, "files": {"x": {"sha256": "../y", "bytes": 1}}}).encode(), "sha256"),
        (json.dumps({"format": 1, "files": {"x": {"sha256": "a" * 64, "bytes": -1}}}).encode(), "bytes"),
        (b"{" + b" " * 300_000, "JSON"),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused_with_its_place(site: Site, tmp_path: Path, content: bytes, problem: str) -> None:
    site.files[sha256(content)] = content
    error = refusal(cache(tmp_path), site.source(content))
    assert "is not a list of files" in error
    assert problem in error
    assert "`s2m3 models store` makes such a list" in error


def test_weights_are_bounded_by_their_module(site: Site, tmp_path: Path) -> None:
    error = refusal(cache(tmp_path), site.source(), Progress(limit_bytes=100_000))
    assert "write download_bytes: in its source" in error
    assert site.count(WEIGHTS) == 0


def test_a_load_that_is_stopped_ends_and_what_came_is_kept(site: Site, tmp_path: Path) -> None:
    progress = Progress(limit_bytes=LIMIT_BYTES)

    def half(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        send(handler, content, cut=200_000)
        progress.stopped = "vision was unloaded while it was loading"

    site.answers[sha256(WEIGHTS)] = half
    assert "was unloaded" in refusal(cache(tmp_path), site.source(), progress)


def test_the_disk_keeps_its_reserve(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 1024 * 1024 + 10_000))
    assert "are free on its disk, of which 64 MiB stay free: free some room" in refusal(cache(tmp_path), site.source())
    assert site.count(WEIGHTS) == 0


def test_a_full_disk_is_said(site: Site, tmp_path: Path) -> None:
    made = cache(tmp_path)
    (tmp_path / "cache" / "begun" / sha256(LIST) / "model.safetensors.incomplete").mkdir(parents=True)
    error = refusal(made, site.source())
    assert "can't be written (Is a directory): free some room there, or name another place, downloads:" in error


def test_a_cache_that_cant_be_used_is_said(site: Site, tmp_path: Path) -> None:
    made = cache(tmp_path)
    (tmp_path / "cache").write_bytes(b"")
    assert "can't be used (Not a directory)" in refusal(made, site.source())


def test_what_the_disk_has_changed_is_fetched_again(site: Site, tmp_path: Path) -> None:
    directory = cache(tmp_path).directory_of(site.source())
    (directory / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    assert whole(cache(tmp_path).directory_of(site.source()))["model.safetensors"] == WEIGHTS
    assert site.count(WEIGHTS) == 2


def one_more(site: Site, content: bytes) -> Source:
    files = listed(model_safetensors=content)
    site.files |= {sha256(content): content, sha256(files): files}
    return site.source(files)


def test_the_longest_unused_makes_room_and_never_what_is_assigned(site: Site, tmp_path: Path) -> None:
    made = cache(tmp_path, limit=1_200_000)
    first, second, third, fourth = (one_more(site, bytes([number]) * 500_000) for number in range(4))
    assigned = spec_of(first)
    made.hold(assigned)
    made.directory_of(first)
    made.directory_of(second)
    made.directory_of(third)
    assert [made.has(each) for each in (first, second, third)] == [True, False, True]
    other = cache(tmp_path, limit=1_200_000)  # that of another agent on this machine
    other.hold(spec_of(third))
    error = refusal(other, fourth)
    assert "has no room: 976.6 KiB of 1.1 MiB are used by what is assigned" in error
    made.let_go(assigned.key)
    other.directory_of(fourth)
    assert [made.has(each) for each in (first, third, fourth)] == [False, True, True]


def spec_of(source: Source) -> ModuleSpec:
    return module("vision", 10**7, family="clip.vision", source=source)


def test_two_loads_of_one_source_fetch_it_once(site: Site, tmp_path: Path) -> None:
    made, found = cache(tmp_path), []
    began = threading.Event()

    def slowly(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> None:
        began.set()
        site.released.wait(PATIENCE_S)
        send(handler, content)

    site.answers[sha256(WEIGHTS)] = slowly
    loads = [threading.Thread(target=lambda: found.append(made.directory_of(site.source()))) for _ in range(2)]
    for each in loads:
        each.start()
    assert began.wait(PATIENCE_S)
    site.released.set()
    for each in loads:
        each.join(PATIENCE_S)
    assert len(set(found)) == 1
    assert site.count(WEIGHTS) == 1


def test_a_token_goes_where_its_line_says_and_nowhere_else(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    cache(tmp_path, tokens={f"{site.base}/sha256/": str(tmp_path / "token")}).directory_of(site.source())
    assert {headers.get("Authorization") for _, headers in site.asked} == {f"Bearer {TOKEN}"}
    site.asked.clear()
    site.files["x.onnx"] = CONFIG
    made = cache(tmp_path, tokens={f"{site.base}/sha256/": str(tmp_path / "token")})
    made.directory_of(site.source(CONFIG, url=f"{site.base}/models/x.onnx"))
    assert [headers.get("Authorization") for _, headers in site.asked] == [None]
    (tmp_path / "token").unlink()
    site.files[sha256(b"x")] = b"x"
    assert "downloads.tokens in the agent's file" in refusal(made, site.source(b"x"))


def test_the_rate_is_bounded(site: Site, tmp_path: Path) -> None:
    waited: list[float] = []
    wanted = Downloads(bytes_per_s=1_000_000)
    Cache(tmp_path / "cache", wanted, Web(wanted, sleep=waited.append)).directory_of(site.source())
    assert max(waited) <= (len(LIST) + len(CONFIG) + len(WEIGHTS)) / 1_000_000
    assert max(waited) > 0.1


def test_nothing_listens_there(site: Site, tmp_path: Path) -> None:
    allow(AllowedWeights(url=("http://127.0.0.1:1/",)))
    error = refusal(cache(tmp_path), site.source(url=f"http://127.0.0.1:1/sha256/{sha256(LIST)}"))
    assert "no whole answer (" in error
    assert "check that the server runs, and the network to it" in error


def test_a_header_that_never_ends_is_cut(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ANSWER_S", 0.05)

    def trickle(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: y")
        site.released.wait(PATIENCE_S)

    site.answers[sha256(LIST)] = trickle
    assert "3 times: 0 bytes are kept" in refusal(cache(tmp_path), site.source())


def test_an_agent_serves_weights_from_a_web_server_and_stays_up_when_they_are_wrong(
    site: Site, tmp_path: Path, recorder: Any
) -> None:
    random_weights.write(
        zoo.published(CLIP),
        tmp_path,
        changes={"config.json": SMALLEST_CLIP, "preprocessor_config.json": {"size": 32, "crop_size": 32}},
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / CLIP).iterdir()}
    content = FileList(
        files={name: ListedFile(sha256=sha256(each), bytes=len(each)) for name, each in files.items()}
    ).encoded()
    site.files |= {sha256(each): each for each in (content, *files.values())}
    cache(tmp_path)
    good, bad = spec_of(site.source(content)), spec_of(site.source(b"not there"))
    with agent_in_memory(recorder, profile=profile(10**9), store=uncalibrated_store(10**9)) as listener:
        order = assignment(good, bad)
        listener.publish(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(order), retain=True))

        def settled(event: object) -> bool:
            if not isinstance(event, Delivery) or not event.topic.endswith("/heartbeat"):
                return False
            held = decode(Heartbeat, event.payload).modules
            return held.keys() == {good.key, bad.key} and "loading" not in {each.state for each in held.values()}

        modules = decode(Heartbeat, recorder.wait_for(settled, timeout_s=PATIENCE_S).payload).modules
    assert (modules[good.key].state, modules[good.key].error) == ("ready", None)
    assert modules[bad.key].state == "failed"
    assert "its server has no such file (404)" in str(modules[bad.key].error)


def test_a_command_that_is_no_agent_fetches_nothing(site: Site) -> None:
    with pytest.raises(ModuleRefused, match="are fetched by agents only"):
        hub.repository(site.source())
