"""Every signal that batch systems and terminals send before they kill asks for a stop, and repetitions change nothing."""

import os
import signal

import pytest

from velm_cli.engine.signals import ASKING, Stopped, stop_on_signals

ENDING = [each for each in ASKING if each != signal.SIGINT]


@pytest.fixture(autouse=True)
def handlers():
    """Are put back: a request leaves its signals ignored."""
    former = {each: signal.getsignal(each) for each in ASKING}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, if the tests run under it, would have its way
    yield
    for each, handler in former.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("first", ENDING)
def test_it_asks_and_others_after_it_change_nothing(first):
    with stop_on_signals() as stop:
        os.kill(os.getpid(), first)
        assert stop and stop.signal_name == signal.Signals(first).name
        for again in ENDING:
            os.kill(os.getpid(), again)
    for again in ENDING:
        os.kill(os.getpid(), again)


def test_without_a_request_the_former_handlers_are_back():
    before = [signal.getsignal(each) for each in ASKING]
    with stop_on_signals() as stop:
        assert [signal.getsignal(each) for each in ASKING] != before
    assert not stop and [signal.getsignal(each) for each in ASKING] == before


@pytest.mark.parametrize("first", ENDING)
def test_it_ends_at_once_what_loses_nothing_by_it(first):
    with stop_on_signals() as stop, pytest.raises(Stopped), stop.at_once():
        os.kill(os.getpid(), first)


def test_nohup_keeps_its_meaning():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"
