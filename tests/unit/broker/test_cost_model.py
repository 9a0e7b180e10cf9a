"""The cost model against examples computed by hand, number by number."""

from __future__ import annotations

import pytest

from broker.cost_model import (
    OUTSIDE,
    Runnable,
    compute_s,
    latency_s,
    memory_bytes,
    objective_s,
    runnable,
    source_of,
    transfer_s,
)
from broker.protocol.specs import DeviceSpec, InputSpec, NodeSpec, Source, TaskSpec, Variant
from tests.builders import module

A = DeviceSpec(id="a", memory_bytes=1, compute_flops_per_s=10e9, bandwidth_bits_per_s=8e6, latency_s=0.01)
B = DeviceSpec(id="b", memory_bytes=1, compute_flops_per_s=20e9, bandwidth_bits_per_s=80e6, latency_s=0.02)


VISION, TEXT, HEAD = (
    module("vision", flops=20e9, output_bytes=2_000),
    module("text", flops=10e9, output_bytes=1_000),
    module("head", flops=0.1e9, output_bytes=500),
)
TASK = TaskSpec(
    task="zero-shot",
    inputs={"image": InputSpec(kind="image", bytes=1_000_000), "text": InputSpec(kind="text", bytes=100_000)},
    nodes={
        "see": NodeSpec(module="vision", needs=("image",)),
        "read": NodeSpec(module="text", needs=("text",)),
        "join": NodeSpec(module="head", needs=("see", "read")),
    },
    output="join",
    weight=2.0,
    modules={"vision": VISION, "text": TEXT, "head": HEAD},
)


def on(vision: DeviceSpec, text: DeviceSpec, head: DeviceSpec) -> dict[str, DeviceSpec]:
    return {VISION.key: vision, TEXT.key: text, HEAD.key: head}


def test_compute_is_flops_over_speed() -> None:
    assert compute_s(A, "vision", VISION) == pytest.approx(2.0, abs=1e-12)
    assert compute_s(B, "vision", VISION) == pytest.approx(1.0, abs=1e-12)


def test_measured_seconds_win_over_the_estimate_by_name_and_by_key() -> None:
    by_name = A.model_copy(update={"compute_s": {"vision": 0.3}})
    by_key = A.model_copy(update={"compute_s": {VISION.key: 0.4, "vision": 0.3}})
    assert compute_s(by_name, "vision", VISION) == 0.3
    assert compute_s(by_key, "vision", VISION) == 0.4
    assert compute_s(by_name, "text", TEXT) == 1.0


def test_a_transfer_crosses_both_links_one_after_the_other() -> None:
    assert transfer_s(1_000_000, A, B) == pytest.approx(0.01 + 0.02 + 8e6 / 8e6 + 8e6 / 80e6, abs=1e-12)
    assert transfer_s(1_000_000, B, A) == transfer_s(1_000_000, A, B)
    assert transfer_s(1_000_000, A, A) == 0.0


def test_of_a_transfer_from_outside_only_the_devices_link_takes_time() -> None:
    assert transfer_s(1_000_000, OUTSIDE, A) == 0.01 + 8e6 / 8e6


def test_branches_on_two_devices_run_at_the_same_time() -> None:
    # see on b: 1.13 to get the image, 1.0 to compute = 2.13. read on a: 1.0, and 0.0311 to b = 1.0311.
    # join on b: 2.13 + 0.005 = 2.135; its answer to a takes 0.03 + 0.0005 + 0.00005.
    assert latency_s(TASK, on(vision=B, text=A, head=B), A) == pytest.approx(2.16555, abs=1e-12)


def test_branches_on_one_device_queue_and_of_equal_starts_the_longer_goes_first() -> None:
    # on a from 0: see until 2.0, read until 3.0, join 0.01 more. Nothing travels.
    assert latency_s(TASK, on(vision=A, text=A, head=A), A) == pytest.approx(3.01, abs=1e-12)


def test_the_longer_of_equal_starts_goes_first_even_where_that_is_worse() -> None:
    # on a from 0: see until 2.0, then read until 3.0; read reaches join on b at 3.0311; 0.005; back 0.03055.
    assert latency_s(TASK, on(vision=A, text=A, head=B), A) == pytest.approx(3.06665, abs=1e-12)


def test_whose_input_comes_first_starts_first() -> None:
    # on b: the text is there at 0.14, read until 0.64; the image at 1.13, see until 2.13; join 2.135; back 0.03055.
    assert latency_s(TASK, on(vision=B, text=B, head=B), A) == pytest.approx(2.16555, abs=1e-12)


def test_of_equal_starts_and_lengths_the_smaller_name_goes_first() -> None:
    twin = TEXT.model_copy(update={"flops": 20e9})
    after = module("after", flops=10e9, output_bytes=100)
    task = TaskSpec(
        task="twins",
        inputs={"text": InputSpec(kind="text", bytes=100)},
        nodes={
            "z": NodeSpec(module="one", needs=("text",)),
            "y": NodeSpec(module="two", needs=("text",)),
            "last": NodeSpec(module="after", needs=("z",)),
        },
        output="last",
        modules={"one": VISION, "two": twin, "after": after},
    )
    # on a: y until 2.0, z until 4.0; last on b: 0.03 + 0.0022 to get there, 0.5; back 0.03 + 0.00011.
    where = {VISION.key: A, twin.key: A, after.key: B}
    assert latency_s(task, where, A) == pytest.approx(4.0 + 0.0322 + 0.5 + 0.03011, abs=1e-12)


def test_an_unplaced_node_neither_delays_nor_costs() -> None:
    # only join, on b: nothing to wait for. 0.005, back 0.03055.
    assert latency_s(TASK, {HEAD.key: B}, A) == pytest.approx(0.03555, abs=1e-12)


def test_without_its_output_a_task_costs_what_its_last_placed_node_does() -> None:
    assert latency_s(TASK, {VISION.key: B, TEXT.key: A}, A) == pytest.approx(2.13, abs=1e-12)
    assert latency_s(TASK, {}, A) == 0.0


def test_requests_from_outside_pay_the_devices_own_link_only() -> None:
    # text to b: 0.02 + 0.01 = 0.03, read until 0.53; image 0.02 + 0.1 = 0.12, but see waits for b: until 1.53;
    # join 1.535; back 0.02 + 4000/80e6 = 0.02005.
    assert latency_s(TASK, on(vision=B, text=B, head=B), OUTSIDE) == pytest.approx(1.55505, abs=1e-12)


def test_the_objective_is_the_weighted_sum() -> None:
    light = TASK.model_copy(update={"task": "again", "weight": 0.5})
    where = on(vision=A, text=A, head=A)
    sources = {"zero-shot": A, "again": A}
    assert objective_s([TASK, light], where, sources) == pytest.approx(2.0 * 3.01 + 0.5 * 3.01, abs=1e-12)


def test_a_task_starts_at_its_own_source_or_outside() -> None:
    named = TASK.model_copy(update={"source": "b"})
    assert source_of(named, {"a": A, "b": B}) is B
    assert source_of(named, {"a": A}) is OUTSIDE
    assert source_of(TASK, {"a": A, "b": B}) is OUTSIDE


def test_with_a_float16_wire_what_nodes_send_to_nodes_is_half_and_the_answer_is_not() -> None:
    # vision alone on b: the head on a gets 1,000 bytes instead of 2,000: 0.001 s less on a's link, 0.0001 s on b's.
    apart = on(vision=B, text=A, head=A)
    narrow = TASK.model_copy(update={"wire": "float16"})
    assert latency_s(TASK, apart, A) - latency_s(narrow, apart, A) == pytest.approx(0.0011, abs=1e-12)
    # All on b: nothing but the answer crosses, as long as before.
    together = on(vision=B, text=B, head=B)
    assert latency_s(TASK, together, A) == latency_s(narrow, together, A)


# --- engines ---

EXPORTED = Variant(engine="onnx", source=Source(hub="some/export", part="vision"), memory_bytes=70)
OWN = module("vision", 100)
VARIED = OWN.model_copy(update={"variants": (EXPORTED,)})


def runs(*engines: str, memory_bytes: int = 1000, **exports: int) -> DeviceSpec:
    return DeviceSpec.model_validate(
        A.model_dump() | {"engines": engines, "exports": exports, "memory_bytes": memory_bytes}
    )


@pytest.mark.parametrize(
    ("engines", "exports", "expected"),
    [
        (("torch", "ctranslate2"), {}, Runnable("torch", 100, OWN.key)),
        (("torch", "onnx"), {OWN.key: 80}, Runnable("torch", 100, OWN.key)),
        (("onnx", "torch"), {}, Runnable("onnx", 70, EXPORTED.key)),
        (("onnx",), {OWN.key: 80}, Runnable("onnx", 80, None)),
        (("ctranslate2",), {OWN.key: 80}, None),
        ((), {}, None),
    ],
)
def test_a_device_runs_a_module_by_its_first_engine_that_can(
    engines: tuple[str, ...], exports: dict[str, int], expected: Runnable | None
) -> None:
    device = runs(*engines, **exports)
    assert runnable(VARIED, device) == expected
    assert memory_bytes(VARIED, device) == (expected.memory_bytes if expected else 100)


def test_a_device_runs_its_export_of_a_module_that_lists_no_variant() -> None:
    assert runnable(OWN, runs("onnx", "torch", **{OWN.key: 80})) == Runnable("onnx", 80, None)
    assert runnable(OWN, runs("onnx")) is None
    assert runnable(module("own", family="onnx.encoder"), runs("torch", "onnx")) is not None
