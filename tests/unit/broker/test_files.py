"""A wrong file ends in one line: file, line, field, problem, fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.files import keys_of, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec

GOOD = """\
task: pick
inputs: {image: {kind: image, bytes: 150000}}
nodes:
  encoder: {module: clip/vision, needs: [image]}
  head:
    module: cosine
    needs:
      - encoder
output: head
modules:
  clip/vision: {family: clip.vision, memory_bytes: 300MiB, flops: 35.13e9, output_bytes: 2048}
  cosine: {family: head.cosine, memory_bytes: 1, flops: 1e3, output_bytes: 8}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "task.yaml"


def test_aliases_that_stand_for_more_than_there_is_memory_are_refused_before_they_are_read(path: Path) -> None:
    for form in ("{{<<: [{}]}}", "[{}]"):
        lines = [f"k{n}: &k{n} {form.format(', '.join([f'*k{n - 1}'] * 20))}\n" for n in range(1, 9)]
        assert "has more than 1,000,000 values" in complaint(path, f"k0: &k0 {{x: 1}}\n{''.join(lines)}")
        assert keys_of(path) == {f"k{n}" for n in range(9)}
    assert "must be" in complaint(path, "task: &a [*a]\n")  # a part of itself has an end


def test_of_a_long_wrong_value_the_beginning_is_shown(path: Path) -> None:
    for value in ("x" * 100_000, "0x" + "9" * 100_000):
        assert len(complaint(path, GOOD.replace("task: pick", f"task: {value}"))) < 500


def complaint(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadFile) as caught:
        load_spec(path, TaskSpec)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(path))
    return sentence.removeprefix(str(path))


def test_a_good_file_is_read(path: Path) -> None:
    path.write_text(GOOD)
    task = load_spec(str(path), TaskSpec)
    assert task.modules["clip/vision"].memory_bytes == 300 * 2**20
    assert task.modules["clip/vision"].flops == 35.13e9


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param(
            "bytes: 150000",
            "bytes: many",
            ":2: inputs.image.bytes: is not a valid size: write a number of bytes, or 300MiB, or 1.5GB; change 'many'",
            id="a wrong type",
        ),
        pytest.param("output: head\n", "", ": output: is missing; add it", id="a missing field"),
        pytest.param("    module: cosine\n", "", ":5: nodes.head.module: is missing; add it", id="missing inside"),
        pytest.param(
            "output: head",
            "outptu: head",
            ":9: outptu: is not a known field; remove it or correct its spelling; known fields: task,",
            id="a misspelt needed field",
        ),
        pytest.param(
            "output: head",
            "output: head\nwieght: 2",
            ":10: wieght: is not a known field; remove it or correct its spelling; known fields: task, "
            "description, source, inputs, nodes, output, answer, weight, wire, redundancy, devices, replace, modules",
            id="an unknown field",
        ),
        pytest.param(
            "      - encoder",
            "      - encodr",
            ":7: nodes.head.needs: names encodr, which is neither an input nor a node; change it",
            id="an unknown need",
        ),
        pytest.param(
            "module: cosine",
            "module: cosinus",
            ":6: nodes.head.module: names cosinus, which modules does not describe; change it",
            id="an unknown module",
        ),
        pytest.param(
            "output: head", "output: haed", ":9: output: names haed, which is not a node; change it", id="output"
        ),
        pytest.param(
            "needs: [image]",
            "needs: [head]",
            ":4: nodes.encoder: the nodes form a cycle: encoder, head; change it",
            id="a circle",
        ),
        pytest.param(
            "flops: 1e3",
            "flops: .nan",
            ":12: modules.cosine.flops: must be a finite number; change .nan",
            id="NaN",
        ),
        pytest.param(
            "flops: 1e3",
            "flops: -1",
            ":12: modules.cosine.flops: must be greater than 0; change -1",
            id="negative",
        ),
        pytest.param(
            "output: head",
            "output: head\noutput: head",
            ":10: output: is a duplicate key; remove one of them",
            id="twice",
        ),
        pytest.param(
            "  cosine: {family: head.cosine, memory_bytes: 1,",
            "  cosine: {family: head.cosine, family: x.y, memory_bytes: 1,",
            ":12: family: is a duplicate key; remove one of them",
            id="twice inside",
        ),
        pytest.param("inputs: {", "inputs: {{", ":3: expected ',' or '}'", id="an unclosed bracket"),
        pytest.param("task: pick", "task: pick\n\tnodes: x", ":2: ", id="a tab"),
        pytest.param(
            "task: pick", "task: 2020-99-99", ": month must be in 1..12; correct the YAML", id="an impossible date"
        ),
        pytest.param("task: pick", "? [a, b]\n: c", ":1: a key is a list or an object; name it", id="a strange key"),
        pytest.param(
            "task: pick",
            "task: !!python/object/apply:os.getcwd []",
            ":1: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'",
            id="code",
        ),
    ],
)
def test_a_wrong_file_names_line_field_problem_and_fix(path: Path, old: str, new: str, sentence: str) -> None:
    assert GOOD.count(old) == 1
    assert complaint(path, GOOD.replace(old, new)).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        pytest.param("", ":1: holds no fields; write `name: value` lines", id="empty"),
        pytest.param("- a\n- b\n", ":1: holds no fields; write `name: value` lines", id="a list"),
        pytest.param("just text", ":1: holds no fields; write `name: value` lines", id="text"),
        pytest.param(b"\xff\xfe\x00", ": is not UTF-8 text; name a YAML file that can be read", id="no text"),
        pytest.param("a: \0", ": not YAML; correct the YAML", id="a NUL"),
        pytest.param("[" * 5_000, ": not YAML; correct the YAML", id="deeply nested"),
        pytest.param("a: 1\n---\nb: 2\n", ":2: but found another document; correct the YAML", id="two documents"),
        pytest.param("a: &a [*a]\n", ":1: a: is not a known field; remove it", id="a list that holds itself"),
    ],
)
def test_an_unreadable_file_is_an_error_of_one_line(path: Path, text: str | bytes, sentence: str) -> None:
    assert complaint(path, text).startswith(sentence)


def test_a_missing_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(BadFile) as caught:
            load_spec(path, TaskSpec)
        assert str(caught.value) == f"{path}: {reason}; name a YAML file that can be read"


def test_the_facts_of_an_error_are_its_attributes(path: Path) -> None:
    path.write_text(GOOD.replace("flops: 1e3", "flops: -1"))
    with pytest.raises(BadFile) as caught:
        load_spec(path, TaskSpec)
    error = caught.value
    assert (error.file, error.line, error.field) == (str(path), 12, "modules.cosine.flops")
    assert (error.problem, error.fix) == ("must be greater than 0", "change -1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.text(alphabet="ab:-[]{}&*!|>%@`'\"#?,\n\t 1.", max_size=60) | st.binary(max_size=60))
def test_any_file_is_read_or_refused_in_one_line(path: Path, text: str | bytes) -> None:
    assert complaint(path, text)
