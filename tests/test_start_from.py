"""`velm train config=RUN_OR_YAML`: what is taken from there, what the command changes, and what is refused."""

import pytest
import yaml
from velm import TINY, TINY_MODEL, call

from velm_cli import configs

TRAIN = ["train", *TINY, *TINY_MODEL, "metrics.names=[bleu]", "run.validate_images=2", "optim.lr=5e-4", "seed=3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start-from")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*TRAIN, "run.max_steps=2", "name=first", "loss.beta='linear(0,0.3,2)'") == 0
        yield folder


@pytest.fixture(autouse=True)
def quiet(place, capsys):
    capsys.readouterr()


def composed(capsys, *args, stage="train"):
    assert call(stage, *args, "--cfg", "job") == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_new_run_has_the_options_of_the_old_one(place, capsys):
    before = (place / "runs/train/first/config.yaml").read_bytes()
    assert call("train", "config=runs/train/first", "fusion=add", "text.dropout=0") == 0
    new = place / "runs/train/first-add-seed3-text.dropout_0"
    old, made = (configs.experiment_of(configs.load_run_config(path)) for path in (place / "runs/train/first", new))
    differing = {key for key in old.keys() | made.keys() if old.get(key) != made.get(key)}
    own = {"kind", "layers", "heads", "mlp_width", "text_dropout"}
    assert differing == {f"fusion.{name}" for name in own} | {"text.dropout"}
    assert configs.load_run_config(new).run.max_steps == 2
    assert (place / "runs/train/first/config.yaml").read_bytes() == before


@pytest.mark.parametrize("more", [[], ["run.max_steps=9"]], ids=["the same", "longer"])
def test_it_is_never_the_run_itself(more, capsys):
    for config in ("runs/train/first", "runs/train/first/config.yaml"):
        assert call("train", f"config={config}", "optim.lr=5e-4", "seed=0", *more, "--where") == 0
        assert capsys.readouterr().out == "runs/train/first-lr_5e-4\n"
        assert call("train", f"config={config}", "seed=0", *more, "--where") == 0
        assert capsys.readouterr().out == "runs/train/first-again\n"


def test_named_as_the_run_it_is_the_run(capsys):
    assert call("train", "config=runs/train/first", "name=first") == 0
    assert capsys.readouterr().out == "complete    runs/train/first  (fresh=true trains again)\n"


def test_null_is_none(capsys):
    assert composed(capsys, "config=null") == composed(capsys)


def test_a_sweep_starts_from_it(capsys):
    assert call("train", "-m", "config=runs/train/first", "fusion=add,concat", "--where") == 0
    assert capsys.readouterr().out.split() == ["runs/train/first-add-seed3", "runs/train/first-concat-seed3"]


def test_a_file_of_ones_own_says_as_much_as_it_wants(place, capsys):
    (place / "own.yaml").write_text(
        "fusion: add\noptim: {weight_decay: 0.5}\nvision: {kind: vit, width: 32}\nseed: 7\n"
    )
    usual, own = composed(capsys), composed(capsys, "config=own.yaml", "optim.beta1=0.8")
    assert own["fusion"]["kind"] == "add" and own["seed"] == 7 and own["vision"]["width"] == 32
    assert own["optim"] == usual["optim"] | {"weight_decay": 0.5, "beta1": 0.8}
    assert own["text"] == usual["text"] and own["decode"] == usual["decode"]
    assert composed(capsys, "config=own.yaml", "fusion=concat", "vision=convnet")["vision"] == usual["vision"]
    (place / "all.yaml").write_text("metrics: all\n")
    assert composed(capsys, "config=all.yaml")["metrics"] == composed(capsys, "metrics=all")["metrics"]


def test_a_finetuning_starts_from_the_options_of_another(place, capsys):
    assert call("finetune", "checkpoint=runs/train/first", "run.max_steps=1", "run.batch_size=2", "metrics.names=[bleu]",
                "optim.weight_decay=0.3", "name=tuned") == 0  # fmt: skip
    capsys.readouterr()
    found = composed(capsys, "config=runs/finetune/tuned", "optim.lr=2e-5", stage="finetune")
    assert (found["checkpoint"], found["run"]["batch_size"]) == ("runs/train/first", 2)
    assert (found["optim"]["weight_decay"], found["optim"]["lr"]) == (0.3, 2e-5)
    assert call("train", "config=runs/finetune/tuned") == 2
    assert "is of a finetuning, which began with the weights of runs/train/first" in capsys.readouterr().err


WRONG = {
    "optimm: {lr: 1}": "no option 'optimm'; did you mean 'optim'?",
    "optim: {lrr: 1}": "optim.lrr: no such option; did you mean 'lr'?",
    "metrics: fats": "metrics=fats: no such choice; did you mean 'fast'?",
    "optim: {lr: fast}": "optim.lr: Value 'fast'",
    "fusion: {layers: 2}": "fusion names no kind: give fusion: {kind: ...}, one of none, concat",
    "fusion: {kind: sum}": "fusion has no kind 'sum'",
    "fusion: sum": "fusion=sum: no such choice",
    "optim: 3": "optim=3: expected options",
    "seed: many": "seed",
    "optim.lr: 1": "no option 'optim.lr'; write it below optim:",
    "name: up": "name has no effect in a file, it is for the command: velm train name=...",
    "dry_run: true": "dry_run has no effect in a file",
    "config: runs/train/first": "config has no effect in a file",
    "checkpoint: runs/train/first": "checkpoint has no effect in a file, it is for velm finetune",
    "name: ${oc.env:HOME}": "holds ${...}",
    "stage: evaluate": "is of velm evaluate",
    "- a\n- b": "is not a config",
    "a: [": "cannot be read",
    "": "wrong.yaml is empty",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_is_no_config_gets_one_line(text, place, capsys):
    (place / "wrong.yaml").write_text(text)
    assert call("train", "config=wrong.yaml", "dry_run=true") == 2
    line = capsys.readouterr().err
    assert line.startswith("velm: ") and line.count("\n") == 1 and WRONG[text] in line, line


def test_a_file_cannot_allow_commands(place, capsys):
    (place / "pipes.yaml").write_text("dataset: {kind: webdataset, urls: 'pipe:touch x', pipes: true}\n")
    assert composed(capsys, "config=pipes.yaml")["dataset"]["pipes"] is False


REFUSED = {
    "eval checkpoint=runs/train/first config=runs/train/first": "velm evaluate takes its options from checkpoint=",
    "train config=nowhere": "config=nowhere does not exist; give a run folder or a YAML file of options",
    "train config=runs/train/frist": "config=runs/train/frist does not exist; did you mean 'first'?",
    "train config=runs/train/first/tokenizer": "(it has no config.yaml); give runs/train/first",
    "train config=runs/train/first/model.safetensors": "holds no options; give a run folder",
    "train config=runs/train": "config=runs/train is not a run folder",
    "train config=runs/train/first experiment=shapes_demo": "both say what to start from",
    "train --config-path=. --config-name=own": "config=RUN_OR_YAML starts from a run or a file of options",
    "train -cn own": "config=RUN_OR_YAML starts from a run or a file of options",
}  # fmt: skip


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_meant_gets_one_line(command, capsys):
    assert call(*command.split()) == 2
    line = capsys.readouterr().err
    assert line.startswith("velm: ") and line.count("\n") == 1 and REFUSED[command] in line, line
