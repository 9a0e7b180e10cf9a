"""The dashboard and the alert rules name only metrics and labels that the exporter has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2m3.metrics.picture import Picture
from s2m3.metrics.samples import families

FOLDER = Path(__file__).parents[4] / "deploy" / "grafana"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
LABELS = {
    *("device", "le", "module", "node", "outcome", "phase", "reason", "role", "signal", "standing", "state", "task"),
}


def samples() -> set[str]:
    """The names of all samples that the exporter can give."""
    made = families(Picture(at_core=True), connected=True, version="0")
    return {family.name + suffix for family in made for suffix in SUFFIXES[family.type]}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """All expressions in the language of Prometheus, by where they are."""
    board = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in board["panels"]:
        for target in panel["targets"]:
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found[variable["name"]] = variable["query"]["query"]
    return found


@pytest.mark.parametrize(("place", "expression"), expressions().items())
def test_every_metric_and_label_exists(place: str, expression: str) -> None:
    named = set(re.findall(r"\bs2m3_\w+", expression))
    assert named, place
    assert named <= samples()
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)}
    matched = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression))
    assert grouped | matched <= LABELS
    assert "reason" not in matched or "s2m3_requests" not in expression


def test_every_rule_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_no_two_panels_lie_on_each_other() -> None:
    board = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) isn't installed")
def test_promtool_reads_the_rules_and_the_dashboards_expressions(tmp_path: Path) -> None:
    shown = [each.replace("$__rate_interval", "5m") for each in expressions().values() if "label_values" not in each]
    recorded = [{"record": f"shown_{number}", "expr": each} for number, each in enumerate(shown)]
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump({"groups": [{"name": "shown", "rules": recorded}]}))
    for file in (FOLDER / "alerts.yaml", tmp_path / "shown.yaml"):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
