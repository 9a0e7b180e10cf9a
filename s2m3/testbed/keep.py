"""The demo's site kept up to play with, until Ctrl-C: lines to paste, and devices that come back when they were killed.

Owns what a person is offered. Starts no site: the demo does, and ends it.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable

from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site

PICTURE, TASK = "coffee.png", "classify"
LOOK_S = 0.5
BACK_S = 10.0  # from a device's end until it is started again
READY_S = 30.0


def keep(site: Site, tell: Callable[[str], object]) -> None:
    """Keep a site up until Ctrl-C or SIGTERM. Further ones have no effect, so that the site ends in order.

    Args:
        site: whose tasks are served; a device that is down is started again.
        tell: prints a line.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    for device in site.devices:
        if device not in site.running:
            site.start(device)
    site.observer.wait_for(lambda seen: stopped.is_set() or seen.has_heartbeats(site.devices), READY_S)
    if not stopped.is_set():
        for line in lines(site):
            tell(line)
    due_s: dict[str, float] = {}  # when what ended starts again
    while not stopped.is_set():
        site.observer.wait_for(lambda _: stopped.is_set(), LOOK_S)
        site.observer.sightings.clear()  # for replays; they would fill the memory
        _look_after(site, due_s, tell)
    tell("ending the site ...")


def lines(site: Site) -> list[str]:
    """The lines that say what to try: a request, the status, a kill."""
    program = "s2m3" if shutil.which("s2m3") else f"{shlex.quote(sys.executable)} -m s2m3"
    broker = f"--broker {site.url}" + (f" --site {site.prefix}" if site.prefix else "")
    page = f" {site.page} shows it." if site.page else ""
    victim = holder(site)
    return [
        f"the site stays up, with all devices; Ctrl-C ends it.{page} In another terminal:",
        f"  {program} request {TASK} --image {shlex.quote(str(picture(PICTURE).path))} {broker}",
        f"  {program} status {broker}",
        f"  kill -9 {site.pid(victim)}    # {victim} loses its power, with the vision encoder: ask again",
    ]


def holder(site: Site) -> str:
    """The device that serves the vision encoder; any other one if none does."""
    for device, assignment in sorted(site.observer.assignments.items()):
        served = {each.spec.family for each in assignment.modules if each.role == "active"}
        if "efficientnet.encoder" in served and device in site.running:
            return device
    return next(name for name in site.running if name in site.devices)


def _look_after(site: Site, due_s: dict[str, float], tell: Callable[[str], object]) -> None:
    """Start again what ended a while ago."""
    now_s = time.monotonic()
    for name in site.take_ended():
        due_s[name] = now_s + BACK_S
        tell(f"{name} ended; it starts again in {BACK_S:g} s")
    for name in [name for name, at_s in due_s.items() if at_s <= now_s]:
        del due_s[name]
        site.start(name)
        tell(f"{name} was started again, with the process id {site.pid(name)}")
