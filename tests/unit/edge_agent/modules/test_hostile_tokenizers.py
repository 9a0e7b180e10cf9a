"""A tokenizer's file costs a load or an answer at most: no thread, no hang, no pass over more than a text's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import ModuleRefused
from broker.protocol.preparation import TextPreparation
from edge_agent.modules import Module, Pass
from edge_agent.modules.inputs import steps, tokens
from edge_agent.modules.inputs.tokens import MAX_GROWTH
from edge_agent.runtime.runner import Runner

PAD = "[PAD]"
HOW = TextPreparation(longest=8)
LONG = "x" * (MAX_GROWTH + 1)


def file_of(folder: Path, **fields: Any) -> Path:
    """A folder with the file of a small tokenizer."""
    special = {"id": 0, "content": PAD, "special": True, "normalized": False}
    special |= {"single_word": False, "lstrip": False, "rstrip": False}
    content: dict[str, Any] = {"version": "1.0", "added_tokens": [special]}
    content["model"] = {"type": "WordLevel", "vocab": {PAD: 0, "a": 1}, "unk_token": PAD}
    (folder / "tokenizer.json").write_text(json.dumps(content | fields), encoding="utf-8")
    return folder


def replace(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": "."}, "content": content}


def template(ids: int, times: int) -> dict[str, Any]:
    own, text = {"SpecialToken": {"id": PAD, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    made = {"type": "TemplateProcessing", "single": [own] * times + [text], "pair": [text]}
    return made | {"special_tokens": {PAD: {"id": PAD, "ids": [0] * ids, "tokens": [PAD] * ids}}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            r"makes no tokenizer \(a library pan",
        ),
        ({"normalizer": replace(LONG)}, f"makes a text more than {MAX_GROWTH} times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": LONG}}, "makes a text more than"),
        ({"normalizer": {"type": "Sequence", "normalizers": [replace("ü" * 5)] * 2}}, "makes a text more than"),
        ({"post_processor": template(8, 1)}, "the tokenizer adds 8 tokens to each text, and a text has at most 8"),
        ({"post_processor": template(1, 9)}, "the tokenizer adds 9 tokens"),
    ],
)
def test_a_file_that_makes_much_of_little_is_refused_when_it_is_loaded(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModuleRefused, match=sentence):
        tokens.read(file_of(tmp_path, **fields), HOW)


def test_a_file_with_steps_of_known_tokenizers_is_read(tmp_path: Path) -> None:
    normalizer = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace("▁"), {"type": "NFKC"}],
    }
    made = tokens.read(file_of(tmp_path, normalizer=normalizer, post_processor=template(1, 2)), HOW)
    assert made.of(["a a a a a a a a a a"])["ids"].shape <= (1, HOW.longest)


def test_a_pattern_without_end_fails_its_request_and_not_the_thread_that_computes(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    need = steps.Texts.tokenized(HOW, tokens.read(file_of(tmp_path, pre_tokenizer=split), HOW))
    module = Module(None, {None: Pass(steps.Steps((need,)), lambda *_: {})}, dtype="float32")
    [[ended]] = Runner().run_all(module, [[RawInput(f"{'a' * 40}b".encode())]])
    assert isinstance(ended.result, RuntimeError)
    assert "a library panicked" in str(ended.result)
