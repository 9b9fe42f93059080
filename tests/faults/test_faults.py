"""Small versions of the harness in this folder; `make test-all` runs the full ones. docs/robustness.md has their tables."""

import os
import subprocess
import sys
from pathlib import Path

import flips
import nonsense
import planted
import pytest

HERE = Path(__file__).parent


def run(script: str, *options: str) -> str:
    done = subprocess.run([sys.executable, HERE / script, *options], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_anywhere_or_stormed_by_signals_the_same_bits_come_out():
    said = run("disturb.py", "--preprocess=1", "--train=2", "--evaluate=1", "--storms=3")
    assert said.count("same bits") == 7


def test_killed_anywhere_questions_come_out_as_the_same_bits():
    said = run("disturb.py", "--task=vqa", "--preprocess=1", "--train=1", "--evaluate=1", "--storms=0", "--seed=4")
    assert said.count("same bits") == 3


def test_no_flipped_byte_and_no_cut_goes_unnoticed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flips.prepare()
    found, bad = flips.campaign(150, 40, seed=5)
    print(flips.table(found))
    assert not bad
    assert sum(kind.outcomes.total() for kind in found) >= 150
    assert sum(kind.outcomes["detected"] for kind in found) > 100


@pytest.mark.parametrize("program", nonsense.PROGRAMS)
def test_no_nonsense_from_java_becomes_a_number(tmp_path, monkeypatch, program):
    for name in ("JAVA_HOME", "VELM_CORENLP", "PATH"):  # which are set for each kind
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for kind in nonsense.KINDS:
        print(kind, nonsense.outcome(program, kind, tmp_path / kind.replace(" ", "-")))


def test_nothing_is_lost_behind_planted_links_and_under_names_of_velms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted.prepare()
    attempts, bad = planted.campaign(12, seed=3)
    assert not bad and attempts == 24


def test_full_disks_locks_clocks_and_dying_helpers():
    said = run(
        "scenarios.py", "full_disk_in_a_checkpoint", "files_of_limited_size", "second_process", "image_that_decays"
    )
    assert said.count("\n") >= 3


def test_hostile_numbers_are_refused_in_one_line_or_fine():
    said = run("options.py", "--draws=25", "--ends=3", "--seed=3")
    assert "dry runs: 25 of" in said and "ends of bounds: 3 of" in said


@pytest.mark.slow
def test_every_hostile_number():
    run("options.py")


@pytest.mark.slow
def test_forty_kills():
    assert run("disturb.py", "--seed=7").count("same bits") == 52


@pytest.mark.slow
def test_a_thousand_flips():
    run("flips.py")


@pytest.mark.slow
def test_links_and_files_at_every_path():
    run("planted.py")


@pytest.mark.slow
@pytest.mark.java
def test_all_scenarios():
    run("scenarios.py")
