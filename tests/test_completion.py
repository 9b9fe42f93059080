"""Tab completion: stages, groups, options, values, files; as the shells ask, and in a real bash."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from velm import call

from velm_cli.compose import conf_dir
from velm_cli.options import options_of


@pytest.fixture
def offered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("runs/train/first", "runs/train/second", "my photos", "home/data", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "references.json").touch()

    def ask(line: str, current: str | None = None, shell: str = "bash") -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        if current is None:
            monkeypatch.delenv("VELM_WORD", raising=False)
        else:
            monkeypatch.setenv("VELM_WORD", current)
        assert call("-sc", f"query={shell}") == 0
        said = capsys.readouterr()
        assert not said.err
        return said.out.splitlines()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("velm tr", {"train"}),
        ("velm help fi", {"finetune"}),
        ("velm train fusion=", {f"fusion={path.stem}" for path in (conf_dir() / "fusion").glob("*.yaml")}),
        ("velm train optim.lr", {"optim.lr="}),
        ("velm train run.precision=", {f"run.precision={name}" for name in ("auto", "fp32", "bf16", "fp16")}),
        ("velm train ++run.precision=b", {"++run.precision=bf16"}),
        ("velm train run.deterministic=", {"run.deterministic=true", "run.deterministic=false"}),
        ("velm preprocess dataset.missing=", {f"dataset.missing={name}" for name in ("auto", "error", "skip")}),
        ("velm train -m fusion=concat,cr", {"fusion=concat,cross_modal"}),
        ("velm score metrics.names=[bleu,ci", {"metrics.names=[bleu,cider"}),
        ("velm train vision=vit vision.p", {"vision.patch_size="}),
        ("velm train vision.p", set()),
        ("velm eval checkpoint=", {"checkpoint=runs/", r"checkpoint=my\ photos/", "checkpoint=home/", "checkpoint=references.json"}),
        ("velm finetune checkpoint=runs/train/f", {"checkpoint=runs/train/first/"}),
        ("velm preprocess dataset.root=m", {r"dataset.root=my\ photos/"}),
        (r"velm preprocess dataset.root=my\ ph", {r"dataset.root=my\ photos/"}),
        ("velm preprocess dataset.root=~/", {"dataset.root=~/data/"}),
        ("velm preprocess dataset.root=.h", {"dataset.root=.hidden/"}),
        ("velm score references=re", {"references=references.json"}),
        ("velm eval split=t", {"split=train", "split=test"}),
        ("velm train vision.weights=p", {"vision.weights=pretrained"}),
        ("velm train task=v", {"task=vqa"}),
        ("velm train task=vqa task.answer=c", {"task.answer=classify"}),
        ("velm train --wh", {"--where"}),
        ("velm report ru", {"runs/"}),
        ("velm report met", {"metric="}),
        ("velm nonsense ", set()),
        ("velm train dataset.root=/no/such/", set()),
    ],
)  # fmt: skip
def test_what_may_come_next(line, expected, offered):
    assert set(offered(line)) == expected


@pytest.mark.parametrize("stage", ["preprocess", "train", "finetune", "evaluate", "score", "serve", "doctor"])
def test_every_option_of_every_stage_is_offered(stage, offered):
    for key in options_of(stage):
        group = key.partition(".")[0]
        line = f"velm {stage} {key[:-1]}"
        if group in ("dataset", "task", "vision", "text", "fusion") and "." in key:
            continue  # those of the choice
        assert f"{key}=" in offered(line) or stage == "evaluate", key
    assert {"decode=", "decode.", "decode.beams="} <= set(offered("velm eval deco"))


def test_only_the_part_behind_an_equals_sign_where_that_ends_a_word(offered):
    assert offered("velm train run.precision=b", current="b") == ["bf16"]
    assert sorted(offered("velm train run.precision=", current="")) == ["auto", "bf16", "fp16", "fp32"]
    assert offered("velm train run.precision=b", current="run.precision=b") == ["run.precision=bf16"]
    assert offered(r"velm preprocess dataset.root=my\ p", current=r"my\ p") == [r"my\ photos/"]


def test_fish_escapes_by_itself(offered):
    assert offered("velm preprocess dataset.root=m", shell="fish") == ["dataset.root=my photos/"]


def test_scripts_for_the_shells(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert call("-sc", f"install={shell}") == 0 == call("-sc", f"uninstall={shell}")
        assert "_velm_completion" in capsys.readouterr().out
    assert call("-sc", "install=tcsh") == 2
    assert capsys.readouterr().err == "velm: velm -sc install=SHELL, with bash, zsh or fish; or uninstall=SHELL\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("velm train fusion=cr", "fusion=cross_modal"),  # where = is no break
        ("velm train fusion = cr", "cross_modal"),  # as bash splits the same line by default
        ("velm train fusion =", "add"),
        ("velm tra", "train"),
    ],
)
def test_in_a_real_bash(tmp_path, words, reply):
    """The script that `velm -sc install=bash` prints, loaded into bash, completes what is typed."""
    program = tmp_path / "bin" / "velm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m velm_cli "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    line = words.replace(" = ", "=").replace(" =", "=")
    script = f"""
eval "$(velm -sc install=bash)"
COMP_LINE="{line}" COMP_POINT={len(line)} COMP_WORDS=({words}) COMP_CWORD={len(words.split()) - 1}
function=$(complete -p velm | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function velm
echo "offered: ${{COMPREPLY[*]}}"
"""
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.stdout.partition("offered: ")[2].split()[0] == reply, done.stdout + done.stderr
