"""The libraries in the process of a whole model, which is measured beside the agents that hold the split model."""

from __future__ import annotations

from tests.patience import run_python


def test_a_whole_model_without_transformers_does_not_import_it() -> None:
    code = (
        "import sys; from s2m3.reference import whole; from s2m3.catalogue import load_task; "
        "whole.importer('pocket/classify', load_task('pocket/classify')); print('transformers' in sys.modules)"
    )
    assert run_python(code).split() == ["False"]
