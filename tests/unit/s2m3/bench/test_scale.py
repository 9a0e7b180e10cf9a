"""The benchmark of large sites plans what it says it plans."""

from __future__ import annotations

from s2m3.bench.placement.scale import measure, site


def test_after_a_loss_only_what_was_on_the_lost_device_moves() -> None:
    scale = measure(40, 60, runs=1)
    assert scale["modules"] == 40
    assert scale["devices"] == 60
    assert scale["moved_modules"] == scale["lost_modules"] > 0


def test_the_same_seed_draws_the_same_site_of_distinct_devices_that_share_modules() -> None:
    devices, tasks = site(40, 60)
    assert (devices, tasks) == site(40, 60)
    assert len({device.compute_flops_per_s for device in devices}) == len(devices)
    uses = [task.module_of(node).key for task in tasks for node in task.nodes]
    assert len(set(uses)) == 40 < len(uses)
