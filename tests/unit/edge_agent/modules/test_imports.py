"""A process imports only what its modules need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edge_agent.modules.weights import hub
from s2m3.reference import random_weights, zoo

LINEAR = "local/clip-b16-linear"
LOADED = f"""
import sys
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import modules
from edge_agent.runtime.runner import Runner
from s2m3.catalogue import load_task

specs = load_task("pocket/zero-shot").modules | {{
    "head": ModuleSpec(
        family="heads.linear", source=Source(hub={LINEAR!r}, part="linear"), memory_bytes=10**6, flops=1, output_bytes=1
    )
}}
for spec in specs.values():
    module = modules.load(spec)
    Runner().run(module, module.passes[None].steps.sample())
    print(spec.family, "transformers" in sys.modules)
"""


def test_the_pocket_encoders_and_the_heads_need_no_transformers(tmp_path: Path) -> None:
    random_weights.write(zoo.published(LINEAR), tmp_path, changes={"config.json": {"width": 8, "labels": 3}})
    environment = os.environ | {hub.DIRECTORY_VARIABLE: str(tmp_path)}
    process = [sys.executable, "-c", LOADED]
    done = subprocess.run(process, capture_output=True, check=True, text=True, env=environment)
    families = "efficientnet.encoder", "efficientnet.classifier", "sentence.encoder", "conse.head", "heads.linear"
    assert sorted(done.stdout.splitlines()) == sorted(f"{family} False" for family in families)
