"""A gateway from nothing: ``s2m3 agent init``, ``s2m3 unit`` and the page about them; units run as by systemd."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.servers.access import Account, Role
from broker.transport.connection import connection_file, read_connection
from edge_agent.runtime import engines
from s2m3.testbed.observer import Observer
from tests.notify import Supervisor, supervisor
from tests.patience import PATIENCE_S, until
from tests.secured import SecuredSite

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "gateway.md"
BLOCK = re.compile(r"```(sh|)\n(.*?)```", re.DOTALL)
WATCHDOG_S = 4.0
MOST_EXPOSED = 2.0
Run = Callable[..., subprocess.CompletedProcess[str]]


class Box:
    """A machine in a folder: its ``/etc``, its ``/opt``, and programs that only root may really run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("etc/s2m3", "etc/systemd/system", "opt/s2m3/bin", "stubs"):
            (root / folder).mkdir(parents=True)
        for name in ("apt-get", "systemctl", "python3", "pip"):
            self._script(root / "stubs" / name, f'echo {name} "$@" >> {root}/ran')
        (root / "opt/s2m3/bin/pip").symlink_to(root / "stubs/pip")
        self._script(root / "opt/s2m3/bin/s2m3", f'exec {sys.executable} -m s2m3 "$@"')

    @staticmethod
    def _script(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def here(self, text: str) -> str:
        """A text of the page, with this machine's paths."""
        return re.sub(r"/(etc|opt)/", lambda found: f"{self.root}{found[0]}", text)

    def follow(self, block: str) -> str:
        """Run a block of the page; the output without this machine's paths. The unit names its own environment."""
        command = self.here(block).replace("agent init", f"agent init --program {self.root}/opt/s2m3/bin/s2m3")
        command = command.replace("s2m3 unit", f"s2m3 unit --program {self.root}/opt/s2m3/bin/s2m3")
        environ = os.environ | {"PATH": f"{self.root}/stubs:{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-ec", command], env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(str(self.root), "")

    @contextmanager
    def started(self, name: str) -> Iterator[Supervisor]:
        """Start a unit as systemd does, as far as a test can: its command, copies of its files, its directories."""
        unit = (self.root / "etc/systemd/system" / f"{name}.service").read_text()
        run = self.root / "run" / name
        for folder in ("credentials", "state", "cache"):
            (run / folder).mkdir(parents=True, mode=0o700)
        for copy, path in re.findall(r"^LoadCredential=([^:]+):(.*)$", unit, re.MULTILINE):
            shutil.copy(path, run / "credentials" / copy)
        command = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0]
        words = shlex.split(command.replace("${CREDENTIALS_DIRECTORY}", str(run / "credentials")))
        watched = float(re.findall(r"^WatchdogSec=(.*)$", unit, re.MULTILINE)[0])
        assert watched > WATCHDOG_S
        with supervisor(run, WATCHDOG_S) as systemd:
            environ = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(sys.path),
                "STATE_DIRECTORY": str(run / "state"),
                "CACHE_DIRECTORY": str(run / "cache"),
                "CREDENTIALS_DIRECTORY": str(run / "credentials"),
                **systemd.environ,
            }
            with (run / "log").open("wb") as log:
                process = subprocess.Popen(words, env=environ, cwd="/", stdin=subprocess.DEVNULL, stderr=log)
            try:
                systemd.wait_for("READY=1")
                yield systemd
                process.terminate()
                systemd.wait_for("STOPPING=1")
                assert process.wait(PATIENCE_S) == 0
            finally:
                process.kill()
                process.wait()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``systemd-analyze``."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze isn't on this machine")
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_page_is_followed_from_its_first_to_its_last_line(box: Box) -> None:
    if not engines.is_installed("onnx"):
        pytest.skip("the page's agent runs ONNX Runtime, which isn't installed")
    accounts = (
        Account(Role.DEVICE, "gw-a"),
        *(Account(role, str(role)) for role in (Role.ORCHESTRATOR, Role.OPERATOR)),
    )
    with SecuredSite(box.root / "site", accounts) as site, ExitStack() as stack:
        for name in ("gw-a", "orchestrator"):
            shutil.copytree(site.setup.client_folder(name), box.root / "etc/s2m3" / name)
        blocks = BLOCK.findall(PAGE.read_text())
        printed = ""
        for kind, text in blocks:
            if kind == "sh":
                printed = box.follow(text)
            else:
                assert printed == text
        assert (box.root / "ran").read_text().splitlines() == [
            "apt-get install -y python3-venv",
            "python3 -m venv " + str(box.root / "opt/s2m3"),
            "pip install -c constraints.txt .[onnx]",
            "systemctl enable --now s2m3-agent",
            "systemctl enable --now s2m3-orchestrator",
        ]
        of_orchestrator = stack.enter_context(box.started("s2m3-orchestrator"))
        of_agent = stack.enter_context(box.started("s2m3-agent"))
        assert of_orchestrator.statuses[-1] == f"leads, epoch 1, at {site.setup.url}"
        assert of_agent.statuses[-1] == f"serves as gw-a at {site.setup.url}"
        of_agent.wait_for("WATCHDOG=1", times=2)
        operator = connection_file(site.setup.client_folder("operator") / "connection.yaml")
        observer = stack.enter_context(Observer(read_connection(operator)))
        until(lambda: observer.wait_for(lambda seen: seen.leads and seen.has_heartbeats(["gw-a"]), 0.1))
        assert any((box.root / "run/s2m3-orchestrator/state").iterdir())


@pytest.fixture
def plain_box(box: Box) -> Box:
    """A box with a connection and an account of its own, and files for sources and a door."""
    folder = box.root / "etc/s2m3/door"
    folder.mkdir()
    (folder / "password").write_text("secret-word")
    (folder / "token").write_text("another-secret")
    (folder / "connection.yaml").write_text("broker: mqtt://127.0.0.1:1883\nuser: door\npassword_file: password\n")
    (folder / "door.yaml").write_text("source: door\nsubscribe: door/picture\npayload: raw\ntask: classify\n")
    (folder / "agent.yaml").write_text("id: gw-a\nmemory: 300MiB\nengine: onnx\n")
    return box


SERVICES: Sequence[tuple[str, ...]] = (
    ("agent", "--config", "/etc/s2m3/door/agent.yaml"),
    ("orchestrator", "--heartbeat-interval", "2"),
    ("sources", "--config", "/etc/s2m3/door/door.yaml"),
    ("http", "--token-file=/etc/s2m3/door/token", "--port", "0"),
)


@pytest.mark.parametrize("words", SERVICES, ids=[words[0] for words in SERVICES])
def test_systemd_takes_the_unit_of_each_service(plain_box: Box, words: Sequence[str]) -> None:
    connection = "--connection /etc/s2m3/door/connection.yaml"
    unit = f"/etc/systemd/system/s2m3-{words[0]}.service"
    plain_box.follow(f"/opt/s2m3/bin/s2m3 unit {' '.join(words)} {connection} > {unit}")
    path = Path(plain_box.here(unit))
    assert "secret" not in path.read_text()
    verified = analyze("verify", path)
    assert (verified.returncode, verified.stderr) == (0, "")
    secured = analyze("security", "--offline=true", f"--threshold={10 * MOST_EXPOSED:.0f}", path)
    if "unrecognized option" in secured.stderr:
        pytest.skip("this systemd-analyze checks the security of running units only")
    assert secured.returncode == 0, secured.stdout


def test_the_door_of_a_unit_is_ready_when_it_listens(plain_box: Box) -> None:
    pytest.importorskip("uvicorn")
    words = " ".join(SERVICES[-1]) + " --connection /etc/s2m3/door/connection.yaml"
    plain_box.follow(f"/opt/s2m3/bin/s2m3 unit {words} > /etc/systemd/system/s2m3-http.service")
    with plain_box.started("s2m3-http") as systemd:
        systemd.wait_for("WATCHDOG=1", times=2)
        assert systemd.statuses == ["answers requests"]


def test_a_password_in_an_address_becomes_a_file_of_its_own(tmp_path: Path, exit_code: Any) -> None:
    url = "mqtt://gw-a:p%20w@127.0.0.1:1884"
    arguments = ["--id", "no", "--broker", url, "--to", str(tmp_path / "gw"), "--threads", "2"]
    assert exit_code(["agent", "init", *arguments]) == 0
    assert yaml.safe_load((tmp_path / "gw/connection.yaml").read_text()) == {
        "broker": "mqtt://127.0.0.1:1884",
        "user": "gw-a",
        "password_file": "password",
    }
    assert (tmp_path / "gw/password").read_text() == "p w"
    assert yaml.safe_load((tmp_path / "gw/agent.yaml").read_text()) == {"id": "no", "threads": 2}
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "gw").iterdir()} == {0}


def test_at_a_terminal_it_asks(
    tmp_path: Path, exit_code: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["gw-b", "", "1GiB", ""])
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert exit_code(["agent", "init", "--to", str(tmp_path / "gw")]) == 0
    assert [question.partition(" [")[0] for question in asked] == [
        "the device's name",
        "the broker's address",
        "memory for modules, such as 300MiB",
        "the models directory",
    ]
    assert yaml.safe_load((tmp_path / "gw/agent.yaml").read_text()) == {"id": "gw-b", "memory": "1GiB"}
    assert "password" not in capsys.readouterr().out


def test_a_wrong_answer_at_a_terminal_is_asked_for_again(
    tmp_path: Path, exit_code: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["GW A", "gw-\udcfc", "gw-b", "gw-b", "mqtt://broker", "300", "lots", "1GiB", "~/models"]
    given = iter(answers)
    monkeypatch.setattr("builtins.input", lambda _: next(given))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setenv("HOME", "/srv/home")
    folder = tmp_path / "a folder"
    assert exit_code(["agent", "init", "--to", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load((folder / "connection.yaml").read_text())["broker"].startswith("mqtt://broker")
    wanted = {"id": "gw-b", "memory": "1GiB", "models": "/srv/home/models"}
    assert yaml.safe_load((folder / "agent.yaml").read_text()) == wanted
    for sentence in ("is not a valid id", "can't be printed", "has no mqtt://", "did you mean 300MiB?", "a valid size"):
        assert sentence in printed
    assert f"--config '{folder / 'agent.yaml'}' --connection" in printed


def test_the_end_of_the_input_at_a_terminal_ends_it(
    exit_code: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert exit_code(["agent", "init"]) == 130
    assert capsys.readouterr().err.startswith("s2m3: interrupted")


WRONG = (
    (("agent", "init"), "--id: is missing; name the device, as in --id gw-a"),
    (("agent", "init", "--id", "a/b"), "--id: is not a valid id"),
    (("agent", "init", "--id", "a", "--memory", "300"), "--memory: 300 is a number of bytes; did you mean 300MiB?"),
    (("agent", "init", "--id", "a", "--broker", "x"), "--broker: has no mqtt://"),
    (("agent", "init", "--id", "a", "--user", "a", "--password-file", "gone"), "the password file can't be read"),
    (("agent", "init", "--id", "a", "--connection", "gone.yaml"), "gone.yaml: No such file"),
    (("agent", "init", "--id", "a", "--systemd", "--models", "/home/m", "--program", "s2m3"), "is below a home"),
    (("agent",), "the following arguments are required: --config"),
    (
        ("unit", "orchestrator", "--state-dir", "x"),
        "--state-dir: a service has /var/lib/s2m3-orchestrator; leave it out",
    ),
    (("unit", "--name", "a b", "orchestrator"), "--name: 'a b' is not a valid name of a unit"),
    (("unit", "agent", "--config", "gone.yaml"), "gone.yaml: No such file"),
    (("unit", "http", "--broker", "mqtt://a:b@gw"), "--broker: has a password, which every user of the machine could"),
    (("unit", "http", "--colour"), "unrecognized arguments: --colour"),
    (("unit", "sources", "check", "x"), "check isn't a service"),
    (("unit", "camera"), "there is no choice 'camera'"),
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_argument_is_one_line_and_leaves_no_file(
    wrong: tuple[Sequence[str], str],
    tmp_path: Path,
    exit_code: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, sentence = wrong
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert exit_code(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_there_already_stays(tmp_path: Path, exit_code: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["agent", "init", "--id", "gw-a", "--to", str(tmp_path / "gw")]
    assert exit_code(arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "gw").iterdir()}
    assert exit_code([*arguments, "--memory", "1GiB"]) == 2
    assert "connection.yaml: is there already; remove it, or name another folder with --to" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "gw").iterdir()} == before


def test_a_file_that_a_copy_could_not_name_is_refused(
    plain_box: Box, exit_code: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plain_box.root / "etc/s2m3/door/connection.yaml"
    file.write_text(file.read_text().replace("password_file: password", f"password_file: {file.parent / 'password'}"))
    assert exit_code(["unit", "--program", "s2m3", "orchestrator", "--connection", str(file)]) == 2
    assert f"{file}:3: password_file: is a path" in capsys.readouterr().err
