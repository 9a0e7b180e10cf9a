"""A plain MQTT tool is enough for a sensor: Mosquitto's own clients, nothing of ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from broker.transport.connection import parse_url
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

WAIT_S = str(round(PATIENCE_S))
SAFETENSORS = ("-D", "publish", "content-type", "application/vnd.safetensors")
TRACEPARENT = (
    *("-D", "publish", "user-property"),
    *("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
)
Ask = Callable[..., Any]


@pytest.fixture
def ask(site: Site, tmp_path: Path) -> Ask:
    """Send one request with ``mosquitto_pub`` and read what ``mosquitto_sub`` prints.

    ``mosquitto_rr`` does both at once, but that of Mosquitto 2.0.11 sends nothing from a file or from standard input.
    """
    address = parse_url(site.url)
    where = ("-V", "5", "-q", "1", "-h", address.host, "-p", str(address.port))
    reply_to = "s2m3/v1/clients/camera-1/results/1"

    def run(task: str, payload: bytes, *more: str) -> Any:
        file = tmp_path / "payload"
        file.write_bytes(payload)
        send = ("-f", str(file)) if payload else ("-n",)
        properties = ("-D", "publish", "response-topic", reply_to, *more)
        sensor = ["mosquitto_sub", *where, "-i", "camera-1", "-c", "-x", "60", "-t", reply_to]
        subprocess.run([*sensor, "-E"], check=True, timeout=2 * PATIENCE_S)  # subscribes; the broker keeps the answer
        publish = ["mosquitto_pub", *where, "-t", f"s2m3/v1/tasks/{task}/requests", *send, *properties]
        subprocess.run(publish, check=True, timeout=2 * PATIENCE_S)
        done = subprocess.run(
            [*sensor, "-C", "1", "-W", WAIT_S], capture_output=True, check=True, timeout=2 * PATIENCE_S
        )
        return json.loads(done.stdout)

    return run


def test_request_and_response_in_one_command(site: Site) -> None:
    address = parse_url(site.url)
    command = ["mosquitto_rr", "-V", "5", "-q", "1", "-h", address.host, "-p", str(address.port), "-W", WAIT_S]
    topics = ["-t", "s2m3/v1/tasks/classify/requests", "-e", "s2m3/v1/clients/camera-1/results/2"]
    done = subprocess.run(
        [*command, *topics, "-m", "no picture"], capture_output=True, timeout=2 * PATIENCE_S, check=True
    )
    assert json.loads(done.stdout)["error"]["code"] == "bad_input"


def test_a_jpeg_is_a_request_and_json_is_the_answer(ask: Ask, jpeg: Path) -> None:
    result = ask("classify", jpeg.read_bytes(), "-D", "publish", "content-type", "image/jpeg")
    assert result.get("answer", {}).get("label") == "missile", json.dumps(result)
    assert [timing["node"] for timing in result["timings"]] == ["image-encoder", "classifier"]


def test_the_content_type_may_be_left_out_when_the_task_takes_one_input(ask: Ask, jpeg: Path) -> None:
    assert ask("classify", jpeg.read_bytes())["answer"]["label"] == "missile"


def test_several_inputs_travel_as_one_safetensors_document(ask: Ask, jpeg: Path) -> None:
    arrays = {
        "image": np.frombuffer(jpeg.read_bytes(), dtype=np.uint8),
        "text": np.frombuffer(b"a rocket launch\na cat", dtype=np.uint8),
    }
    document = save(arrays, metadata={"image": "image/jpeg", "text": "text/plain"})
    assert ask("zero-shot", document, *SAFETENSORS)["answer"]["label"] == "a rocket launch"


@pytest.mark.parametrize(
    ("task", "payload", "more", "code", "says"),
    [
        ("classify", b"a text, not a picture", (), "bad_input", "send a JPEG, PNG or WebP"),
        ("classify", b"", (), "bad_input", "the payload is empty"),
        ("nope", b"\xff\xd8", (), "no_route", "s2m3 deploy"),
        ("zero-shot", b"\xff\xd8", ("-D", "publish", "content-type", "image/jpeg"), "bad_input", "text is missing"),
        ("zero-shot", save({"a": np.zeros(99, dtype=np.uint8)})[:50], SAFETENSORS, "bad_input", "truncated"),
        ("zero-shot", save({"image": np.zeros(9, dtype=np.uint8)}), SAFETENSORS, "bad_input", "text is missing"),
        ("classify", bytes(9 * 1024 * 1024), (), "too_large", "send a smaller one"),
    ],
    ids=["no-picture", "empty", "unknown-task", "missing", "truncated", "missing-in-document", "oversized"],
)
def test_a_bad_request_ends_in_an_error_that_says_what_to_do(  # noqa: PLR0917 - one row of the table
    ask: Ask, jpeg: Path, task: str, payload: bytes, more: tuple[str, ...], code: str, says: str
) -> None:
    result = ask(task, payload, *more)
    assert result["error"]["code"] == code
    assert says in result["error"]["message"]
    assert ask("classify", jpeg.read_bytes())["answer"]["label"] == "missile"  # the agent goes on serving


def test_a_plain_subscriber_sees_what_the_site_thinks_of_itself(site: Site, ask: Ask, jpeg: Path) -> None:
    address = parse_url(site.url)
    where = ("mosquitto_sub", "-V", "5", "-q", "1", "-h", address.host, "-p", str(address.port), "-F", "%j")
    kinds = ("devices/+/summary", "devices/+/standing", "tasks/+/status")
    filters = [part for kind in kinds for part in ("-t", f"s2m3/v1/{kind}")]
    retained = [*where, *filters, "--retained-only", "-C", "7", "-W", WAIT_S]  # two devices, three tasks
    done = subprocess.run(retained, capture_output=True, check=True, timeout=2 * PATIENCE_S)
    seen = [json.loads(line)["topic"].removeprefix("s2m3/v1/") for line in done.stdout.splitlines()]
    assert sorted(seen) == [
        *(f"devices/{device}/{kind}" for device in site.devices for kind in ("standing", "summary")),
        *(f"tasks/{task}/status" for task in ("classify", "vqa", "zero-shot")),
    ]
    traces = [*where, "-t", "s2m3/v1/devices/+/traces/+", "-C", "1", "-W", WAIT_S]
    with subprocess.Popen(traces, stdout=subprocess.PIPE) as viewer:
        asked = set()  # nothing tells when the viewer has subscribed
        while viewer.poll() is None:
            asked.add(ask("classify", jpeg.read_bytes(), *TRACEPARENT)["request"])
        message = json.loads(viewer.communicate()[0])
    assert message["topic"].rpartition("/")[2] in asked
    assert json.loads(message["payload"])["traceparent"] == TRACEPARENT[-1]
    assert json.loads(message["payload"])["outcome"] == "answered"
