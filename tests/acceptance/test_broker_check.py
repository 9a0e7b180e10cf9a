"""``s2m3 broker check`` on real brokers: what it finds, what it may not find out, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.protocol.reports import UNDELIVERED
from broker.servers.access import Account, Role
from broker.servers.embedded import EmbeddedBroker
from broker.servers.mosquitto import MosquittoBroker
from broker.servers.ports import free_port
from broker.transport.connect import connect
from broker.transport.connection import parse_url
from broker.transport.crash import connect_and_crash
from broker.transport.port import MAX_PACKET_BYTES, LinkUp, Outgoing
from edge_agent import catalog
from edge_agent.config import AgentConfig
from s2m3.broker_check.peer import EXPIRY_S
from s2m3.catalogue import load_task
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import Site
from tests.builders import chain, module
from tests.conftest import Recorder
from tests.patience import PATIENCE_S, until
from tests.secured import SecuredSite
from tests.threads import small_site

AWS_BYTES = 128 * 1024
NAMES = {
    "MQTT 5",
    "retained messages",
    "wills",
    "topic levels",
    "round trip",
    "shared subscriptions",
    "message size",
    "bandwidth",
    "wants a login",
}
Check = Callable[..., dict[str, Any]]
KeptAt = Callable[[str, str], list[str]]


@pytest.fixture
def check(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs ``s2m3 broker check … --json``; returns its document."""

    def run(*arguments: object, expect: int) -> dict[str, Any]:
        capsys.readouterr()
        code = exit_code(["broker", "check", "--json", *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == expect, printed
        document: dict[str, Any] = json.loads(printed.out)
        return document

    return run


@pytest.fixture
def prints(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``s2m3 …``; returns what it printed."""

    def run(*arguments: object, expect: int) -> str:
        capsys.readouterr()
        assert exit_code([str(each) for each in arguments]) == expect
        return capsys.readouterr().out

    return run


@pytest.fixture
def says(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``s2m3 …``, which must fail with one line; returns that line."""

    def run(*arguments: object, expect: int) -> str:
        capsys.readouterr()
        assert exit_code([str(each) for each in arguments]) == expect
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        return printed.err

    return run


@pytest.fixture
def kept_at() -> KeptAt:
    """The topics below a prefix that a broker retains."""

    def look(url: str, prefix: str) -> list[str]:
        recorder, marker = Recorder(), f"{prefix}/marker"
        transport = connect(parse_url(url), client_id=f"{prefix}-looks", inbox=recorder)
        transport.subscribe(f"{prefix}/#")
        transport.start()
        recorder.wait_for(LinkUp)
        transport.publish(Outgoing(marker, b"marker"))  # what is retained comes before it
        recorder.wait_for(lambda event: getattr(event, "topic", "") == marker)
        transport.close()
        return [each.topic for each in recorder.deliveries if each.retain]

    return look


def small_task(folder: Path, **image: object) -> Path:
    """The catalogue's classify, for other pictures."""
    task = yaml.safe_load(catalog.path("pocket/classify").read_text())
    task["inputs"]["image"] |= image
    (folder / "small.yaml").write_text(yaml.safe_dump(task))
    return folder / "small.yaml"


@pytest.mark.parametrize("kind", ["mosquitto", "embedded", "mosquitto_tls"])
def test_a_broker_that_has_all_is_found_to_and_keeps_nothing_of_the_check(
    kind: str,
    request: pytest.FixtureRequest,
    unique_prefix: str,
    check: Check,
    kept_at: KeptAt,
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    found = check(url, "--site", unique_prefix, "--task", "pocket/zero-shot", expect=0)
    assert found["ok"]
    assert found["checks"].keys() == NAMES
    lacking = {name for name, each in found["checks"].items() if each["state"] != "yes"}
    assert lacking == {"wants a login"}
    assert not found["checks"]["wants a login"]["needed"]
    assert found["largest_packet_bytes"] == MAX_PACKET_BYTES
    assert found["refused_packet_bytes"] is None
    assert found["tasks"]["zero-shot"]["fits"]
    assert found["tasks"]["zero-shot"]["largest"] == "the inputs together"
    assert found["round_trip_s"] > 0
    assert found["bytes_per_s"] > 0
    assert kept_at(url, unique_prefix) == []


def test_a_limit_that_the_broker_does_not_state_is_found_and_deploy_tells_of_it(
    start_mosquitto: Callable[..., MosquittoBroker],
    check: Check,
    tmp_path: Path,
    prints: Callable[..., str],
    kept_at: KeptAt,
) -> None:
    """No orchestrator is here: the command itself finds out what no CONNACK says."""
    url, small = start_mosquitto(f"message_size_limit {AWS_BYTES}").url, small_task(tmp_path, bytes=100_000)
    found = check(url, "--task", "pocket/classify", expect=1)
    assert AWS_BYTES * 31 / 32 <= found["largest_packet_bytes"] <= AWS_BYTES + 256
    assert found["refused_packet_bytes"] > AWS_BYTES
    assert "Packet too large" in found["checks"]["message size"]["text"]
    assert "where a message has at most 12" in found["tasks"]["classify"]["why"]
    assert check(url, "--task", small, expect=0)["tasks"]["classify"]["fits"]
    command = ("deploy", "--broker", url, "--timeout", 0.5)
    printed = prints(*command, "pocket/classify", expect=1)
    assert printed.startswith(
        "classify: not deployed: the broker refused a message of 249.0 KiB, and the inputs together"
    )
    assert kept_at(url, "s2m3") == []
    printed = prints(*command, small, expect=1)
    assert "published, but not served yet: no orchestrator is online" in printed


def test_a_task_that_does_not_fit_is_named_with_what_to_do(
    start_mosquitto: Callable[..., MosquittoBroker],
    check: Check,
    tmp_path: Path,
    prints: Callable[..., str],
) -> None:
    url = start_mosquitto(f"max_packet_size {AWS_BYTES}").url
    small = small_task(tmp_path, bytes=100_000)
    found = check(url, "--task", small, expect=0)
    assert found["stated_packet_bytes"] == found["largest_packet_bytes"] == AWS_BYTES
    assert found["checks"]["message size"]["text"] == "packets of up to 128 KiB pass, as it states"
    found = check(url, "--task", "pocket/classify", expect=1)
    why = found["tasks"]["classify"]["why"]
    assert "the inputs together (244.1 KiB, and up to 4.8 KiB for the header) can't pass the broker" in why
    assert "not with this broker: classify" in prints("broker", "check", url, "--task", "pocket/classify", expect=1)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [("retain_available false", "has no retained messages, by its own word"), ("max_qos 0", "has no QoS 1")],
)
def test_a_broker_that_says_that_it_lacks_what_a_site_needs_is_refused_by_every_command(
    setting: str, sentence: str, start_mosquitto: Callable[..., MosquittoBroker], says: Callable[..., str]
) -> None:
    url = start_mosquitto(setting).url
    for command in (
        ["broker", "check", url],
        ["status", "--broker", url],
        ["deploy", "pocket/classify", "--broker", url],
    ):
        line = says(*command, expect=1)
        assert sentence in line
        assert "use another broker" in line


def test_one_line_says_why_there_is_no_broker_to_check(says: Callable[..., str]) -> None:
    with EmbeddedBroker() as broker:
        assert "doesn't speak MQTT 5" in says("broker", "check", broker.plain_url, expect=1)
        twice = says("broker", "check", broker.url, "--broker", broker.url, expect=2)
        assert "URL does, too" in twice
        assert "neither in the catalogue nor a file" in says("broker", "check", broker.url, "--task", "none", expect=2)
    assert "nothing listens" in says("broker", "check", f"mqtt://127.0.0.1:{free_port()}", expect=1)
    assert "has no mqtt://" in says("broker", "check", "127.0.0.1", expect=2)


@pytest.mark.parametrize("setting", ["topic readwrite elsewhere/#", "topic read #"])
def test_what_an_account_may_not_do_is_said_and_the_rest_is_tried(
    setting: str, start_mosquitto: Callable[..., MosquittoBroker], tmp_path: Path, check: Check
) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"{setting}\n")
    url = start_mosquitto(f"acl_file {rules}").url
    found = check(url, "--task", "pocket/classify", expect=1)
    denied = {name for name, each in found["checks"].items() if each["state"] == "not allowed"}
    assert denied == {"retained messages", "topic levels"}
    for name in denied:
        assert "the broker doesn't let this account publish s2m3/v1/check/" in found["checks"][name]["text"]
        assert found["checks"][name]["text"].endswith("Not authorized")
    assert found["checks"]["MQTT 5"]["state"] == "yes"
    assert "message size" not in found["checks"]
    assert found["tasks"]["classify"]["fits"], "by the limit that the broker states"


def test_of_the_accounts_of_broker_init_operator_and_orchestrator_check_a_broker(
    tmp_path: Path, check: Check, says: Callable[..., str]
) -> None:
    accounts = [Account(Role.OPERATOR, "operator"), Account(Role.ORCHESTRATOR, "orchestrator")]
    accounts += [Account(Role.SENSOR, "cam-1"), Account(Role.OBSERVER, "grafana"), Account(Role.DEVICE, "gw-a")]
    with SecuredSite(tmp_path / "site", accounts, site="plant-4") as site:
        for name in ("operator", "orchestrator"):
            found = check("--connection", site.folder(name) / "connection.yaml", "--task", "pocket/classify", expect=0)
            assert {each["state"] for each in found["checks"].values()} == {"yes"}
            assert found["checks"]["topic levels"]["text"].startswith("a topic of 8 levels")
        for name in ("cam-1", "grafana"):
            line = says("broker", "check", "--connection", site.folder(name) / "connection.yaml", expect=2)
            assert f"may have one connection only, as {name}" in line
            assert "use one of the role operator or orchestrator" in line


def test_a_check_that_is_interrupted_leaves_nothing_retained_and_what_it_retains_expires(
    mosquitto_url: str, unique_prefix: str, says: Callable[..., str], kept_at: KeptAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    witness = connect(parse_url(mosquitto_url), client_id=f"{unique_prefix}-witness", inbox=recorder, sees_retain=True)
    witness.subscribe(f"{unique_prefix}/#")
    witness.start()
    recorder.wait_for(LinkUp)

    def interrupted(*arguments: Any) -> None:
        connect_and_crash(*arguments)
        recorder.wait_for(lambda event: getattr(event, "payload", b"") == b"will")
        assert len(kept_at(mosquitto_url, unique_prefix)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("s2m3.broker_check.probes.connect_and_crash", interrupted)
    assert "interrupted" in says("broker", "check", mosquitto_url, "--site", unique_prefix, expect=130)
    assert kept_at(mosquitto_url, unique_prefix) == []
    witness.close()
    retained = [each for each in recorder.deliveries if each.retain and each.payload]
    assert {each.payload for each in retained} == {b"kept", b"will"}
    assert all(each.expiry_s is not None and each.expiry_s <= EXPIRY_S for each in retained)


def test_an_assignment_that_is_too_large_is_told_by_deploy_and_in_status(
    start_mosquitto: Callable[..., MosquittoBroker], tmp_path: Path, prints: Callable[..., str]
) -> None:
    """Each task fits; all their modules together don't, on one device."""
    url = start_mosquitto("max_packet_size 12000").url
    tasks = [
        chain(f"t-{task}", *(module(f"m-{task}-{number}", output_bytes=8) for number in range(8)), image_bytes=1000)
        for task in "abcdefgh"
    ]
    with small_site(url, tmp_path / "orchestrator") as site:
        for spec in tasks[:-1]:
            site.observer.publish(spec)
        until(lambda: site.observer.wait_for(lambda seen: UNDELIVERED in why_of(seen, "gw-a"), 0.1))
        (tmp_path / "last.yaml").write_text(yaml.safe_dump(tasks[-1].model_dump(mode="json", exclude_none=True)))
        printed = prints("deploy", "--broker", url, "--timeout", 3, tmp_path / "last.yaml", expect=1)
        assert f"published, but not served yet: gw-a: {UNDELIVERED}: it has " in printed
        told = json.loads(prints("status", "--broker", url, "--json", expect=1))["devices"]["gw-a"]["standing"]
        assert told["standing"] == "online"
        assert "a message there at most 11.7 KiB; undeploy a task, add a device" in told["why"]
        for spec in tasks:
            site.observer.clear_spec(spec.task)
        until(lambda: site.observer.wait_for(lambda seen: why_of(seen, "gw-a") == "its heartbeats arrive", 0.1))


def why_of(seen: Observer, device: str) -> str:
    """The reason of a device's standing, which comes up to a second after its birth."""
    standing = seen.standings.get(device)
    return "" if standing is None else standing.why


def test_a_limit_that_the_broker_states_is_told_by_deploy_and_in_status(
    tmp_path: Path, prints: Callable[..., str]
) -> None:
    agent = AgentConfig(id="gw-a", memory="200MiB")
    with Site("mosquitto", [agent], mosquitto_settings=[f"max_packet_size {AWS_BYTES}"]) as site:
        site.require(lambda seen: seen.leads and seen.has_heartbeats(["gw-a"]), PATIENCE_S, "no site")
        printed = prints("deploy", "pocket/classify", "--broker", site.url, expect=1)
        why = "unavailable: the inputs together (244.1 KiB, and up to 4.8 KiB for the header) can't pass the broker"
        assert f"classify: {why}" in printed
        told = json.loads(prints("status", "--broker", site.url, "--json", expect=1))["tasks"]["classify"][
            "unavailable"
        ]
        assert why == f"unavailable: {told[: len(why) - len('unavailable: ')]}"
        assert "where a message has at most 128 KiB" in told
        site.serve([load_task(str(small_task(tmp_path, bytes=100_000)))])
        found = json.loads(prints("broker", "check", site.url, "--json", expect=0))
        assert found["tasks"]["classify"]["largest_bytes"] == 100_000, "without --task, the deployed ones count"
