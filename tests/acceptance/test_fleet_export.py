"""``s2m3 fleet export``: what is refused, in one line and with exit code 2, before a file is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.protocol.codec import encode
from broker.protocol.topics import DEVICE_STATE, ORCHESTRATOR_STATE, prefix_of
from broker.servers.access import Account, Role
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.port import Outgoing
from s2m3.cli import fleet
from s2m3.testbed.replay.stage import connected
from s2m3.testbed.site_export import Exported
from tests.builders import leader, offline
from tests.secured import SecuredSite

Refuse = Callable[..., str]


@pytest.fixture
def refused(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs the command, which must end with 2 and one line; returns it."""

    def run(*arguments: object) -> str:
        assert exit_code(["fleet", "export", *map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("s2m3: ")
        assert printed.err.count("\n") == 1, printed.err
        return printed.err

    return run


@pytest.fixture
def broker() -> Iterator[str]:
    with MosquittoBroker() as running:
        yield running.url


def test_a_folder_that_is_there_is_left_as_it_is(refused: Refuse, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    assert "site: is there already; remove it, or name a new folder" in refused(tmp_path / "site")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "link: is there already" in refused(tmp_path / "link")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["mine.txt"]


def test_a_models_directory_that_is_none_is_told(refused: Refuse, tmp_path: Path) -> None:
    assert "--models: nowhere is not a folder; name a models" in refused(tmp_path / "site", "--models", "nowhere")


def test_a_site_without_devices_is_told_apart_from_no_site(refused: Refuse, broker: str, tmp_path: Path) -> None:
    nobody = refused(tmp_path / "site", "--broker", broker)
    assert "no device and no orchestrator is to be seen; start them, name the site that they are at, or use" in nobody
    prefix = prefix_of()
    with connected(parse_url(broker), lambda _: None) as publisher:
        publisher.publish(Outgoing(ORCHESTRATOR_STATE.at(prefix), encode(leader(1)), retain=True))
    alone = refused(tmp_path / "site", "--broker", broker)
    assert "fleet export: the site has no device to export; start an agent" in alone
    with connected(parse_url(broker), lambda _: None) as publisher:
        publisher.publish(Outgoing(DEVICE_STATE.at(prefix, device="gw-a"), encode(offline()), retain=True))
    away = refused(tmp_path / "site", "--broker", broker)
    assert "the site has no device to export (gw-a: it is offline); start an agent" in away
    assert not (tmp_path / "site").exists()


def test_an_account_that_may_not_read_the_site_is_told_so(refused: Refuse, tmp_path: Path) -> None:
    accounts = (Account(Role.SENSOR, "cam-1"), Account(Role.OPERATOR, "operator"))
    with SecuredSite(tmp_path / "setup", accounts) as site:
        told = refused(tmp_path / "site", "--connection", site.folder("cam-1") / "connection.yaml")
        assert "this account may not read s2m3/v1/" in told
        assert "; use an account that may: an operator's or an observer's" in told
        file = site.folder("operator") / "connection.yaml"
        assert "no device and no orchestrator is to be seen" in refused(tmp_path / "site", "--connection", file)


@pytest.mark.parametrize("place", ["nowhere/site", "file.txt/site", "/dev/full/site"])
def test_a_folder_that_cant_be_made_is_told(
    refused: Refuse, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file.txt").touch()
    monkeypatch.setattr(fleet, "_export", lambda *_: Exported({"a": b""}, ["gw-a"], ["t"], {}, []))
    told = refused(tmp_path / place, "--broker", broker)
    assert "site: can't be made: " in told
    assert "name a new folder in one that you may change" in told


def test_when_the_disk_is_full_nothing_is_left(
    refused: Refuse, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> int:
        if path.name == "b":
            raise OSError(28, os.strerror(28))
        with path.open("wb") as file:
            return file.write(content)

    monkeypatch.setattr(fleet, "_export", lambda *_: Exported({"a": b"x", "c/b": b"x"}, ["gw-a"], ["t"], {}, []))
    monkeypatch.setattr(Path, "write_bytes", write)
    told = refused(tmp_path / "site", "--broker", broker)
    assert "site: can't be written: No space left on device; free some room, or name another folder" in told
    assert not (tmp_path / "site").exists()
