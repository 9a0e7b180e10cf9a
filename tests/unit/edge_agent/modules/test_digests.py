"""Digests of weights: those of the task's file, or those of the first load, which the log names and a file keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from safetensors.torch import load_file, save_file

from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import FirstLoad
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import modules
from edge_agent.modules.weights import digests, hub
from edge_agent.modules.weights.digests import DigestDiffers, Recorded, record_in
from s2m3.reference import random_weights, zoo
from tests.builders import module
from tests.media import SMALLEST_CLIP

OLD, NEW = (f"sha256:{digit * 64}" for digit in "ab")
KEY = "clip.vision hub:org/name#vision float32"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state" / "gw-a.weights.json"
    record_in(Recorded(path))
    yield path
    record_in(None)


def spec(**changes: object) -> ModuleSpec:
    fields: dict[str, object] = {"family": "clip.vision", "source": Source(hub="org/name", part="vision")}
    return module("vision", **fields | changes)  # type: ignore[arg-type]


def test_the_first_digest_is_recorded_and_told_and_another_one_is_refused_with_both(file: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        digests.check(spec(), lambda: OLD)
        digests.check(spec(), lambda: OLD)
    assert [(log["event"], log["source"], log["digest"]) for log in logs] == [
        ("weights_trusted_at_first_load", "hub:org/name#vision", OLD)
    ]
    assert json.loads(file.read_text()) == {"format": 1, "digests": {KEY: OLD}}
    record_in(Recorded(file))  # the agent restarts
    with pytest.raises(DigestDiffers, match=f"have the digest {NEW}, and at their first load here they had {OLD}") as e:
        digests.check(spec(), lambda: NEW)
    assert f"write digest: {NEW} into the task file; else restore the old ones ({file} has" in str(e.value)
    digests.check(spec(), lambda: OLD)


def test_a_removed_line_lets_the_next_load_count_as_the_first(file: Path) -> None:
    digests.check(spec(), lambda: OLD)
    file.write_text('{"format": 1, "digests": {}}')
    record_in(Recorded(file))
    digests.check(spec(), lambda: NEW)
    assert json.loads(file.read_text())["digests"] == {KEY: NEW}


def test_the_digest_of_the_sites_first_load_counts_before_that_of_this_device(file: Path) -> None:
    first = FirstLoad(digest=NEW, devices=("gw-c",))
    with digests.comparing_with(first) as compared, pytest.raises(DigestDiffers) as e:
        digests.check(spec(), lambda: OLD)
    assert str(e.value).startswith(f"the weights of hub:org/name#vision have the digest {OLD} here, and gw-c first ")
    assert f"write digest: {OLD} into the task file" in str(e.value)
    assert compared.found == OLD, "the orchestrator hears what was found"
    assert not file.exists(), "weights that are refused are no first load"
    with digests.comparing_with(first) as compared:
        digests.check(spec(), lambda: NEW)
        digests.check(spec(digest=OLD), lambda: OLD)
    assert compared.found == NEW
    digests.check(spec(digest=OLD), lambda: OLD)


def test_another_preparation_of_a_file_of_ones_own_is_a_source_of_its_own() -> None:
    picture = {"family": "onnx.classifier", "source": Source(hub="local/x", part="classifier")}
    names = {
        module("m", **picture | {"labels": labels}).recorded_as  # type: ignore[arg-type]
        for labels in (("a", "b"), ("b", "a"), None)
    }
    assert len(names) == 3
    assert "onnx.classifier hub:local/x#classifier float32" in names


def test_each_revision_part_dtype_and_family_has_its_own_record(file: Path) -> None:
    others = [
        spec(source=Source(hub="org/name", part="vision", revision="1" * 40)),
        spec(dtype="int8"),
        spec(family="blip.vision"),
        spec(source=Source(hub="org/name", part="text")),
    ]
    for number, each in enumerate([spec(), *others]):
        digests.check(each, lambda number=number: f"sha256:{number:064}")  # type: ignore[misc]
    assert len(json.loads(file.read_text())["digests"]) == 5


def test_a_digest_of_the_task_file_counts_alone(file: Path) -> None:
    digests.check(spec(), lambda: OLD)
    digests.check(spec(digest=NEW), lambda: NEW)
    with pytest.raises(ModuleRefused, match=f"have the digest {OLD}, the spec says {NEW}: correct the task file"):
        digests.check(spec(digest=NEW), lambda: OLD)
    assert json.loads(file.read_text())["digests"] == {KEY: OLD}


def test_without_a_record_or_a_source_nothing_is_computed() -> None:
    def never() -> str:
        raise AssertionError

    digests.check(spec(), never)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format": 2, "digests": {}}', '{"digests": {"a": "b"}}', "\0" * 99]
)
def test_a_damaged_record_is_set_aside_and_told_and_the_agent_starts(tmp_path: Path, content: str) -> None:
    path = tmp_path / "gw-a.weights.json"
    path.write_text(content)
    with structlog.testing.capture_logs() as logs:
        recorded = Recorded(path)
    assert [log["event"] for log in logs] == ["digests_not_read"]
    assert path.with_name("gw-a.weights.json.damaged").read_text() == content
    recorded.check(spec(), OLD)
    assert json.loads(path.read_text())["digests"] == {KEY: OLD}


def test_a_record_that_cannot_be_written_is_told_and_holds_for_this_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorded = Recorded(tmp_path / "file" / "gw-a.weights.json")
    with structlog.testing.capture_logs() as logs:
        recorded.check(spec(), OLD)
    assert "digests_not_kept" in [log["event"] for log in logs]
    with pytest.raises(DigestDiffers):
        recorded.check(spec(), NEW)


def test_the_record_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MAX_RECORDED", 3)
    recorded = Recorded(tmp_path / "gw-a.weights.json")
    for number in range(5):
        recorded.check(spec(source=Source(hub=f"org/n{number}", part="vision")), OLD)
    kept = json.loads((tmp_path / "gw-a.weights.json").read_text())["digests"]
    assert [key.split()[1] for key in kept] == [f"hub:org/n{number}#vision" for number in (2, 3, 4)]


def test_weights_that_changed_on_the_disk_are_refused_until_the_record_says_otherwise(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "openai/clip-vit-base-patch16"
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path / "models"))
    changes = {"config.json": SMALLEST_CLIP, "preprocessor_config.json": {"size": 32, "crop_size": 32}}
    weights = random_weights.write(zoo.published(name), tmp_path / "models", changes=changes) / "model.safetensors"
    vision, text = (
        module(part, 10**7, family=f"clip.{part}", source=Source(hub=name, part=part)) for part in ("vision", "text")
    )
    modules.load(vision)
    modules.load(text)
    tensors = load_file(weights)
    changed = next(name for name in tensors if name.startswith("vision_model.") and name.endswith("bias"))
    save_file(tensors | {changed: tensors[changed] + 1}, weights)
    with pytest.raises(DigestDiffers, match="at their first load here they had sha256:"):
        modules.load(vision)
    modules.load(text)
    assert weights.is_file(), "the operator's own file stays where it is"
    kept = json.loads(file.read_text())
    del kept["digests"][f"clip.vision hub:{name}#vision float32"]
    file.write_text(json.dumps(kept))
    record_in(Recorded(file))
    modules.load(vision)
