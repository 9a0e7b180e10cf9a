"""What a small box doesn't have, the control plane doesn't import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "PIL", "iotcore", "huggingface_hub")


@pytest.mark.parametrize("module", ["s2m3.cli.main", "orchestrator.__main__", "edge_agent.__main__", "broker.client"])
def test_the_command_line_starts_without_the_extras(module: str) -> None:
    program = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
