"""The door's application, in this process: bodies become requests, answers and errors become responses."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import Headers

from broker.pending_requests import RETURN_WAIT_S
from broker.protocol.codec import MAX_MESSAGE_BYTES, SAFETENSORS, RawInput, encode_request
from broker.protocol.errors import ErrorCode
from broker.protocol.tensors import unpack
from s2m3.http.bodies import MAX_BODY_BYTES, Room, size_of
from s2m3.http.refusals import Refusal
from tests.http_site import IMAGE, TEXT, DoorSite, failing
from tests.patience import until

JPEG = b"\xff\xd8\xff\xe0 a picture"
TOKEN = "s3cret"  # noqa: S105 - of this test
ASK = "/v1/tasks/classify"


@pytest.mark.parametrize("digits", [str(MAX_BODY_BYTES + 1), "9" * 17, "9" * 5000])
def test_a_declared_length_that_is_too_large_is_refused_however_many_digits_it_has(digits: str) -> None:
    with pytest.raises(Refusal, match="the body has more than"):
        size_of(Headers({"content-length": digits}), MAX_BODY_BYTES)
    assert size_of(Headers({"content-length": f"{'0' * 30}7"}), MAX_BODY_BYTES) == 7


@pytest.fixture
def site() -> Iterator[DoorSite]:
    with DoorSite() as made:
        made.front_door.serve("classify", {"image": IMAGE})
        made.front_door.serve("vqa", {"image": IMAGE, "question": TEXT})
        yield made


def error_of(response: Any) -> tuple[int, str]:
    error = response.json()["error"]
    assert error["message"]
    assert "\n" not in error["message"]
    return response.status_code, error["code"]


class TestBodies:
    def test_a_raw_body_is_the_payload_with_its_content_type(self, site: DoorSite) -> None:
        response = site.http.post(ASK, content=JPEG, headers={"Content-Type": "image/jpeg"})
        assert response.status_code == 200
        document = response.json()
        assert document["answer"] == {"got": ["image"]}
        assert document["task"] == "classify"
        assert document["attempts"] == 1
        assert response.headers["Request-Id"] == document["request"]
        sent = site.front_door.requests[0]
        assert (sent.payload, sent.content_type) == (JPEG, "image/jpeg")

    @pytest.mark.parametrize("valid", [True, False])
    def test_a_traceparent_goes_with_the_request_and_a_wrong_one_is_ignored(
        self, site: DoorSite, *, valid: bool
    ) -> None:
        parent = f"00-{'4b' * 16}-{'0f' * 8}-01"
        headers = {"Traceparent": parent if valid else parent.upper()}
        assert site.http.post(ASK, content=JPEG, headers=headers).status_code == 200
        assert site.front_door.requests[0].traceparent == (parent if valid else None)

    @pytest.mark.parametrize(
        "headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}], ids=["none", "curl"]
    )
    def test_a_body_without_a_kind_is_recognized_as_on_mqtt(self, site: DoorSite, headers: dict[str, str]) -> None:
        assert site.http.post(ASK, content=JPEG, headers=headers).status_code == 200
        assert site.front_door.inputs[0]["image"].data == JPEG

    def test_a_form_of_names_and_values_is_told_what_to_send_in_its_place(self, site: DoorSite) -> None:
        headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
        for body in (b"image=x", b"question=what+is+it%3F&image=abc"):
            response = site.http.post(ASK, content=body, headers=headers)
            assert error_of(response) == (415, "bad_input")
            assert "curl -F NAME=VALUE" in response.json()["error"]["message"]
        assert not site.front_door.requests
        assert site.http.post(
            "/v1/tasks/vqa", content=b'{"image": "/9j/", "question": "a=b"}', headers=headers
        ).is_success
        site.front_door.answer = failing(ErrorCode.BAD_INPUT)
        for told, content_type in ((True, headers["Content-Type"]), (False, "image/jpeg")):
            response = site.http.post(ASK, content=JPEG, headers={"Content-Type": content_type})
            assert response.json()["error"]["message"].endswith("--data-binary @FILE doesn't") == told

    def test_parts_are_named_inputs(self, site: DoorSite) -> None:
        response = site.http.post(
            "/v1/tasks/vqa", files={"image": ("a.jpg", JPEG, "image/jpeg")}, data={"question": "what é is this?"}
        )
        assert response.json()["answer"] == {"got": ["image", "question"]}
        assert site.front_door.inputs[0] == {
            "image": RawInput(JPEG, "image/jpeg"),
            "question": RawInput("what é is this?".encode(), ""),
        }

    def test_one_part_keeps_its_name(self, site: DoorSite) -> None:
        assert site.http.post(ASK, files={"image": ("a", JPEG)}).status_code == 200
        assert error_of(site.http.post(ASK, files={"picture": ("a", JPEG)})) == (400, "bad_input")

    def test_json_names_inputs_as_on_mqtt(self, site: DoorSite) -> None:
        document = {"image": base64.b64encode(JPEG).decode(), "question": "what is this?"}
        response = site.http.post("/v1/tasks/vqa", json=document)
        assert response.json()["answer"] == {"got": ["image", "question"]}
        assert site.front_door.inputs[0]["image"].data == JPEG

    def test_a_safetensors_document_passes_through(self, site: DoorSite) -> None:
        payload, content_type = encode_request({"image": RawInput(JPEG), "question": RawInput(b"what?")})
        response = site.http.post("/v1/tasks/vqa", content=payload, headers={"Content-Type": content_type})
        assert response.status_code == 200

    @pytest.mark.parametrize(
        ("content", "content_type"),
        [
            (b"", "image/jpeg"),
            (JPEG, "multipart/form-data"),
            (JPEG, "multipart/form-data; boundary=x"),
            (b"--x\r\n\r\nno name\r\n--x--\r\n", "multipart/form-data; boundary=x"),
            (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc', "multipart/form-data; boundary=x"),
            (b"--x--\r\n", "multipart/form-data; boundary=x"),
            (b"--x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", "multipart/form-data; boundary=x"),
            (JPEG, f"multipart/form-data; boundary={'x' * 1000}"),
            (JPEG, "image/jpeg\t\x85"),
            (JPEG, "image/" + "x" * 300),
            (b'{"image": 1}', "application/json"),
            (b"{", "application/json"),
        ],
    )
    def test_a_malformed_body_is_refused_in_one_line(self, site: DoorSite, content: bytes, content_type: str) -> None:
        headers = {"Content-Type": content_type.encode("latin-1")}
        status, code = error_of(site.http.post(ASK, content=content, headers=headers))  # type: ignore[arg-type]
        assert (status, code) == (400, "bad_input")

    def test_deep_json_is_refused(self, site: DoorSite) -> None:
        deep = b'{"image": ' + b"[" * 100_000
        assert error_of(site.http.post(ASK, content=deep)) == (413, "too_large")

    def test_many_parts_and_two_of_one_name_are_refused(self, site: DoorSite) -> None:
        many = {f"n{number}": ("a", b"x") for number in range(65)}
        assert error_of(site.http.post(ASK, files=many)) == (400, "bad_input")
        twice = [("image", ("a", JPEG)), ("image", ("b", JPEG))]
        assert error_of(site.http.post(ASK, files=twice)) == (400, "bad_input")
        assert site.front_door.requests == []

    def test_a_body_that_is_too_large_is_refused_before_it_is_read(self, site: DoorSite) -> None:
        headers = {"Content-Length": str(MAX_BODY_BYTES + 1)}
        response = site.http.post(ASK, content=b"x", headers=headers)
        assert error_of(response) == (413, "too_large")
        assert response.headers["Connection"] == "close"

    def test_a_body_of_unknown_length_ends_at_the_limit(self, site: DoorSite) -> None:
        def endless() -> Iterator[bytes]:
            while True:
                yield bytes(1024 * 1024)

        chunks = endless()
        response = site.http.post(ASK, content=(next(chunks) for _ in range(20)))
        assert error_of(response) == (413, "too_large")

    def test_a_body_over_the_limit_of_messages_is_too_large(self, site: DoorSite) -> None:
        response = site.http.post(ASK, content=bytes(MAX_MESSAGE_BYTES + 1), headers={"Content-Type": "image/jpeg"})
        assert error_of(response) == (413, "too_large")

    def test_long_headers_are_refused(self, site: DoorSite) -> None:
        response = site.http.post(ASK, content=JPEG, headers={"X": "x" * 17_000})
        assert error_of(response) == (431, "too_large")
        assert response.headers["Connection"] == "close"

    def test_a_compressed_body_is_refused(self, site: DoorSite) -> None:
        response = site.http.post(ASK, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        assert error_of(response) == (415, "bad_input")


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "status", "retry"),
        [
            (ErrorCode.BAD_INPUT, 400, None),
            (ErrorCode.TOO_LARGE, 413, None),
            (ErrorCode.OVERLOADED, 429, "1"),
            (ErrorCode.MODULE_FAILED, 503, None),
            (ErrorCode.DEADLINE_EXCEEDED, 504, "1"),
        ],
    )
    def test_each_code_has_its_status(self, site: DoorSite, code: ErrorCode, status: int, retry: str | None) -> None:
        site.front_door.answer = failing(code)
        response = site.http.post(ASK, content=JPEG)
        assert error_of(response) == (status, code)
        assert response.headers.get("Retry-After") == retry

    def test_the_sites_own_time_to_retry_counts(self, site: DoorSite) -> None:
        site.front_door.answer = failing(ErrorCode.OVERLOADED, retry_after_s=2.2)
        assert site.http.post(ASK, content=JPEG).headers["Retry-After"] == "3"

    def test_a_deadline_without_an_answer_is_504(self, site: DoorSite) -> None:
        site.front_door.answer = lambda *_: None
        while not site.front_door.requests:  # on a slow machine it may be over before the request is sent
            response = site.http.post(ASK, content=JPEG, headers={"Deadline": "0.2"})
            assert error_of(response) == (504, "deadline_exceeded")
        assert site.front_door.requests[0].expiry_s == 1

    @pytest.mark.parametrize("deadline", ["0", "-1", "nan", "inf", "1e9", "soon", "1e400"])
    def test_a_wrong_deadline_is_refused(self, site: DoorSite, deadline: str) -> None:
        assert error_of(site.http.post(ASK, content=JPEG, headers={"Deadline": deadline})) == (400, "bad_input")

    @pytest.mark.parametrize("task", ["unknown", "CLASSIFY", "a%20b", "%23", "x" * 300, "%00"])
    def test_a_task_that_isnt_deployed_is_404(self, site: DoorSite, task: str) -> None:
        assert error_of(site.http.post(f"/v1/tasks/{task}", content=JPEG)) == (404, "not_found")

    def test_an_unavailable_task_is_503_with_its_reason(self, site: DoorSite) -> None:
        site.front_door.serve("classify", {"image": IMAGE}, unavailable="no device fits m", generation=2)
        response = site.http.post(ASK, content=JPEG)
        assert error_of(response) == (503, "no_route")
        assert "no device fits m" in response.json()["error"]["message"]
        assert response.headers["Retry-After"] == "5"

    def test_another_path_or_method_is_refused_in_json(self, site: DoorSite) -> None:
        assert error_of(site.http.get("/")) == (404, "not_found")
        assert error_of(site.http.get("/v1/tasks/", follow_redirects=False)) == (404, "not_found")
        assert error_of(site.http.get(ASK)) == (405, "not_allowed")
        assert error_of(site.http.delete("/v1/tasks")) == (405, "not_allowed")
        told = site.http.post("/v1/chat/completions", content=b"{}").json()["error"]["message"]
        assert told.startswith(
            "Not Found: this door has GET /v1/tasks, POST /v1/tasks/TASK, GET /v1/models, POST /v1/embed"
        )

    def test_an_error_of_this_program_is_500_without_details(
        self, site: DoorSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async def broken(*_: object) -> None:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(site.site, "ask", broken)
        response = site.http.post(ASK, content=JPEG)
        assert error_of(response) == (500, "internal_error")
        assert "secret" not in response.text
        assert "ZeroDivisionError" in "".join(capsys.readouterr())


class TestLink:
    def test_without_a_broker_the_answer_is_503_with_the_reason_and_heals(self, site: DoorSite) -> None:
        assert site.http.get("/healthz").json() == {"status": "ok"}
        with site.broker.partitioned(_door_id(site)):
            response = site.http.post(ASK, content=JPEG)
            assert error_of(response) == (503, "no_route")
            assert "no connection to the broker" in response.json()["error"]["message"]
            assert response.headers["Retry-After"]
            assert error_of(site.http.get("/v1/tasks"))[0] == 503
            assert site.http.get("/healthz").status_code == 503
        until(lambda: site.http.get("/healthz").status_code == 200)
        assert site.http.post(ASK, content=JPEG).status_code == 200

    def test_a_request_whose_connection_is_lost_is_answered_after_it_is_back(self, site: DoorSite) -> None:
        door = _door_id(site)
        losses: list[Any] = []

        def lose_once(*_: object) -> dict[str, Any] | None:
            if losses:
                return {"label": "cat"}
            losses.append(site.broker.partitioned(door))
            losses[0].__enter__()
            losses[0].__exit__(None, None, None)
            return None

        site.front_door.answer = lose_once
        assert site.http.post(ASK, content=JPEG, headers={"Deadline": str(5 * RETURN_WAIT_S)}).status_code == 200

    def test_the_end_of_the_door_refuses_what_is_pending(self, site: DoorSite) -> None:
        site.front_door.answer = lambda *_: site.site.close()
        response = site.http.post(ASK, content=JPEG)
        assert error_of(response) == (503, "no_route")
        assert "ending" in response.json()["error"]["message"]
        assert error_of(site.http.post(ASK, content=JPEG)) == (503, "no_route")


def _door_id(site: DoorSite) -> str:
    (found,) = set(site.broker.connected) - {"gw-a"}
    return found


class TestAnswers:
    def test_arrays_are_lists_in_json_and_safetensors_where_accepted(self, site: DoorSite) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        site.front_door.answer = lambda *_: {"logits": array}
        listed = site.http.post(ASK, content=JPEG, headers={"Accept": "application/json"}).json()["tensors"]
        assert listed == {"logits": {"dtype": "float32", "shape": [2, 3], "values": array.tolist()}}
        response = site.http.post(ASK, content=JPEG, headers={"Accept": f"text/html;q=0.1, {SAFETENSORS}"})
        assert response.headers["Content-Type"] == SAFETENSORS
        tensors, metadata = unpack(response.content)
        assert (tensors["logits"] == array).all()
        assert json.loads(metadata["result"])["task"] == "classify"

    @pytest.mark.parametrize("array", [np.zeros(60_001, np.float32), np.array([np.nan], np.float32)])
    def test_arrays_that_json_cant_hold_are_refused(self, site: DoorSite, array: Any) -> None:
        site.front_door.answer = lambda *_: {"logits": array}
        response = site.http.post(ASK, content=JPEG)
        assert error_of(response) == (406, "not_acceptable")
        assert SAFETENSORS in response.json()["error"]["message"]
        assert site.http.post(ASK, content=JPEG, headers={"Accept": SAFETENSORS}).status_code == 200


class TestTasks:
    def test_the_deployed_tasks_are_listed_with_inputs_and_state(self, site: DoorSite) -> None:
        site.front_door.serve("broken", {"image": IMAGE}, unavailable="no device fits m")
        listed = {each["task"]: each for each in site.http.get("/v1/tasks").json()["tasks"]}
        assert sorted(listed) == ["broken", "classify", "vqa"]
        assert listed["vqa"]["state"] == "served"
        assert listed["vqa"]["inputs"]["question"]["kind"] == "text"
        assert (listed["broken"]["state"], listed["broken"]["reason"]) == ("unavailable", "no device fits m")


class TestRoom:
    def test_there_is_a_limit_of_requests_and_of_bytes(self) -> None:
        for room in (Room(most_requests=0), Room(most_bytes=5)):
            with DoorSite(room=room) as site:
                site.front_door.serve("classify", {"image": IMAGE})
                response = site.http.post(ASK, content=JPEG)
                assert error_of(response) == (429, "overloaded")
                assert response.headers["Retry-After"] == "1"
                assert site.http.get("/v1/tasks").status_code == 200

    def test_room_is_given_back(self) -> None:
        with DoorSite(room=Room(most_requests=1)) as site:
            site.front_door.serve("classify", {"image": IMAGE})
            for _ in range(3):
                assert site.http.post(ASK, content=JPEG).status_code == 200
                assert site.http.post("/v1/tasks/x", content=b"").status_code == 400


class TestToken:
    def test_without_the_token_nothing_is_answered_but_the_health(self) -> None:
        with DoorSite(token=TOKEN) as site:
            site.front_door.serve("classify", {"image": IMAGE})
            for shown in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Basic {TOKEN}"},
                {"Authorization": "é"},
            ):
                headers = {name: text.encode("latin-1") for name, text in shown.items()}
                for response in (
                    site.http.post(ASK, content=JPEG, headers=headers),  # type: ignore[arg-type]
                    site.http.get("/v1/tasks", headers=headers),  # type: ignore[arg-type]
                    site.http.get("/nowhere", headers=headers),  # type: ignore[arg-type]
                ):
                    assert error_of(response) == (401, "unauthorized")
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                    assert TOKEN not in response.text
            assert site.http.get("/healthz").status_code == 200
            assert site.front_door.requests == []
            right = {"Authorization": f"Bearer {TOKEN}", "Host": "door.lan", "Origin": "http://home.lan"}
            assert site.http.post(ASK, content=JPEG, headers=right).status_code == 200

    @pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": ""}])
    def test_without_a_token_a_web_page_cant_ask(self, site: DoorSite, headers: dict[str, str]) -> None:
        assert error_of(site.http.post(ASK, content=JPEG, headers=headers)) == (403, "forbidden")
        assert site.front_door.requests == []

    @pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "[::1]:8080", "[::1]"])
    def test_without_a_token_this_machines_own_names_are_served(self, site: DoorSite, host: str) -> None:
        assert site.http.get("/v1/tasks", headers={"Host": host}).status_code == 200
