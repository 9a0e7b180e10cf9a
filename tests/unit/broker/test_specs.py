"""The specs: sizes, identities, sound graphs; an invalid spec can't exist."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.protocol.codec import decode, encode
from broker.protocol.sentences import describe
from broker.protocol.sizes import parse_bytes
from broker.protocol.specs import DeviceSpec, ModuleSpec, Source, TaskSpec, in_order

MODULE = {"family": "clip.vision", "memory_bytes": 100, "flops": 1e9, "output_bytes": 8}
TASK: dict[str, Any] = {
    "task": "pick",
    "inputs": {"image": {"kind": "image", "bytes": 1000}, "text": {"kind": "text", "bytes": 10}},
    "nodes": {
        "head": {"module": "m", "needs": ["vision", "words"]},
        "vision": {"module": "m", "needs": ["image"]},
        "words": {"module": "m", "needs": ["text"]},
    },
    "output": "head",
    "modules": {"m": MODULE},
}


def problem(kind: Any, content: Any) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(content)
    return describe(caught.value.errors()[0])


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (7, 7),
        (1.0e9, 10**9),
        ("1.0e9", 10**9),
        ("35e+3", 35_000),
        ("300MiB", 300 * 2**20),
        ("300 mib", 300 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("2KiB", 2_048),
        ("2kb", 2_000),
        ("1TiB", 2**40),
        (" 12 B ", 12),
    ],
)
def test_a_size_may_be_written_like_this(written: object, size_bytes: int) -> None:
    assert parse_bytes(written) == size_bytes
    assert ModuleSpec.model_validate(MODULE | {"memory_bytes": written}).memory_bytes == size_bytes


@pytest.mark.parametrize(
    "written", ["lots", "", "MiB", "1.2.3MB", "0x10", "1e999", "-5MB", "5 parsecs", True, None, []]
)
def test_an_invalid_size_is_refused(written: object) -> None:
    field, _ = problem(ModuleSpec, MODULE | {"memory_bytes": written})
    assert field == "memory_bytes"


@pytest.mark.parametrize("written", [0, -1, 0.5, float("nan"), float("inf"), "0", "0.1"])
def test_a_size_is_a_positive_whole_number(written: object) -> None:
    assert problem(ModuleSpec, MODULE | {"memory_bytes": written})[0] == "memory_bytes"


@given(st.text() | st.floats() | st.integers() | st.booleans())
def test_any_scalar_is_a_size_or_a_value_error(written: object) -> None:
    try:
        size_bytes = parse_bytes(written)
    except ValueError:
        return
    assert isinstance(size_bytes, int) or size_bytes is written


@pytest.mark.parametrize("field", ["flops", "memory_bytes", "output_bytes"])
@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf"), float("-inf")])
def test_numbers_of_a_module_are_positive_and_finite(field: str, number: float) -> None:
    assert problem(ModuleSpec, MODULE | {field: number})[0] == field


def test_a_modules_identity_is_its_digest_or_its_source_part_and_dtype() -> None:
    digest = "sha256:" + "ab" * 32
    vision = ModuleSpec.model_validate(MODULE | {"source": {"hub": "openai/clip", "part": "vision"}})
    text = ModuleSpec.model_validate(MODULE | {"source": {"hub": "openai/clip", "part": "text"}})
    pinned = ModuleSpec.model_validate(MODULE | {"source": {"hub": "openai/clip", "part": "vision", "revision": "v2"}})
    assert vision.key == "hub:openai/clip#vision:float32"
    assert pinned.key == "hub:openai/clip@v2#vision:float32"
    half = vision.model_copy(update={"dtype": "float16"})
    assert len({vision.key, text.key, pinned.key, half.key}) == 4, "a changed copy has an identity of its own"
    assert ModuleSpec.model_validate(MODULE | {"digest": digest}).key == digest
    assert ModuleSpec.model_validate(MODULE).key == "weightless:clip.vision:float32"


@pytest.mark.parametrize("places", [{}, {"hub": "a", "pip": "b"}, {"hub": "a", "pip": "b", "catalog": "c.safetensors"}])
def test_a_source_is_exactly_one_place(places: dict[str, str]) -> None:
    assert problem(Source, {"part": "vision"} | places)[1] == "name exactly one of hub, pip, catalog, url"


URL = "http://gw-a.lan:8090/sha256/" + "ab" * 32
OF_URL = {"url": URL, "digest": "sha256:" + "ab" * 32, "part": "vision"}


@given(st.text("ahtps:/.@%?#-[]\\ 1_\n", max_size=24).map(lambda text: f"http://{text}"))
def test_no_url_has_a_login_a_way_up_or_more_than_host_and_path(url: str) -> None:
    try:
        Source.model_validate(OF_URL | {"url": url})
    except ValidationError:
        return
    parts = urlsplit(url)
    assert parts.hostname
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == url
    assert not {"", ".", ".."} & set(parts.path[1:].split("/"))
    assert "@" not in parts.netloc


def test_the_identity_of_a_url_is_its_digest_wherever_the_file_lies() -> None:
    here = ModuleSpec.model_validate(MODULE | {"source": OF_URL})
    moved = ModuleSpec.model_validate(MODULE | {"source": OF_URL | {"url": "https://[fe80::1]/weights/clip"}})
    assert here.key == moved.key == f"url:{OF_URL['digest']}#vision:float32"
    other = ModuleSpec.model_validate(MODULE | {"source": OF_URL | {"digest": "sha256:" + "cd" * 32}})
    assert other.key != here.key


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"digest": None}, "url", "has no digest beside it; write digest: sha256:…"),
        ({"url": None, "hub": "org/name"}, "digest", "is for a url; write a module's digest beside its source"),
        ({"revision": "ab" * 20}, "revision", "is for a hub; the digest says which file a url is, so remove it"),
        ({"digest": "sha256:AB"}, "digest", "is not a digest"),
        *(
            ({"url": url}, "url", "is not a URL of weights: write http(s)://host/path, the host in small letters")
            for url in (
                "ftp://host/x",
                "file:///etc/passwd",
                "http://host",
                "http://host/",
                "http://Host/x",
                "http://user:secret@host/x",
                "http://host/x?key=secret",
                "http://host/x#y",
                "http://host/../x",
                "http://host/a/./x",
                "http://host//x",
                "http://host/%2e%2e/x",
                "http://host/a b",
                "http://host/x\n",
                "http://host\\x/y",
                "http:///x",
            )
        ),
    ],
)
def test_a_wrong_url_is_an_error_of_its_field(changes: dict[str, Any], field: str, sentence: str) -> None:
    found = problem(Source, OF_URL | changes)
    assert found[0] == field
    assert sentence in found[1]


@pytest.mark.parametrize(
    "path", ["../x.safetensors", "/etc/x.safetensors", "a/../b.safetensors", "x.pt", "A.safetensors"]
)
def test_a_catalogue_file_stays_inside_the_catalogue(path: str) -> None:
    assert problem(Source, {"part": "vision", "catalog": path})[0] == "catalog"


def test_nodes_are_ordered_after_what_they_need() -> None:
    task = TaskSpec.model_validate(TASK)
    assert task.order == ("vision", "words", "head")
    assert task.module_of("head").family == "clip.vision"


def changed(**changes: Any) -> dict[str, Any]:
    return TASK | changes


@pytest.mark.parametrize(
    ("content", "field", "sentence"),
    [
        (changed(task="No Id"), "task", "is not a valid id: use a-z, 0-9 and -"),
        (changed(task="a" * 64), "task", "is not a valid id: use a-z, 0-9 and -"),
        (changed(inputs={}), "inputs", "at least 1 entry"),
        (changed(nodes={}), "nodes", "at least 1 entry"),
        (changed(weight=0), "weight", "greater than 0"),
        (changed(colour="red"), "colour", "is not a known field"),
        (changed(output="nowhere"), "output", "names nowhere, which is not a node"),
        (changed(output="image"), "output", "names image, which is not a node"),
        (changed(modules={}), "nodes.head.module", "names m, which modules does not describe"),
        (
            changed(nodes=TASK["nodes"] | {"head": {"module": "m", "needs": ["visoin"]}}),
            "nodes.head.needs",
            "names visoin, which is neither an input nor a node",
        ),
        (changed(nodes=TASK["nodes"] | {"head": {"module": "m", "needs": []}}), "nodes.head.needs", "at least 1 entry"),
        (
            changed(nodes=TASK["nodes"] | {"vision": {"module": "m", "needs": ["head"]}}),
            "nodes.head",
            "the nodes form a cycle: head, vision",
        ),
        (
            changed(nodes=TASK["nodes"] | {"head": {"module": "m", "needs": ["head"]}}),
            "nodes.head",
            "the nodes form a cycle: head",
        ),
        (
            changed(nodes=TASK["nodes"] | {"image": {"module": "m", "needs": ["text"]}}),
            "nodes.image",
            "is the name of an input too; rename one",
        ),
    ],
)
def test_an_unsound_task_names_the_place_and_the_problem(content: dict[str, Any], field: str, sentence: str) -> None:
    named, said = problem(TaskSpec, content)
    assert named == field
    assert sentence in said


def test_a_device_may_be_infinitely_near_and_not_infinitely_fast() -> None:
    device = {
        "id": "gw",
        "memory_bytes": "1GB",
        "compute_flops_per_s": 1e9,
        "bandwidth_bits_per_s": 1e6,
        "latency_s": 0,
    }
    assert DeviceSpec.model_validate(device).latency_s == 0
    assert problem(DeviceSpec, device | {"compute_flops_per_s": float("inf")})[0] == "compute_flops_per_s"
    assert problem(DeviceSpec, device | {"compute_s": {"m": -1}})[0] == "compute_s.m"


def test_a_spec_cant_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TaskSpec.model_validate(TASK).output = "other"  # type: ignore[misc]


# --- the order of a graph, and the revision of a task ---


def by_rounds(needs: dict[str, list[str]]) -> tuple[str, ...]:
    """The definition: in each round all nodes whose needs are done, in the given order."""
    done: list[str] = []
    while following := [n for n, taken in needs.items() if n not in done and set(taken) & set(needs) <= set(done)]:
        done += following
    return tuple(done)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefghxy"), max_size=3)))
def test_nodes_are_ordered_in_rounds(needs: dict[str, list[str]]) -> None:
    assert in_order(needs) == by_rounds(needs)


class Counted(dict[str, list[str]]):
    """A graph that counts how often a need is looked up."""

    looked_up = 0

    def __contains__(self, name: object) -> bool:
        self.looked_up += 1
        return super().__contains__(name)


@pytest.mark.parametrize("nodes", [10, 1_000, 4_000])
def test_a_chain_written_last_first_is_ordered_in_one_look_at_each_need(nodes: int) -> None:
    chain = Counted({f"n{n}": [f"n{n - 1}"] for n in reversed(range(nodes))})
    assert in_order(chain) == tuple(f"n{n}" for n in range(nodes))
    assert chain.looked_up == nodes


def with_default(default: object, *, kind: str = "text") -> dict[str, Any]:
    return changed(inputs=TASK["inputs"] | {"text": {"kind": kind, "bytes": 10, "default": default}})


@pytest.mark.parametrize(
    "default", ["is it raining?", ["a cat", "a dog"], "a cat\n\na dog\n", ["on", "2024", "ja\u2028nein"]]
)
def test_an_input_may_have_a_default_text(default: object) -> None:
    spec = TaskSpec.model_validate(with_default(default))
    sent = default if isinstance(default, str) else "\n".join(cast("list[str]", default))
    assert spec.inputs["text"].default_bytes == sent.encode()
    read = decode(TaskSpec, encode(spec))
    assert (read, read.revision) == (spec, spec.revision)
    assert spec.revision != TaskSpec.model_validate(with_default("another")).revision


def test_without_a_default_a_spec_is_written_as_before() -> None:
    spec = TaskSpec.model_validate(with_default(None))
    assert b"default" not in encode(spec)
    assert spec.revision == TaskSpec.model_validate(with_default(None)).revision


@pytest.mark.parametrize(
    ("content", "field", "sentence"),
    [
        (with_default("x", kind="image"), "inputs.text.default", "is for inputs of kind text, and not for image"),
        (with_default(5), "inputs.text.default", "must be a text"),
        (with_default({"a": 1}), "inputs.text.default", "must be a text"),
        (with_default([True, False]), "inputs.text.default.0", "must be a text"),
        (with_default([]), "inputs.text.default", "has no words"),
        (with_default(" \n "), "inputs.text.default", "has no words"),
        (with_default(["a\nb"]), "inputs.text.default", "write each line as an entry of its own"),
        (with_default(["a"] * 65), "inputs.text.default", "has 65 lines, at most 64 are allowed"),
        (with_default("a" * 2001), "inputs.text.default", "has a line of 2001 characters, at most 2000 are allowed"),
        (with_default("a\x00b"), "inputs.text.default", "has a NUL character"),
        (with_default(["ä" * 1900] * 20), "inputs", "have 74.2 KiB of defaults, at most 64 KiB are allowed"),
        (
            changed(inputs={name: {"kind": "text", "bytes": 1, "default": "x"} for name in TASK["inputs"]}),
            "inputs",
            "all have a default, so no request has anything to send",
        ),
    ],
)
def test_a_wrong_default_names_the_place_and_the_problem(content: dict[str, Any], field: str, sentence: str) -> None:
    named, said = problem(TaskSpec, content)
    assert named == field
    assert sentence in said


def test_a_revision_names_the_content_of_a_spec() -> None:
    spec = TaskSpec.model_validate(TASK)
    assert spec.revision == TaskSpec.model_validate(TASK | {"description": "other", "weight": 1}).revision
    shuffled = {key: TASK[key] for key in reversed(TASK)} | {"nodes": dict(reversed(TASK["nodes"].items()))}
    assert TaskSpec.model_validate(shuffled).revision == spec.revision
    written = TaskSpec.model_validate_json(spec.model_dump_json())
    assert written.revision == spec.revision
    changes: list[dict[str, Any]] = [
        {"weight": 2},
        {"wire": "float16"},
        {"devices": ["gw-a"]},
        {"modules": {"m": MODULE | {"flops": 2e9}}},
        {"output": "vision"},
    ]
    others = {TaskSpec.model_validate(TASK | change).revision for change in changes}
    assert len(others | {spec.revision}) == 6
    assert all(len(each) == 12 and set(each) <= set("0123456789abcdef") for each in others)


def test_a_tasks_devices_are_named_or_left_out() -> None:
    assert TaskSpec.model_validate(TASK | {"devices": ["gw-a", "gw-b"]}).devices == ("gw-a", "gw-b")
    assert problem(TaskSpec, TASK | {"devices": []})[0] == "devices"
    assert problem(TaskSpec, TASK | {"devices": ["No Id"]})[0] == "devices.0"


def test_a_changed_copy_of_a_spec_has_its_own_revision_and_order() -> None:
    spec = TaskSpec.model_validate(TASK)
    before = (spec.revision, spec.order)
    nodes = dict(reversed(spec.nodes.items()))
    copied = spec.model_copy(update={"weight": 7.0, "nodes": nodes})
    assert copied.revision != before[0]
    assert copied.order == TaskSpec.model_validate(TASK | {"nodes": nodes}).order
    assert (spec.revision, spec.order) == before


# --- engines and variants ---

VARIANT = {"engine": "onnx", "source": {"hub": "some/export", "part": "vision"}, "memory_bytes": "40B"}


@pytest.mark.parametrize(
    ("family", "engine"),
    [
        ("clip.vision", "torch"),
        ("whisper.encoder", "torch"),
        ("whisper_ctranslate2.encoder", "ctranslate2"),
        ("onnx.encoder", "onnx"),
    ],
)
def test_a_family_says_which_engine_runs_a_modules_own_weights(family: str, engine: str) -> None:
    assert ModuleSpec.model_validate(MODULE | {"family": family}).engine == engine


def test_a_module_is_the_same_whatever_its_variants_and_one_without_is_written_as_before() -> None:
    plain = ModuleSpec.model_validate(MODULE)
    varied = ModuleSpec.model_validate(MODULE | {"variants": [VARIANT]})
    assert varied.key == plain.key
    assert varied.variants[0].key == "hub:some/export#vision:onnx"
    assert "variants" not in plain.model_dump(mode="json")
    assert ModuleSpec.model_validate_json(varied.model_dump_json()) == varied
    task = TaskSpec.model_validate(TASK)
    assert task.revision == "f8aa31458ac8"
    assert (
        TaskSpec.model_validate(TASK | {"modules": {"m": MODULE | {"variants": [VARIANT]}}}).revision != task.revision
    )


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"variants": [VARIANT | {"engine": "onxx"}]}, "variants.0.engine", "must be onnx"),
        ({"variants": [VARIANT, VARIANT]}, "variants.1.engine", "names onnx, which has a variant already; remove"),
        ({"variants": [VARIANT], "family": "onnx.encoder"}, "variants.0.engine", "names onnx, which runs its family"),
        ({"variants": [VARIANT] * 5}, "variants", "at most 4 entries"),
        (
            {"variants": [VARIANT | {"digest": "sha256:0"}]},
            "variants.0.digest",
            "is not a digest: write sha256: and 64",
        ),
    ],
)
def test_a_wrong_variant_is_told_with_its_field(changes: dict[str, Any], field: str, sentence: str) -> None:
    told = problem(ModuleSpec, MODULE | changes)
    assert told[0] == field
    assert sentence in told[1]


def test_the_engines_of_a_device_in_a_file_are_known_ones() -> None:
    stated = {"id": "a", "memory_bytes": 1, "compute_flops_per_s": 1, "bandwidth_bits_per_s": 1, "latency_s": 0}
    assert DeviceSpec.model_validate(stated).engines == ("torch", "ctranslate2")
    assert problem(DeviceSpec, stated | {"engines": ["onnx", "onxx"]}) == (
        "engines.1",
        "must be torch, onnx or ctranslate2",
    )
