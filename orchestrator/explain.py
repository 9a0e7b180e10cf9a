"""Why a module is where it is, and why nowhere else: worked out when somebody asks."""

from __future__ import annotations

from broker.specs import ModuleKey
from orchestrator.placement import Explanation, Placement

__all__ = ["Explanation", "explain"]


def explain(placement: Placement, key: ModuleKey) -> Explanation:
    """Explain one module of a placement.

    Args:
        placement: what ``place``, ``place_most`` or ``refined`` returned.
        key: a module that it places.

    Raises:
        KeyError: it doesn't place that module.
    """
    return placement.explain[key]
