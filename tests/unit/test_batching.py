"""Requests that come together share a batch, in their order, and one that fails harms no other."""

import threading
import time
from concurrent.futures import wait

import pytest

from velm_cli.serving.batching import Batches, Full


class Work:
    """Doubles numbers; remembers its batches; can be held."""

    def __init__(self):
        self.batches = []
        self.held = threading.Event()
        self.held.set()
        self.began = threading.Event()

    def __call__(self, key, items):
        self.batches.append((key, list(items)))
        self.began.set()
        self.held.wait(10)
        if "bad" in items:
            raise ValueError(f"{len(items)} items")
        return [2 * item for item in items]


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def start(work):
    started = []

    def make(**options):
        batches = Batches(work, **({"batch_size": 4, "wait": 0.0, "queue": 100, "longest": 100.0} | options))
        batches.start()
        started.append(batches)
        return batches

    yield make
    work.held.set()
    for batches in started:
        batches.stop(10)
        assert not batches.alive


def busy(work, batches):
    """The model's thread works on one item until `work.held` is set."""
    work.held.clear()
    first = batches.submit("first", 0)
    assert work.began.wait(10)
    return first


def test_what_waits_is_taken_together_by_key_oldest_first(work, start):
    batches = start()
    first = busy(work, batches)
    futures = [batches.submit("ab"[number % 2], number) for number in range(11)]
    work.held.set()
    assert [future.result(10) for future in [first, *futures]] == [0, *(2 * number for number in range(11))]
    assert work.batches[1:] == [("a", [0, 2, 4, 6]), ("b", [1, 3, 5, 7]), ("a", [8, 10]), ("b", [9])]


def test_one_that_fails_is_found_and_the_others_get_their_answers(work, start):
    batches = start()
    busy(work, batches)
    futures = [batches.submit("k", item) for item in (1, "bad", 3)]
    work.held.set()
    wait(futures, 10)
    assert (futures[0].result(), futures[2].result()) == (2, 6)
    with pytest.raises(ValueError, match="1 items"):
        futures[1].result()


def test_what_was_cancelled_is_left_out(work, start):
    batches = start()
    busy(work, batches)
    futures = [batches.submit("k", item) for item in (1, 2, 3)]
    assert futures[1].cancel()
    work.held.set()
    wait([futures[0], futures[2]], 10)
    assert work.batches[1:] == [("k", [1, 3])]


def test_an_idle_model_waits_for_nobody_but_for_images_that_are_being_decoded(work, start):
    batches = start(wait=0.4)
    began = time.monotonic()
    assert batches.submit("k", 1).result(10) == 2
    assert time.monotonic() - began < 0.3

    with batches.preparing():
        one = batches.submit("k", 1)
        time.sleep(0.05)
        two = batches.submit("k", 2)
    assert (one.result(10), two.result(10)) == (2, 4)
    assert work.batches[-1] == ("k", [1, 2])

    with batches.preparing():  # and comes too late
        began = time.monotonic()
        assert batches.submit("k", 5).result(10) == 10
        assert 0.3 < time.monotonic() - began < 3


def test_a_slow_model_gets_batches_that_it_can_do_in_time(work, start, monkeypatch):
    sizes = []

    def slow(key, items):
        sizes.append(len(items))
        time.sleep(0.02 * len(items))
        return items

    batches = start(batch_size=64, longest=0.1)
    monkeypatch.setattr(batches, "_work", slow)
    futures = [batches.submit("k", number) for number in range(40)]
    assert [future.result(10) for future in futures] == list(range(40))
    assert sizes[0] <= 8 and max(sizes[1:]) <= 5 and sum(sizes) == 40


def test_a_full_queue_takes_no_more_until_somebody_has_left(start):
    batches = start(queue=2)
    with batches.place():
        with batches.place(), pytest.raises(Full), batches.place():
            pass
        with batches.place():
            assert batches.full and batches.admitted == 2
    assert batches.admitted == 0


def test_the_end_waits_for_what_is_there_and_takes_nothing_new(work, start):
    batches = start()
    busy(work, batches)
    last = batches.submit("k", 4)
    threading.Timer(0.1, work.held.set).start()
    batches.stop(10)
    assert last.result(0) == 8
    with pytest.raises(Full):
        batches.submit("k", 1)
