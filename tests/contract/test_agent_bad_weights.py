"""Weights that are wrong, missing or can't be had: the agent reports each as failed, with the reason, and stays up.

The hub is a small server of files on this machine, and its client the real one. The full disk is /dev/full, to which
the kernel writes nothing for want of space.
"""

from __future__ import annotations

import http.server
import json
import pickle
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from broker.protocol.codec import decode, encode
from broker.protocol.messages import AssignedModule, Assignment, FirstLoad, Heartbeat, HeldModule
from broker.protocol.specs import ModuleSpec, Source
from broker.protocol.topics import DEVICE_ASSIGNMENT
from broker.transport.port import Delivery, Outgoing
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.allowed import AllowedWeights, allow
from s2m3.reference import random_weights, zoo
from tests.builders import module, profile, uncalibrated_store
from tests.media import SMALLEST_CLIP
from tests.patience import PATIENCE_S
from tests.threads import agent_in_memory

PREFIX = "s2m3/v1"
WAIT_S = 2 * PATIENCE_S
GOOD = "openai/clip-vit-base-patch16"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves one file of 1 MB under every name, as the hub does."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "Content-Length": "1000000"}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(bytes(1_000_000))

    def log_message(self, *_: object) -> None:
        """Keep silent."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on this machine, and an empty cache for its client."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    ask(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    allow(AllowedWeights(hub=("org",)))
    yield str(tmp_path / "cache")
    allow(None)
    server.shutdown()
    thread.join()
    server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Have the hub's client ask another server."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models directory that holds a tiny CLIP."""
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path / "models"))
    changes = {"config.json": SMALLEST_CLIP, "preprocessor_config.json": {"size": 32, "crop_size": 32}}
    random_weights.write(zoo.published(GOOD), tmp_path / "models", changes=changes)
    return tmp_path / "models"


@pytest.fixture
def reported(recorder: Any) -> Iterator[Callable[..., dict[str, HeldModule]]]:
    """Assigns modules to a running agent, and says what its heartbeat tells of them once none is loading."""
    generation = 0

    def report(*names: str, first_load: FirstLoad | None = None) -> dict[str, HeldModule]:
        nonlocal generation
        generation += 1
        modules = tuple(
            AssignedModule(module=f"vision/{number}", spec=vision(name), first_load=first_load)
            for number, name in enumerate(names)
        )
        assignment = Assignment(epoch=1, generation=generation, modules=modules)
        listener.publish(Outgoing(DEVICE_ASSIGNMENT.at(PREFIX, device="gw-a"), encode(assignment), retain=True))

        def settled(event: object) -> bool:
            if not isinstance(event, Delivery) or not event.topic.endswith("/heartbeat"):
                return False
            heartbeat = decode(Heartbeat, event.payload)
            keys = {vision(name).key for name in names}
            return heartbeat.modules.keys() == keys and "loading" not in {
                held.state for held in heartbeat.modules.values()
            }

        heartbeat = decode(Heartbeat, recorder.wait_for(settled, timeout_s=WAIT_S).payload)
        return {name: heartbeat.modules[vision(name).key] for name in names}

    with agent_in_memory(recorder, profile=profile(10**9), store=uncalibrated_store(10**9)) as listener:
        yield report


def vision(name: str) -> ModuleSpec:
    return module("vision", 10**7, family="clip.vision", source=Source(hub=name, part="vision", revision=COMMIT))


def spoiled(models: Path, name: str) -> Path:
    """A copy of the tiny CLIP under another name."""
    return Path(shutil.copytree(models / GOOD, models / name))


def test_bad_checkpoints_fail_each_with_its_file_and_what_to_do_and_the_others_serve(
    models: Path, reported: Callable[..., dict[str, HeldModule]]
) -> None:
    tensors = load_file(models / GOOD / "model.safetensors")
    name = "vision_model.post_layernorm.bias"
    save_file(
        {key: value for key, value in tensors.items() if key != name},
        spoiled(models, "bad/missing") / "model.safetensors",
    )
    save_file(tensors | {"vision_model.extra": torch.ones(1)}, spoiled(models, "bad/extra") / "model.safetensors")
    other = spoiled(models, "bad/config") / "config.json"
    config = json.loads(other.read_text())
    config["vision_config"]["intermediate_size"] = 96
    other.write_text(json.dumps(config))
    unsafe = spoiled(models, "bad/pickle")
    (unsafe / "model.safetensors").unlink()
    (unsafe / "pytorch_model.bin").write_bytes(pickle.dumps(tensors))
    sentences = {
        "bad/missing": ("lacks post_layernorm.bias of clip.vision", "fetch it again, or correct config.json"),
        "bad/extra": (
            "has vision_model.extra besides what clip.vision takes",
            "fetch it again, or correct config.json",
        ),
        "bad/config": ("is (64,), and by its config.json (96,)", "correct config.json, or fetch the weights again"),
        "bad/pickle": ("pytorch_model.bin is a pickle", "convert it to model.safetensors where you trust it"),
    }
    found = reported(GOOD, *sentences)
    assert found[GOOD].state == "ready"
    for bad, (what, fix) in sentences.items():
        held = found[bad]
        assert (held.state, held.memory_bytes) == ("failed", 0)
        assert held.error is not None
        assert held.error.startswith("vision/")
        assert str(models / bad) in held.error
        assert what in held.error
        assert fix in held.error
        assert "\n" not in held.error
    assert reported(GOOD)[GOOD].state == "ready", "it obeys the next assignment"


def test_a_device_reports_the_digest_that_it_loads_and_refuses_another_than_the_sites_first_one(
    models: Path, reported: Callable[..., dict[str, HeldModule]]
) -> None:
    loaded = reported(GOOD)[GOOD]
    assert loaded.digest is not None
    other = spoiled(models, "bad/other") / "model.safetensors"
    tensors = load_file(other)
    tensors["vision_model.post_layernorm.bias"] += 1
    save_file(tensors, other)
    found = reported(GOOD, "bad/other", first_load=FirstLoad(digest=loaded.digest, devices=("gw-b",)))
    assert found[GOOD].state == "ready"
    held = found["bad/other"]
    assert (held.state, held.memory_bytes) == ("failed", 0)
    assert held.digest not in {None, loaded.digest}, "the orchestrator hears what was found"
    source = vision("bad/other").source
    assert held.error == (
        f"vision/1: the weights of {source} have the digest {held.digest} here, and gw-b first loaded {loaded.digest} "
        f"from the same source: if those here are right, write digest: {held.digest} into the task file; else bring "
        "the first ones here"
    )


def test_a_hub_that_is_away_or_may_not_be_asked_fails_a_module_with_two_ways_out(
    models: Path, served: str, reported: Callable[..., dict[str, HeldModule]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = reported("org/offline", GOOD)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ask(monkeypatch, "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its client's six attempts
    away = reported("org/away", GOOD)
    for name, found in (("org/offline", offline), ("org/away", away)):
        assert found[GOOD].state == "ready"
        assert found[name].state == "failed"
        assert found[name].error == (
            f"vision/0: no network for the hub, and config.json of {name}@{COMMIT} is not in its cache: connect this "
            f"device, or put the repository into DIR/{name} and set S2M3_MODELS=DIR (or models: in the agent's file)"
        )
    assert models
    assert not list(Path(served).rglob("*.json"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_fails_a_module_with_what_did_not_fit_and_what_to_do(
    models: Path, served: str, reported: Callable[..., dict[str, HeldModule]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = uuid.UUID(int=7)
    monkeypatch.setattr("huggingface_hub.file_download.uuid.uuid4", lambda: name)
    blobs = Path(served) / "models--org--large" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"abc.{name.hex[:8]}.incomplete").symlink_to("/dev/full")
    found = reported("org/large", GOOD)
    assert found["org/large"].state == "failed"
    assert found["org/large"].error == (
        f"vision/0: the disk is full: config.json of org/large@{COMMIT} doesn't fit; free some room, or set HF_HOME "
        "to a larger disk"
    )
    assert found[GOOD].state == "ready"
    assert models
