"""A new task on a running site costs its head: trained, deployed and asked, over real processes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from broker.protocol.codec import RawInput
from broker.protocol.messages import HeldModule
from edge_agent.config import AgentConfig
from s2m3.bench.datasets import classes
from s2m3.catalogue import load_task
from s2m3.reference import whole
from s2m3.reference.pictures import picture
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

Run = Callable[..., subprocess.CompletedProcess[str]]
WAIT_S = 2 * PATIENCE_S
HEAD_BYTES = 4 * (10 * 1280 + 10)
ENCODER = load_task("pocket/vision").modules["efficientnet-lite0/encoder"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The models directory of the devices and of the operator."""
    directory = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2M3_MODELS", str(directory))
        patch.setenv("OMP_NUM_THREADS", "1")  # features are small, and the devices compute beside it
        yield directory


@pytest.fixture(scope="module")
def site(models: Path) -> Iterator[Site]:  # noqa: ARG001 - the devices take it from the environment
    """Two devices, of which one holds the vision encoder and has used it."""
    configs = [AgentConfig(id="gw-a", memory=32 * 2**20), AgentConfig(id="gw-b", memory=8 * 2**20)]
    with Site("embedded", configs) as running:
        running.serve([load_task("pocket/vision")])
        request = ["request", "vision", "--image", str(picture("coffee.png").path), "--broker", running.url]
        command = [sys.executable, "-m", "s2m3", *request]
        done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
        assert "features: float32 [1, 1280]" in done.stdout
        yield running


@pytest.fixture
def plain(plain: Run, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run the command line in this process, which computes as the devices do."""
    monkeypatch.setenv("S2M3_MODELS", str(models))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield plain
    torch.set_num_threads(threads)


def heartbeats(site: Site, key: str) -> dict[str, Any]:
    """The devices' newest reports, once one of them has the module ready."""
    with Observer(site.connection) as observer:

        def reported(seen: Observer) -> bool:
            held = [heartbeat.modules.get(key) for heartbeat in seen.heartbeats.values()]
            return len(held) == len(site.devices) and any(each is not None and each.state == "ready" for each in held)

        assert observer.wait_for(reported, WAIT_S)
        return dict(observer.heartbeats)


def encoders(heartbeats: dict[str, Any]) -> dict[str, HeldModule]:
    return {
        device: heartbeat.modules[ENCODER.key]
        for device, heartbeat in heartbeats.items()
        if ENCODER.key in heartbeat.modules
    }


def png(position: int, path: Path) -> RawInput:
    raw = classes.digits().read(position).media
    path.write_bytes(raw.data)
    return raw


def test_a_head_is_trained_and_deployed_for_its_own_bytes_and_the_encoder_stays(
    site: Site, s2m3: Run, models: Path, tmp_path: Path
) -> None:
    before = heartbeats(site, ENCODER.key)
    (held_before,) = encoders(before).values()
    assert held_before.compute_s is not None  # measured at the request: a module loaded again would have none

    out = tmp_path / "digits.yaml"
    data = ("--data", "digits", "--limit", "80", "--out", str(out))
    report = json.loads(s2m3("head", "train", "--encoder", "pocket/vision", *data, "--deploy", "--json").stdout)
    assert report["differing"] == 0
    assert report["accuracy"] == report["unsplit_accuracy"] > 0.3  # chance is 0.1
    assert report["head_bytes"] == HEAD_BYTES
    rollout = report["rollout"]
    assert rollout["encoder_was_there"]
    assert not rollout["encoder_loaded_again"]
    assert rollout["added_bytes"].keys() == set(rollout["head_on"])
    assert all(HEAD_BYTES <= added < 2**20 for added in rollout["added_bytes"].values()), "kilobytes, as measured"
    assert sorted(path.name for path in (models / "local" / "digits").iterdir()) == ["config.json", "model.safetensors"]

    task = load_task(str(out))
    after = heartbeats(site, task.module_of(task.output).key)
    assert encoders(after) == encoders(before)  # the very same entry: same place, same measurement
    used = {
        device: heartbeat.memory_used_bytes - before[device].memory_used_bytes for device, heartbeat in after.items()
    }
    assert HEAD_BYTES <= sum(used.values()) < 2**20

    raw = png(6, tmp_path / "six.png")
    answer = json.loads(s2m3("request", "digits", "--image", str(tmp_path / "six.png"), "--json").stdout)
    expected = whole.load("digits", task)({"image": raw}).answer
    assert answer["answer"] == expected
    assert {timing["node"] for timing in answer["timings"]} == {"image-encoder", "head"}


def test_a_device_without_the_heads_files_says_so_and_stays_up(
    site: Site, s2m3: Run, plain: Run, models: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    out = tmp_path / "lost.yaml"
    options = ("--data", "digits", "--limit", "40", "--name", "lost", "--models", str(other), "--out", str(out))
    trained = plain("head", "train", *options)
    assert trained.returncode == 0, trained
    s2m3("deploy", str(out), "--timeout", "3", expect=1)
    with Observer(site.connection) as observer:

        def refused(seen: Observer) -> bool:
            return "lost" in seen.routes and "comes from the models directory only" in (
                seen.routes["lost"].unavailable or ""
            )

        assert observer.wait_for(refused, WAIT_S)
        why = observer.routes["lost"].unavailable or ""
    assert "local/lost comes from the models directory only" in why
    assert str(models) in why
    site.check()
    s2m3("undeploy", "lost")
    s2m3("request", "vision", "--image", str(picture("coffee.png").path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "none"), "none: is not a directory"),
        (("--data", "digits", "--encoder", "pocket/zero-shot"), "head takes image, text; name the encoder of one"),
        (("--data", "digits", "--encoder", "pocket/vqa:hed"), "vqa has no node hed"),
        (("--data", "digits", "--name", "My Head"), "--name: must be a name of a-z, 0-9 and -, got 'My Head'"),
        (("--data", "digits", "--limit", "0"), "argument --limit: must be a whole number of at least 1, got '0'"),
        (("--data", "digits", "--encoder", "pocket/zero-shot:text-encoder"), "holds images, and zero-shot takes text"),
        (("--data", "digits", "--limit", "5"), "give each class at least two records"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    exit_code: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(["head", "train", *arguments, "--models", str(tmp_path)]) == 2
    (line,) = (line for line in io.StringIO(capsys.readouterr().err) if not line.endswith("through vision\n"))
    assert says in line


def test_without_a_models_directory_one_is_asked_for(
    plain: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("S2M3_MODELS")
    monkeypatch.chdir(tmp_path)
    done = plain("head", "train", "--data", "digits")
    assert done.returncode == 2
    assert "set S2M3_MODELS" in done.stderr
