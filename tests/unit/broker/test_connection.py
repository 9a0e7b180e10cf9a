"""Where a connection comes from: addresses, files, the environment, and which of them counts."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from broker.transport import connection
from broker.transport.connection import (
    Connection,
    Place,
    command_line,
    connection_file,
    parse_url,
    read_connection,
    read_password,
)


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests don't depend on the environment, nor on what another one was warned of."""
    for key in ("BROKER", "CA", "CERT", "KEY", "USER", "PASSWORD_FILE", "SITE"):
        monkeypatch.delenv(f"S2M3_{key}", raising=False)
    monkeypatch.setattr(connection, "_warned", set[str]())


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The warnings so far."""
    told = set[str]()
    monkeypatch.setattr(connection, "_warned", told)
    return told


def file(folder: Path, text: str, name: str = "site.yaml") -> Place:
    (folder / name).write_text(text)
    return connection_file(folder / name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://gw", Connection("gw", 1883)),
        ("mqtts://gw", Connection("gw", 8883, tls=True)),
        ("MQTT://GW.Lan:1884/", Connection("gw.lan", 1884)),
        ("mqtt://[::1]", Connection("::1", 1883)),
        ("mqtts://[fe80::1%eth0]:8884", Connection("fe80::1%eth0", 8884, tls=True)),
        (" mqtt://gw:\n", Connection("gw", 1883)),
        ("mqtt://cam@gw", Connection("gw", user="cam")),
        ("mqtt://cam:@gw", Connection("gw", user="cam")),
        ("mqtt://cam:p%23w%2Fd@gw", Connection("gw", user="cam", password="p#w/d")),  # noqa: S106 - of a test
        ("mqtt://cam:a@b:c[1]@gw:1", Connection("gw", 1, user="cam", password="a@b:c[1]")),  # noqa: S106
    ],
)
def test_an_address_is_read(url: str, expected: Connection) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mqtt://num:12#34@127.0.0.1:1883", "percent-encode the password"),
        ("mqtt://num:12?34@127.0.0.1:1883", "percent-encode the password"),
        ("mqtt://num:12/34@127.0.0.1:1883", "percent-encode the password"),
        ("mqtt://num:12#34", "port"),
        ("mqtt://gw:1883#34", "port"),
        ("mqtt://gw/34", "no path"),
        ("mqtt://gw?34", "no path"),
        ("mqtt://gw#34", "no path"),
        ("mqtt://num:12s34", "port"),
        ("mqtt://gw:65536", "port"),
        ("mqtt://gw:0", "port"),
        ("mqtt://", "must have a host"),
        ("mqtt://num:1234@", "must have a host"),
        ("mqtt://::1", "in brackets"),
        ("mqtt://:1234@gw", "a password without a user"),
        ("mqtt://num:12%0034@gw", "control character"),
        ("mqtt://num:12\t34@gw", "control character"),
        ("mqtt://num:12%FF34@gw", "isn't UTF-8"),
        ("gw:1883", "has no mqtt://"),
        ("num:1234@gw", "has no mqtt://"),
        ("tcp://gw", "begins with tcp://"),
    ],
)
def test_an_address_that_is_not_one_is_refused_without_a_part_of_its_password(url: str, sentence: str) -> None:
    with pytest.raises(BadFile, match=sentence) as caught:
        parse_url(url)
    assert "34" not in str(caught.value)
    assert "12" not in str(caught.value)


def test_no_password_is_in_a_representation() -> None:
    assert "s3cret" not in repr(parse_url("mqtt://num:s3cret@gw"))
    assert "s3cret" not in repr(command_line(broker="mqtt://num:s3cret@gw"))
    assert str(parse_url("mqtts://num:s3cret@gw")) == "gw:8883"
    assert parse_url("mqtts://num:s3cret@gw").url == "mqtts://gw:8883"


def test_the_command_line_counts_more_than_the_file_and_the_file_more_than_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2M3_BROKER", "mqtt://from-environment")
    monkeypatch.setenv("S2M3_SITE", "plant-1")
    monkeypatch.setenv("S2M3_USER", "")
    given = file(tmp_path, "broker: mqtts://from-file\nuser: cam\nclient_id: cam-1\nca: ca.pem\n")
    assert read_connection() == Connection("from-environment", site="plant-1")
    expected = Connection(
        "from-file", 8883, tls=True, ca=tmp_path / "ca.pem", user="cam", client_id="cam-1", site="plant-1"
    )
    assert read_connection(given) == expected
    found = read_connection(command_line(broker="mqtts://typed:1", ca="my.pem", site="plant-2"), given)
    assert (str(found), found.ca, found.user, found.site) == ("typed:1", Path("my.pem"), "cam", "plant-2")


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    found = read_connection(
        file(tmp_path, "broker: mqtts://gw\nca: ca.pem\ncert: c.pem\nkey: /k.pem\nuser: cam\npassword_file: password\n")
    )
    assert (found.ca, found.cert, found.key) == (tmp_path / "ca.pem", tmp_path / "c.pem", Path("/k.pem"))
    assert found.password == "s3cret"  # noqa: S105 - of a test


def test_a_password_of_another_user_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret")
    cam = file(tmp_path, "user: cam\npassword_file: password\n")
    assert read_connection(command_line(user="operator"), cam).password is None
    assert read_connection(command_line(user="cam"), cam).password == "s3cret"  # noqa: S105 - of a test
    nameless = file(tmp_path, "password_file: password\n", "nameless.yaml")
    assert read_connection(command_line(user="operator"), nameless).password == "s3cret"  # noqa: S105 - of a test
    assert read_connection(command_line(broker="mqtt://operator:typed@localhost"), cam).password == "typed"  # noqa: S105 - of a test


def test_a_name_in_the_certificate_goes_with_its_address(tmp_path: Path) -> None:
    tunnel = file(tmp_path, "broker: mqtts://127.0.0.1:18883\nserver_name: gw.lan\n")
    assert read_connection(tunnel).server_name == "gw.lan"
    assert read_connection(command_line(broker="mqtts://other"), tunnel).server_name is None


def test_a_key_of_another_certificate_is_not_used(tmp_path: Path) -> None:
    cam = file(tmp_path, "broker: mqtts://gw\ncert: cam.pem\nkey: cam.key\n")
    assert read_connection(cam).key == tmp_path / "cam.key"
    assert read_connection(command_line(cert="both.pem"), cam).key is None
    assert read_connection(command_line(key="new.key"), cam).key == Path("new.key")


def test_an_agents_data_connection_has_the_second_account_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    both = "user: gw-a\npassword_file: one\n"
    one = file(tmp_path, both)
    assert (read_connection(one, data=True).user, read_connection(one, data=True).password) == ("gw-a", "1")
    two = file(tmp_path, f"{both}data_user: gw-a-data\ndata_password_file: two\n")
    assert (read_connection(two).user, read_connection(two).password) == ("gw-a", "1")
    assert (read_connection(two, data=True).user, read_connection(two, data=True).password) == ("gw-a-data", "2")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("broker: mqtt://num:12#34@gw\n", r"site.yaml:1: broker: has #, \? or / before the last @"),
        ("broker: mqtt://gw\nca: ca.pem\n", "site.yaml:2: ca: is for a connection with TLS"),
        ("ca: ca.pem\n", "the broker's address is mqtt://127.0.0.1:1883"),
        ("broker: mqtts://gw\nkey: c.key\n", "site.yaml:2: key: is of no use without a certificate"),
        ("password_file: password\n", "site.yaml:1: password_file: is of no use without a user"),
        ("broker: mqtt://cam:x@gw\nuser: cam\n", "site.yaml:2: user: names a login"),
        ("user: cam\npassword_file: nowhere\n", "nowhere: the password file can't be read: No such file"),
        ("user: cam\npassword_file: empty\n", "empty: the password file is empty"),
        ("user: cam\npassword_file: lines\n", "lines: the password file must hold one line"),
        ("user: cam\npassword_file: latin\n", "latin: the password file must hold one line"),
        ("user: cam\npassword_file: .\n", "the password file can't be read: Is a directory"),
        ("passwort: x\n", "known fields: broker, ca, cert, key, server_name, user, password_file"),
        ("site: Plant\n", "site"),
        *(
            (f"server_name: {name}\n", "site.yaml:1: server_name: is not a valid name or IP")
            for name in (".x", "a..b", 64 * "a")
        ),
        ('client_id: "a\\0b"\n', "site.yaml:1: client_id: must have no control character"),
        (f"user: {1001 * 'a'}\n", "site.yaml:1: user: must have at most 1000 characters"),
        ("mqtt://u:pa/ss@gw: x\n", "site.yaml:1: mqtt://…@gw: is not a known field"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    for name, content in {"password": b"x", "empty": b"\n", "lines": b"one\ntwo\n", "latin": b"\xfcber"}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=sentence):
        read_connection(file(tmp_path, text))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"user": "a\0b"}, "--user: must have no control character"),
        ({"server_name": ".x"}, "--server-name: is not a valid name"),
        ({"broker": f"mqtt://u:{70_000 * 'p'}@gw"}, "--broker: has a user or a password of more than 65535 bytes"),
    ],
)
def test_a_wrong_option_is_told_by_its_name(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadFile, match=sentence):
        read_connection(command_line(**given))


def test_an_address_where_a_file_is_wanted_is_shown_without_its_login() -> None:
    with pytest.raises(BadFile, match=r"^mqtt://…@gw: No such file"):
        connection_file("mqtt://user:secret@gw")


def test_a_wrong_variable_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2M3_SITE", "Plant")
    with pytest.raises(BadFile, match="S2M3_SITE: "):
        read_connection()
    monkeypatch.delenv("S2M3_SITE")
    monkeypatch.setenv("S2M3_BROKER", "gw")
    with pytest.raises(BadFile, match="S2M3_BROKER: has no mqtt://"):
        read_connection()


def test_a_variable_for_tls_is_no_error_where_the_command_line_names_a_plain_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("S2M3_BROKER", "mqtts://gw")
    monkeypatch.setenv("S2M3_CA", "ca.pem")
    assert read_connection(command_line(broker="mqtt://127.0.0.1")) == Connection()
    assert read_connection().ca == Path("ca.pem")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_the_end_of_the_line_is_no_part_of_the_password(tmp_path: Path, ending: str) -> None:
    (tmp_path / "password").write_bytes(f" s3 cret {ending}".encode())
    assert read_password(tmp_path / "password") == " s3 cret "


def test_a_password_in_plain_text_on_the_network_is_warned_of_once(warnings: set[str]) -> None:
    for host in ("127.0.0.1", "localhost", "127.3.2.1", "[::1]"):
        read_connection(command_line(broker=f"mqtt://cam:s3cret@{host}"))
    read_connection(command_line(broker="mqtts://cam:s3cret@gw"))
    read_connection(command_line(broker="mqtt://cam@gw"))
    assert not warnings
    for _ in range(2):
        read_connection(command_line(broker="mqtt://cam:s3cret@gw"))
    assert len(warnings) == 1
    assert "plain text" in min(warnings)
    assert "s3cret" not in min(warnings)


def test_a_password_file_that_everybody_can_read_is_warned_of(tmp_path: Path, warnings: set[str]) -> None:
    path = tmp_path / "password"
    path.write_text("s3cret")
    for mode, warned in ((0o600, False), (0o640, False), (0o644, True)):
        path.chmod(mode)
        read_connection(command_line(user="cam", password_file=str(path)))
        assert bool(warnings) == warned


def test_a_file_with_a_password_in_its_address_is_warned_of_as_a_password_file(
    tmp_path: Path, warnings: set[str]
) -> None:
    read_connection(file(tmp_path, "broker: mqtt://127.0.0.1\n"))
    assert not warnings
    read_connection(file(tmp_path, "broker: mqtt://cam:s3cret@127.0.0.1\n"))
    path = tmp_path / "site.yaml"
    assert warnings == {f"every user of this machine can read {path}: chmod 600 {path}"}


def test_a_password_from_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("s3cret\n",))
    writer.start()
    found = read_connection(command_line(user="cam", password_file=str(path)))
    writer.join()
    assert found.renewed().password == "s3cret"  # noqa: S105 - of a test


def test_a_new_password_in_its_file_counts_at_the_next_connection(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("old")
    found = read_connection(command_line(user="cam", password_file=str(path)))
    path.write_text("new")
    assert found.renewed().password == "new"  # noqa: S105 - of a test
    path.unlink()
    assert found.renewed().password == "old"  # noqa: S105 - of a test
