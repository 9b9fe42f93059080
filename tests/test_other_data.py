"""A run, its name and its evaluation are of the data that the command names, and of no other."""

import json
import shutil

import pytest
from PIL import Image
from velm import TINY_MODEL, call

from velm_cli import configs, naming
from velm_cli.data.opening import open_store

PARTS = ["dataset.val_fraction=0.1", "dataset.test_fraction=0.1", "dataset.image_size=32"]
MODEL = [*TINY_MODEL, "vision.image_size=32", "tokenizer.min_count=1", "metrics.names=[bleu]", "run.validate_images=2"]
EVAL = ["metrics.names=[bleu]", "report.page=false", "decode=greedy"]


def photos(folder, words, colour):
    folder.mkdir(parents=True)
    for number in range(30):
        Image.new("RGB", (40, 40), (number * 8, colour, 40)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a picture of {words[number % len(words)]} number one\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos in A/ and B/ (of other words), with the stores SA and SB; stores/folder is of A. A run on SA."""
    folder = tmp_path_factory.mktemp("other-data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        photos(folder / "A", ["red", "blue", "green"], 10)
        photos(folder / "B", ["cats", "dogs", "owls", "foxes"], 200)
        for root, store in (("A", ["dataset.store=SA"]), ("B", ["dataset.store=SB"]), ("A", [])):
            words = ["preprocess", "dataset=folder", f"dataset.root={root}", *PARTS, *store, "tokenizer.min_count=1"]
            assert call(*words) == 0
        assert call("train", "dataset=folder", "dataset.store=SA", *MODEL, "run.max_steps=2", "name=source") == 0
        yield folder


@pytest.fixture(autouse=True)
def quiet(place, capsys):
    capsys.readouterr()


def refused(capsys, *args):
    assert call(*args) == 2
    line = capsys.readouterr().err
    assert line.startswith("velm: ") and line.count("\n") == 1, line
    return line


def where(capsys, *args):
    assert call("train", *args, "--where") == 0
    return [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("steps", [2, 3], ids=["finished", "longer"])
def test_a_run_is_not_continued_on_another_store(steps, place, capsys):
    run = place / "runs/train/source"
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    line = refused(
        capsys, "train", "dataset=folder", "dataset.store=SB", *MODEL, f"run.max_steps={steps}", "name=source"
    )
    old, new = (open_store(place / name).hash[:12] for name in ("SA", "SB"))
    assert f"begun on other data: the store SA of hash {old}, and SB now has {new}; go on" in line
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


def test_the_same_data_under_another_name_is_no_other(place, capsys):
    """As built again, or moved."""
    command = ["train", "dataset=folder", *MODEL, "name=renamed"]
    assert call(*command, "dataset.store=SA", "run.max_steps=1") == 0
    assert call(*command, "dataset.store=stores/folder", "run.max_steps=2") == 0
    assert "resumed at step 1" in capsys.readouterr().out


def test_default_names_differ_by_the_data(place, capsys):
    rest = "vit-transformer-cross_modal"
    assert where(capsys, "dataset=folder", "vision=vit") == [f"folder-{rest}"]
    assert where(capsys, "dataset=folder", "vision=vit", "dataset.root=A") == [f"folder-A-{rest}"]
    assert where(capsys, "dataset=folder", "vision=vit", "-m", "dataset.store=SA,stores/SB") == [
        f"folder-SA-{rest}",
        f"folder-SB-{rest}",
    ]
    apart = [
        where(capsys, "dataset=folder", "vision=vit", f"dataset.store={store}")[0] for store in ("x/S", "y/S", "S")
    ]
    assert len(set(apart)) == 3 and all(name.startswith("folder-S") and len(name) < 60 for name in apart)
    same = ["SA", "./SA", "SA/", str(place / "SA")]
    assert {where(capsys, "dataset=folder", f"dataset.store={store}")[0] for store in same} == {
        f"folder-SA-convnet-{rest[4:]}"
    }


def test_pieces_of_names_are_safe():
    for path in ("photos (1)", "/data/été", "照片", "图片", "..", "a" * 300, "x/../x/y"):
        name = naming.short_name(path)
        assert name and naming.slug(name) == name and len(name) <= 45, (path, name)
    assert naming.short_name("照片") != naming.short_name("图片")


def test_a_run_that_an_older_velm_named_is_found_again(place, capsys):
    """Its name said nothing of the store; one of other data does not get it, nor one of another experiment."""
    words = ["dataset=folder", "vision=vit"]
    new = place / "runs/train/folder-SA-vit-transformer-cross_modal"
    assert (
        call("train", *words, "dataset.store=SA", "run.max_steps=1", "run.validate_images=2", "metrics.names=[bleu]")
        == 0
    )
    capsys.readouterr()
    old = new.rename(place / "runs/train/folder-vit-transformer-cross_modal")
    assert where(capsys, *words, "dataset.store=SA") == [old.name]
    assert where(capsys, *words, "dataset.store=SB") == ["folder-SB-vit-transformer-cross_modal"]
    config = (old / "config.yaml").read_text().split("\n", 1)[1].rpartition("# crc32")[0]
    (old / "config.yaml").write_text(config.replace("dropout: 0.1", "dropout: 0.2"))
    assert where(capsys, *words, "dataset.store=SA") == [new.name]
    shutil.rmtree(old)


def test_evaluations_of_two_stores_have_two_names(place, capsys):
    for store in ("SA", "SB"):
        assert call("eval", "checkpoint=runs/train/source", f"dataset.store={store}", *EVAL) == 0
    names = sorted(path.name for path in (place / "runs/evaluate").iterdir())
    assert names == ["source-folder-SB-test-greedy", "source-folder-test-greedy"]


OTHER = {
    "root": (["dataset.root=B"], "dataset.root=A (now B); leave out dataset.root= to use it as it is"),
    "image size": (["dataset.image_size=48"], "dataset.image_size=32 (now 48)"),
    "shares": (["dataset.val_fraction=0.3", "dataset.test_fraction=0.1"], "dataset.val_fraction=0.1 (now 0.3); leave out"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("stage", ["train", "eval", "finetune"])
def test_options_that_name_other_data_than_the_store_has_are_refused(stage, kind, place, capsys):
    options, expected = OTHER[kind]
    words = [stage, "dataset=folder", *options, "dry_run=true"]
    line = refused(capsys, *words, *([] if stage == "train" else ["checkpoint=runs/train/source"]))
    assert f"the store stores/folder was made from something else: {expected}" in line
    store, root = ("B", "B") if kind == "root" else ("folder-2", "A")
    assert f"velm preprocess dataset=folder dataset.root={root} dataset.store=stores/{store}" in line


def test_another_spelling_of_the_root_is_the_same(place, capsys, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(place / "A")
    for root in ("A/", "./A", str(place / "A"), str(tmp_path / "link"), "B/../A"):
        assert call("train", "dataset=folder", f"dataset.root={root}", *PARTS, *MODEL, "dry_run=true") == 0
    monkeypatch.chdir(tmp_path)  # what preprocess was given relative is found by the store
    words = ["dataset=folder", f"dataset.store={place}/stores/folder"]
    assert call("eval", f"checkpoint={place}/runs/train/source", *words, f"dataset.root={place}/A", "dry_run=true") == 0
    assert call("eval", f"checkpoint={place}/runs/train/source", *words, f"dataset.root={place}/B", "dry_run=true") == 2


def test_a_run_works_from_its_store_alone(place, capsys):
    """Its config names a root that is gone."""
    assert call("train", "dataset=folder", "dataset.root=A", *MODEL, "run.max_steps=1", "name=rooted") == 0
    (place / "A").rename(place / "gone")
    try:
        assert call("eval", "checkpoint=runs/train/rooted", *EVAL, "limit=2") == 0
        assert call("finetune", "checkpoint=runs/train/rooted", "run.max_steps=1", "run.batch_size=4", *MODEL[-2:]) == 0
    finally:
        (place / "gone").rename(place / "A")


def test_the_vocabulary_comes_with_the_weights(place, capsys):
    init = ["train", "dataset=folder", "dataset.store=SB", *MODEL, "run.max_steps=1", "init.text=runs/train/source"]
    finetune = ["finetune", "checkpoint=runs/train/source", "dataset.store=SB", "run.max_steps=1", "run.batch_size=4",
                *MODEL[-2:]]  # fmt: skip
    for command in (init, finetune):
        for option, shown in (("tokenizer=bpe", "kind=bpe"), ("tokenizer.min_count=3", "min_count=3")):
            line = refused(capsys, *command, option)
            assert f"tokenizer.{shown} has no effect: the weights of runs/train/source come with their own" in line
        assert call(*command, "name=inherits") == 0
        said = capsys.readouterr().out
        assert "% of the words unknown (<unk>)" in said
    # Without a word about it the run's tokenizer is noted, not the default.
    words = [word for word in init if word != "tokenizer.min_count=1"]
    assert call(*words, "name=silent") == 0
    assert configs.load_run_config(place / "runs/train/silent").tokenizer.min_count == 1
    assert (
        json.loads((place / "runs/train/silent/tokenizer/velm_tokenizer.json").read_text())["digest"]
        == (json.loads((place / "runs/train/source/tokenizer/velm_tokenizer.json").read_text())["digest"])
    )


@pytest.mark.parametrize("stage", ["train", "eval", "finetune"])
def test_a_store_of_another_kind_is_refused(stage, capsys):
    more = {"train": MODEL}.get(stage, ["checkpoint=runs/train/source"])
    line = refused(capsys, stage, *more, "dataset=manifest", "dataset.file=x.csv", "dataset.store=SB")
    assert "the store SB was made from a data set of another kind, folder and not manifest: say dataset=folder" in line


@pytest.mark.parametrize("option", ["fusion=add", "text.width=8"])
def test_an_evaluation_has_no_model_of_its_own(option, capsys):
    line = refused(capsys, "eval", "checkpoint=runs/train/source", option)
    assert f"{option.partition('=')[0]}: no such option of velm evaluate" in line


def test_weights_of_another_program_are_no_run(place, capsys):
    (place / "net.pth").write_bytes(b"x")
    line = refused(capsys, "train", "dataset=folder", "dataset.store=SA", *MODEL, "init.vision=net.pth")
    assert "init.vision: net.pth is not a run folder" in line and "vision.weights=FILE" in line


def test_a_store_is_replaced_whatever_velm_wrote_into_it(place):
    words = ["preprocess", "dataset=folder", "dataset.root=A", *PARTS, "dataset.store=again", "tokenizer.min_count=1"]
    assert call(*words) == call(*words, "fresh=true") == 0
