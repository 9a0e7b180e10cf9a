"""The commands that listen for HTTP: what is wrong with their address or their installation is one line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from s2m3.cli.main import main
from tests.certificates import Authority

HTTP = ("uvicorn", "starlette", "python_multipart")
NEEDS = {"http": HTTP, "dashboard": HTTP, "metrics": ("prometheus_client",)}
"""The packages of each command's extra."""


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The one line that a command ends with."""
    assert main(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("command", NEEDS)
def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: port {port} of 127.0.0.1 is in use" in refused(capsys, command, "--port", str(port))


def test_an_address_that_isnt_this_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--bind: can't listen at 192.0.2.1" in refused(capsys, "metrics", "--port", "0", "--bind", "192.0.2.1")


@pytest.mark.parametrize(("command", "package"), [(name, each) for name, needed in NEEDS.items() for each in needed])
def test_without_the_extra_one_line_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, package: str
) -> None:
    for name in list(sys.modules):
        if name.startswith(("s2m3.http", "s2m3.dashboard", "s2m3.metrics", package)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, command, status=1)
    assert package.replace("_", "-") in line.replace("_", "-")
    assert f"pip install 's2m3[{command}]'" in line


def test_an_address_of_the_door_that_isnt_this_machines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t\n")
    with_token = ("--token-file", str(tmp_path / "token"), "--tls-cert", "x")
    for address in ("192.0.2.1", "nowhere.invalid", "a" * 70, "::zz"):
        files = Authority(tmp_path).issue("door", "127.0.0.1")
        given = [*with_token[:3], str(files.cert), "--tls-key", str(files.key), "--port", "0", "--bind", address]
        assert "--bind: can't listen at" in refused(capsys, "http", *given)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "door.lan"])  # noqa: S104 - it is refused
def test_no_token_beyond_this_machine(capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert "--token-file" in refused(capsys, "http", "--bind", address)


def test_a_token_file_that_cant_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "token"
    assert "the token file can't be read" in refused(capsys, "http", "--token-file", str(path))
    path.write_text("\n")
    assert "the token file is empty" in refused(capsys, "http", "--token-file", str(path))
    path.write_text("one-s3cret\ntwo-s3cret\n")
    assert "s3cret" not in refused(capsys, "http", "--token-file", str(path))


def test_a_certificate_that_cant_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one", "127.0.0.1"), authority.issue("other", "127.0.0.1")
    assert "name --tls-cert" in refused(capsys, "http", "--tls-key", str(one.key))
    assert "can't be read" in refused(capsys, "http", "--tls-cert", str(tmp_path / "none"))
    given = ("--port", "0", "--tls-cert", str(one.cert), "--tls-key", str(other.key))
    assert "isn't that of the certificate" in refused(capsys, "http", *given)
