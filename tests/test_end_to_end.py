"""preprocess, train, finetune, evaluate on the embedded data set: the files, the numbers, the second time."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from pycocotools.coco import COCO
from safetensors.torch import load_file
from velm import TINY, TINY_MODEL, call, velm

from velm_cli.metrics import submission
from velm_cli.models import decoding
from velm_cli.stages import predicting

RUN_FILES = {
    "config.yaml", "command.txt", "environment.json", "metrics.jsonl", "model.safetensors", "best.safetensors",
    "scores.json", "predictions.json", "per_image.jsonl", "DONE",
}  # fmt: skip
NAMES = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory in which the tiny data set has been preprocessed and `first` trained."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("job")
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        code = call(
            "train", "name=first", *TINY, *TINY_MODEL, "run.max_steps=12", "run.validate_every=6",
            "loss.beta=0.1", "loss.gamma=linear(0,1,1ep)",
        )  # fmt: skip
        assert code == 0
        yield folder


def test_a_run_folder_explains_itself(place):
    folder = place / "runs" / "train" / "first"
    assert {path.name for path in folder.iterdir()} >= RUN_FILES
    assert len(list((folder / "samples").glob("step-*.png"))) == 2
    assert "name=first" in (folder / "command.txt").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in training] == list(range(1, 13))
    # gamma rises from 0 over the first epoch (6 steps), and at 0 the term is not computed
    assert "loss_joint" not in training[0]
    assert training[3]["weight_joint"] == pytest.approx(3 / 6)
    assert training[-1]["weight_joint"] == 1
    assert {"loss_text", "loss_image", "captions_per_s", "data_wait"} <= training[0].keys()
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [6, 12]
    assert all("cider" in line and "loss" in line for line in validations)


def test_images_without_captions_are_captioned_and_submitted(place, monkeypatch, capsys):
    monkeypatch.setattr(submission, "SPLITS", {"val2014": 3, "test2014": 2, "nocaps_val": 4, "nocaps_test": 5})
    shutil.copytree(place / "data/shapes/val2014", place / "photos")
    names = sorted(path.name for path in (place / "photos").iterdir())[:3]
    fast = [
        "checkpoint=runs/train/first",
        "metrics.names=[bleu]",
        "decode.beams=1",
        "eval.submit=coco",
        "report.page=false",
    ]
    captioned = {}
    for file, count in (("captions_val2014", 3), ("image_info_test2014", 2)):
        images = [{"id": 100 + number, "file_name": name} for number, name in enumerate(names[:count])]
        annotations = [{"id": image["id"], "image_id": image["id"], "caption": "a red square"} for image in images]
        # The last has no references: it is captioned like the others, and not scored.
        content = {"images": images} | ({"annotations": annotations[:-1]} if count == 3 else {})
        (place / f"{file}.json").write_text(json.dumps(content))
        data = ["dataset=manifest", f"dataset.file={file}.json", "dataset.root=photos", f"dataset.store=stores/{file}"]
        assert call("preprocess", *data, "dataset.image_size=64") == 0
        assert "velm eval only" in capsys.readouterr().out
        assert call("eval", *fast, *data, "dataset.image_size=64", f"name={file}") == 0
        captioned[file] = capsys.readouterr().out
        results = json.loads((place / f"runs/evaluate/{file}/predictions.json").read_text())
        split = file.split("_")[-1]
        sent = json.loads((place / f"runs/submit/first/captions_{split}_velm_results.json").read_text())
        assert sent == sorted(results, key=lambda item: item["image_id"])
        assert [item["image_id"] for item in sent] == [image["id"] for image in images]
    assert "caption test2014 too" in captioned["captions_val2014"]
    assert "1 images have no references" in captioned["captions_val2014"]
    assert json.loads((place / "runs/evaluate/captions_val2014/scores.json").read_text())["images"] == 2
    assert "2 images without references" in captioned["image_info_test2014"]
    assert not (place / "runs/evaluate/image_info_test2014/scores.json").exists()
    with zipfile.ZipFile(place / "runs/submit/first/results.zip") as packed:
        assert len(packed.namelist()) == 2
    again = [*fast, *data, "dataset.image_size=64", "name=image_info_test2014"]
    assert call("eval", *again) == 0
    assert "is complete" in capsys.readouterr().out
    assert call("eval", *again, "limit=1") == 2
    assert "the server takes whole splits only: val2014 3, test2014 2" in capsys.readouterr().err
    assert call("eval", *again, "eval.system=my_system", "fresh=true") == 2
    assert "'my_system' cannot stand in a submission's file name" in capsys.readouterr().err


def test_learned_weights_follow_their_losses(place):
    """d/ds (exp(-s) L + s) = 1 - exp(-s) L: from s = 0 a loss above 1 makes s rise, and its weight fall."""
    more = ["loss.alpha=learned", "loss.beta=learned", "loss.gamma=0", "run.accumulation=2", "optim.weight_decay=0"]
    code = call("train", "name=learned", *TINY, *TINY_MODEL, *more, "run.max_steps=4", "optim.warmup_steps=1")
    assert code == 0
    lines = [json.loads(line) for line in (place / "runs/train/learned/metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    for term in ("text", "image"):
        assert all(line[f"loss_{term}"] > 1 for line in training)
        weights = [line[f"weight_{term}"] for line in training]
        assert weights[0] == 1.0
        assert weights == sorted(weights, reverse=True)
        assert weights[-1] < 1
    state = load_file(place / "runs/train/learned/model.safetensors")
    assert 0 < float(state["log_variance.text"]) < 0.1


def test_the_same_command_again_has_nothing_left_to_do(place, capsys):
    before = (place / "runs/train/first/model.safetensors").read_bytes()
    lines = (place / "runs/train/first/metrics.jsonl").read_text()
    call("train", "name=first", *TINY, *TINY_MODEL, "run.max_steps=12", "run.validate_every=6",
         "loss.beta=0.1", "loss.gamma=linear(0,1,1ep)")  # fmt: skip
    assert "complete    runs/train/first" in capsys.readouterr().out
    assert (place / "runs/train/first/model.safetensors").read_bytes() == before
    assert (place / "runs/train/first/metrics.jsonl").read_text() == lines


def test_another_experiment_under_the_same_name_is_refused(place, capsys):
    assert call("train", "name=first", *TINY, *TINY_MODEL, "optim.lr=0.5") == 2
    assert "holds another experiment: loss.beta is" in capsys.readouterr().err


def test_fresh_starts_in_a_new_folder(place):
    code = call("train", "name=first", "fresh=true", *TINY, *TINY_MODEL, "run.max_steps=2")
    assert code == 0
    assert (place / "runs/train/first.2/DONE").exists()


def test_evaluate_needs_the_run_folder_only(place, capsys):
    assert call("eval", "checkpoint=runs/train/first", "metrics=fast") == 0
    out = capsys.readouterr().out
    folder = place / "runs/evaluate/first-shapes-test-beam5"
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores)[:8] == NAMES
    assert all(scores[name] is not None for name in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"))
    assert scores["SPICE"] is None
    assert "BLEU-4" in out
    assert "object" in out  # the facts' table
    facts = json.loads((folder / "facts.json").read_text())
    assert "object_precision" in facts
    # the official tools read the predictions
    annotations = place / "data/shapes/annotations/captions_val2014.json"
    loaded = COCO(str(annotations)).loadRes(str(folder / "predictions.json"))
    split = json.loads((place / "data/shapes/shapes_split.json").read_text())
    assert sorted(loaded.getImgIds()) == sorted(split["test"])
    assert len((folder / "per_image.jsonl").read_text().splitlines()) == 8


def test_evaluating_again_shows_the_stored_table(place, capsys):
    call("eval", "checkpoint=runs/train/first", "metrics=fast", "split=val", "limit=3")
    first = capsys.readouterr().out
    call("eval", "checkpoint=runs/train/first", "metrics=fast", "split=val", "limit=3")
    again = capsys.readouterr().out
    assert "is complete" in again
    table = [line for line in first.splitlines() if line.startswith("CIDEr")]
    assert table
    assert table[0] in again


def test_other_metrics_or_decoding_are_another_evaluation(place):
    for options in (["metrics=fast"], ["metrics.names=[cider]"], ["metrics=fast", "decode.length_penalty=0"]):
        assert call("eval", "checkpoint=runs/train/first", "split=val", "limit=5", *options) == 0
    name = "first-shapes-val-first5-beam5"
    scores = [
        json.loads((place / "runs/evaluate" / folder / "scores.json").read_text())
        for folder in (name, f"{name}.2", f"{name}.3")
    ]
    assert [score["Bleu_1"] is None for score in scores] == [False, True, False]


def test_greedy_beam_and_nucleus_decode(place):
    for decode in ("greedy", "beam", "nucleus"):
        assert call("eval", "checkpoint=runs/train/first", "metrics=fast", f"decode={decode}", "limit=4") == 0
    assert (place / "runs/evaluate/first-shapes-test-first4-nucleus0.9-seed0/DONE").exists()


@pytest.fixture(scope="module")
def learned(place):
    """A run that has learned where captions end."""
    code = call("train", "name=ends", *TINY, *TINY_MODEL, "run.max_steps=120", "run.validate_every=0", "optim.lr=0.003",
                "metrics.names=[bleu]", "data.captions_per_image=4")  # fmt: skip
    assert code == 0
    return "runs/train/ends"


@pytest.mark.parametrize("decode", ["decode.beams=1", "decode.beams=3", "decode=nucleus"])
def test_captions_do_not_depend_on_who_is_captioned_beside_them(place, learned, monkeypatch, decode):
    """In batches of 64, and through two places, which other images of the same group take."""
    written, entered = {}, []
    join = decoding._Live.join
    monkeypatch.setattr(decoding._Live, "join", lambda *given: entered.append(1) or join(*given))
    monkeypatch.setattr(decoding, "_open", lambda live, places: live.images < places)  # as on a GPU
    for batch_size, together in ((64, 64), (2, 12)):
        monkeypatch.setattr(predicting, "decoded_together", lambda images, batch, together=together: together)
        name = f"together{together}-{decode[-1]}"
        code = call("eval", f"checkpoint={learned}", "split=train", "metrics.names=[bleu]", f"name={name}",
                    f"decode.batch_size={batch_size}", decode, "run.precision=fp32")  # fmt: skip
        assert code == 0
        found = json.loads((place / "runs/evaluate" / name / "predictions.json").read_text())
        written[together] = {each["image_id"]: each["caption"] for each in found}
    assert entered
    assert len(written[64]) == 24
    assert written[12] == written[64]


@pytest.mark.parametrize(
    ("images", "batch_size", "together"),
    [(5000, 64, 256), (40_504, 64, 1024), (500, 64, 64), (1, 64, 64), (48, 1, 3), (10**6, 64, 1024)],
)
def test_groups_leave_work_for_sixteen_processes(images, batch_size, together):
    assert predicting.decoded_together(images, batch_size) == together


def test_finetune_starts_from_the_best_weights(place, capsys):
    code = call("finetune", "checkpoint=runs/train/first", "name=second", "optim.lr=0", "optim.weight_decay=0",
                "run.max_steps=2", "run.batch_size=4")  # fmt: skip
    assert code == 0
    assert "weights from runs/train/first" in capsys.readouterr().out
    best = load_file(place / "runs/train/first/best.safetensors")
    tuned = load_file(place / "runs/finetune/second/model.safetensors")
    for name, tensor in best.items():  # a rate of zero leaves them as they were
        if name in tuned:
            assert torch.equal(tensor, tuned[name]), name
    assert {name for name in tuned if name.startswith("model.")} == {n for n in best if n.startswith("model.")}


def test_finetune_freezes_what_it_is_told_to(place):
    assert call("finetune", "checkpoint=runs/train/first", "name=frozen", "vision.freeze=all", "text.freeze=all",
                "run.max_steps=3", "run.batch_size=4", "optim.warmup_steps=1") == 0  # fmt: skip
    best = load_file(place / "runs/train/first/best.safetensors")
    tuned = load_file(place / "runs/finetune/frozen/model.safetensors")
    moved = {
        name.split(".")[1] for name in tuned if name.startswith("model.") and not torch.equal(best[name], tuned[name])
    }
    assert moved == {"fusion", "output_bias"}


def test_language_alone_then_joined(place, capsys):
    text_only = ["dataset.images=false", "vision=none", "fusion=none"]
    small = [option for option in TINY_MODEL if option.split(".")[0] in ("text", "run")]
    assert call("preprocess", "dataset=shapes", *TINY, "dataset.images=false") == 0
    assert call("train", *TINY, *text_only, *small, "name=language", "run.max_steps=4") == 0
    assert not (place / "runs/train/language/predictions.json").exists()
    capsys.readouterr()
    code = call("train", *TINY, *TINY_MODEL, "name=joined", "init.text=runs/train/language",
                "init.vision=runs/train/first", "run.max_steps=1", "optim.lr=0")  # fmt: skip
    assert code == 0
    joined = load_file(place / "runs/train/joined/model.safetensors")
    language = load_file(place / "runs/train/language/best.safetensors")
    first = load_file(place / "runs/train/first/best.safetensors")
    assert torch.equal(joined["model.text.embedding.weight"], language["model.text.embedding.weight"])
    assert torch.equal(joined["model.vision.position"], first["model.vision.position"])


def test_images_alone(place):
    assert call("train", *TINY, *TINY_MODEL, "loss=image", "name=images", "run.max_steps=3") == 0
    line = json.loads((place / "runs/train/images/metrics.jsonl").read_text().splitlines()[1])
    assert "loss_image" in line
    assert "loss_text" not in line


def test_dry_run_estimates_and_writes_nothing(place, capsys):
    before = set(place.rglob("*"))
    assert call("train", *TINY, "dry_run=true", "vision=resnet50", "vision.weights=none", "text=lstm") == 0
    out = capsys.readouterr().out
    for word in ("parameters", "per step", "GFLOP", "memory", "time"):
        assert word in out
    assert set(place.rglob("*")) == before


def test_the_estimated_work_is_that_of_the_real_step(place, capsys):
    """FLOPs on the meta device == FLOPs counted on a real batch of the same shape."""
    from torch.utils.flop_counter import FlopCounterMode

    from velm_cli import configs
    from velm_cli.data.batch import Columns, concept_labels
    from velm_cli.data.loader import TrainLoader
    from velm_cli.data.opening import open_store
    from velm_cli.learners.interface import Moment
    from velm_cli.stages import estimate as stage
    from velm_cli.stages.starting import new_learner
    from velm_cli.stages.task_data import TaskData

    config = configs.load_run_config(place / "runs/train/first")
    store = open_store(place / "stores/shapes")
    tokens = store.tokens(config.tokenizer)
    task = new_learner(config, {"concepts": store.concept_names}, tokens.tokenizer)
    batch = next(
        TrainLoader(store, Columns(tokens, config.data.captions_per_image, labels=concept_labels(store, task.concepts)),
                    config.data, batch_size=4, pixels=task.pixels, seed=0).batches()
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        sum(term.sum for term in task(batch, Moment(frozenset({"text", "image", "joint"}))).values()).backward()
    with torch.device("meta"):
        meta = new_learner(config, {"concepts": store.concept_names}, tokens.tokenizer)
    longest = batch.tokens_BKT.shape[2] - 1
    captions = batch.tokens_BKT.shape[1]
    data = TaskData.of(config, store, tokens.tokenizer)
    flops, activations = stage.one_step(meta, config, data, captions, longest)
    # The meta batch predicts at every position, the real one only up to each caption's end; and the CPU's
    # fused attention computes some products again in its backward pass.
    assert 0.95 * counter.get_total_flops() <= flops < 1.3 * counter.get_total_flops()
    assert activations > 0


def test_overfitting_eight_images_reaches_the_stated_loss(place):
    options = [option for option in TINY_MODEL if not option.startswith(("run", "text.width", "vision.width"))]
    code = call("train", *TINY, *options, "debug=overfit", "name=overfit",
                "text.width=64", "vision.width=64", "optim.lr=3e-3")  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in (place / "runs/train/overfit/metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["loss_text"] < 0.05


def test_a_loss_that_is_not_finite_stops_with_the_images_and_keeps_the_checkpoint(place, capsys):
    code = call("train", *TINY, *TINY_MODEL, "name=nan", "optim.lr=1e25", "optim.grad_clip=0",
                "optim.warmup_steps=0", "run.max_steps=30", "run.checkpoint_every=1", "run.keep_checkpoints=40")  # fmt: skip
    assert code == 1
    error = capsys.readouterr().err
    assert "the gradient is not finite" in error
    assert "Examples of the batch: " in error
    folder = place / "runs/train/nan"
    assert "not finite" in (folder / "FAILED").read_text()
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        assert all(torch.isfinite(t).all() for t in load_file(checkpoint / "task.safetensors").values())


def test_the_wrong_split_is_explained(place, capsys):
    assert call("eval", "checkpoint=runs/train/first", "split=tset") == 2
    assert "split=tset: the data set has train 24, val 8, test 8" in capsys.readouterr().err


def test_a_strangers_checkpoint_runs_no_code(place, capsys, tmp_path):
    """A pickle in place of the weights is refused, whatever its name."""
    import pickle
    import shutil

    class Bomb:
        def __reduce__(self):
            return (print, ("code was run",))

    folder = tmp_path / "stranger"
    shutil.copytree(place / "runs/train/first", folder)
    for name in ("best.safetensors", "model.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert call("eval", f"checkpoint={folder}", "metrics=fast") == 2
    captured = capsys.readouterr()
    assert "not a readable weight file" in captured.err
    assert "code was run" not in captured.out
    config = (folder / "config.yaml").read_text().splitlines()[1:-1]  # without the seal
    (folder / "config.yaml").write_text("\n".join([*config, "_target_: os.system", ""]))
    assert call("eval", f"checkpoint={folder}", "metrics=fast") == 2
    assert "_target_" in capsys.readouterr().err


def test_training_does_not_import_the_compiler(tmp_path):
    """torch._dynamo, inductor and sympy take two seconds, and nothing is compiled."""
    assert velm("preprocess", "dataset=shapes", *TINY, cwd=tmp_path).returncode == 0
    program = (
        "import sys; from velm_cli.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "found = {'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)\n"
        "assert not found, found"
    )
    options = ["train", *TINY, *TINY_MODEL, "run.max_steps=2", "metrics.names=[cider]"]
    done = subprocess.run([sys.executable, "-c", program, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
