"""Each reason why there is no connection is said as what it is, in one line, at once, by everything that connects."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as paho
import pytest
import structlog
from paho.mqtt.enums import CallbackAPIVersion
from structlog.testing import capture_logs

from broker.client import Client
from broker.protocol.codec import encode
from broker.protocol.errors import BadFile, ErrorCode, NotConnected
from broker.protocol.messages import MAX_DEADLINE_S, Route
from broker.protocol.topics import TASK_ROUTE, prefix_of
from broker.servers.embedded import EmbeddedBroker
from broker.servers.mosquitto import MosquittoBroker
from broker.servers.ports import HOST, free_port
from broker.transport import connection as connections
from broker.transport import dial
from broker.transport.connection import Connection, command_line, parse_url, read_connection
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, Denied, LinkDown, LinkUp, Outgoing
from edge_agent.config import AgentConfig
from edge_agent.modules import Output
from edge_agent.service import Agent
from orchestrator.service import Orchestrator
from s2m3.cli import arguments
from s2m3.cli.main import main
from tests.builders import computing, profile, uncalibrated_store
from tests.certificates import Authority, Files
from tests.patience import PATIENCE_S, until
from tests.threads import running, small_site

SECRET = "s3cret-w0rd"  # noqa: S105 - of a test
CONNACK = bytes.fromhex("20 03 00 00 00")
StartMosquitto = Callable[..., MosquittoBroker]
Serve = Callable[..., int]


@pytest.fixture(autouse=True)
def warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what another one was warned of."""
    monkeypatch.setattr(connections, "_warned", set[str]())


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts peers that answer each connection's first bytes with these, and then are silent; returns the port."""
    with contextlib.ExitStack() as stack:

        def start(answer: bytes | None, certificate: Files | None = None, *, ends: bool = False) -> int:
            """With ``answer`` None the peer says nothing. With a certificate it speaks TLS. ``ends``: it hangs up."""
            listener = stack.enter_context(socket.create_server((HOST, 0)))

            def talk(peer: socket.socket) -> None:
                with contextlib.suppress(OSError), contextlib.ExitStack() as talk:
                    talk.enter_context(peer)
                    if certificate is not None:
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(certificate.cert, certificate.key)
                        peer = talk.enter_context(context.wrap_socket(peer, server_side=True))
                    if answer is not None and peer.recv(4096):
                        peer.sendall(answer)
                    while not ends and peer.recv(4096):
                        pass

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        peer = listener.accept()[0]
                        threading.Thread(target=talk, args=(peer,), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return int(listener.getsockname()[1])

        yield start


@pytest.fixture
def reason(make_recorder: Any) -> Iterator[Callable[[Connection], LinkDown]]:
    """Connects; returns why that failed."""
    with contextlib.ExitStack() as stack:

        def connect(connection: Connection) -> LinkDown:
            inbox = make_recorder()
            transport = MqttTransport(connection, client_id="s2m3.clients.a", inbox=inbox)
            stack.callback(transport.close)
            transport.start()
            found = inbox.wait_for(lambda event: isinstance(event, LinkDown | LinkUp))
            assert isinstance(found, LinkDown)
            assert SECRET not in found.reason
            assert "\n" not in found.reason
            return found

        yield connect


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Mosquitto that wants the password of ``alice``."""
    passwords = tmp_path_factory.mktemp("locked") / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "alice", SECRET], check=True, capture_output=True)
    with MosquittoBroker(settings=["allow_anonymous false", f"password_file {passwords}"]) as broker:
        yield broker.port


@pytest.fixture(scope="module")
def mutual(authority: Authority) -> Iterator[int]:
    """The port of a Mosquitto that wants a client certificate."""
    settings = (*authority.issue("mutual", HOST).settings(authority.file), "require_certificate true")
    with MosquittoBroker(settings=settings) as broker:
        yield broker.port


# --- addresses, names and peers ---


def test_nothing_listens(reason: Callable[[Connection], LinkDown]) -> None:
    found = reason(Connection(port=free_port()))
    assert re.search(r"nothing listens at 127\.0\.0\.1:\d+ \(connection refused\)", found.reason)
    assert found.cause == "absent"


def test_a_name_that_nobody_knows(reason: Callable[[Connection], LinkDown]) -> None:
    found = reason(Connection("no-such-host.invalid"))
    assert re.search("the name no-such-host.invalid (isn't known|can't be looked up now)", found.reason)
    assert "start" not in found.reason


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x30\x7f\x00"])
def test_a_peer_that_is_no_mqtt_broker(
    reason: Callable[[Connection], LinkDown], serve: Serve, answer: bytes, authority: Authority
) -> None:
    expected = "a web server answers at" if answer[:1] == b"H" else "isn't an MQTT broker"
    assert expected in reason(Connection(port=serve(answer))).reason
    port = serve(answer, authority.issue("peer", HOST))
    assert expected in reason(Connection(port=port, tls=True, ca=authority.file)).reason


def test_a_broker_of_an_older_version_of_mqtt(reason: Callable[[Connection], LinkDown], serve: Serve) -> None:
    for answer in (b"\x20\x02\x00\x01", bytes.fromhex("20 03 00 84 00")):
        found = reason(Connection(port=serve(answer)))
        assert "doesn't speak MQTT 5" in found.reason
        assert found.cause == "refused"


def test_a_peer_that_accepts_and_says_nothing(
    reason: Callable[[Connection], LinkDown], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "HANDSHAKE_S", 1.0)
    connections = [Connection(port=serve(None)), Connection(port=serve(None), tls=True)]
    with ThreadPoolExecutor() as pool:  # both at once: each takes as long as a connection may
        for found in pool.map(reason, connections):
            assert "doesn't answer in time" in found.reason


def test_a_peer_that_hangs_up(reason: Callable[[Connection], LinkDown], serve: Serve, authority: Authority) -> None:
    assert "ended the connection without an answer" in reason(Connection(port=serve(b"", ends=True))).reason
    port = serve(b"", authority.issue("hangs-up", HOST), ends=True)
    found = reason(Connection(port=port, tls=True, ca=authority.file))
    assert "ended the connection without an answer: it may want a client certificate" in found.reason


# --- TLS ---


def test_a_plain_connection_to_a_tls_port(
    reason: Callable[[Connection], LinkDown], mosquitto_tls_url: str, mutual: int
) -> None:
    for port in (parse_url(mosquitto_tls_url).port, mutual):
        found = reason(Connection(port=port))
        assert f"the port {port} of 127.0.0.1 is for TLS: write mqtts://127.0.0.1:{port}" in found.reason
        assert found.cause == "refused"


def test_tls_to_a_plain_port(
    reason: Callable[[Connection], LinkDown], mosquitto_url: str, embedded_url: str, serve: Serve
) -> None:
    for port in (parse_url(mosquitto_url).port, parse_url(embedded_url).port, serve(b"HTTP/1.1 400 Bad Request\r\n")):
        assert f"the port {port} of 127.0.0.1 has no TLS" in reason(Connection(port=port, tls=True)).reason


@pytest.mark.parametrize(
    ("issued", "expected"),
    [
        ({"days": (-10, -1)}, r"has expired, by this machine's clock, which says \d{4}-\d\d-\d\d \d\d:\d\d UTC"),
        ({"days": (1, 10)}, r"isn't valid yet, by this machine's clock, which says \d{4}-"),
        ({"self_signed": True}, "is self-signed, and not one of the CA in"),
        ({"hosts": ("broker.example",)}, r"isn't for 127\.0\.0\.1"),
    ],
)
def test_a_certificate_that_is_not_valid(
    reason: Callable[[Connection], LinkDown],
    serve: Serve,
    authority: Authority,
    issued: dict[str, Any],
    expected: str,
) -> None:
    hosts = issued.pop("hosts", (HOST,))
    port = serve(CONNACK, authority.issue("invalid", *hosts, **issued))
    found = reason(Connection(port=port, tls=True, ca=authority.file))
    assert re.search(expected, found.reason)
    assert found.cause == "refused"


@pytest.mark.parametrize("of", ["broker", "authority"])
def test_a_machine_whose_clock_is_not_set_is_told_so_by_everything_that_connects(
    serve: Serve, tmp_path: Path, capsys: Any, monkeypatch: Any, of: str
) -> None:
    """All certificates begin in its future."""
    authority = Authority(tmp_path / "later", days=(1, 10) if of == "authority" else (-1, 10))
    port = serve(CONNACK, authority.issue("broker", HOST, days=(1, 10)))
    address, options = f"mqtts://{HOST}:{port}", ["--ca", str(authority.file)]
    told = re.compile(
        r"isn't valid yet, by this machine's clock, which says \d{4}-\d\d-\d\d \d\d:\d\d UTC: set the clock"
    )
    for command in (
        ["status"],
        ["deploy", "pocket/classify"],
        ["request", "classify"],
        ["drain", "gw-a"],
        ["undeploy", "x"],
    ):
        assert main([*command, "--broker", address, *options]) != 0
        assert told.search(capsys.readouterr().err), command
    with Client(Connection(port=port, tls=True, ca=authority.file)) as client:
        error = client.request("classify", {}, deadline_s=MAX_DEADLINE_S).result.error
    assert error is not None
    assert told.search(error.message)
    said: list[str] = []
    monkeypatch.setattr("orchestrator.waiting._log.warning", lambda event, **more: said.append(f"{event} {more}"))
    connection = Connection(port=port, tls=True, ca=authority.file)
    with running(Orchestrator(connection, tmp_path / "state", settle_s=0.1)):
        until(lambda: any(told.search(line) for line in said))
    structlog.reset_defaults()  # the commands have set up the log
    with capture_logs() as log:
        agent = Agent(
            AgentConfig(id="gw-a"),
            profile=profile(),
            store=uncalibrated_store(100, lambda _: computing(lambda *_: Output({}, {}))),
            connections=(connection, connection),
        )
        with running(agent):
            until(lambda: any(each["event"] == "link_down" and told.search(each["reason"]) for each in log))


def test_an_unknown_authority(
    reason: Callable[[Connection], LinkDown], mosquitto_tls_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path / "other", "another authority")
    port = parse_url(mosquitto_tls_url).port
    found = reason(Connection(port=port, tls=True, ca=other.file))
    assert f"is signed by an unknown authority, not by the CA in {other.file}" in found.reason
    monkeypatch.setenv("SSL_CERT_FILE", str(other.file))
    assert "not by this system's CAs; name the site's own (ca)" in reason(Connection(port=port, tls=True)).reason


def test_a_broker_that_wants_a_client_certificate(
    reason: Callable[[Connection], LinkDown], mutual: int, authority: Authority, tmp_path: Path
) -> None:
    found = reason(Connection(port=mutual, tls=True, ca=authority.file))
    assert "certificate" in found.reason
    other = Authority(tmp_path / "other", "another authority").issue("stranger")
    found = reason(Connection(port=mutual, tls=True, ca=authority.file, cert=other.cert, key=other.key))
    assert "certificate" in found.reason


def test_a_client_certificate_lets_in(mutual: int, authority: Authority, recorder: Any) -> None:
    own = authority.issue("client")
    connection = Connection(port=mutual, tls=True, ca=authority.file, cert=own.cert, key=own.key)
    transport = MqttTransport(connection, client_id="a", inbox=recorder)
    transport.start()
    recorder.wait_for(LinkUp)
    transport.close()


# --- logins ---


def test_a_wrong_password_and_none(reason: Callable[[Connection], LinkDown], locked: int) -> None:
    found = reason(Connection(port=locked, user="alice", password=f"not {SECRET}"))
    assert "refused the connection: Not authorized; it doesn't take the user alice with this password" in found.reason
    assert found.cause == "refused"
    assert "it wants a login: name a user and a password file" in reason(Connection(port=locked)).reason


def test_a_command_ends_with_the_reason_and_no_advice_to_start_a_broker(locked: int, capsys: Any) -> None:
    assert main(["status", "--broker", f"mqtt://alice:not-{SECRET}@127.0.0.1:{locked}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"s2m3: the broker at 127.0.0.1:{locked} refused the connection: Not authorized")
    assert "start" not in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "command",
    [["status"], ["request", "classify"], ["deploy", "pocket/classify"], ["undeploy", "x"], ["drain", "gw-a"]],
)
def test_a_command_that_finds_no_broker_waits_a_while_and_says_how_to_start_one(
    command: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "BROKER_S", 0.5)
    port = free_port()
    assert main([*command, "--broker", f"mqtt://127.0.0.1:{port}"]) == 1
    refused = f"s2m3: nothing listens at 127.0.0.1:{port} (connection refused)"
    assert capsys.readouterr().err.splitlines() == [
        f"{refused}; waiting up to 0.5 s for a broker there",
        f"{refused}: start a broker (`s2m3 broker`), or name another one with --broker",
    ]


@pytest.mark.parametrize(
    "command", [["status"], ["request", "classify", "--text", "x", "--deadline", "1"], ["events", "--seconds", "0.1"]]
)
def test_a_command_that_starts_beside_its_broker_waits_for_it(
    command: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with ExitStack() as stack:

        def start_it(_: float) -> None:  # in the first pause
            monkeypatch.setattr(arguments, "time", time)
            stack.enter_context(EmbeddedBroker(port))

        monkeypatch.setattr(arguments, "time", SimpleNamespace(monotonic=time.monotonic, sleep=start_it))
        code = main([*command, "--broker", f"mqtt://127.0.0.1:{port}"])
    said = capsys.readouterr()
    assert code == (0 if command[0] == "events" else 1)
    assert said.err.count("waiting up to 10 s for a broker there") == 1
    assert "start a broker" not in said.err


def test_a_client_ends_requests_at_once_when_no_attempt_can_succeed(locked: int) -> None:
    with Client(f"mqtt://alice:not-{SECRET}@127.0.0.1:{locked}") as client:
        for _ in range(2):  # one that was pending, and one that comes later
            response = client.request("classify", {}, deadline_s=MAX_DEADLINE_S)
            assert response.result.error is not None
            assert response.result.error.code == ErrorCode.NO_ROUTE
            assert "Not authorized" in response.result.error.message
            assert SECRET not in response.result.error.message


def test_a_client_says_at_the_deadline_why_there_was_no_connection() -> None:
    with Client(f"mqtt://127.0.0.1:{free_port()}") as client:
        until(lambda: "refused" in client._pending._why_down)
        response = client.request("classify", {}, deadline_s=1.0)
    assert response.result.error is not None
    assert response.result.error.code == ErrorCode.DEADLINE_EXCEEDED
    assert "connection refused" in response.result.error.message


def ask_fails(broker: str | Connection, sentence: str, caplog: pytest.LogCaptureFixture, **named: Any) -> None:
    """``ask`` raises this reason long before its deadline, and says no password anywhere."""
    with capture_logs() as lines, Client(broker, **named) as client:
        with pytest.raises(NotConnected, match=sentence) as raised:
            client.ask("classify", image=b"\xff\xd8\xff", deadline_s=MAX_DEADLINE_S)
        assert SECRET not in "".join(traceback.format_exception(raised.value)) + repr(raised.value) + repr(client)
    assert SECRET not in str(lines) + caplog.text


def test_ask_raises_why_there_is_no_connection(
    locked: int,
    mutual: int,
    mosquitto_url: str,
    authority: Authority,
    *,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = Authority(tmp_path / "other", "another authority")
    ask_fails(f"mqtt://alice:not-{SECRET}@127.0.0.1:{locked}", "doesn't take the user alice with this password", caplog)
    ask_fails(f"mqtt://127.0.0.1:{locked}", "it wants a login", caplog)
    ask_fails(f"mqtt://alice:{SECRET}@127.0.0.1:{free_port()}", "connection refused", caplog)
    ask_fails(f"mqtt://alice:{SECRET}@no-such-host.invalid", "isn't known|can't be looked up now", caplog)
    ask_fails(f"mqtt://alice:{SECRET}@127.0.0.1:{mutual}", "is for TLS: write mqtts://", caplog)
    ask_fails(f"mqtts://alice:{SECRET}@127.0.0.1:{parse_url(mosquitto_url).port}", "has no TLS", caplog)
    ask_fails(Connection(port=mutual, tls=True, ca=other.file), "signed by an unknown authority", caplog)
    ask_fails(Connection(port=mutual, tls=True, ca=authority.file), "certificate", caplog)


def test_ask_raises_that_another_client_has_its_id(
    mosquitto_url: str, unique_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both connect again and again; the broker ends the older connection each time. The task's modules are loading."""
    other = paho.Client(CallbackAPIVersion.VERSION2, unique_prefix, protocol=paho.MQTTv5)
    other.reconnect_delay_set(1, 1)
    loading = encode(Route(task="classify", epoch=1, generation=1, group=1))

    def publish(*_: object) -> None:
        other.publish(TASK_ROUTE.at(prefix_of(unique_prefix), task="classify"), loading, 1, retain=True)

    published = threading.Event()
    other.on_connect, other.on_publish = publish, lambda *_: published.set()
    other.connect(HOST, parse_url(mosquitto_url).port)
    other.loop_start()
    try:
        assert published.wait(PATIENCE_S)
        sentence = f"the client id {unique_prefix} (is|seems to be) in use elsewhere"
        ask_fails(mosquitto_url, sentence, caplog, client_id=unique_prefix, site=unique_prefix)
    finally:
        other.disconnect()
        other.loop_stop()


def test_an_orchestrator_says_why_and_goes_on_trying(locked: int, tmp_path: Path, monkeypatch: Any) -> None:
    password = tmp_path / "password"
    password.write_text(f"not {SECRET}")
    given = command_line(broker=f"mqtt://127.0.0.1:{locked}", user="alice", password_file=str(password))
    said: list[str] = []
    monkeypatch.setattr("orchestrator.waiting._log.warning", lambda event, **more: said.append(f"{event} {more}"))
    orchestrator = Orchestrator(read_connection(given), tmp_path / "state", settle_s=0.1)
    with running(orchestrator):
        until(lambda: any("waiting_for_broker" in line and "Not authorized" in line for line in said))
        password.write_text(f"{SECRET}\n")  # a new password needs no restart
        until(lambda: orchestrator._state is not None)
    assert SECRET not in "".join(said)


# --- files ---


@pytest.mark.parametrize(
    ("role", "content", "sentence"),
    [
        ("ca", None, "the CA file can't be read: No such file"),
        ("ca", "", "the CA file holds no line with -----BEGIN CERTIFICATE-----"),
        ("ca", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "the CA file holds a damaged"),
        ("cert", None, "the certificate can't be read: No such file"),
        ("cert", "nothing", "the certificate holds no line"),
        ("key", None, "the key can't be read: No such file"),
        ("key", "nothing", "the key holds no line with PRIVATE KEY"),
    ],
)
def test_a_file_that_cant_be_used(
    authority: Authority, tmp_path: Path, capsys: Any, role: str, content: str | None, *, sentence: str
) -> None:
    own = authority.issue("files")
    paths = {"ca": authority.file, "cert": own.cert, "key": own.key} | {role: tmp_path / "broken"}
    if content is not None:
        paths[role].write_text(content)
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    assert main(["status", "--broker", "mqtts://127.0.0.1:1", *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert str(tmp_path / "broken") in said


def test_a_key_with_a_passphrase_or_of_another_certificate(authority: Authority) -> None:
    own, other = authority.issue("one", passphrase=SECRET.encode()), authority.issue("two")
    with pytest.raises(BadFile, match="the key has a passphrase, which nobody is here to type"):
        MqttTransport(Connection(tls=True, cert=own.cert, key=own.key), client_id="a", inbox=print)
    with pytest.raises(BadFile, match="the key isn't that of the certificate"):
        MqttTransport(Connection(tls=True, cert=own.cert, key=other.key), client_id="a", inbox=print)
    with pytest.raises(BadFile, match="the key isn't that of the certificate"):
        MqttTransport(
            Connection(tls=True, cert=own.cert, key=authority.issue("three", rsa_bits=2048).key),
            client_id="a",
            inbox=print,
        )


def test_a_certificate_that_is_too_weak_is_told_as_such(authority: Authority) -> None:
    weak = authority.issue("weak", rsa_bits=1024)
    with pytest.raises(BadFile, match=r"weak for this system's OpenSSL \(EE_KEY_TOO_SMALL\); have it issued with"):
        MqttTransport(Connection(tls=True, cert=weak.cert, key=weak.key), client_id="a", inbox=print)


def test_certificates_and_passwords_are_warned_of_by_commands_once(locked: int, capsys: Any, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text(SECRET)
    password.chmod(0o644)
    for times in (1, 0):
        main(["status", "--broker", f"mqtt://127.0.0.1:{locked}", "--user", "alice", "--password-file", str(password)])
        said = capsys.readouterr().err
        assert said.count(f"s2m3: warning: every user of this machine can read {password}") == times
        assert SECRET not in said


# --- TLS on the way ---


def test_bytes_that_wait_inside_tls_are_read_without_further_ones(
    serve: Serve, authority: Authority, recorder: Any
) -> None:
    """One record of TLS has the broker's answer and three messages; no poll sees the last three."""
    messages = b"".join(b"\x30\x05\x00\x01x\x00" + number for number in (b"1", b"2", b"3"))
    port = serve(CONNACK + messages, authority.issue("one-record", HOST))
    transport = MqttTransport(Connection(port=port, tls=True, ca=authority.file), client_id="a", inbox=recorder)
    transport.start()
    recorder.wait_for(Delivery, count=3)
    assert [delivery.payload for delivery in recorder.deliveries] == [b"1", b"2", b"3"]
    transport.close()


def test_new_certificates_count_at_the_next_connection(tmp_path: Path, make_recorder: Any) -> None:
    """The site gets a new authority; the files of a running client are replaced."""
    first, second = (Authority(tmp_path / name, name) for name in ("first", "second"))
    ca, port = tmp_path / "ca.pem", free_port()
    ca.write_bytes(first.file.read_bytes())
    inbox = make_recorder()
    transport = MqttTransport(Connection(port=port, tls=True, ca=ca), client_id="a", inbox=inbox)
    with MosquittoBroker(port, first.issue("broker", HOST).settings(first.file)):
        transport.start()
        inbox.wait_for(LinkUp)
    with MosquittoBroker(port, second.issue("broker", HOST).settings(second.file)):
        inbox.wait_for(lambda event: isinstance(event, LinkDown) and "unknown authority" in event.reason)
        ca.write_text("half a file")  # the known ones stay
        ca.write_bytes(second.file.read_bytes())
        inbox.wait_for(LinkUp, count=2)
    transport.close()


def test_a_whole_site_works_over_tls(mosquitto_tls_url: str, unique_prefix: str, tmp_path: Path) -> None:
    with small_site(mosquitto_tls_url, tmp_path / "state", unique_prefix) as site:
        assert site.ask() == unique_prefix


# --- refused messages ---


def test_a_message_that_the_broker_finds_too_large_is_refused_alone(
    start_mosquitto: StartMosquitto, recorder: Any
) -> None:
    """Mosquitto gives a reason that MQTT has not for acknowledgements (0x95)."""
    broker = start_mosquitto("message_size_limit 1000")
    transport = MqttTransport(parse_url(broker.url), client_id="a", inbox=recorder)
    transport.subscribe("x")
    transport.start()
    recorder.wait_for(LinkUp)
    transport.publish(Outgoing("x", bytes(2000), token="large"))  # noqa: S106 - no password
    denied = recorder.wait_for(Denied)
    assert (denied.topic, denied.reason, denied.token) == ("x", "Packet too large (0x95)", "large")
    transport.publish(Outgoing("x", b"small"))
    assert recorder.wait_for(Delivery).payload == b"small"
    assert not [event for event in recorder.events if isinstance(event, LinkDown)]
    transport.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (bytes.fromhex("20 03 00 ee 00"), "a reason that MQTT doesn't know (0xee)"),
        (CONNACK + bytes.fromhex("e0 02 ee 00"), "the broker ended the connection: a reason that MQTT doesn't know"),
    ],
)
def test_a_reason_that_nobody_knows_is_said_as_such(
    make_recorder: Any, serve: Serve, answer: bytes, expected: str
) -> None:
    inbox = make_recorder()
    transport = MqttTransport(Connection(port=serve(answer)), client_id="a", inbox=inbox)
    transport.start()
    found = inbox.wait_for(LinkDown)
    transport.close()
    assert expected in found.reason


def test_a_subscription_refused_for_an_unknown_reason_leaves_the_others(serve: Serve, recorder: Any) -> None:
    port = serve(CONNACK + bytes.fromhex("90 05 00 01 00 ee 01"))
    transport = MqttTransport(Connection(port=port), client_id="a", inbox=recorder)
    transport.subscribe("one", "two")
    transport.start()
    recorder.wait_for(LinkUp)
    assert [event.topic for event in recorder.events if isinstance(event, Denied)] == ["one"]
    transport.close()
