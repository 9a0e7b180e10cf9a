"""The images and the site of deploy/docker in a Docker engine: built, asked, an agent killed, and stopped."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from broker.client import Client, Response
from broker.servers.ports import HOST
from broker.transport.connection import command_line, connection_file, read_connection
from s2m3.reference.pictures import picture
from tests.conftest import development_config
from tests.containers import (
    ROOT,
    ComposeSite,
    Engine,
    engine,
    make_base,
    make_mosquitto,
    mosquitto_container,
    wheels,
)
from tests.patience import PATIENCE_S, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * 3600)]
LONG_S = 20 * PATIENCE_S
SERVICES = ("broker", "orchestrator", "spare", "gw-a", "gw-b", "dashboard")
IMAGES = ("s2m3", "s2m3-broker", "s2m3-onnx", "s2m3-torch")
PAGE = (ROOT / "docs" / "how-to" / "containers.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BLOCKS = [text for kind, text in FENCED if kind == "sh"]
(PRINTED,) = (text for kind, text in FENCED if not kind)
NUMBER = re.compile(r"[0-9a-f]{12}|0\.\d+|\d+ ms|gw-[ab]")  # what differs from run to run
OPERATOR = ("--connection", "/srv/s2m3/site/clients/operator/connection.yaml")
PHOTO = picture("chelsea.png")


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that can build our images; where the tests started it, with base images made here."""
    folder = tmp_path_factory.mktemp("docker")
    with engine(folder) as running:
        if running.compose_command is None:
            pytest.skip(
                "neither `docker compose` nor docker-compose is on this machine: apt-get install docker-compose"
            )
        if running.is_own:
            make_base(running, folder)
        yield running


@pytest.fixture(scope="module")
def site(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeSite]:
    """The site of deploy/docker, set up and started by the blocks of docs/how-to/containers.md."""
    folder = tmp_path_factory.mktemp("compose")
    build, set_up, _ = BLOCKS
    with ExitStack() as stack:
        made = ComposeSite(docker, folder)
        served = stack.enter_context(wheels(folder)) if docker.is_own else {}
        made.environ |= served
        made.follow(build, PHOTO.path)
        stack.callback(made.compose, "down", "--volumes")
        made.follow(set_up, PHOTO.path)
        until(lambda: all(is_healthy(made, service) for service in SERVICES), LONG_S)
        yield made


def is_healthy(site: ComposeSite, service: str) -> bool:
    return site.state(service, "{{.State.Health.Status}}") == "healthy"


def status(site: ComposeSite) -> Any:
    """The document of ``s2m3 status --json``, in the operator's container."""
    return json.loads(site.tool("status", "--json", *OPERATOR))


def has_standby(site: ComposeSite) -> bool:
    """Whether each device holds both modules of the task, the encoder and the classifier."""
    held = [(device["heartbeat"] or {"modules": {}})["modules"].values() for device in status(site)["devices"].values()]
    return all([module["state"] for module in modules] == ["ready", "ready"] for modules in held)


def test_the_page_is_followed_to_its_last_line_and_a_device_that_is_killed_is_replaced(site: ComposeSite) -> None:
    printed = site.follow(BLOCKS[-1], PHOTO.path)
    shown = [line for line in printed.splitlines() if not line.startswith(("score: ", "ranked: "))]
    assert NUMBER.sub("N", "\n".join(shown)) == NUMBER.sub("N", PRINTED).rstrip()
    assert "image-encoder@gw-b" in printed.splitlines()[-1]
    site.compose("up", "--detach")
    until(lambda: is_healthy(site, "gw-a"), LONG_S)


def test_images_have_what_they_need_and_run_as_nobody_special(docker: Engine, site: ComposeSite) -> None:
    assert site.port
    told = "import importlib.util, os; print(os.getuid(), *[importlib.util.find_spec(name) is not None for name in {}])"
    names = ("torch", "onnxruntime", "starlette", "pip")
    expected = {
        "s2m3": "10001 False False True False",
        "s2m3-broker": "10001 False False True False",
        "s2m3-onnx": "10001 False True False False",
        "s2m3-torch": "10001 True True True False",
    }
    assert {
        image: docker.docker("run", "--rm", "--entrypoint", "python3", image, "-c", told.format(names))
        for image in IMAGES
    } == expected
    sizes = {image: int(docker.docker("image", "inspect", "--format", "{{.Size}}", image)) // 10**6 for image in IMAGES}
    print(f"MB: {sizes}")  # noqa: T201 - for the page that states them
    assert sizes["s2m3"] < sizes["s2m3-onnx"] < sizes["s2m3-torch"]


def coordinator(response: Response) -> str:
    """The device that answered; the test fails when the answer isn't that of the photograph."""
    assert response.ok, response
    assert response.result.answer is not None
    assert response.result.answer["label"] == "a cat having a striped coat"
    assert response.result.coordinator is not None
    return response.result.coordinator


def test_a_killed_container_that_serves_loses_no_request_and_its_policy_starts_a_crashed_one_again(
    docker: Engine, site: ComposeSite
) -> None:
    until(lambda: has_standby(site), LONG_S)
    place = connection_file(site.folder / "site" / "clients" / "operator" / "connection.yaml")
    account = read_connection(command_line(broker=f"mqtts://{HOST}:{site.port}"), place)
    with Client(account) as client:

        def ask() -> Future[Response]:
            return client.submit("classify", {"image": PHOTO.raw}, deadline_s=LONG_S)

        serving = coordinator(ask().result(LONG_S))
        other = {"gw-a": "gw-b", "gw-b": "gw-a"}[serving]
        under_way = [ask() for _ in range(20)]
        docker.docker("kill", site.container(serving))
        answered = [coordinator(each.result(LONG_S)) for each in (*under_way, *(ask() for _ in range(5)))]
        assert answered[-1] == other

        site.compose("up", "--detach")  # Docker starts nothing again that a person killed
        until(lambda: is_healthy(site, serving) and has_standby(site), LONG_S)
        docker.docker("exec", site.container(other), "bash", "-c", "kill -9 -1", check=False)  # a crash
        coordinator(ask().result(LONG_S))
        until(lambda: site.state(other, "{{.RestartCount}}") == "1" and is_healthy(site, other), LONG_S)
        until(lambda: has_standby(site), LONG_S)


def test_accounts_are_added_and_revoked_while_the_broker_runs_in_its_container(site: ComposeSite) -> None:
    added = site.tool("broker", "add", "/srv/s2m3/site", "sensor", "cam-1")
    assert "the running broker made the change" in added
    revoked = site.tool("broker", "revoke", "/srv/s2m3/site", "cam-1")
    assert "the running broker made the change" in revoked


def test_a_service_that_hangs_is_unhealthy_and_says_why(docker: Engine, site: ComposeSite) -> None:
    container = site.container("spare")
    docker.docker("exec", container, "bash", "-c", "kill -STOP -1")
    until(lambda: site.state("spare", "{{.State.Health.Status}}") == "unhealthy", LONG_S)
    told = site.state("spare", "{{range .State.Health.Log}}{{.Output}}{{end}}")
    assert "the service isn't healthy: it said nothing for 20 s: its main loop hangs, or it doesn't run" in told
    docker.docker("exec", container, "bash", "-c", "kill -CONT -1")
    until(lambda: is_healthy(site, "spare"), LONG_S)


def test_the_dashboard_answers_on_this_machine(docker: Engine, site: ComposeSite) -> None:
    page = docker.docker("exec", site.container("dashboard"), "python3", "-c", FETCH.format(site.dashboard_port))
    assert page == "200"


FETCH = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{}/').status)"


def test_each_container_ends_by_itself_when_it_is_asked_to(docker: Engine, site: ComposeSite) -> None:
    """The site is down afterwards. Docker would end one by SIGKILL, and say 137, after its grace time."""
    for service in ("dashboard", "gw-a", "gw-b", "spare", "orchestrator", "broker"):
        docker.docker("stop", site.container(service))
        assert site.state(service, "{{.State.ExitCode}} {{.State.OOMKilled}}") in {"0 false", "143 false"}, service
    assert site.compose("logs", "--no-color").count("Traceback") == 0


def test_the_mosquitto_of_the_other_tests_is_a_container_where_an_engine_answers(
    docker: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if docker.is_own:
        make_mosquitto(docker, tmp_path)
    for name in ("DOCKER_HOST", "PATH"):
        if name in docker.environ:
            monkeypatch.setenv(name, docker.environ[name])
    config = tmp_path / "container.conf"
    config.write_text(development_config("listener 1883 0.0.0.0"))
    config.chmod(0o644)
    with mosquitto_container(config) as url:
        assert url is not None
        where = ["-V", "5", "-h", HOST, "-p", url.rpartition(":")[2], "-t", "kept"]
        subprocess.run(["mosquitto_pub", *where, "-m", "said", "-r", "-q", "1"], check=True, timeout=PATIENCE_S)
        heard = subprocess.run(
            ["mosquitto_sub", *where, "-C", "1"], capture_output=True, check=True, timeout=PATIENCE_S
        )
        assert heard.stdout == b"said\n"
        running = docker.docker("ps", "--format", "{{.Image}}").split()
        assert "eclipse-mosquitto:2.0" in running
    assert "eclipse-mosquitto:2.0" not in docker.docker("ps", "--format", "{{.Image}}").split()
