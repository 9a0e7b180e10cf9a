"""Whether a site serves, with the reasons if it doesn't. Pure."""

from __future__ import annotations

from collections.abc import Collection

from s2m3.metrics.picture import Picture

MAX_REASONS = 20  # that are listed


def health(picture: Picture, *, why_away: str | None, hidden: Collection[str] = ()) -> dict[str, object]:
    """The document of ``/healthz``: ``ok``, or ``unavailable`` with its reasons.

    Args:
        picture: what is known of the site.
        why_away: the reason why there is no connection to the broker; None while there is one.
        hidden: what the broker refused to show, a sentence each.
    """
    leads = picture.leader is not None and picture.leader.online
    if why_away is not None:
        reasons = [why_away]
    elif picture.at_core and not picture.bridge:
        reasons = [*hidden, "the site's bridge to this core is down, or no site of this name is bridged to it"]
    else:
        reasons = [*hidden, *([] if leads else ["no orchestrator leads"]), *_unserved(picture)]
    document: dict[str, object] = {
        "status": "unavailable" if reasons else "ok",
        "broker": why_away is None,
        "leader": leads,
        "devices": {"up": sum(picture.is_up(each) for each in picture.devices), "known": len(picture.devices)},
        "tasks": {
            "served": sum(each.revision is not None for each in picture.statuses.values()),
            "deployed": len(picture.statuses),
        },
    }
    if reasons:
        document["reasons"] = reasons[:MAX_REASONS]
    return document


def _unserved(picture: Picture) -> list[str]:
    found = []
    for task, status in sorted(picture.statuses.items()):
        if status.revision is None:
            why = status.candidate.why if status.candidate is not None else None
            found.append(f"{task} is not served{f': {why}' if why else ''}")
    return found
