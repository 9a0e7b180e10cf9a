"""A command, a client, an agent or an orchestrator whose message the broker refuses says so at once: access rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from broker.client import Client
from broker.protocol.errors import BrokerRefused, RequestFailed
from broker.servers.mosquitto import MosquittoBroker
from s2m3.cli.main import main
from tests.patience import PATIENCE_S, until
from tests.threads import PICTURE, TASK, SmallSite, small_site

StartMosquitto = Callable[..., MosquittoBroker]
PLUGIN = "/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so"


def at(url: str, user: str) -> str:
    """The same broker, as a user."""
    return url.replace("//", f"//{user}:x@")


@pytest.fixture
def site(start_mosquitto: StartMosquitto, tmp_path: Path) -> Iterator[SmallSite]:
    """A site on a broker that lets the user ``reader`` only read."""
    rules = tmp_path / "acl"
    rules.write_text("user site\ntopic readwrite #\nuser reader\ntopic read s2m3/v1/#\n")
    with small_site(at(start_mosquitto(f"acl_file {rules}").url, "site"), tmp_path / "state") as found:
        yield found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A task file and a picture."""
    task, picture = tmp_path / "task.yaml", tmp_path / "picture.jpg"
    task.write_text(yaml.safe_dump(TASK.model_dump(mode="json", exclude_none=True)))
    picture.write_bytes(PICTURE)
    return {"task": str(task), "picture": str(picture)}


@pytest.mark.parametrize(
    ("arguments", "topic"),
    [
        (("request", "echo", "--image", "{picture}", "--deadline", "3000"), "s2m3/v1/tasks/echo/requests/"),
        (("deploy", "{task}", "--timeout", "3000"), "s2m3/v1/tasks/echo/spec"),
        (("undeploy", "echo"), "s2m3/v1/tasks/echo/spec"),
        (("drain", "gw-a", "--timeout", "3000"), "s2m3/v1/devices/gw-a/drain"),
        (("drain", "gw-a", "--undo", "--timeout", "3000"), "s2m3/v1/devices/gw-a/drain"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_a_command_that_may_not_publish_ends_with_the_refusal_and_claims_nothing(
    site: SmallSite, files: dict[str, str], capsys: Any, arguments: tuple[str, ...], topic: str
) -> None:
    words = [word.format(**files) for word in arguments]
    reader = site.url.replace("//site", "//reader")
    assert main([*words, "--broker", reader]) == 1
    said = "".join(capsys.readouterr())
    assert f"the broker refused {topic}" in said
    assert "Not authorized" in said
    for claim in ("published", "cleared", "in service again", "no answer in time", "drained:"):
        assert claim not in said
    assert site.answers()


@pytest.fixture
def confined(start_mosquitto: StartMosquitto, tmp_path: Path) -> str:
    """The url of a Mosquitto that refuses every subscription at once, as its dynamic security plugin does."""
    config = tmp_path / "security.json"
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    config.write_text(json.dumps({"defaultACLAccess": access}))
    return start_mosquitto(f"plugin {PLUGIN}", f"plugin_opt_config_file {config}").url


@pytest.mark.parametrize("arguments", [("status",), ("status", "--json"), ("undeploy", "echo"), ("drain", "gw-a")])
def test_a_command_that_may_not_subscribe_ends_with_the_refusal(
    confined: str, capsys: Any, arguments: tuple[str, ...]
) -> None:
    assert main([*arguments, "--broker", confined]) == 1
    said = capsys.readouterr()
    assert "the broker refused s2m3/v1/" in said.err
    assert "Not authorized" in said.err
    assert not said.out


def test_a_request_whose_answer_may_not_be_read_ends_at_once(confined: str) -> None:
    with Client(confined) as client:
        response = client.request("echo", {"image": PICTURE}, deadline_s=3000.0)
    assert response.result.error is not None
    topic = f"s2m3/v1/clients/{client.client_id}/results/+"
    assert response.result.error.message.startswith(f"the broker refused {topic}: Not authorized")
    with Client(confined) as client, pytest.raises(BrokerRefused, match="this client can't read its answers") as raised:
        client.ask("echo", image=PICTURE, deadline_s=3000.0)
    assert (raised.value.topic, raised.value.reason) == (client_topic(client), "Not authorized")


def client_topic(client: Client) -> str:
    """The filter of a client's answers."""
    return f"s2m3/v1/clients/{client.client_id}/results/+"


def test_a_client_that_may_read_nothing_but_answers_asks_and_one_that_may_not_read_them_is_told_so(
    start_mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    """With a file of rules Mosquitto accepts each subscription, and keeps the messages back without a word."""
    rules = tmp_path / "acl"
    rules.write_text(
        "user site\ntopic readwrite #\nuser cam\ntopic write s2m3/v1/tasks/echo/requests/#\n"
        "topic read s2m3/v1/clients/cam/results/#\nuser blind\ntopic write s2m3/v1/tasks/echo/requests/#\n"
        "user mute\ntopic read s2m3/v1/clients/mute/results/#\n"
    )
    url = start_mosquitto(f"acl_file {rules}").url
    with small_site(at(url, "site"), tmp_path / "state"):
        with Client(at(url, "cam"), client_id="cam") as cam:
            assert cam.ask("echo", image=PICTURE, deadline_s=PATIENCE_S).answer == "None"
        with (
            Client(at(url, "mute"), client_id="mute") as mute,
            pytest.raises(BrokerRefused, match=r"the broker refused s2m3/v1/tasks/echo/requests/mute/.*Not authorized"),
        ):
            mute.ask("echo", image=PICTURE, deadline_s=3000.0)
        with Client(at(url, "blind"), client_id="blind") as blind:
            with pytest.raises(RequestFailed, match="an access rule of the broker may hide") as raised:
                blind.ask("echo", image=PICTURE, deadline_s=2.0)
            assert client_topic(blind) in raised.value.message


def test_an_agent_and_an_orchestrator_say_once_what_the_broker_refuses_and_go_on(
    start_mosquitto: StartMosquitto, tmp_path: Path
) -> None:
    """Neither the agent's summary nor the answers to one sensor may be published."""
    rules = tmp_path / "acl"
    denied = "topic deny s2m3/v1/devices/gw-a/summary\ntopic deny s2m3/v1/tasks/echo/status\n"
    denied += "topic deny s2m3/v1/clients/mute/results/+\n"
    rules.write_text(f"user site\n{denied}topic readwrite #\n")
    url = at(start_mosquitto(f"acl_file {rules}").url, "site")
    with capture_logs() as log, small_site(url, tmp_path / "state") as site, Client(url, client_id="mute") as mute:
        futures = [mute.submit(TASK.task, {"image": PICTURE + bytes(n)}, deadline_s=PATIENCE_S) for n in range(5)]

        def topics() -> list[str]:
            return [line["topic"] for line in log if line["event"] == "denied_by_broker"]

        until(lambda: any("clients/mute" in topic for topic in topics()))
        until(lambda: {"s2m3/v1/devices/gw-a/summary", "s2m3/v1/tasks/echo/status"} <= set(topics()))
        assert site.answers()
        assert not any(future.done() for future in futures)
    assert len([topic for topic in topics() if "clients/mute" in topic]) == 1
