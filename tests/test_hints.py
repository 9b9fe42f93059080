"""What people type who know other tools, or Hydra, or neither: one line with what velm calls it."""

import pytest
from velm import call

EPOCHS = (
    "no epochs here: an epoch is one step for every run.batch_size x run.accumulation images; say how many steps with "
    "run.max_steps=N"
)

MISTAKES = [
    (["train", "run.epochs=3"], "velm: run.epochs: no such option; " + EPOCHS),
    (["train", "++epochs=3"], "velm: epochs: no such option; " + EPOCHS),
    (["train", "lr=1e-3"], "velm: lr: no such option; did you mean 'optim.lr'?"),
    (["finetune", "batch_size=8", "checkpoint=."], "velm: checkpoint: . is not a run folder (it has no config.yaml)"),
    (["train", "model=vit"], "velm: model: no such option; did you mean 'vision'?"),
    (
        ["train", "width=8"],
        "velm: width: no such option; did you mean 'vision.width' or 'text.width' or 'fusion.width'?",
    ),
    (["train", "RUN.MAX_STEPS=3"], "velm: RUN.MAX_STEPS: no such option; did you mean 'run.max_steps'?"),
    (
        ["train", "dataset.urls=x.tar"],
        "velm: dataset.urls: no such option with this choice; it is one of dataset=webdataset",
    ),
    (
        ["preprocess", "run.max_steps=3"],
        "velm: run.max_steps: no such option of velm preprocess; it is one of velm train, finetune",
    ),
    (
        ["train", "fusion=a/b"],
        "velm: fusion=a/b: no such choice (choices: add, attention, co_attention, concat, cross_modal, external, gated, multiply, none, prefix, weighted_sum)",
    ),
    (["train", "-m", "seed=range(a)", "--where"], "velm: cannot read 'seed=range(a)': seed takes a number, at least 0"),
    (["score", "metrics.names=[cider"], "velm: cannot read 'metrics.names=[cider': metrics.names takes a list"),
    (["train", "--where", "--cfg", "job"], "velm: --where prints folders and --cfg a config: leave one of them out"),
    (
        ["train", "--hlep"],
        "velm: --hlep: no such flag; options are written key=value, without dashes: did you mean '--help'?",
    ),
    (["train", "--help=run"], "velm: --help=run: write velm train --help run"),
    (["train", "name", "=", "x"], "velm: 'name' has no value: write name=value, without spaces around the ="),
    (["train", "-m", "--jobs=0"], "velm: --jobs=0: expected a whole number, at least 1, such as --jobs=2"),
    (["train", "hydra/nope=1"], "velm: hydra/nope: Hydra has no such option"),
    (["train", "hydra.nope=1"], "velm: hydra.nope: Hydra has no such option"),
    (["train", "run.tensorboard=maybe"], "velm: run.tensorboard=maybe: expected true or false"),
    (["train", "run.dir=null"], "velm: run.dir=null: null is not possible here; leave it out for the default"),
    (["train", "run=5"], "velm: run=5: no such choice (choices: default)"),
    (["train", "name=${nope}"], "velm: name: ${nope} is the value of another option, and there is no option 'nope'"),
    (["train", "dataset.store=???"], "velm: dataset.store is not set: give dataset.store=VALUE"),
]


@pytest.mark.parametrize(("args", "line"), MISTAKES, ids=lambda value: value[1] if isinstance(value, list) else "")
def test_a_mistake_gets_one_line(args, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*args) == 2
    said = capsys.readouterr()
    assert said.err == f"{line}\n" and not said.out


def test_every_hint_is_an_option_or_a_group_of_some_stage():
    from velm_cli.hints import INSTEAD, WORDS
    from velm_cli.options import choice_groups, options_of
    from velm_cli.schema import ROOTS

    known = {name for stage in ROOTS for name in (*options_of(stage), *choice_groups(stage))}
    assert set(WORDS) <= known
    words = [word for text in (*WORDS.values(), *INSTEAD) for word in text.split()]
    assert len(words) == len(set(words)), "a word would mean two things"
