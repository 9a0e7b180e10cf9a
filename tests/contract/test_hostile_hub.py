"""A hub that lies, or a proxy that changes its answers: nothing wrong is kept, and the reason is one sentence.

The hub is a small server on this machine that answers as each test says, and its client the real one.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from broker.protocol.codec import decode, encode
from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.messages import Heartbeat
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import ModuleSpec, Source
from broker.protocol.topics import DEVICE_ASSIGNMENT
from broker.transport.port import Delivery, Outgoing
from edge_agent import modules
from edge_agent.__main__ import main as agent_main
from edge_agent.modules.weights import downloads, hub
from edge_agent.modules.weights.allowed import AllowedWeights, allow
from edge_agent.modules.weights.digests import DigestDiffers
from edge_agent.modules.weights.progress import Progress, reporting_to
from s2m3.reference import random_weights, zoo
from tests.builders import PREFIX, assignment, module, profile, uncalibrated_store
from tests.media import SMALLEST_CLIP
from tests.patience import PATIENCE_S
from tests.threads import agent_in_memory

CLIP = "openai/clip-vit-base-patch16"
TINY = {"config.json": SMALLEST_CLIP, "preprocessor_config.json": {"size": 32, "crop_size": 32}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b'{"model_type": "clip"}' * 1000
LIMIT_BYTES = 1_000_000
SOURCE = Source(hub="org/name", part="vision", revision=COMMIT)


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Answers:
    """The answers of the hub, and the requests that it got."""

    head: dict[str, str] = field(default_factory=dict)  # headers besides, or instead
    head_status: int = 200
    get: Callable[[http.server.BaseHTTPRequestHandler], None] | None = None
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)  # method, path, headers in lower case
    files: Mapping[str, bytes] | None = None  # by name, the others don't exist; None: CONTENT under every name

    def content(self, path: str) -> bytes | None:
        """The file at a path of the hub."""
        return CONTENT if self.files is None else self.files.get(path.rpartition("/")[2])


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A hub that serves CONTENT under every name, but for what a test changes."""
    state = Answers()
    with served(state) as endpoint:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # between its client's attempts
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.delenv(hub.DIRECTORY_VARIABLE, raising=False)
        allow(AllowedWeights(hub=("org",)))
        yield state
        allow(None)


class served:  # noqa: N801 - a context manager
    """Serve these answers on a port of their own; gives the address."""

    def __init__(self, answers: Answers) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._note()
                content = answers.content(self.path)
                self.send_response(answers.head_status if content is not None else 404)
                facts = {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound", "Content-Length": "0"}
                if content is not None:
                    facts = {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": COMMIT}
                    facts["Content-Length"] = str(len(content))
                for name, value in (facts | answers.head).items():
                    self.send_header(name, value)
                self.end_headers()

            def do_GET(self) -> None:
                self._note()
                self.close_connection = True
                try:
                    (answers.get or (lambda handler: send(handler, answers.content(self.path) or b"")))(self)
                except OSError:  # its client is gone
                    return

            def _note(self) -> None:
                if self.path.startswith("/api/"):  # what its client tells of itself, once a process
                    return
                headers = {name.lower(): value for name, value in self.headers.items()}
                answers.asked.append((self.command, self.path, headers))

            def log_message(self, *_: object) -> None:
                """Keep silent."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    """Send one answer; a header's name has _ for -."""
    handler.send_response(status)
    fields = {"Content-Length": str(len(content))} | {name.replace("_", "-"): each for name, each in headers.items()}
    for name, value in fields.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def fetch(limit_bytes: int | None = LIMIT_BYTES, *files: str) -> Path:
    """Fetch a file as a load of a module does, which may download so many bytes."""
    with reporting_to(Progress(limit_bytes=limit_bytes)):
        repository = hub.repository(SOURCE)
        return [repository.required(file) for file in files or ("config.json",)][-1]


def kept(tmp_path: Path) -> list[str]:
    """The files of the cache that have content, without its marks."""
    found = (
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and not {".locks", ".no_exist"} & {*path.parts}
    )
    return sorted(path.name for path in found if path.name != "CACHEDIR.TAG")


def test_an_honest_file_is_kept_and_asked_for_without_compression(answers: Answers) -> None:
    assert fetch().read_bytes() == CONTENT
    assert [method for method, *_ in answers.asked] == ["HEAD", "GET"]
    assert answers.asked[1][2]["accept-encoding"] == "identity"
    answers.asked.clear()
    assert fetch().read_bytes() == CONTENT
    assert not answers.asked, "it is in the cache"


@pytest.mark.parametrize("status", [200, 206])
@pytest.mark.parametrize(
    "etag",
    [
        git_hash(CONTENT),
        hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest(),
        hashlib.sha256(CONTENT).hexdigest(),
    ],
)
def test_the_hash_that_a_hub_or_a_mirror_announces_is_checked_before_the_file_has_its_name(
    answers: Answers, tmp_path: Path, etag: str, status: int
) -> None:
    answers.head = {"X-Linked-Etag": f'W/"{etag}"'}
    answers.get = lambda handler: send(handler, CONTENT[:-1] + b"!", status)
    with pytest.raises(
        ModuleRefused, match=f"config.json of org/name@{COMMIT} has the hash .*the hub says {etag}"
    ) as e:
        fetch()
    assert "it was not kept; try again" in str(e.value)
    assert kept(tmp_path) == []
    answers.get = None
    assert fetch().read_bytes() == CONTENT


def test_another_commit_than_the_pinned_one_is_refused(answers: Answers, tmp_path: Path) -> None:
    answers.head = {"X-Repo-Commit": "f" * 40}
    with pytest.raises(ModuleRefused, match=r"the hub answered with config.json of .* of the commit 'ffff"):
        fetch()
    assert [method for method, *_ in answers.asked] == ["HEAD"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ETag", '"../../../../outside"'),
        ("X-Linked-Etag", '"/etc/outside"'),
        ("ETag", '".."'),
        ("X-Repo-Commit", "../../../../outside"),
    ],
)
def test_no_header_makes_a_path_outside_of_the_cache(
    answers: Answers, tmp_path: Path, status: int, name: str, value: str
) -> None:
    answers.head, answers.head_status = {name: value}, status
    with pytest.raises(ModuleRefused, match=r"is not a plain name|of the commit"):
        fetch()
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
    assert kept(tmp_path) == []


def test_a_file_that_is_announced_too_large_is_not_asked_for(answers: Answers) -> None:
    answers.head = {"Content-Length": str(LIMIT_BYTES + 1)}
    with pytest.raises(ModuleRefused, match=r"have 976\.563 KiB or more, .* may have 976\.562 KiB by its mem"):
        fetch()
    assert [method for method, *_ in answers.asked] == ["HEAD"]


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")


def test_a_file_without_an_end_is_given_up_at_the_limit_and_removed(answers: Answers, tmp_path: Path) -> None:
    answers.get = endless
    with pytest.raises(ModuleRefused, match=r"a download for this module may have 976\.6 KiB .*write download_bytes:"):
        fetch()
    assert kept(tmp_path) == []


def test_the_limit_is_of_all_files_of_a_load_together(answers: Answers) -> None:
    assert answers.get is None
    with pytest.raises(ModuleRefused, match=f"have {show_bytes(2 * len(CONTENT))} or more"):
        fetch(len(CONTENT) + 1, "config.json", "merges.txt")
    assert fetch(0) == fetch(0), "what is there already counts as nothing"


def test_a_compressed_answer_is_refused_before_it_can_grow(answers: Answers, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < LIMIT_BYTES
    answers.get = lambda handler: send(handler, bomb, Content_Encoding="gzip")
    with pytest.raises(ModuleRefused, match=r"comes compressed \(gzip\), which isn't read"):
        fetch()
    assert kept(tmp_path) == []


@pytest.mark.parametrize("status", [302, 404, 500])
def test_an_answer_that_is_no_file_is_not_read_without_an_end(answers: Answers, status: int) -> None:
    def get(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", "/elsewhere")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    answers.get = get
    with pytest.raises(ModuleRefused, match=f"the hub's answer {status} doesn't end"):
        fetch()


@pytest.mark.parametrize("announced", [len(CONTENT) - 10, len(CONTENT) + 10])
def test_a_length_that_is_not_the_files_ends_in_a_sentence(answers: Answers, tmp_path: Path, announced: int) -> None:
    answers.get = lambda handler: send(handler, CONTENT, Content_Length=str(announced))
    with pytest.raises(ModuleRefused, match=r"has the hash|or it refuses"):
        fetch()
    assert kept(tmp_path) == []


def test_a_download_that_breaks_off_goes_on_and_is_checked_as_a_whole(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 3000)
    half, kept_bytes = len(CONTENT) // 2, 9000  # in whole chunks

    def get(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "Range" in handler.headers:
            handler.send_response(206)
            handler.send_header("Content-Length", str(len(CONTENT) - kept_bytes))
            handler.end_headers()
            handler.wfile.write(CONTENT[kept_bytes:])
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(CONTENT)))
            handler.end_headers()
            handler.wfile.write(CONTENT[:half])

    answers.get = get
    assert fetch(len(CONTENT)).read_bytes() == CONTENT, "what broke off counts once"
    ranges = [headers.get("range") for method, _, headers in answers.asked if method == "GET"]
    assert ranges == [None, f"bytes={kept_bytes}-"]


def test_a_token_goes_to_no_other_host(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = Answers()
    with served(elsewhere) as address:
        other = address.replace("127.0.0.1", "localhost") + "/file"
        answers.get = lambda handler: send(handler, b"", 302, Location=other)
        assert fetch().read_bytes() == CONTENT
        answers.head, answers.head_status = {"Location": other, "X-Linked-Size": str(len(CONTENT))}, 302
        answers.head["X-Linked-Etag"] = git_hash(CONTENT)
        fetch(LIMIT_BYTES, "merges.txt")
    assert all(headers.get("authorization") == "Bearer hf_secret" for *_, headers in answers.asked)
    assert elsewhere.asked
    assert not any("authorization" in headers for *_, headers in elsewhere.asked)


def test_from_tls_no_redirect_leads_to_plain_http(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    with pytest.raises(ModuleRefused, match=r"the hub leads from https to http://127\.0\.0\.1"):
        fetch()
    assert not answers.asked


def test_a_disk_that_fills_up_ends_a_download_whatever_its_size(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "ROOM_EVERY_BYTES", 100_000)
    free = iter([10**9, 10**9, 10**9, downloads.DISK_RESERVE_BYTES - 1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    answers.get, answers.head = endless, {"ETag": '"abc"'}
    free_bytes = f"{downloads.DISK_RESERVE_BYTES - 1:,}"
    with pytest.raises(ModuleRefused, match=f"the download goes on, and {free_bytes} bytes are free"):
        fetch(10**9)
    assert kept(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(
    answers: Answers, tmp_path: Path
) -> None:
    assert answers.get is None
    blobs = tmp_path / "cache" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    for name, age_s in (("old.incomplete", downloads.ABANDONED_S + 60), ("new.incomplete", 0)):
        (blobs / name).write_bytes(b"x")
        os.utime(blobs / name, (time.time() - age_s,) * 2)
    fetch()
    assert [path.name for path in blobs.glob("*.incomplete")] == ["new.incomplete"]


@pytest.mark.parametrize(
    ("revision", "got"),
    [
        (None, "no revision"),
        ("main", "the revision main"),
        ("v1.0", "the revision v1.0"),
        (COMMIT[:7], f"the revision {COMMIT[:7]}"),
        (COMMIT.upper(), "the revision"),
        (f"{COMMIT}\n", "the revision"),
        ("refs/pr/1", "the revision refs/pr/1"),
    ],
)
def test_only_a_commit_is_a_revision(answers: Answers, revision: str | None, got: str) -> None:
    source = Source(hub="org/name", part="vision", revision=revision)
    with pytest.raises(ModuleRefused, match="only a commit names the same weights for ever: write revision:") as caught:
        hub.repository(source)
    assert f"has {got}" in str(caught.value)
    assert not answers.asked


def test_an_organisation_that_is_not_allowed_is_not_asked_for_nor_read_from_the_cache(answers: Answers) -> None:
    fetch()
    answers.asked.clear()
    allow(AllowedWeights(hub=("catalogue",)))
    with pytest.raises(ModuleRefused, match=r"hub:org/name@\w+#vision is not allowed on this device") as caught:
        fetch()
    assert "write weights: {hub: [catalogue, org/name]} in the agent's file" in str(caught.value)
    assert not answers.asked


@pytest.mark.parametrize(
    ("spec", "limit_bytes"),
    [
        (module("a", 10**6), 8 * 10**6 + 64 * 2**20),
        (module("a", 4, source=SOURCE.model_copy(update={"download_bytes": 10**9})), 10**9 + 64 * 2**20),
        (module("a", 10**9, source=SOURCE.model_copy(update={"download_bytes": 10**6})), 10**6 + 64 * 2**20),
    ],
)
def test_the_limit_follows_from_the_spec(spec: ModuleSpec, limit_bytes: int) -> None:
    assert spec.download_limit_bytes == limit_bytes


def test_downloaded_weights_of_another_digest_are_set_aside_and_fetched_again_and_nothing_else_is(
    answers: Answers, tmp_path: Path
) -> None:
    directory = random_weights.write(zoo.published(CLIP), tmp_path / "written", changes=TINY)
    answers.files = {path.name: path.read_bytes() for path in directory.iterdir()}
    allow(None)
    source = Source(hub=CLIP, part="vision", revision=COMMIT)
    right = module("vision", 10**7, family="clip.vision", source=source)
    wrong = right.model_copy(update={"digest": f"sha256:{'0' * 64}"})
    with pytest.raises(DigestDiffers, match=r"spec says sha256:0+: .* what was downloaded is now named .*\.refused"):
        modules.load(wrong)
    assert all(name.endswith(".refused") for name in kept(tmp_path)), kept(tmp_path)
    asked = len(answers.asked)
    modules.load(right)
    assert len(answers.asked) > asked, "it is fetched again"
    asked, names = len(answers.asked), kept(tmp_path)
    with pytest.raises(DigestDiffers) as caught:
        modules.load(wrong)
    assert ".refused" not in str(caught.value)
    assert (len(answers.asked), kept(tmp_path)) == (asked, names), (
        "what served before stays, for a device without a network"
    )


def test_an_agent_reports_a_source_that_is_not_allowed_with_the_line_to_write(answers: Answers, recorder: Any) -> None:
    allow(None)
    spec = module("vision", 10**7, family="clip.vision", source=SOURCE)

    def failed(event: object) -> bool:
        if not isinstance(event, Delivery) or not event.topic.endswith("/heartbeat"):
            return False
        return any(held.state == "failed" for held in decode(Heartbeat, event.payload).modules.values())

    with agent_in_memory(recorder, profile=profile(10**9), store=uncalibrated_store(10**9)) as listener:
        topic = DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a")
        listener.publish(Outgoing(topic, encode(assignment(spec)), retain=True))
        heard = recorder.wait_for(failed, timeout_s=2 * PATIENCE_S)
    (held,) = decode(Heartbeat, heard.payload).modules.values()
    assert held.error is not None
    assert f"hub:org/name@{COMMIT}#vision is not allowed on this device" in held.error
    assert "write weights: {hub: [catalogue, org/name]} in the agent's file" in held.error
    assert not answers.asked


def test_a_mirror_of_the_hub_is_asked_by_its_variable(tmp_path: Path) -> None:
    """The client reads HF_ENDPOINT when a process starts; the agent's checks are the same for a mirror."""
    script = (
        "from broker.protocol.specs import Source; from edge_agent.modules.weights import hub; "
        "from edge_agent.modules.weights.allowed import AllowedWeights, allow; allow(AllowedWeights(hub=('org',))); "
        f"source = Source(hub='org/name', part='vision', revision='{COMMIT}'); "
        "print(hub.repository(source).required('config.json'))"
    )
    state = Answers()
    with served(state) as endpoint:
        mirror = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), hub.DIRECTORY_VARIABLE: ""}
        command = [sys.executable, "-c", script]
        found = subprocess.run(command, env=os.environ | mirror, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()).read_bytes() == CONTENT
    assert {path for _, path, _ in state.asked} == {f"/org/name/resolve/{COMMIT}/config.json"}


@pytest.mark.parametrize("endpoint", ["mirror.lan", "", "ftp://mirror.lan", "http://", "https://me:secret@mirror.lan"])
def test_a_wrong_mirror_is_refused_in_one_line_that_shows_no_login(
    endpoint: str, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(BadFile, match=r"^HF_ENDPOINT: ") as e:
        hub.check_endpoint()
    assert "secret" not in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(ModuleRefused, match=r"^HF_ENDPOINT: "):
        fetch()
    assert not answers.asked


def test_an_agent_with_a_wrong_mirror_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.lan")
    monkeypatch.setattr("edge_agent.__main__.share_one_heap", lambda: None)  # this process serves other tests, too
    (tmp_path / "gw-a.yaml").write_text(f"id: gw-a\nstate_dir: {tmp_path}\n")
    assert agent_main(["--config", str(tmp_path / "gw-a.yaml")]) == 2
    said = "edge_agent: HF_ENDPOINT: is 'mirror.lan', not the address of a mirror; write https://host"
    assert said in capsys.readouterr().err


def test_a_mirror_that_is_away_is_named(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.lan/hub")
    answers.head_status = 503
    with pytest.raises(ModuleRefused, match=r"no network for https://mirror\.lan/hub \(HF_ENDPOINT\), "):
        fetch()
