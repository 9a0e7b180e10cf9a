"""Repositories: the models directory first, then the hub at the pinned revision, and one clear sentence for neither."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import Source
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.allowed import AllowedWeights, allow
from edge_agent.modules.weights.layout import INDEX
from edge_agent.modules.weights.packaged import is_here

REVISION = "5ef227a78de3f75873f373246dac80def63b0003"
SOURCE = Source(hub="org/name", part="vision", revision=REVISION)
RESPONSE = httpx2.Response(404, request=httpx2.Request("GET", "http://localhost"))


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(hub.DIRECTORY_VARIABLE, raising=False)
    allow(AllowedWeights(hub=("org",)))
    yield
    allow(None)


@pytest.fixture
def hub_that(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Makes a hub that raises or returns, with a cache that holds some files; gives the list of what it is asked."""

    def make(outcome: Exception | Path, cache: dict[str, Any] | None = None) -> list[Any]:
        asked: list[Any] = []

        def download(name: str, file: str, *, revision: str, local_files_only: bool) -> str:
            asked.append((name, file, revision, local_files_only))
            if isinstance(outcome, Exception):
                raise outcome
            return str(outcome / file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, file, **__: (cache or {}).get(file))
        return asked

    return make


def test_the_models_directory_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_that: Callable[..., list[Any]]
) -> None:
    asked = hub_that(AssertionError("the hub is not asked"))
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    found = hub.repository(SOURCE)
    assert found.required("config.json") == tmp_path / "org" / "name" / "config.json"
    assert found.path("merges.txt") is None
    assert found.names() == ("config.json",)
    with pytest.raises(ModuleRefused, match=r"org/name has no merges.txt: complete it, or name another"):
        found.required("merges.txt")
    assert not asked


def test_the_hub_is_asked_for_single_files_at_the_pinned_revision(
    tmp_path: Path, hub_that: Callable[..., list[Any]]
) -> None:
    asked = hub_that(tmp_path)
    found = hub.repository(SOURCE)
    assert found.required("config.json") == tmp_path / "config.json"
    assert asked == [("org/name", "config.json", REVISION, False)]
    assert str(found) == f"org/name@{REVISION}"


def test_what_is_in_the_cache_needs_no_network(tmp_path: Path, hub_that: Callable[..., list[Any]]) -> None:
    absent = object()  # what the hub's client says of a file that it knows not to exist
    asked = hub_that(AssertionError(), {"config.json": str(tmp_path / "config.json"), "merges.txt": absent})
    found = hub.repository(SOURCE)
    assert found.path("config.json") == tmp_path / "config.json"
    assert found.path("merges.txt") is None
    assert not asked


def test_a_file_that_the_hub_does_not_have_is_absent(hub_that: Callable[..., list[Any]]) -> None:
    hub_that(errors.RemoteEntryNotFoundError("no such file", response=RESPONSE))
    assert hub.repository(SOURCE).path("merges.txt") is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.LocalEntryNotFoundError("x"), "no network for the hub, and f of org/name@.* is not in its cache"),
        (errors.OfflineModeIsEnabled("offline"), "no network for the hub, and f of org/name@.* is not in its cache"),
        (errors.GatedRepoError("gated", response=RESPONSE), "is gated: accept its terms on the hub and set HF_TOKEN"),
        (errors.RevisionNotFoundError("x", response=RESPONSE), f"org/name has no revision {REVISION}: correct"),
        (errors.RepositoryNotFoundError("x", response=RESPONSE), "the hub has no org/name: correct the spec's source"),
        (
            errors.HfHubHTTPError("502 Bad Gateway", response=RESPONSE),
            "or it refuses: f of .*502 Bad Gateway; try again",
        ),
        (ConnectionResetError("reset by peer"), "no network for the hub, or it refuses: f of .*reset by peer"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: f of .* doesn't fit; free some room"),
        (PermissionError(errno.EACCES, "Permission denied"), "f of .* can't be stored .*Permission denied.*HF_HOME"),
    ],
)
def test_every_failure_of_the_hub_is_one_sentence_with_a_way_out(
    hub_that: Callable[..., list[Any]], error: Exception, sentence: str
) -> None:
    hub_that(error)
    with pytest.raises(ModuleRefused, match=sentence) as caught:
        hub.repository(SOURCE).path("f")
    assert "\n" not in str(caught.value)


def test_without_a_network_a_cached_repository_is_what_is_cached(
    tmp_path: Path, hub_that: Callable[..., list[Any]]
) -> None:
    asked = hub_that(errors.LocalEntryNotFoundError("x"), {"config.json": str(tmp_path / "config.json")})
    found = hub.repository(SOURCE)
    assert found.path("model.safetensors.index.json") is None
    assert found.path("merges.txt") is None
    assert [only_cache for *_, only_cache in asked] == [False, True], "a hub that is away is waited for once"
    with pytest.raises(ModuleRefused, match=r"has no merges.txt in the hub's cache, and there is no network"):
        found.required("merges.txt")


@pytest.mark.parametrize("name", ["", "name", "../name", "org/..", "org/na me", "/etc/passwd", "a/b/c", "org/.git"])
def test_what_is_no_name_of_a_repository_is_refused(name: str) -> None:
    with pytest.raises(ModuleRefused, match="is not a repository: write hub: organisation/name"):
        hub.repository(Source.model_construct(hub=name, part="vision"))


def test_what_nobody_publishes_is_only_looked_for_in_the_models_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_that: Callable[..., list[Any]]
) -> None:
    asked = hub_that(AssertionError("the hub is not asked"))
    for _ in range(2):
        with pytest.raises(
            ModuleRefused, match=r"local/head comes from the models directory only: put its config.json and safetensors"
        ):
            hub.repository(Source(hub="local/head", part="linear"))
        monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    (tmp_path / "local" / "head").mkdir(parents=True)
    assert hub.repository(Source(hub="local/head", part="linear")).directory == tmp_path / "local" / "head"
    assert not asked


@pytest.mark.parametrize(
    ("files", "here"),
    [
        ({}, False),
        ({"config.json": "{}"}, False),
        ({"model.safetensors": ""}, False),
        ({"config.json": "{}", "model.safetensors": ""}, True),
        ({"config.json": "{}", INDEX: '{"weight_map": {"a": "1.safetensors"}}'}, False),
        ({"config.json": "{}", INDEX: '{"weight_map": {"a": "1.safetensors"}}', "1.safetensors": ""}, True),
        ({"config.json": "{}", INDEX: "damaged", "1.safetensors": ""}, False),
        ({"config.json": "{}", INDEX: "{}", "1.safetensors": ""}, False),
    ],
)
def test_weights_are_here_when_all_their_files_are_and_the_hub_is_never_asked(
    tmp_path: Path, hub_that: Callable[..., list[Any]], files: dict[str, str], *, here: bool
) -> None:
    directory = tmp_path / "org" / "name"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    asked = hub_that(AssertionError("the hub is not asked"), {name: str(directory / name) for name in files})
    assert is_here(SOURCE) == here, "in the hub's cache"
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
        assert is_here(SOURCE) == here, "in the models directory"
    assert asked == []


def test_weights_that_no_source_can_name_are_not_here() -> None:
    assert not is_here(Source(hub="not a name", part="vision"))
    assert not is_here(Source(pip="unknown-package", part="vision"))
