"""Embeddings: the shapes that OpenAI's clients read and write, one vector for each text, and no success for a part."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody
from tests.http_site import IMAGE, TEXT, Answer, DoorSite, Inputs, failing

EMBED = "/v1/embeddings"


def lengths(_: str, inputs: Inputs) -> Answer:
    """The answer of the task: for each line, its length and its number of spaces; an error where a line is ``bad``."""
    lines = inputs["text"].data.decode().split("\n")
    if "bad" in lines:
        return ErrorBody(code=ErrorCode.BAD_INPUT, message="the text is bad")
    return {"embeddings": [[float(len(line)), float(line.count(" ")) / 3] for line in lines]}


@pytest.fixture
def site() -> Iterator[DoorSite]:
    with DoorSite() as made:
        made.front_door.answer = lengths
        made.front_door.serve("embed-text", {"text": TEXT}, answer="unit-embeddings")
        made.front_door.serve("classify", {"image": IMAGE})
        made.front_door.serve("embed-image", {"image": IMAGE}, answer="embeddings")
        yield made


def ask(site: DoorSite, **body: Any) -> Any:
    return site.http.post(EMBED, json={"model": "embed-text"} | body)


def test_a_text_has_a_vector(site: DoorSite) -> None:
    response = ask(site, input="a cat")
    assert response.status_code == 200
    vector = {"object": "embedding", "index": 0, "embedding": [5.0, 1 / 3]}
    assert response.json() == {"object": "list", "data": [vector], "model": "embed-text"}


def test_each_text_of_a_list_has_its_own_vector_in_order_whatever_signs_it_has(site: DoorSite) -> None:
    texts = ["a\nb\r\nc", "x\u2028y\x0bz\x85", *("t" * (1 + number % 9) for number in range(150)), "\ufeffé\x1c"]
    found = [each["embedding"][0] for each in ask(site, input=texts).json()["data"]]
    assert found == [5.0, 6.0, *(float(1 + number % 9) for number in range(150)), 3.0]
    assert len(site.front_door.requests) == 3  # of at most 64 lines each


def test_base64_has_the_float32_bytes(site: DoorSite) -> None:
    (vector,) = ask(site, input=["a cat"], encoding_format="base64").json()["data"]
    assert (
        np.frombuffer(base64.b64decode(vector["embedding"]), "<f4").tolist()
        == np.array([5, 1 / 3], np.float32).tolist()
    )


@pytest.mark.parametrize("at", [0, 70, 149])
def test_one_bad_text_of_a_list_fails_the_whole_in_openais_shape(site: DoorSite, at: int) -> None:
    texts = ["good"] * 150
    texts[at] = "bad"
    response = ask(site, input=texts)
    assert response.status_code == 400
    assert response.json() == {
        "error": {"code": "bad_input", "message": "the text is bad", "type": "invalid_request_error", "param": None}
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", " \n"]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": None}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "x", "model": 5}, "model"),
        ({"input": "x", "model": "classify"}, "model"),
        ({"input": "x", "model": "embed-image"}, "model"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "x", "dimensions": 5}, "dimensions"),
    ],
)
def test_a_wrong_field_is_named(site: DoorSite, body: dict[str, Any], param: str) -> None:
    response = ask(site, **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert site.front_door.requests == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"input": ' + b"[" * 100_000, b"\xff", b'{"a":' * 5000])
def test_a_body_that_isnt_such_an_object_is_refused(site: DoorSite, body: bytes) -> None:
    assert site.http.post(EMBED, content=body).status_code == 400


def test_an_unknown_model_is_404_and_a_failed_one_keeps_its_status(site: DoorSite) -> None:
    response = ask(site, input="x", model="nothing")
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
    assert "there is no model 'nothing': GET /v1/models lists" in response.json()["error"]["message"]
    site.front_door.answer = failing(ErrorCode.OVERLOADED)
    assert ask(site, input="x").status_code == 429


@pytest.mark.parametrize(
    "answer", [{"embeddings": []}, {"embeddings": [["a"]]}, {"label": "cat"}, {"embeddings": [[]]}, {"embeddings": 5}]
)
def test_an_answer_without_a_vector_for_each_text_is_an_error(site: DoorSite, answer: dict[str, Any]) -> None:
    site.front_door.answer = lambda *_: answer
    response = ask(site, input="x")
    assert (response.status_code, response.json()["error"]["code"]) == (502, "module_failed")


def test_the_models_are_the_tasks_that_make_vectors_of_texts(site: DoorSite) -> None:
    model = {"id": "embed-text", "object": "model", "created": 0, "owned_by": "s2m3"}
    assert site.http.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert site.http.get("/v1/models/embed-text").json() == model
    assert site.http.get("/v1/models/nothing").status_code == 404


def test_openais_own_client_reads_vectors_and_errors(site: DoorSite) -> None:
    openai = pytest.importorskip("openai", reason="openai isn't installed: pip install 's2m3[test]'")
    with site.served() as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        made = client.embeddings.create(model="embed-text", input=["a cat", "a"])  # in base64, as it does by itself
        assert [each.embedding for each in made.data] == [np.array([5, 1 / 3], np.float32).tolist(), [1.0, 0.0]]
        listed = client.embeddings.create(model="embed-text", input="a cat", encoding_format="float")
        assert listed.data[0].embedding == [5.0, 1 / 3]
        assert [each.id for each in client.models.list()] == ["embed-text"]
        with pytest.raises(openai.NotFoundError, match="nothing"):
            client.embeddings.create(model="nothing", input="x")
        with pytest.raises(openai.BadRequestError, match="the text is bad") as refused:
            client.embeddings.create(model="embed-text", input=["x", "bad"])
        assert refused.value.code == "bad_input"
