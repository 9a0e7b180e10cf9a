"""``s2m3 bench memory``: exact counts against sums by hand, and the report of measured processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from s2m3.bench.memory import counts, measure, processes
from s2m3.bench.memory.measure import Process
from s2m3.bench.memory.processes import Memory, memory_of, memory_with_children
from s2m3.bench.requests import requests
from s2m3.catalogue import load_task
from s2m3.cli.bench.memory import fits_gateway
from s2m3.cli.main import main
from s2m3.testbed.site import SiteFailed
from tests.patience import run_python

KINDS = (
    "retrieval",
    "segmentation",
    "encoder-vqa",
    "decoder-vqa",
    "captioning",
    "alignment",
    "classification",
    "speech",
)
FLOAT32 = 4
VISION = 85_799_424  # CLIP B/16
PROJECTION = 768 * 512
TEXT = 63_428_096  # token embeddings included
SCALE = 1
ANSWERS = (768 + 512) * 512 + 512 + 512 * 3129 + 3129
LINEAR = 768 * 1000 + 1000
AUDIO = 86_187_264  # AST
AUDIO_PROJECTION = 768 * 512 + 512


def sized_chain(name: str, **modules: int) -> TaskSpec:
    """A chain of modules; a name stands for one identity everywhere."""
    return TaskSpec.model_validate(
        {
            "task": name,
            "inputs": {"image": {"kind": "image", "bytes": 1}},
            "nodes": {
                f"n{index}": {"module": module, "needs": [f"n{index - 1}" if index else "image"]}
                for index, module in enumerate(modules)
            },
            "output": f"n{len(modules) - 1}",
            "modules": {
                module: {
                    "family": "x.y",
                    "source": {"hub": f"o/{module}", "part": "p"},
                    "memory_bytes": size_bytes,
                    "flops": 1,
                    "output_bytes": 1,
                }
                for module, size_bytes in modules.items()
            },
        }
    )


def test_a_split_task_needs_its_largest_module_on_one_device_and_a_whole_one_all_of_them() -> None:
    found = counts.single("t", sized_chain("t", a=60, b=100, c=40))
    assert found == {
        "name": "t",
        "modules": 3,
        "unsplit_bytes": 200,
        "largest_module": "b",
        "largest_module_bytes": 100,
        "saved_percent": 50.0,
    }


def test_common_modules_count_once_when_shared_and_for_each_task_when_not() -> None:
    found = counts.mix(
        {
            "one": sized_chain("one", a=60, b=100),
            "two": sized_chain("two", a=60, c=40),
            "three": sized_chain("three", a=60),
        }
    )
    assert (found["unshared_bytes"], found["shared_bytes"]) == (160 + 100 + 60, 200)
    assert found["saved_percent"] == 37.5
    assert (found["largest_unsplit_bytes"], found["largest_module_bytes"]) == (160, 100)
    assert [(module["module"], module["tasks"]) for module in found["modules"]] == [
        ("b", ["one"]),
        ("a", ["one", "two", "three"]),
        ("c", ["two"]),
    ]


def test_the_mix_of_our_reading_of_the_abstract_has_the_sizes_counted_by_hand_and_reaches_its_figure() -> None:
    found = counts.mix(counts.named_mix("paper").load())
    retrieval = VISION + PROJECTION + TEXT + SCALE
    answering = VISION + TEXT + ANSWERS
    alignment = AUDIO + AUDIO_PROJECTION + VISION + PROJECTION + TEXT + SCALE
    classification = VISION + LINEAR
    shared = VISION + PROJECTION + TEXT + AUDIO + AUDIO_PROJECTION + ANSWERS + LINEAR + 2 * SCALE  # of two arithmetics
    unshared = retrieval + answering + alignment + classification
    assert (found["unshared_bytes"], found["shared_bytes"]) == (FLOAT32 * unshared, FLOAT32 * shared)
    assert found["saved_percent"] == round(100 * (1 - shared / unshared), 2)
    assert found["saved_percent"] >= 61.5


def test_every_task_of_the_catalogue_is_counted_and_every_kind_is_in_the_mixes_of_eight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "memory", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in report["single"]] == list(catalog.names())
    assert report["measured"] is None
    for name in ("eight", "eight-large"):
        tasks = report["mixes"][name]["tasks"]
        assert len(tasks) == len(KINDS)
        assert all(any(each.startswith(f"hub/{kind}-") for each in tasks) for kind in KINDS)
    assert max(each["saved_percent"] for each in report["single"]) >= 50
    assert [claim["holds"] for claim in report["paper"]] == [True, True]


def test_the_exit_code_says_when_the_papers_figure_is_not_reached(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only_one = counts.Mix(description="nothing to share", tasks=("pocket/classify",))
    monkeypatch.setattr(counts, "mixes", lambda: {"paper": only_one})
    assert main(["bench", "memory"]) == 1
    assert "-0.0 %; the paper's -61.5 % does NOT hold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--measure", "papers"], "papers: is not the name of a mix; name one of paper, eight, "),
        (["--agents", "0"], "argument --agents: must be a whole number from 1 to 16, got '0'"),
        (["--models", "nowhere"], "nowhere: must be a directory; name the models directory"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    arguments: list[str], sentence: str, exit_code: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["bench", "memory", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_wrong_file_of_mixes_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mixes.yaml"
    path.write_text("mine:\n  description: x\n  tasks: []\n")
    monkeypatch.setattr(counts, "MIXES", path)
    with pytest.raises(BadFile, match=r"mixes.yaml:3: mine.tasks"):
        counts.mixes()


def test_counting_and_measuring_do_without_torch() -> None:
    code = "import s2m3.cli.bench.memory, s2m3.bench.memory.measure, sys; print(*sys.modules)"
    found = run_python(code).split()
    assert not {"torch", "transformers"} & set(found)


@pytest.mark.parametrize("name", [name for name in catalog.names() if name != "pocket/vision"])
def test_every_task_has_requests_with_all_its_inputs(name: str) -> None:
    spec = load_task(name)
    for given in requests(spec):
        assert given.keys() == spec.inputs.keys()
        assert all(each.data and each.content_type for each in given.values())


def test_a_process_memory_is_read_from_the_kernels_files(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\ttwo kB\nVmHWM:\t     900 kB\nThreads:\t1\n")
    (tmp_path / "7" / "smaps_rollup").write_text(
        "55d-7ff ---p 00000000 00:00 0   [rollup]\nRss:  800 kB\nPss:  500 kB\nShared_Clean:  300 kB\n"
        "Private_Clean:  20 kB\nPrivate_Dirty:  400 kB\nAnonymous:  390 kB\n"
    )
    expected = Memory(uss_bytes=420, pss_bytes=500, rss_bytes=800, anonymous_bytes=390, peak_rss_bytes=900)
    assert asdict(memory_of(7, tmp_path)) == {name: 1024 * value for name, value in asdict(expected).items()}
    with pytest.raises(BadFile, match=r"/8: its memory can't be read"):
        memory_of(8, tmp_path)


def test_a_process_is_counted_with_all_that_it_started(tmp_path: Path) -> None:
    for pid, parent in ((7, 1), (8, 7), (9, 8), (10, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tone\nPPid:\t{parent}\nVmHWM:\t{pid} kB\n")
        (tmp_path / str(pid) / "smaps_rollup").write_text(
            "Rss: 5 kB\nPss: 4 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 2 kB\nAnonymous: 3 kB\n"
        )
    found = memory_with_children(7, tmp_path)
    assert found == sum((memory_of(pid, tmp_path) for pid in (8, 9)), memory_of(7, tmp_path))
    assert found.peak_rss_bytes == 1024 * (7 + 8 + 9)
    (tmp_path / "9" / "smaps_rollup").unlink()  # it has ended meanwhile
    assert memory_with_children(7, tmp_path).peak_rss_bytes == 1024 * (7 + 8)


def test_memory_that_a_process_allocates_is_measured() -> None:
    """In a new process: the memory of this one also shrinks when earlier tests' memory is freed."""
    code = "import sys; print(flush=True); input(); held = b'x' * 64_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = memory_of(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = memory_of(process.pid)
        process.communicate(b"\n")
    assert 64_000_000 <= after.uss_bytes - before.uss_bytes < 66_000_000
    assert after.rss_bytes >= after.pss_bytes >= after.uss_bytes
    assert after.peak_rss_bytes >= after.rss_bytes


def memory(uss_bytes: int, rss_bytes: int) -> Memory:
    return Memory(
        uss_bytes=uss_bytes,
        pss_bytes=uss_bytes,
        rss_bytes=rss_bytes,
        anonymous_bytes=uss_bytes,
        peak_rss_bytes=rss_bytes,
    )


def process(uss_bytes: int, *holds: str) -> Process:
    return Process([*holds], 0, {"idle": memory(10, 15), "answered": memory(uss_bytes, uss_bytes + 20)})


def test_totals_add_every_process_and_subtract_nothing() -> None:
    split = {
        "broker": process(1),
        "orchestrator": process(9),
        "device-1": process(80, "a"),
        "device-2": process(60, "b"),
    }
    unsplit = {"one": process(200, "one"), "two": process(100, "two")}
    found: Any = measure.totals(split, unsplit)
    assert (found["split"]["uss_bytes"], found["unsplit"]["uss_bytes"]) == (150, 300)
    assert (found["split"]["rss_bytes"], found["unsplit"]["rss_bytes"]) == (230, 340)
    assert found["saved_percent"]["uss_bytes"] == 50.0
    assert found["largest_process_uss_bytes"] == {"unsplit": 200, "split": 80}


def test_a_gateway_of_1_gib_is_compared_with_the_peak() -> None:
    assert fits_gateway(2**30 - 512 * 2**20) == "a gateway of 1 GiB has 512 MiB left"
    assert fits_gateway(2**30) == "a gateway of 1 GiB is too small"


@pytest.mark.parametrize(
    ("occupied", "agents", "largest_share"),
    [([118, 90, 54], 3, 118), ([240, 90, 54], 3, 240), ([118, 90, 54], 1, 262), ([100, 100, 100, 100], 2, 200)],
)
def test_agents_have_room_for_what_modules_occupy_on_this_processor(
    occupied: list[int], agents: int, largest_share: int
) -> None:
    megabyte = 10**6
    found = measure.even_budget([size * megabyte for size in occupied], agents)
    assert found == measure.ROOM_BYTES + round(measure.SLACK * largest_share * megabyte)


def test_a_process_that_can_not_load_its_model_is_reported_with_its_last_words(tmp_path: Path) -> None:
    both = load_task("pocket/zero-shot").model_dump(mode="json", exclude_none=True)
    both |= {
        "nodes": {name: both["nodes"][name] for name in ("image-encoder", "text-encoder")},
        "output": "text-encoder",
    }
    file = tmp_path / "both.json"
    file.write_text(json.dumps(both))
    name = str(file)  # two encoders side by side, of which nobody publishes a whole model
    with pytest.raises(
        SiteFailed, match=rf"process of {re.escape(name)} ended before imported: .*no whole model is known"
    ):
        measure.measure_unsplit({name: load_task(name)}, tmp_path)


def test_the_numbers_of_a_process_are_of_its_process() -> None:
    assert processes.NOTHING + memory(1, 2) + memory(10, 20) == memory(11, 22)
