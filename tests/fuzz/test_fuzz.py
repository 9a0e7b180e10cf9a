"""Mutated messages into every reader: no exception but a refusal, no reader that stands still, no growth.

The ordinary run plays a short form with the same seeds each time; ``scripts/test -m long tests/fuzz`` plays the whole.
A message that breaks something is written to ``messages/found``, where it stays: each run reads all of these.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from broker.protocol import topics
from broker.transport.connection import Connection
from broker.transport.port import Delivery
from s2m3.testbed import observer
from s2m3.testbed.observer import Observer
from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator
from tests.fuzz.readers import Readers
from tests.steps import steps_of

SHORT, LONG = 10_000, 400_000
LIFE = 2_500  # mutants that the same readers read
FIRST_SEED = int(os.environ.get("S2M3_FUZZ_SEED", "7"))
LOOK_S = 0.25  # a message that took so much processor time is read again, and its steps are counted
MOST_STEPS = 3_000_000  # a second of a small board
MOST_KEPT = 25_000  # things in one of a reader's collections: its largest limit
GROWTH_BYTES = 96 * 1024 * 1024  # of this process, from a quarter of a long run to its end


class Nowhere:
    """A transport that reaches no broker."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def subscribe(self, *filters: str) -> None:
        """Hear nothing."""

    def start(self) -> None:
        """Connect to nothing."""


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Readers:
    """All readers of a site, after the recorded messages."""
    monkeypatch.setattr(observer, "connect", Nowhere)
    return fresh()


def fresh() -> Readers:
    made = Readers(Observer(Connection("nowhere")))
    for delivery in sorted(all_recorded(), key=lambda each: (not each.retain, len(each.payload))):
        made.read(delivery)
    return made


def all_recorded() -> list[Delivery]:
    return [corpus.of_one_term(delivery) for deliveries in corpus.recorded().values() for delivery in deliveries]


@pytest.mark.parametrize("template", [row.template for row in topics.TOPICS])
def test_the_corpus_has_a_message_of_each_topic(template: str) -> None:
    """Record one with ``python -m tests.fuzz.record``."""
    assert corpus.recorded()[template]


def test_a_file_of_the_corpus_is_read_as_it_was_written(tmp_path: Path) -> None:
    sent = Delivery("s2m3/v1/tasks/t/requests", b"\n{}\x00\n", True, "a/b", b"\x00\n", "text/plain", 3)
    assert corpus.read(corpus.write(tmp_path, "one", sent)) == sent


def test_equal_seeds_make_equal_mutants_and_most_differ_from_the_original() -> None:
    originals = all_recorded()
    once, again = ([mutator.mutant() for _ in range(300)] for mutator in (Mutator(originals, seed) for seed in (7, 7)))
    assert once == again
    assert sum(mutant not in originals for mutant in once) > 240


def test_what_once_broke_something_is_read(readers: Readers) -> None:
    for delivery in corpus.found():
        readers.read(delivery)


def test_the_recorded_messages_are_understood(readers: Readers) -> None:
    """Else mutants of them would end in the first check of each reader."""
    assert readers.agent.assigned.keys() <= readers.agent.ready
    assert readers.agent.routes
    assert readers.leader.cluster.devices
    assert readers.leader.tasks
    assert readers.agent.pending or readers.agent.kept or readers.agent.counters.total()
    assert readers.observer.devices
    assert readers.book.running.keys() == {"door", "garden"}
    assert readers.lanes._tickets


def test_mutated_messages_break_nothing(readers: Readers) -> None:
    fuzz(readers, FIRST_SEED, SHORT)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_four_hundred_thousand_mutated_messages_break_nothing_and_leave_nothing(readers: Readers) -> None:
    """In one process, whose memory at the end is that after a quarter."""
    fuzz(readers, FIRST_SEED + 1, LONG)


def fuzz(readers: Readers, seed: int, count: int) -> None:
    """Let all readers read this many mutants; the failing one is kept."""
    mutator, process = Mutator([*all_recorded(), *corpus.found()], seed), psutil.Process()
    slowest_s, base_bytes = 0.0, 0
    for number in range(count):
        if number and number % LIFE == 0:
            readers = fresh()  # of this one a later term, or a drain, may have made the others' messages stale
        mutant = mutator.mutant()
        began_s = time.thread_time()
        try:
            readers.read(mutant)
        except Exception as error:
            kept = corpus.keep(mutant)
            error.add_note(f"mutant {number} of seed {seed}, kept as {kept}")
            raise
        took_s = time.thread_time() - began_s
        slowest_s = max(slowest_s, took_s)
        if took_s > LOOK_S:
            steps = steps_of(partial(readers.read, mutant))
            assert steps < MOST_STEPS, f"mutant {number} of seed {seed} takes {steps} steps: {corpus.keep(mutant)}"
        if number == count // 4:
            gc.collect()
            base_bytes = process.memory_info().rss
    gc.collect()
    grown_bytes = process.memory_info().rss - base_bytes
    kept_most = max(readers.sizes().items(), key=lambda item: item[1])
    sys.stdout.write(
        f"seed {seed}: {count} mutants, the slowest took {slowest_s:.2f} s of the processor, "
        f"{grown_bytes / 2**20:+.1f} MiB, most kept: {kept_most}; dropped: {dict(readers.agent.dropped)}\n"
    )
    assert kept_most[1] <= MOST_KEPT, kept_most
    assert grown_bytes < GROWTH_BYTES
