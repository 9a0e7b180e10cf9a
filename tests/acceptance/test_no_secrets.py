"""No password appears anywhere: a whole site's output, messages and files, also of what goes wrong, at debug level.

No token of the HTTP door and no payload of a request appears in any output or file, either.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import psutil
import yaml
from PIL import Image

from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import Connection
from broker.transport.paho import MqttTransport
from broker.transport.port import Delivery, LinkUp
from s2m3.reference.pictures import picture
from tests.patience import PATIENCE_S, until

PASSWORDS = {name: f"pa#s/{name}?@ü{name}-7391" for name in ("orchestrator", "agent", "data", "operator", "wrong")}
"""By user; in a URL they are percent-encoded."""
TOKEN = "to#ken/?@door-7391"  # noqa: S105 - it is sought in the logs
PAYLOAD = "pay#load/?@ürgent-7391"
UNSEEN = {"token": TOKEN, "payload": PAYLOAD}
"""The secrets beside passwords; a payload is in messages, and nowhere else."""
LOUD = """
import logging, os, runpy, sys
from broker import process
log_to_stderr = process.log_to_stderr
process.log_to_stderr = lambda log_format=None, level=None: log_to_stderr(log_format, level=logging.DEBUG)
logging.basicConfig(level=logging.DEBUG)
from broker.transport.link import Link
flush, failed = Link._flush, set()
def broken(self):
    if os.environ.get("BUGGY") and self._client_id not in failed:
        failed.add(self._client_id)
        raise RuntimeError(f"a bug with {self._connection!r} and {self!r}")
    return flush(self)
Link._flush = broken
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""A program that runs a module with its logs at debug level, and, if BUGGY is set, with a bug in each connection."""
BUGGY = {"BUGGY": "yes"}
OK = 200
DOORS = ("metrics", "http", "dashboard")  # processes that answer HTTP


def forms(secret: str) -> dict[str, str]:
    """A secret as different programs would write it."""
    return {
        "plain": secret,
        "percent-encoded": quote(secret, safe=""),
        "escaped": json.dumps(secret)[1:-1],
        "base64": base64.b64encode(secret.encode()).decode(),
        "hexadecimal": secret.encode().hex(),
        "its end": secret.rpartition("@")[2],
        "its beginning": secret.partition("?")[0],
    }


class Watched:
    """A site on a Mosquitto with accounts, and all that its programs print."""

    def __init__(self, stack: ExitStack, start_mosquitto: Callable[..., MosquittoBroker], folder: Path) -> None:
        self.stack, self.folder, self.output = stack, folder, folder / "output"
        self.output.mkdir()
        accounts = folder / "secret-accounts"
        for user in ("orchestrator", "agent", "data", "operator"):
            create = ["-c"] if not accounts.exists() else []
            subprocess.run(["mosquitto_passwd", *create, "-b", str(accounts), user, PASSWORDS[user]], check=True)
            (folder / f"secret-{user}").write_text(f"{PASSWORDS[user]}\n", encoding="utf-8")
        self.broker = start_mosquitto(f"password_file {accounts}", f"log_dest file {self.output / 'broker'}")
        self.port = self.broker.port

    def url(self, user: str, password: str | None = None) -> str:
        """The broker's address with a login."""
        return f"mqtt://{user}:{quote(password or PASSWORDS[user], safe='')}@127.0.0.1:{self.port}"

    def command(
        self, name: str, *arguments: str, variables: dict[str, str] | None = None, wait: bool = True
    ) -> subprocess.Popen[bytes]:
        """Run a program of ours; what it prints goes to a file of this name."""
        with (self.output / name).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", LOUD, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | (variables or {}),
            )
        if wait:
            process.wait(2 * PATIENCE_S)
        else:
            self.stack.callback(_end, process)
        return process

    def try_agent(self, name: str, config_file: Path) -> None:
        """Run an agent until it ends or has no connection."""
        agent = self.command(name, "edge_agent", "--config", str(config_file), wait=False)
        until(lambda: "no connection" in self.printed(name) or agent.poll() is not None)

    def printed(self, name: str) -> str:
        """The output of a program so far."""
        return (self.output / name).read_text(encoding="utf-8", errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(2 * PATIENCE_S)


@contextmanager
def overheard(site: Watched, inbox: Any) -> Iterator[None]:
    """All messages of the broker, while the block lasts."""
    login = Connection(port=site.port, user="operator", password=PASSWORDS["operator"])
    transport = MqttTransport(login, client_id="eavesdropper", inbox=inbox)
    transport.subscribe("#")
    transport.start()
    inbox.wait_for(LinkUp)
    try:
        yield
    finally:
        transport.close()


def test_no_output_log_message_file_or_status_has_a_password(
    start_mosquitto: Callable[..., MosquittoBroker], tmp_path: Path, recorder: Any
) -> None:
    with ExitStack() as stack:
        site = Watched(stack, start_mosquitto, tmp_path)
        stack.enter_context(overheard(site, recorder))
        orchestrator = ["orchestrator", "--state-dir", str(tmp_path / "state"), "--broker", site.url("orchestrator")]
        site.command("orchestrator", *orchestrator, variables=BUGGY, wait=False)
        config = {"id": "gw-a", "memory": "300MiB", "state_dir": str(tmp_path / "measured")}
        config |= {"broker": f"mqtt://127.0.0.1:{site.port}", "user": "agent", "password_file": "secret-agent"}
        config |= {"data_user": "data", "data_password_file": "secret-data"}
        (tmp_path / "gw-a.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        own = ["edge_agent", "--config", str(tmp_path / "gw-a.yaml"), "--log-format", "console"]
        agent = site.command("agent", *own, variables=BUGGY, wait=False)

        # 1. commands, with the login in the environment, in a URL, and in a file
        environment = {"S2M3_BROKER": site.url("operator")}
        file = {"S2M3_BROKER": f"mqtt://127.0.0.1:{site.port}", "S2M3_USER": "operator"}
        file |= {"S2M3_PASSWORD_FILE": str(tmp_path / "secret-operator")}
        until(lambda: "link_up" in site.printed("agent"), 4 * PATIENCE_S)
        deployed = site.command(
            "deploy", "s2m3", "deploy", "pocket/classify", "--timeout", "100", variables=environment
        )
        assert deployed.returncode == 0, site.printed("deploy")
        photo = str(picture("rocket.jpg").path)
        request = ["s2m3", "request", "classify", "--image", photo, "--broker", site.url("operator")]
        assert site.command("request", *request).returncode == 0, site.printed("request")
        for name, *words in (("status",), ("json", "--json")):
            found = site.command(name, "s2m3", "status", *words, variables=file)
            assert found.returncode == 0, site.printed(name)

        for name, *words in (("events", "--seconds", "0.5"), ("trace", "--next", "classify", "--timeout", "0.5")):
            site.command(name, "s2m3", name, *words, variables=file)
        start_doors(site, environment)
        ask_with_payloads(site, Path(photo), environment)

        # 2. what is wrong: passwords, addresses, files; in commands and services
        bad_urls = [
            site.url("operator", PASSWORDS["wrong"]),
            f"mqtt://operator:{PASSWORDS['operator']}@127.0.0.1:{site.port}",  # not percent-encoded
            site.url("operator").replace(f":{site.port}", ":99999999"),
            site.url("operator").replace("mqtt://", "tcp://"),
            site.url("operator").replace("mqtt://", "mqtts://"),
            site.url("operator").replace(f":{site.port}", ":1"),
            site.url("operator").replace("@127.0.0.1", "@no.such.host.invalid"),
            site.url("operator") + f"/{quote(PASSWORDS['operator'])}",
        ]
        (tmp_path / "secret-two").write_text(f"{PASSWORDS['operator']}\n{PASSWORDS['wrong']}\n", encoding="utf-8")
        for number, bad in enumerate(bad_urls):
            site.command(f"bad-status-{number}", "s2m3", "status", "--broker", bad)
        site.command("bug", "s2m3", "status", variables=file | BUGGY)
        site.command("bad-variable", "s2m3", "status", variables={"S2M3_BROKER": bad_urls[1]})
        site.command(
            "bad-file", "s2m3", "status", variables=file | {"S2M3_PASSWORD_FILE": str(tmp_path / "secret-two")}
        )
        for bad in bad_urls[:3]:
            config_file = tmp_path / "secret-bad.yaml"
            config_file.write_text(yaml.safe_dump({"id": "gw-z", "broker": bad}), encoding="utf-8")
            site.try_agent("bad-agent", config_file)
        site.command("bad-request", "s2m3", "request", "classify", "--broker", bad_urls[0], "--image", photo)

        # 3. the broker goes and comes back; then everything ends
        site.broker.kill()
        until(lambda: "link_down" in site.printed("agent") and "link_down" in site.printed("orchestrator"))
        site.broker.start()
        until(lambda: site.printed("agent").count("link_up") > 2, 2 * PATIENCE_S)
        until(lambda: all("Traceback" in site.printed(name) for name in DOORS))
        for name in ("agent", "orchestrator", "bug", *DOORS):
            assert "a bug with Connection(" in site.printed(name)
            assert "Traceback" in site.printed(name)

        assert not leaks("the agent's command line", " ".join(psutil.Process(agent.pid).cmdline()))
        assert not [leak for each in recorder.deliveries for leak in leaks(each.topic, _text(each))]
    assert all(leaks("the test itself", url) for url in bad_urls)
    assert all(leaks("the test itself", secret, UNSEEN) for secret in UNSEEN.values())
    printed = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("secret-")]
    assert len(printed) > 20
    texts = [(path.name, path.read_bytes().decode(errors="replace")) for path in printed]
    assert not [leak for name, text in texts for leak in leaks(name, text, PASSWORDS | UNSEEN)]


def start_doors(site: Watched, variables: dict[str, str]) -> None:
    """Start the processes that answer HTTP, each with a bug in its connection; one wants a token."""
    (site.folder / "secret-token").write_text(f"{TOKEN}\n", encoding="utf-8")
    for number, name in enumerate(DOORS):
        words = ["--port", "0", "--log-format", ("console", "json")[number % 2]]
        words += ["--token-file", str(site.folder / "secret-token")] if name == "http" else []
        site.command(name, "s2m3", name, *words, variables=variables | BUGGY, wait=False)


def ask_with_payloads(site: Watched, photo: Path, variables: dict[str, str]) -> None:
    """Ask with a picture that has the payload, with it where a picture is wanted, and for a task that isn't there."""
    holding = site.folder / "secret-picture.jpg"
    holding.write_bytes(commented(photo, PAYLOAD))
    site.command("ask", "s2m3", "request", "classify", "--image", str(holding), variables=variables)
    until(lambda: all("; Ctrl-C" in site.printed(name) for name in ("http", "dashboard")))
    door, page = (re.findall(r"http://127.0.0.1:\d+", site.printed(name))[0] for name in ("http", "dashboard"))
    until(lambda: posted(f"{door}/v1/tasks/classify", holding.read_bytes(), TOKEN) == OK, 2 * PATIENCE_S)
    document = json.dumps({"image": PAYLOAD}).encode()
    for task in ("classify", "nope"):
        for token in (TOKEN, f"{TOKEN}x"):
            for body in (holding.read_bytes(), PAYLOAD.encode(), document):
                posted(f"{door}/v1/tasks/{task}", body, token)
        posted(f"{page}/api/ask/{task}", document, TOKEN)


def commented(photo: Path, text: str) -> bytes:
    """A JPEG with a comment."""
    with Image.open(photo) as image:
        image.save(written := io.BytesIO(), "JPEG", comment=text.encode())
    return written.getvalue()


def posted(url: str, body: bytes, token: str) -> int:
    """The status of the response; 0 for a refusal."""
    headers = {"Authorization": f"Bearer {token}", "X-S2M3": "ask", "Content-Type": "application/octet-stream"}
    asked = Request(url, body, headers)  # noqa: S310 - our own process
    with suppress(HTTPError), urlopen(asked, timeout=2 * PATIENCE_S) as response:  # noqa: S310 - the same
        return int(response.status)
    return 0


def leaks(where: str, text: str, secrets: Mapping[str, str] = PASSWORDS) -> list[str]:
    """The forms of secrets that a text has."""
    return [
        f"{where}: that of {user}, {form}: ...{text[max(0, text.index(each) - 100) :][:200]}"
        for user, secret in secrets.items()
        for form, each in forms(secret).items()
        if each in text
    ]


def _text(delivery: Delivery) -> str:
    return f"{delivery.payload!r} {delivery.payload.decode(errors='replace')} {delivery}"
