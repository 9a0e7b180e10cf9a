"""A sensor that names itself in its topic: one line of ``mosquitto_pub``, no properties, over both brokers."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from broker.transport.connection import parse_url
from broker.transport.port import Delivery
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.observer import Observer
from s2m3.testbed.replay.stage import connected
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

KEEPS = AgentConfig.model_validate({"id": "gw-a", "memory": "200MiB", "cache": "1MiB"})
CAPTIONS = ("a rocket launch", "a cup of coffee")
Publish = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["mosquitto", "embedded"])
def served(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One device that serves a task of pictures, and one whose captions have defaults."""
    with Site(request.param, [KEEPS]) as running:
        task = load_task("pocket/zero-shot")
        captions = task.inputs["text"].model_copy(update={"default": CAPTIONS})
        guard = task.model_copy(update={"task": "guard", "inputs": task.inputs | {"text": captions}})
        running.serve([load_task("pocket/classify"), guard])
        yield running


@pytest.fixture
def publish(served: Site, recorder: Any) -> Iterator[Publish]:
    """Publish with ``mosquitto_pub``; returns the next answers, each with its topic."""

    def run(*requests: tuple[str, ...], client: str, task: str = "classify", answers: int = 1) -> list[dict[str, Any]]:
        recorder.clear()
        for name, *options in requests:
            topic = f"s2m3/v1/tasks/{task}/requests/{client}/{name}"
            address = parse_url(served.plain_url if "mqttv311" in options else served.url)
            where = ("-h", address.host, "-p", str(address.port))
            subprocess.run(["mosquitto_pub", *where, "-t", topic, *options], check=True, timeout=PATIENCE_S)
        recorder.wait_for(Delivery, count=answers)
        return [json.loads(each.payload) | {"topic": each.topic} for each in recorder.deliveries]

    with connected(served.connection, recorder, "s2m3/v1/clients/#"):
        yield run


def photo(name: str) -> tuple[str, str]:
    """The options that send a real photograph."""
    return "-f", str(picture(name).path)


@pytest.mark.parametrize("quality", ["0", "1"])
def test_a_picture_alone_is_a_request_and_the_answer_has_the_sensors_own_names(publish: Publish, quality: str) -> None:
    (answer,) = publish(("1", "-V", "5", "-q", quality, *photo("rocket.jpg")), client="ESP_1A2B")
    assert answer["topic"] == "s2m3/v1/clients/ESP_1A2B/results/1"
    assert answer["revision"] == load_task("pocket/classify").revision
    assert answer["answer"]["label"] == "missile"


def test_a_sensor_may_call_each_of_its_requests_1(publish: Publish) -> None:
    pictures = ("rocket.jpg", "coffee.png", "rocket.jpg")
    read = [publish(("1", "-V", "5", "-q", "1", *photo(name)), client="door cam")[0] for name in pictures]
    assert {each["topic"] for each in read} == {"s2m3/v1/clients/door cam/results/1"}
    assert [each["answer"]["label"] for each in read] == ["missile", "espresso", "missile"]
    assert len({each["request"] for each in read}) == 2


def test_an_error_reaches_the_sensor_that_named_itself(publish: Publish) -> None:
    (wrong,) = publish(("x", "-V", "5", "-q", "1", "-m", "no picture"), client="Kamera-Süd")
    assert wrong["topic"] == "s2m3/v1/clients/Kamera-Süd/results/x"
    assert wrong["error"]["code"] == "bad_input"
    (unknown,) = publish(("x", "-V", "5", "-m", "y"), client="Kamera-Süd", task="nope")
    assert unknown["error"]["code"] == "no_route"


def test_another_response_topic_is_ignored(publish: Publish) -> None:
    elsewhere = ("-D", "publish", "response-topic", "s2m3/v1/clients/other/results/1")
    (answer,) = publish(("7", "-V", "5", "-q", "1", *photo("rocket.jpg"), *elsewhere), client="cam-1")
    assert answer["topic"] == "s2m3/v1/clients/cam-1/results/7"


@pytest.mark.parametrize("quality", ["0", "1"])
def test_a_sensor_of_mqtt_3_1_1_needs_no_properties(publish: Publish, quality: str) -> None:
    (answer,) = publish(("1", "-V", "mqttv311", "-q", quality, *photo("rocket.jpg")), client="plc")
    assert answer["answer"]["label"] == "missile"


def test_a_sensor_of_mqtt_3_1_1_reads_its_answers(served: Site, publish: Publish, tmp_path: Path) -> None:
    """``mosquitto_sub`` of the same version: answers have properties, which 3.1.1 doesn't."""
    address = parse_url(served.plain_url)
    read = ["mosquitto_sub", "-V", "mqttv311", "-h", address.host, "-p", str(address.port), "-q", "1", "-F", "%t %p"]
    read += ["-t", "s2m3/v1/clients/esp/results/+", "-C", "3", "-W", str(round(PATIENCE_S))]
    asked = tmp_path / "request.json"
    encoded = base64.b64encode(picture("rocket.jpg").path.read_bytes()).decode()
    with subprocess.Popen(read, stdout=subprocess.PIPE, text=True) as viewer:
        while viewer.poll() is None:  # nothing tells when the viewer has subscribed
            for name, payload in (("raw", None), ("json", {"image": encoded}), ("typo", {"imgae": encoded})):
                asked.write_text(json.dumps(payload))
                source = photo("rocket.jpg") if payload is None else ("-f", str(asked))
                publish((name, "-V", "mqttv311", "-q", "1", *source), client="esp")
        printed = viewer.communicate()[0].splitlines()
    answers = dict(line.removeprefix("s2m3/v1/clients/esp/results/").split(" ", 1) for line in printed)
    for name in answers.keys() & {"raw", "json"}:
        assert json.loads(answers[name])["answer"]["label"] == "missile"
    assert {"raw", "json"} & answers.keys()
    if "typo" in answers:
        assert "unknown input 'imgae'" in json.loads(answers["typo"])["error"]["message"]


def test_requests_of_both_forms_are_each_answered_once(served: Site, publish: Publish) -> None:
    """One share group reads both topics: two filters in it would lose the second's messages on the embedded broker."""
    forms = [(str(n), "-V", "5", "-q", "1", *photo("rocket.jpg")) for n in range(5)]
    read = publish(*forms, client="mixed", answers=5)
    assert sorted(each["topic"].rsplit("/", 1)[1] for each in read) == list("01234")
    responses = [served.client.request("classify", {"image": picture("coffee.png").path.read_bytes()}) for _ in "ab"]
    assert [response.ok for response in responses] == [True, True]


def test_a_jpeg_alone_is_a_request_of_a_task_with_default_captions_which_are_encoded_once(publish: Publish) -> None:
    plain = ("-V", "mqttv311", "-q", "1")
    for name, best in (("rocket.jpg", CAPTIONS[0]), ("coffee.png", CAPTIONS[1])):
        (answer,) = publish((name, *plain, *photo(name)), client="cam", task="guard")
        assert answer["answer"]["label"] == best
    cached = {timing["node"]: timing.get("cached", False) for timing in answer["timings"]}
    assert cached["text-encoder"]
    document = json.dumps({"text": ["an empty yard", "a missile"]} | {"image": jpeg_as_text("rocket.jpg")})
    (other,) = publish(("json", *plain, "-m", document), client="cam", task="guard")
    assert other["answer"]["label"] == "a missile"
    (missing,) = publish(("text", *plain, "-m", "a cat"), client="cam", task="guard")
    assert (
        "the input image is missing: this task takes image (image), text (text, has a default)"
        in missing["error"]["message"]
    )


def jpeg_as_text(name: str) -> str:
    """A small copy of a picture as a data URL."""
    with Image.open(picture(name).path) as image, io.BytesIO() as small:
        image.convert("RGB").resize((224, 224)).save(small, "JPEG")
        return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()


def test_a_name_that_is_no_id_is_answered_and_shown(served: Site, publish: Publish) -> None:
    for options in (("-V", "5"), ("-V", "mqttv311")):
        (answer,) = publish(("1", *options, "-q", "1", *photo("rocket.jpg")), client="plc", task="Classify")
        assert (answer["task"], answer["error"]["code"]) == ("Classify", "no_route")
        assert "deployed tasks: classify, guard; write classify" in answer["error"]["message"]
    address = parse_url(served.url)
    where = ("mosquitto_pub", "-V", "5", "-q", "1", "-h", address.host, "-p", str(address.port), "-m", "x")
    foreign = ("-D", "publish", "response-topic", "home/x")
    for task, properties in (("classify", ()), ("classify", foreign), ("zero_shot", ())):
        for _ in range(3):
            topic = f"s2m3/v1/tasks/{task}/requests"
            subprocess.run([*where, "-t", topic, *properties], check=True, timeout=PATIENCE_S)
    told = {"no_response_topic": 3, "response_topic_not_allowed": 3}
    with Observer(served.connection) as seen:
        assert seen.wait_for(lambda _: "zero_shot" in _unknown(seen), PATIENCE_S)
        assert seen.wait_for(
            lambda _: "classify" in seen.statuses and told.items() <= seen.statuses["classify"].unanswerable.items(),
            PATIENCE_S,
        )
        assert _unknown(seen)["zero_shot"] == {"no_response_topic": 3}
        assert _unknown(seen)["Classify"]["unknown"] >= 2


def _unknown(seen: Observer) -> dict[str, dict[str, int]]:
    return seen.unanswered[""].unanswerable if "" in seen.unanswered else {}


NPM_CLIENT = """
const mqtt = require("mqtt"), fs = require("fs");
const [url, picture] = process.argv.slice(2);
const client = mqtt.connect(url, {protocolVersion: 4, clientId: "npm-cam"});
client.on("connect", () => client.subscribe("s2m3/v1/clients/npm-cam/results/+", {qos: 1}, () => {
  client.publish("s2m3/v1/tasks/classify/requests/npm-cam/raw", fs.readFileSync(picture), {qos: 1});
  const image = fs.readFileSync(picture).toString("base64");
  client.publish("s2m3/v1/tasks/classify/requests/npm-cam/json", JSON.stringify({image}), {qos: 1});
}));
const found = {};
client.on("message", (topic, payload) => {
  found[topic.split("/").pop()] = JSON.parse(payload).answer.label;
  if (Object.keys(found).length === 2) { console.log(JSON.stringify(found)); client.end(); }
});
"""


@pytest.mark.long  # it installs a package
def test_the_npm_client_asks_at_protocol_4(served: Site, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm and node aren't installed")
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "mqtt@5.10.1"]
    subprocess.run(install, cwd=tmp_path, check=True, timeout=10 * PATIENCE_S, capture_output=True)
    script = tmp_path / "ask.js"
    script.write_text(NPM_CLIENT)
    command = [node, str(script), served.plain_url, str(picture("rocket.jpg").path)]
    done = subprocess.run(command, cwd=tmp_path, check=True, timeout=2 * PATIENCE_S, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"raw": "missile", "json": "missile"}
