"""Envelopes, requests and their bytes; a sensor's wrong request is refused with a sentence that says what to do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.protocol import messages
from broker.protocol.codec import (
    MAX_CONTROL_BYTES,
    MAX_INPUT_BYTES,
    MAX_MESSAGE_BYTES,
    SAFETENSORS,
    RawInput,
    decode,
    decode_request,
    decode_tensors,
    encode_request,
    encode_tensors,
    inputs_digest,
    request_id,
)
from broker.protocol.errors import ErrorCode, RemoteProtocolError, RequestFailed
from broker.protocol.messages import (
    DeviceState,
    Drain,
    ErrorBody,
    Heartbeat,
    Message,
    NodeFailed,
    NodeInputs,
    OrchestratorState,
    Plan,
    PlannedNode,
    Route,
    TensorMessage,
    Timing,
)
from broker.protocol.specs import MAX_INPUTS, MAX_NEEDS, MAX_TASKS, InputSpec, ModuleSpec, TaskSpec
from broker.protocol.tensors import pack, unpack
from tests.builders import done, failed

IMAGE = {"image": InputSpec(kind="image", bytes=1000)}
BOTH = IMAGE | {"text": InputSpec(kind="text", bytes=10)}
FEATURES = np.array([1.0, 2.0], dtype=np.float32)
INPUTS = NodeInputs(
    request="r-1",
    task="pick",
    node="head",
    epoch=1,
    generation=2,
    attempt=0,
    coordinator="gw-a",
    deadline_s=4.5,
    reply_to="s2m3/v1/clients/c/results/r-1",
    correlation="00ff",
    plan=Plan(nodes={"head": PlannedNode(key="k", needs=("image",), device="gw-b")}, output="head"),
    content_types={"image": "image/jpeg"},
    timings=(Timing(node="e", device="gw-a", queue_s=0, compute_s=0.5, output_bytes=8, attempt=0),),
    second_door=("gw-c",),
)
DONE = done(INPUTS, queue_s=0.25)
FAILED = failed(INPUTS, attempt=3, retry=False, error=ErrorBody(code=ErrorCode.MODULE_FAILED, message="no"))
ENVELOPES = [
    pytest.param(
        INPUTS,
        {
            "request": "r-1",
            "task": "pick",
            "node": "head",
            "epoch": "1",
            "generation": "2",
            "attempt": "0",
            "kind": "inputs",
            "coordinator": "gw-a",
            "deadline_s": "4.5",
            "reply_to": "s2m3/v1/clients/c/results/r-1",
            "correlation": "00ff",
            "plan": '{"nodes":{"head":{"key":"k","needs":["image"],"device":"gw-b"}},"output":"head","wire":"float32"}',
            "content_types": '{"image":"image/jpeg"}',
            "timings": '[{"node":"e","device":"gw-a","queue_s":0.0,"compute_s":0.5,"output_bytes":8,"attempt":0}]',
            "second_door": '["gw-c"]',
        },
        id="inputs",
    ),
    pytest.param(
        DONE,
        {
            "request": "r-1",
            "task": "pick",
            "node": "head",
            "epoch": "1",
            "generation": "2",
            "attempt": "0",
            "kind": "done",
            "queue_s": "0.25",
        },
        id="done",
    ),
    pytest.param(
        FAILED,
        {
            "request": "r-1",
            "task": "pick",
            "node": "head",
            "epoch": "1",
            "generation": "2",
            "attempt": "3",
            "kind": "failed",
            "device": "gw-b",
            "retry": "false",
            "error": '{"code":"module_failed","message":"no"}',
        },
        id="failed",
    ),
]


# --- between agents ---


@pytest.mark.parametrize(("message", "metadata"), ENVELOPES)
def test_an_envelope_is_exactly_these_strings_and_comes_back_with_its_arrays(
    message: TensorMessage, metadata: dict[str, str]
) -> None:
    written = encode_tensors(message, {"image/features": FEATURES})
    assert unpack(written)[1] == metadata
    spaced = {
        name: text.replace(",", ", ").replace(":", ": ") if text[:1] in "[{" else text
        for name, text in metadata.items()
    }
    read, arrays = decode_tensors(pack({"image/features": FEATURES}, spaced))  # as an agent of before writes it
    assert read == message
    np.testing.assert_array_equal(arrays["image/features"], FEATURES)
    assert decode_tensors(written)[0] == message


def test_messages_of_one_plan_share_it_and_it_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (decode_tensors(encode_tensors(INPUTS, {}))[0] for _ in range(2))
    assert isinstance(first, NodeInputs)
    assert isinstance(second, NodeInputs)
    assert first.plan is second.plan
    dumped: list[object] = []

    def dumping(plan: Plan, really: Any = Plan.model_dump_json, **options: Any) -> Any:
        dumped.append(plan)
        return really(plan, **options)

    monkeypatch.setattr(Plan, "model_dump_json", dumping)
    plan = Plan(nodes={"head": PlannedNode(key="other", needs=("image",), device="gw-b")}, output="head")
    for node in ("a", "b", "c"):
        encode_tensors(INPUTS.model_copy(update={"plan": plan, "node": node}), {})
    assert dumped == [plan]


def test_a_plan_is_checked_once_and_a_changed_copy_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(nodes={"head": PlannedNode(key="k", needs=("image",), device="gw-c")}, output="head")
    real, checked = messages._check_graph, list[str | None]()

    def counting(needs: Any, output: str | None) -> None:
        checked.append(output)
        real(needs, output)

    monkeypatch.setattr(messages, "_check_graph", counting)
    fields = dict(INPUTS)
    for _ in range(3):
        assert NodeInputs.model_validate(fields | {"plan": plan}).plan is plan
    assert checked == []
    with pytest.raises(ValidationError, match="output names tail, which is not a node"):
        NodeInputs.model_validate(fields | {"plan": plan.model_copy(update={"output": "tail"})})
    assert checked == ["tail"]


def test_the_plans_that_are_remembered_are_bounded_in_number_and_size() -> None:
    assert messages._known_plan.cache_info().maxsize == messages.MAX_KNOWN_PLANS
    key = "k" * 512
    nodes = {f"n-{number}": PlannedNode(key=key, needs=("image",), device="gw-b") for number in range(40)}
    long = INPUTS.model_copy(update={"plan": Plan(nodes=nodes, output="n-0")})
    first, second = (decode_tensors(encode_tensors(long, {}))[0] for _ in range(2))
    assert isinstance(first, NodeInputs)
    assert isinstance(second, NodeInputs)
    assert first.plan is not second.plan
    assert first.plan == second.plan


@pytest.mark.parametrize(("message", "metadata"), ENVELOPES)
@pytest.mark.parametrize("name", ["epoch", "generation", "attempt"])
def test_a_fencing_number_of_an_envelope_is_the_digits_of_an_integer_below_2_to_the_53(
    message: TensorMessage, metadata: dict[str, str], name: str
) -> None:
    read, _ = decode_tensors(pack({}, metadata | {name: str(2**53 - 1)}))
    assert getattr(read, name) == 2**53 - 1
    for wrong in (str(2**53), "-1", "+1", "1.0", "1e3", " 1", "1_0", "true", "", "٣", "9" * 4_300):
        with pytest.raises(RemoteProtocolError):
            decode_tensors(pack({}, metadata | {name: wrong}))
    with pytest.raises(ValidationError):
        type(message).model_validate(message.model_dump() | {name: True})


@pytest.mark.parametrize(("message", "metadata"), ENVELOPES)
def test_every_truncation_of_a_tensor_message_is_refused(message: TensorMessage, metadata: dict[str, str]) -> None:
    del metadata
    whole = encode_tensors(message, {"image/features": FEATURES})
    for length in range(len(whole)):
        with pytest.raises(RemoteProtocolError):
            decode_tensors(whole[:length])


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("kind", "other"),
        ("request", "No Id"),
        ("epoch", "-1"),
        ("epoch", "9" * 5_000),
        ("attempt", "many"),
        ("deadline_s", "nan"),
        ("deadline_s", "-1"),
        ("deadline_s", "1e300"),
        ("correlation", "xyz"),
        ("plan", "{"),
        ("plan", "[" * 50_000),
        ("plan", "{}"),
        ("timings", '{"a": 1}'),
        ("content_types", "[]"),
    ],
)
def test_an_envelope_with_one_wrong_field_is_refused(field: str, text: str) -> None:
    metadata = unpack(encode_tensors(INPUTS, {}))[1] | {field: text}
    with pytest.raises(RemoteProtocolError, match="not an envelope of this protocol"):
        decode_tensors(pack({}, metadata))


@given(st.dictionaries(st.sampled_from([*NodeInputs.model_fields, *NodeFailed.model_fields]), st.text(max_size=30)))
def test_random_metadata_are_read_or_refused(nonsense: dict[str, str]) -> None:
    metadata = unpack(encode_tensors(INPUTS, {}))[1] | nonsense
    try:
        message, _ = decode_tensors(pack({}, metadata))
    except RemoteProtocolError:
        return
    assert decode_tensors(encode_tensors(message, {}))[0] == message


@given(st.binary(max_size=100))
def test_random_bytes_are_not_a_tensor_message(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_tensors(data)


# --- limits, checked before anything is parsed ---


def test_a_control_message_beyond_its_limit_is_refused() -> None:
    padded = b'{"epoch":1,"online":true,"session":2}'
    assert decode(OrchestratorState, padded.ljust(MAX_CONTROL_BYTES))
    with pytest.raises(RemoteProtocolError, match=f"at most {MAX_CONTROL_BYTES:,} bytes are allowed"):
        decode(OrchestratorState, padded.ljust(MAX_CONTROL_BYTES + 1))


def test_a_tensor_message_beyond_its_limit_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=f"at most {MAX_MESSAGE_BYTES:,} bytes are allowed"):
        decode_tensors(bytes(MAX_MESSAGE_BYTES + 1))


# --- from a sensor ---


def test_a_single_input_is_sent_unchanged() -> None:
    payload, content_type = encode_request({"image": RawInput(b"\xff\xd8", "image/jpeg")})
    assert (payload, content_type) == (b"\xff\xd8", "image/jpeg")
    assert decode_request(payload, content_type, IMAGE) == {"image": RawInput(b"\xff\xd8", "image/jpeg")}


def test_several_inputs_are_sent_as_one_document_of_byte_arrays() -> None:
    inputs = {"image": RawInput(b"\xff\xd8", "image/jpeg"), "text": RawInput("größer?".encode(), "text/plain")}
    payload, content_type = encode_request(inputs)
    assert content_type == SAFETENSORS
    assert unpack(payload)[1] == {"image": "image/jpeg", "text": "text/plain"}
    assert decode_request(payload, content_type, BOTH) == inputs
    assert decode_request(payload, f"{SAFETENSORS}; v=1", BOTH) == inputs


def test_a_single_input_without_a_content_type_is_sent_in_a_document() -> None:
    payload, content_type = encode_request({"image": RawInput(b"\xff\xd8")})
    assert content_type == SAFETENSORS
    assert decode_request(payload, content_type, IMAGE) == {"image": RawInput(b"\xff\xd8", "")}


def test_a_payload_without_a_content_type_is_the_only_input() -> None:
    assert decode_request(b"\xff\xd8", "", IMAGE) == {"image": RawInput(b"\xff\xd8", "")}


def _bytes(**inputs: bytes) -> bytes:
    return pack({name: np.frombuffer(data, dtype=np.uint8) for name, data in inputs.items()})


@pytest.mark.parametrize(
    ("payload", "content_type", "code", "sentences"),
    [
        pytest.param(
            b"", "image/jpeg", ErrorCode.BAD_INPUT, ["payload is empty", "image (image), text (text)"], id="empty"
        ),
        pytest.param(
            b"x",
            "image/jpeg",
            ErrorCode.BAD_INPUT,
            ["text is missing", "send several inputs", SAFETENSORS],
            id="one of two",
        ),
        pytest.param(
            b"x",
            "audio/wav",
            ErrorCode.BAD_INPUT,
            ["takes image (image), text (text)", "not a sound (audio/wav)"],
            id="a kind that is not an input",
        ),
        pytest.param(
            b"\x00\x01", "", ErrorCode.BAD_INPUT, ["no known format without a content type"], id="no content type"
        ),
        pytest.param(b"OggS\x00", "", ErrorCode.BAD_INPUT, ["not a sound (Ogg)"], id="a kind that the bytes show"),
        pytest.param(b"x", SAFETENSORS, ErrorCode.BAD_INPUT, ["truncated", "send all of it"], id="no document"),
        pytest.param(
            _bytes(image=b"x", text=b"y")[:-1], SAFETENSORS, ErrorCode.BAD_INPUT, ["send all of it"], id="truncated"
        ),
        pytest.param(
            _bytes(image=b"x", txet=b"y"),
            SAFETENSORS,
            ErrorCode.BAD_INPUT,
            ["unknown input 'txet'", "text (text)"],
            id="unknown",
        ),
        pytest.param(_bytes(image=b"x"), SAFETENSORS, ErrorCode.BAD_INPUT, ["text is missing"], id="missing"),
        pytest.param(
            _bytes(image=b"x", text=b""),
            SAFETENSORS,
            ErrorCode.BAD_INPUT,
            ["text is empty", "send a text"],
            id="an empty input",
        ),
        pytest.param(
            pack({"image": FEATURES, "text": FEATURES}),
            SAFETENSORS,
            ErrorCode.BAD_INPUT,
            ["image must be an array of bytes", "the encoded file itself"],
            id="floats",
        ),
        pytest.param(
            pack({n: np.zeros(1, dtype=np.uint8) for n in BOTH}, {"image": "text/plain"}),
            SAFETENSORS,
            ErrorCode.BAD_INPUT,
            ["image must be a picture, not a text (text/plain)"],
            id="a wrong kind",
        ),
        pytest.param(
            bytes(MAX_MESSAGE_BYTES + 1),
            SAFETENSORS,
            ErrorCode.TOO_LARGE,
            [f"at most {MAX_MESSAGE_BYTES:,} bytes"],
            id="too large",
        ),
        pytest.param(
            _bytes(image=bytes(MAX_INPUT_BYTES + 1), text=b"x"),
            SAFETENSORS,
            ErrorCode.TOO_LARGE,
            ["image has", "send a smaller one"],
            id="a large input",
        ),
        pytest.param(
            pack({n: np.zeros(1, dtype=np.uint8) for n in BOTH}, {"image": "image/" + "x" * 250}),
            SAFETENSORS,
            ErrorCode.TOO_LARGE,
            ["a content type has 256 characters, at most 255 are allowed: shorten it"],
            id="a long content type of an input",
        ),
        pytest.param(
            b"x", "image/" + "x" * 60_000, ErrorCode.TOO_LARGE, ["has 60006 characters"], id="a long content type"
        ),
        pytest.param(
            pack({"x" * 100_000: np.zeros(1, dtype=np.uint8)}),
            SAFETENSORS,
            ErrorCode.BAD_INPUT,
            [f"unknown input '{'x' * 64}': this task takes"],
            id="a long name",
        ),
    ],
)
def test_a_wrong_request_ends_in_a_code_and_a_sentence_that_says_what_to_do(
    payload: bytes, content_type: str, code: ErrorCode, sentences: list[str]
) -> None:
    with pytest.raises(RequestFailed) as caught:
        decode_request(payload, content_type, BOTH)
    assert caught.value.code == code
    for sentence in sentences:
        assert sentence in caught.value.message


@given(st.binary(max_size=100), st.sampled_from(["", "image/png", SAFETENSORS, "text", ";"]) | st.text(max_size=10))
def test_random_requests_are_read_or_refused(payload: bytes, content_type: str) -> None:
    for expected in (IMAGE, BOTH):
        try:
            inputs: Any = decode_request(payload, content_type, expected)
        except RequestFailed:
            continue
        assert inputs.keys() == expected.keys()


def test_a_request_and_its_copies_have_an_id_of_their_own() -> None:
    asked = ("classify", "s2m3/v1/clients/cam/results/1", b"1", b"picture")
    others = [
        ("vqa", *asked[1:]),
        (asked[0], "elsewhere", *asked[2:]),
        (*asked[:2], b"2", asked[3]),
        (*asked[:3], b"x"),
    ]
    ids = {request_id(*fields) for fields in (asked, *others)}
    assert len(ids) == 5
    assert request_id(*asked) in ids
    assert request_id("a", "b", b"c", b"") != request_id("a", "", b"bc", b"")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (OrchestratorState, '{"epoch": 1, "online": 1, "session": 2}'),
        (OrchestratorState, '{"epoch": 1, "online": "yes", "session": 2}'),
        (Drain, '{"drain": "true"}'),
        (Heartbeat, '{"session": 1, "seq": 1, "epoch": 1, "generation": 1, "suspects": {"gw-a": "0.5"}}'),
        (Heartbeat, '{"session": 1, "seq": 1, "epoch": 1, "generation": 1, "suspects": {"gw-a": true}}'),
    ],
)
def test_a_value_of_another_json_type_is_refused(kind: type[Message], text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"must be (true or false|a number)"):
        decode(kind, text.encode())


def test_a_size_may_be_written_with_its_unit_and_a_number_without_a_point() -> None:
    text = '{"family": "any.kind", "memory_bytes": "3 MiB", "flops": 5, "output_bytes": 1e3}'
    read = decode(ModuleSpec, text.encode())
    assert (read.memory_bytes, read.flops, read.output_bytes) == (3 * 2**20, 5.0, 1000)


@pytest.mark.parametrize("name", ["needs", "inputs"])
def test_a_graph_with_too_many_needs_or_inputs_is_refused(name: str) -> None:
    needs = ["image"] * (MAX_NEEDS + 1) if name == "needs" else ["image"]
    inputs = [f"i{number}" for number in range(MAX_INPUTS + 1)] if name == "inputs" else ["image"]
    node = {"module": "m", "key": "k", "needs": needs, "output_bytes": 1, "device": "gw-a"}
    fields = {"nodes": {"n": node}, "output": "n", "inputs": {key: {"kind": "image", "bytes": 1} for key in inputs}}
    with pytest.raises(RemoteProtocolError, match=f"at most {MAX_NEEDS if name == 'needs' else MAX_INPUTS}"):
        decode(Route, json.dumps(fields | {"task": "t", "epoch": 1, "generation": 1, "group": 1}).encode())
    spec = {"family": "any.kind", "memory_bytes": 1, "flops": 1, "output_bytes": 1}
    with pytest.raises(RemoteProtocolError, match=f"at most {MAX_NEEDS if name == 'needs' else MAX_INPUTS}"):
        decode(TaskSpec, json.dumps(fields | {"task": "t", "modules": {"m": spec}}).encode())
    if name == "needs":
        with pytest.raises(RemoteProtocolError, match=f"at most {MAX_NEEDS}"):
            decode(Plan, json.dumps(fields).encode())


def test_a_birth_names_at_most_as_many_tasks_as_a_site_has() -> None:
    tasks = [f"t{number}" for number in range(MAX_TASKS + 1)]
    with pytest.raises(RemoteProtocolError, match=f"at most {MAX_TASKS}"):
        decode(DeviceState, json.dumps({"status": "online", "session": 1, "tasks": tasks}).encode())
    assert decode(DeviceState, json.dumps({"status": "online", "session": 1, "tasks": tasks[1:]}).encode()).tasks


def test_the_rest_of_a_long_reason_is_left_out() -> None:
    held = {"k": {"module": "m", "state": "failed", "error": "x" * 100_000}}
    said = json.dumps({"session": 1, "seq": 1, "epoch": 1, "generation": 1, "modules": held})
    assert decode(Heartbeat, said.encode()).modules["k"].error == "x" * 1_000


def test_equal_inputs_have_one_digest_however_they_are_written() -> None:
    expected = {name: InputSpec(kind=kind, bytes=10) for name, kind in (("image", "image"), ("text", "text"))}
    types = {"image": "image/jpeg", "text": "text/plain"}
    places = {"image": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    places["text"] = {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]}

    def written(*names: str) -> bytes:
        header = {"__metadata__": {name: types[name] for name in names}} | {name: places[name] for name in names}
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + b"\xff\xd8\xffhi"

    one, other = written("image", "text"), written("text", "image")
    assert one != other
    digests = {inputs_digest(decode_request(each, SAFETENSORS, expected)) for each in (one, other)}
    assert len(digests) == 1
    raw = {"image": RawInput(b"\xff\xd8\xff"), "text": RawInput(b"hi")}
    assert digests == {inputs_digest(raw)}
    assert inputs_digest({"image": raw["text"], "text": raw["image"]}) not in digests
    assert inputs_digest(raw | {"text": RawInput(b"ho")}) not in digests


@pytest.mark.parametrize("payload", [b"", b"not json", b'{"task":', b"\xff"])
def test_a_message_that_is_not_json_is_called_that(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^TaskSpec: is not JSON \(.+ at line 1 column \d+\)$"):
        decode(TaskSpec, payload)
