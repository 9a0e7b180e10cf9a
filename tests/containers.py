"""Containers for the tests: a Mosquitto by testcontainers, a Docker engine, and the site of deploy/docker.

Owns the engine that it starts where none answers (root, Debian's packages ``docker.io`` and ``debootstrap``), with all
that such an engine lacks: no registry may be reachable, so base images are made by debootstrap, and wheels are built
here. An engine that answers already pulls its own. Doesn't know what a test asks the site.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from broker.servers.ports import HOST, free_port
from tests.patience import PATIENCE_S, until

ROOT = Path(__file__).parents[1]
COMPOSE_FILE = ROOT / "deploy" / "docker" / "compose.yaml"
BASE = "python:3.11-slim-bookworm"
MOSQUITTO = "eclipse-mosquitto:2.0"
CONNECT = (
    b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00"  # of MQTT 5: a clean start, a keepalive of 60 s, no client id
)
# A stand-in for the base image of Mosquitto: Debian's program, started as the image starts its own.
STAND_IN = f"""
FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends mosquitto && mkdir -p /mosquitto/config
CMD ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]
"""
LEFT_OUT = (
    "proc/*",
    "sys/*",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt/*",
    "var/lib/apt/lists/*",
)
STEP_S = 3600.0  # a build, or a command in a container: it hangs if it takes longer


@contextlib.contextmanager
def mosquitto_container(config: Path) -> Iterator[str | None]:
    """The url of a Mosquitto in a container; None where no Docker engine answers, or none has the image."""
    with contextlib.ExitStack() as stack:
        url = None
        if os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists():
            try:
                url = stack.enter_context(_started(config))
            except Exception as error:  # noqa: BLE001 - no engine, no image, no network: the program will do
                sys.stderr.write(f"no Mosquitto container, so the program is used: {error}\n")
        yield url


@contextlib.contextmanager
def _started(config: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries' own imports
        from testcontainers.core.config import testcontainers_config  # noqa: PLC0415 - slow, and seldom needed
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - the same

        testcontainers_config.ryuk_disabled = True  # a further image; the block removes the container
        container = DockerContainer(MOSQUITTO)
        container.ports = {"1883/tcp": (HOST,)}  # type: ignore[dict-item] # docker-py's: a free port of this machine only
        container.with_volume_mapping(str(config), "/mosquitto/config/mosquitto.conf", "ro")
        with container:
            port = int(container.get_exposed_port(1883))
            until(lambda: _accepts(port))
            yield f"mqtt://{HOST}:{port}"


def _accepts(port: int) -> bool:
    """Whether a broker answers there: Docker's proxy takes connections before the broker does."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(CONNECT)
            return connection.recv(1) == b"\x20"
    except OSError:
        return False


class Engine:
    """A Docker engine. ``is_own``: the tests started it, and it has no registry."""

    def __init__(self, environ: dict[str, str], *, is_own: bool) -> None:
        self.environ, self.is_own = environ, is_own
        found = (command for command in (["docker", "compose"], ["docker-compose"]) if self._works(command))
        self.compose_command = next(found, None)

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run a command of Docker; returns its output, without the last line's end."""
        return self.run(["docker", *arguments], check=check)

    def run(self, command: list[str], environ: Mapping[str, str] = {}, *, check: bool = True) -> str:
        """Run a command beside this engine, with further variables; returns its output."""
        done = subprocess.run(
            command,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=STEP_S,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def _works(self, command: list[str]) -> bool:
        with contextlib.suppress(OSError):
            words = [*command, "version"]
            return (
                subprocess.run(words, env=self.environ, capture_output=True, timeout=STEP_S, check=False).returncode
                == 0
            )
        return False


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """A Docker engine: the one that answers, or one that is started here; the test is skipped where neither can be."""
    ours = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"}
    if shutil.which("docker", path=ours["PATH"]) is None:
        pytest.skip("Docker isn't on this machine: apt-get install docker.io runc iptables debootstrap docker-compose")
    if Engine(ours, is_own=False).run(["docker", "ps"], check=False):
        yield Engine(ours, is_own=False)
        return
    missing = [
        each for each in ("dockerd", "debootstrap", "iptables-restore") if shutil.which(each, path=ours["PATH"]) is None
    ]
    if missing or os.geteuid() != 0:
        fix = "start one, or be root and apt-get install docker.io runc iptables debootstrap docker-compose"
        pytest.skip(f"no Docker engine answers, and none can be started ({', '.join(missing) or 'not root'}): {fix}")
    address = f"unix://{folder}/docker.sock"
    places = [
        f"--host={address}",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/pid",
    ]
    rules = subprocess.run(["iptables-save"], env=ours, capture_output=True, check=True).stdout
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["dockerd", *places], env=ours, stdout=log, stderr=log)
        try:
            made = Engine({**ours, "DOCKER_HOST": address, "DOCKER_BUILDKIT": "0"}, is_own=True)
            until(lambda: process.poll() is not None or made.run(["docker", "ps"], check=False), 4 * PATIENCE_S)
            if process.poll() is not None:
                pytest.skip(f"dockerd doesn't run on this machine: {(folder / 'log').read_text().splitlines()[-1]}")
            yield made
        finally:
            process.terminate()
            process.wait(STEP_S)
            for left in (folder / "exec").glob("netns/*"):  # mounted: pytest couldn't remove its folder
                subprocess.run(["umount", str(left)], env=ours, check=False)
            shutil.rmtree(folder / "data", ignore_errors=True)
            # It leaves its rules, and a policy that forwards nothing between other networks of this machine.
            emptied = b"*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\nCOMMIT\n"
            emptied += b"*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n"
            for each in (emptied, rules):
                subprocess.run(["iptables-restore"], env=ours, input=each, check=True)


def make_base(engine: Engine, folder: Path) -> None:
    """The base image of our Dockerfile, from Debian's packages, for an engine without a registry."""
    mirror = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Release: bookworm"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    if not mirror:
        pytest.skip("apt-get on this machine has no packages of Debian 12, from which the base image is made")
    system = folder / "base"
    packages = "ca-certificates,python3,python3-venv"
    engine.run(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(system), mirror[0]])
    left_out = [f"--exclude=./{each}" for each in LEFT_OUT]
    with subprocess.Popen(["tar", "-C", str(system), *left_out, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", "-", BASE], env=engine.environ, stdin=tar.stdout, check=True, timeout=STEP_S
        )
    shutil.rmtree(system)


def make_mosquitto(engine: Engine, folder: Path) -> None:
    """The image of Mosquitto for the other tests, on the same base."""
    context = folder / "mosquitto"
    context.mkdir()
    (context / "Dockerfile").write_text(STAND_IN)
    engine.docker("build", "--network", "host", "--tag", MOSQUITTO, str(context))


@contextlib.contextmanager
def wheels(folder: Path) -> Iterator[dict[str, str]]:
    """The variables with which pip in a build takes all packages from here: built by this machine's pip, in its way."""
    place = folder / "wheels"
    wanted = ["--wheel-dir", str(place), "--constraint", str(ROOT / "constraints.txt")]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *wanted, f"{ROOT}[pocket]", "setuptools>=77"]
    subprocess.run(command, check=True, timeout=STEP_S)
    for own in place.glob("s2m3-*"):
        own.unlink()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(place))
    with ThreadingHTTPServer((HOST, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield {"PIP_FIND_LINKS": f"http://{HOST}:{server.server_port}/", "PIP_NO_INDEX": "1"}
        server.shutdown()
        thread.join()


class ComposeSite:
    """The site of deploy/docker in this engine, with its folder below ``folder``."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder / "srv"
        self.port, self.dashboard_port = free_port(), free_port()
        assert engine.compose_command is not None
        self.folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder, 10001, 10001)
        self._command = [*engine.compose_command]
        self.environ = {
            "S2M3_DIR": str(self.folder),
            "S2M3_BIND": HOST,
            "S2M3_PORT": str(self.port),
            "S2M3_DASHBOARD_PORT": str(self.dashboard_port),
            "COMPOSE_PROJECT_NAME": f"s2m3test{os.getpid()}",
            "COMPOSE_FILE": str(COMPOSE_FILE),
        }
        if engine.is_own:  # which has no network of its own for builds
            services = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))["services"]
            built = {name: {"build": {"network": "host"}} for name, service in services.items() if "build" in service}
            (folder / "network.yaml").write_text(yaml.safe_dump({"services": built}))
            self.environ["COMPOSE_FILE"] += f":{folder}/network.yaml"

    def compose(self, *words: str) -> str:
        """Run a command of compose; returns its output."""
        return self.engine.run([*self._command, *words], self.environ)

    def tool(self, *words: str) -> str:
        """Run ``s2m3`` with these words in the container that the operator has for it."""
        return self.compose("run", "--rm", "-T", "tool", *words)

    def follow(self, block: str, frame: Path) -> str:
        """Run a block of a page as a person types it, and return its output; only this machine's places are put in."""
        text = block.replace("sudo ", "").replace("docker compose", " ".join(self._command))
        text = text.replace("compose run --rm", "compose run --rm -T").replace("cd deploy/docker\n", "")
        for place in (" -v /srv/s2m3", " -g 10001 /srv/s2m3", " frame.jpg /srv/s2m3"):
            text = text.replace(place, place.replace("/srv/s2m3", str(self.folder)).replace("frame.jpg", str(frame)))
        text = text.replace("broker init /srv/s2m3/site", f"broker init /srv/s2m3/site --port {self.port}")
        text = text.replace("/srv/s2m3/frame.jpg", f"/srv/s2m3/{frame.name}")
        return self.engine.run(["bash", "-euo", "pipefail", "-c", text], self.environ)

    def container(self, service: str) -> str:
        """The container of a service, running or not."""
        return self.compose("ps", "--all", "--quiet", service)

    def state(self, service: str, format_: str) -> str:
        """Docker's word on the container of a service, by a template."""
        return self.engine.docker("inspect", "--format", format_, self.container(service))
