"""The samples of an exposition, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

ORDER = ("task", "device", "module", "node", "role", "phase", "standing", "state", "outcome", "reason", "signal")
"""Labels, in the order in which tests write their values; others come behind these, by name."""


def samples(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The samples of one name by their labels' values."""
    given = [each for family in text_string_to_metric_families(text) for each in family.samples if each.name == name]
    found = {}
    for each in given:
        labels = sorted(each.labels, key=lambda label: (ORDER.index(label) if label in ORDER else len(ORDER), label))
        found[tuple(each.labels[label] for label in labels)] = each.value
    assert len(found) == len(given)
    return found
