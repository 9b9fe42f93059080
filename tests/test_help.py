"""`velm STAGE --help`: every option of the stage with its meaning, at once; and the ways in which people ask for it."""

import re
import resource

import pytest
import velm as harness
from velm import call

from velm_cli import __version__, schema
from velm_cli.options import choice_groups, choices, has_effect, options_of

STAGES = list(schema.ROOTS)


@pytest.fixture
def page(capsys):
    def ask(*words: str) -> str:
        assert call(*words) == 0
        said = capsys.readouterr()
        assert not said.err
        return said.out

    return ask


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_each_of_its_options_with_a_meaning(stage, page):
    text = page(stage, "--help")
    assert text.startswith(f"usage: velm {stage} [group=choice ...] [option=value ...]\n")
    assert max(map(len, text.splitlines())) <= 100 and "\x1b" not in text
    for key, options in options_of(stage).items():
        assert re.search(rf"^  {re.escape(key)} ", text, re.M), key
        assert all(option.meaning for option in options), key
    for group in choice_groups(stage):
        for choice in choices(group):
            assert re.search(rf"\b{choice}\b", text), choice
    assert not re.search(r"\b(_checkpoint|_kind)\b", text)


def test_values_of_a_choice_and_of_the_stages_own_defaults_are_shown(page):
    text = page("train", "--help")
    assert "  fusion      add, attention, co_attention, concat, cross_modal*, external" in text
    assert re.search(r"run\.precision +auto +auto \| fp32 \| bf16 \| fp16 \(scaled losses", text)
    assert re.search(r"dataset\.missing +auto +.*error \| skip \| auto", text)
    assert re.search(r"run\.max_steps +1000 +optimiser steps \(at least 1\)", text)
    assert re.search(r"decode\.beams +1 ", text) and re.search(r"decode\.beams +5 ", page("eval", "--help"))


def test_an_evaluation_lists_only_what_it_uses(page):
    text = page("eval", "--help")
    assert "run.max_steps" not in text and "run.patience" not in text and "  vision " not in text
    assert not has_effect("evaluate", "run.max_steps") and has_effect("train", "run.max_steps")
    assert "run.device" in text and "18" not in page("doctor", "--help")


def test_it_narrows_to_a_group_a_choice_or_an_option(page):
    run = page("train", "--help", "run")
    assert "run.max_steps" in run and "optim.lr" not in run
    vit = page("train", "vision=vit", "--help")
    assert "vision.patch_size" in vit and "vision.stages" not in vit and "vision.image_size  64 " in vit
    width = page("train", "--help", "width")
    assert {"vision=vit:", "text=gru | lstm | transformer:", "fusion=attention:"} <= set(width.splitlines())
    assert page("train", "--help", "optim.lr").splitlines()[-1].startswith("  optim.lr  1e-3 ")
    assert page("train", "--help", "seed").startswith("  seed  0 ")


def test_what_is_not_there_is_one_line(capsys):
    assert call("train", "--help", "optimm") == 2
    assert capsys.readouterr().err == (
        "velm: velm train --help optimm: no such group or option; did you mean 'optim'?\n"
    )
    assert call("train", "--help", "vision=vti") == 2
    assert capsys.readouterr().err.startswith("velm: vision=vti: no such choice; did you mean 'vit'? (clip, ")


def test_there_are_many_ways_to_ask(page):
    asked = page("train", "--help")
    for words in (
        ["train", "-h"],
        ["help", "train"],
        ["train", "help"],
        ["--help", "train"],
        ["train", "seed=1", "--help"],
    ):
        assert page(*words) == asked
    assert page("eval", "-h") == page("help", "evaluate")
    assert page("help", "report").startswith("velm report FOLDER")
    assert page("help") == page("--help") == page()
    for words in (["--version"], ["-V"], ["-v"], ["version"], ["train", "--version"], ["eval", "seed=1", "--version"]):
        assert page(*words) == f"velm {__version__}\n"


def test_it_is_there_at_once(tmp_path):
    """In seconds of the processor, whatever else the machine does: Hydra's page took 2, torch's import alone takes 3."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert harness.velm("train", "--help", cwd=tmp_path).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
