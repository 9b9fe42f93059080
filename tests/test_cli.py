"""The command line: help, aliases, sweeps, completion, and the likeliest mistakes with their exact lines."""

import os

import pytest
import velm as harness

from velm_cli.cli import STAGES

# (arguments, the line on stderr). `{tmp}` is the working directory.
MISTAKES = [
    (["trian"], "velm: unknown stage 'trian'; did you mean 'train'?"),
    (
        ["frobnicate"],
        f"velm: unknown stage 'frobnicate'; stages: {', '.join(STAGES)}",
    ),
    (
        ["train", "fusion=crossmodal"],
        "velm: fusion=crossmodal: no such choice; did you mean 'cross_modal'? (choices: add, attention, co_attention, concat, cross_modal, external, gated, multiply, none, prefix, weighted_sum)",
    ),
    (["train", "optim.lrr=1"], "velm: optim.lrr: no such option; did you mean 'optim.lr'?"),
    (["train", "optimm.lr=1"], "velm: optimm: no such option; did you mean 'optim'?"),
    (
        ["train", "experiment=typo"],
        "velm: experiment=typo: no such choice "
        "(choices: boxes_captions, boxes_reason, finetune_labels, flickr8k_retrieve, linear_probe, llm_captions, llm_prefix_captions, multi30k_translate, shapes_chat, "
        "shapes_demo, shapes_demo_finetune, shapes_mix, shapes_motion, shapes_vqa, shapes_vqa_captions, shapes_vqa_generate, vqa_few, vqa_frozen)",
    ),
    (["train", "run.max_steps=many"], "velm: run.max_steps=many: expected a whole number"),
    (["train", "run.device=gpu"], "velm: run.device=gpu: expected one of auto, cpu, cuda, mps"),
    (
        ["train", "loss.alpha=abc"],
        "velm: loss.alpha: 'abc' is neither a number from 0 to 1e+06 nor a schedule such as linear(0,1,500) "
        "(steps) or cosine(1,0.1,5ep) (epochs), nor the word learned",
    ),
    (
        ["train", "dataset.root=/nowhere", "dataset=coco"],
        "velm: dataset.root: /nowhere does not exist; give the folder that holds train2014/, val2014/ and annotations/",
    ),
    (
        ["preprocess", "dataset=coco"],
        "velm: dataset.root is not set: give the folder that holds train2014/, val2014/ and annotations/",
    ),
    (["train"], "velm: the store stores/shapes does not exist; run: velm preprocess dataset=shapes"),
    (["eval"], "velm: checkpoint is not set: velm evaluate checkpoint=runs/train/NAME"),
    (
        ["eval", "checkpoint=/nowhere"],
        "velm: checkpoint: /nowhere does not exist; give a run folder such as runs/train/NAME",
    ),
    (["finetune", "checkpoint=."], "velm: checkpoint: . is not a run folder (it has no config.yaml)"),
    (
        ["train", "vision=vit", "vision.image_size=60"],
        "velm: vision.image_size=60 is not a multiple of vision.patch_size=8",
    ),
    (["train", "run.batch_size=0"], "velm: run.batch_size=0: must be at least 1"),
    (
        ["train", "loss.text=self_critical", "loss.alpha=learned"],
        "velm: loss.alpha=learned follows the size of a loss, and that of loss.text=self_critical is 0 on average: "
        "the weight would grow for ever; give a number or a schedule",
    ),
    (
        ["train", "loss.text=self_critical", "loss.label_smoothing=0.1"],
        "velm: loss.label_smoothing=0.1 has no effect with loss.text=self_critical: leave it at 0.0",
    ),
    (
        ["train", "loss.gamma=1", "run.batch_size=1"],
        "velm: loss.gamma: L_joint compares the images of a batch, and run.batch_size=1 has nothing to compare with",
    ),
    (
        ["train", "loss.scheduled_sampling=learned"],
        "velm: loss.scheduled_sampling=learned: only weights can be learned; give a number or a schedule",
    ),
    (
        ["train", "fusion=none", "loss.gamma=1", "loss.joint=matching"],
        "velm: loss.joint=matching judges image and caption by the fused state, and fusion=none leaves the image out: "
        "choose a fusion, or loss.joint=contrastive",
    ),
    (
        ["train", "loss.temperature=0.005"],
        "velm: loss.temperature=0.005: must be at least 0.01",
    ),
    (
        ["train", "loss.gamma=1", "loss.joint=sigmoid", "loss.temperature=0.05"],
        "velm: loss.temperature=0.05 has no effect with loss.joint=sigmoid: leave it at 0.07",
    ),
    (
        ["train", "loss.masked_words=0.3", "loss.samples=9"],
        "velm: loss.masked_words=0.3 has no effect with loss.text=next_token: leave it at 0.15\n"
        "velm: loss.samples=9 has no effect with loss.text=next_token: leave it at 5",
    ),
    (
        ["train", "loss.beta=1", "loss.patch_size=8"],
        "velm: loss.patch_size=8 has no effect with loss.image=concepts: leave it at 16",
    ),
    (
        ["train", "decode.temperature=0.5"],
        "velm: decode.temperature=0.5 has no effect with decode.method=beam: leave it at 1.0",
    ),
    (["eval", "checkpoint=a,b"], "velm: checkpoint: a sweep over checkpoints is not possible; call velm once for each"),
    (["doctor", "fix=spce"], "velm: doctor fix=spce: nothing known by that name; spice is"),
]


@pytest.mark.parametrize(
    ("args", "line"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(args, line, tmp_path):
    done = harness.velm(*args, cwd=tmp_path)
    assert done.stderr.strip() == line
    assert done.returncode == 2
    assert done.stdout == ""


@pytest.mark.parametrize(
    "options",
    [
        ["loss.gamma=0", "loss.joint=sigmoid", "loss.temperature=0.05"],  # as in a sweep over loss.gamma=0,1
        ["loss.alpha=0", "loss.gamma=1", "loss.label_smoothing=0.1", "loss.masked_words=0.3", "loss.patch_size=8"],
        ["decode.beams=1", "decode.length_penalty=0.5"],  # as in a sweep over decode.beams=1,3
        ["fusion=none", "loss.gamma=0", "loss.joint=matching"],
    ],
)
def test_options_of_what_a_sweep_leaves_out_are_no_mistake(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert harness.call("train", *options) == 2
    assert capsys.readouterr().err == (
        "velm: the store stores/shapes does not exist; run: velm preprocess dataset=shapes\n"
    )


def test_the_environment_is_left_as_it_was(capsys):
    before = dict(os.environ)
    assert harness.call("train", "optim.lrr=1") == 2
    assert capsys.readouterr().err == "velm: optim.lrr: no such option; did you mean 'optim.lr'?\n"
    assert dict(os.environ) == before


def test_all_problems_are_reported_at_once(tmp_path):
    done = harness.velm(
        "train",
        "vision=vit",
        "loss.alpha=0",
        "vision.image_size=60",
        "text.width=30",
        "data.crop_scale=2",
        cwd=tmp_path,
    )
    assert done.stderr.splitlines() == [
        "velm: text.width=30 is not divisible by text.heads=4",
        "velm: text.width=30 is not divisible by fusion.heads=4",
        "velm: vision.image_size=60 is not a multiple of vision.patch_size=8",
        "velm: loss.alpha, loss.beta and loss.gamma are all 0: nothing would be learned",
        "velm: data.crop_scale=2: must be at most 1",
    ]
    assert done.returncode == 2


def test_help_and_version(tmp_path):
    page = harness.velm("--help", cwd=tmp_path)
    assert page.returncode == 0
    for stage in ("preprocess", "train", "finetune", "evaluate", "doctor"):
        assert f"\n  {stage}" in page.stdout
    assert harness.velm(cwd=tmp_path).stdout == page.stdout
    assert harness.velm("--version", cwd=tmp_path).stdout.startswith("velm 0.")


def test_eval_is_evaluate(tmp_path):
    short, long = (harness.velm(name, "--cfg", "job", cwd=tmp_path) for name in ("eval", "evaluate"))
    assert short.returncode == 0, short.stderr
    assert short.stdout == long.stdout
    assert "stage: evaluate" in short.stdout


def test_a_schedule_needs_no_quotes(tmp_path):
    done = harness.velm("train", "loss.beta=linear(0,1,5ep)", "--cfg", "job", cwd=tmp_path)
    assert "beta: linear(0,1,5ep)" in done.stdout, done.stderr


def test_multirun_may_stand_anywhere_and_every_point_reports(tmp_path):
    done = harness.velm("train", "seed=0", "-m", "fusion=concat,cross_modal", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "velm: this point of the sweep failed: the store stores/shapes does not exist; run: velm preprocess dataset=shapes",
        "velm: this point of the sweep failed: the store stores/shapes does not exist; run: velm preprocess dataset=shapes",
        "velm: 2 points of the sweep failed, the last with: "
        "the store stores/shapes does not exist; run: velm preprocess dataset=shapes",
    ]


def test_multirun_under_torchrun_is_refused(tmp_path):
    done = harness.velm("train", "-m", "seed=0,1", cwd=tmp_path, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2
    assert "start one torchrun a point" in done.stderr


@pytest.mark.parametrize("look", [["--cfg", "job"], ["--cfg=job"], ["--info", "all"]])
def test_looking_at_a_sweep_is_refused_in_one_line(tmp_path, look):
    done = harness.velm("train", *look, "-m", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"velm: {look[0]} tells of one config: leave out -m (velm train -m ... --where lists the points)\n"
    )


def test_nothing_is_written_by_looking(tmp_path):
    harness.velm("train", "--cfg", "job", cwd=tmp_path)
    harness.velm("train", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
