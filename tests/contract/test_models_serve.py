"""``s2m3 models store`` fills a folder, which its own server and any other give to agents; the processes are real."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import Source, Variant
from edge_agent.modules.loader import Loader
from edge_agent.modules.weights.allowed import AllowedWeights, allow
from edge_agent.modules.weights.download_settings import Downloads
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE
from edge_agent.modules.weights.stored import Cache, keep_in
from s2m3.cli.main import main
from s2m3.weights_folder import store
from tests.certificates import Authority
from tests.onnx_models import spec as onnx_spec
from tests.onnx_models import write_export
from tests.patience import PATIENCE_S

FILES = {"config.json": b"{}", "model.safetensors": save({"a": np.arange(65536.0)}), "tokenizer.json": b"[]"}
BESIDE = {"pytorch_model.bin": b"pickle", ".hidden": b"x", "a b.txt": b"x"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = tmp_path / "org" / "name"
    (made / "folder").mkdir(parents=True)
    for name, content in (FILES | BESIDE).items():
        (made / name).write_bytes(content)
    return made


@pytest.fixture
def fetched(tmp_path: Path) -> Iterator[Any]:
    """Fetches a stored source from a server, as an agent does."""

    def fetch(found: dict[str, Any], base: str, **settings: Any) -> dict[str, bytes]:
        allow(AllowedWeights(url=(base,)))
        url = f"{base}sha256/{found['digest'].removeprefix('sha256:')}"
        source = Source(url=url, digest=found["digest"], part="vision")
        directory = Cache(tmp_path / "cache", Downloads(**settings)).directory_of(source)
        return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}

    yield fetch
    allow(None)


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The real command; gives the URL that it prints."""
    command = [sys.executable, "-m", "s2m3", "models", "serve", *options, "--port", "0", "--until-stdin-closes"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield re.findall(r"https?://\S+/", line)[0]
        finally:
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0


def test_a_stored_repository_is_served_with_tls_and_a_token_and_goes_on_after_a_cut(
    repository: Path, tmp_path: Path, fetched: Any
) -> None:
    found = store(tmp_path / "store", repository, "https://localhost:1/")
    assert (found["files"], found["bytes"]) == (len(FILES), sum(map(len, FILES.values())))
    assert found["left_out"] == sorted(BESIDE)
    assert store(tmp_path / "store", repository, "https://localhost:1/") == found
    authority = Authority(tmp_path)
    own = authority.issue("store", "127.0.0.1")
    (tmp_path / "token").write_text("a token\n")
    begun = tmp_path / "cache" / "begun" / found["digest"].removeprefix("sha256:")
    begun.mkdir(parents=True)
    (begun / "model.safetensors.incomplete").write_bytes(FILES["model.safetensors"][:1000])
    tls = ("--tls-cert", str(own.cert), "--tls-key", str(own.key))
    with served(str(tmp_path / "store"), "--token-file", str(tmp_path / "token"), *tls) as base:
        ca = {"ca": str(authority.file)}
        with pytest.raises(ModuleRefused, match="answers 401, it wants another token or none came"):
            fetched(found, base, **ca)
        with pytest.raises(ModuleRefused, match=r"its certificate isn't trusted .*downloads: \{ca: FILE\}"):
            fetched(found, base)
        assert fetched(found, base, tokens={base: str(tmp_path / "token")}, **ca) == FILES


def asked(base: str, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection(urlsplit(base).netloc, timeout=PATIENCE_S)
    try:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_nothing_but_weights_is_served(repository: Path, tmp_path: Path) -> None:
    store(tmp_path / "store", repository, "http://h/")
    (tmp_path / "store" / "sha256" / "notes.txt").write_text("private")
    (tmp_path / "store" / "sha256" / ("f" * 64)).mkdir()
    with served(str(tmp_path / "store")) as base:
        assert asked(base, "healthz") == (200, b"ok\n")
        strange = ("", "sha256/", "sha256/notes.txt", f"sha256/{'f' * 64}", f"sha256/{'0' * 64}", "sha256/%2e%2e%2fx")
        for path in strange:
            assert asked(base, path)[0] == 404


def test_any_web_server_serves_the_folder(repository: Path, tmp_path: Path, fetched: Any) -> None:
    found = store(tmp_path / "store", repository, "http://h/")
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path / "store")]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = re.findall(r"port (\d+)", process.stdout.readline())
        try:
            assert fetched(found, f"http://127.0.0.1:{port[0]}/") == FILES
        finally:
            process.terminate()


@pytest.mark.parametrize("end", [".onnx", ".safetensors"])
def test_a_single_file_is_stored_under_the_name_that_families_read(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"mine{end}"
    weights = FILES["model.safetensors"]
    path.write_bytes(weights)
    digest = store(tmp_path / "store", path, "http://h/")["digest"].removeprefix("sha256:")
    listed = json.loads((tmp_path / "store" / "sha256" / digest).read_bytes())
    content = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    assert listed == {"format": 1, "files": {f"model{end}": content}}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: (path / "model.safetensors").unlink(), "has no safetensors, ONNX or CTranslate2 files; name the"),
        (shutil.rmtree, "No such file or directory; name a repository's"),
        (
            lambda path: (path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "model.safetensors: is a Git LFS pointer, not the weights; run `git lfs pull` in its repository",
        ),
        (
            lambda path: (path / "model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "model.onnx: is a Git LFS pointer, not the weights; run `git lfs pull` in its repository",
        ),
        (
            lambda path: (path / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1]),
            "is not a complete safetensors file",
        ),
        (lambda path: (path.parents[1] / "store").write_bytes(b""), "Not a directory; free some room there"),
    ],
)  # fmt: skip
def test_what_cant_be_stored_is_one_line(repository: Path, tmp_path: Path, spoil: Any, problem: str) -> None:
    spoil(repository)
    with pytest.raises(BadFile, match=re.escape(problem)):
        store(tmp_path / "store", repository, "http://h/")


def test_a_wrong_url_is_an_error_of_its_option(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="--url: is not the beginning of a URL") as caught:
        store(tmp_path / "store", repository, "http://user:secret@h/")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("{empty}",), "has no folder sha256, so it holds no weights; fill it with `s2m3 models store`"),
        (("{store}", "--tls-key", "x"), "--tls-key: is of no use without a certificate; name --tls-cert, too"),
        (("{store}", "--token-file", "{empty}/none"), "the token file can't be read"),
        (("{store}", "--bind", "192.0.2.1"), "--bind: can't listen at 192.0.2.1:8090"),
    ],
)
def test_what_cant_be_served_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "store" / "sha256").mkdir(parents=True)
    places = {"empty": tmp_path / "empty", "store": tmp_path / "store"}
    assert main(["models", "serve", *(each.format(**places) for each in options)]) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert problem in line
    assert all(each.startswith("s2m3: warning: ") for each in warnings)


def test_an_export_that_a_variant_names_by_url_runs_without_a_models_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    (tmp_path / "made").mkdir()
    write_export(tmp_path / "made")
    directory = next(path for path in (tmp_path / "made").iterdir() if path.is_dir())
    store(tmp_path / "store", directory, "http://h/")
    with served(str(tmp_path / "store")) as base:
        allow(AllowedWeights(url=(base,)))
        found = store(tmp_path / "store", directory, base)
        keep_in(Cache(tmp_path / "cache", Downloads()))
        try:
            source = Source(url=found["url"], digest=found["digest"], part="export")
            variant = Variant(engine="onnx", source=source, memory_bytes=4096)
            loaded = Loader("onnx").load(onnx_spec(variants=(variant,)))
        finally:
            keep_in(None)
            allow(None)
    assert loaded.engine == "onnx"
