"""Paths and names of every kind on the command line: taken as typed, with the home folder, or refused in one line."""

import pytest
from omegaconf import OmegaConf
from PIL import Image
from velm import call

from velm_cli import compose, schema
from velm_cli.schema.paths import expand_homes


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def photos(folder) -> None:
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 9, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red square\n")


@pytest.mark.parametrize("name", ["photos (1)", "O'Brien, été 照片", "1e3", "~no such user", "[a]=b#c&d\n\\"])
def test_a_folder_of_any_name_is_found(name, place, capsys):
    photos(place / name)
    assert call("preprocess", "dataset=folder", f"dataset.root={name}", "dry_run=true") == 0
    said = capsys.readouterr()
    assert "refused     0" in said.out and not said.err


def test_the_home_folder_is_found_in_every_path(place, capsys):
    photos(place / "home/photos")
    for root in ("~/photos", "'~/photos'", '"~/photos"'):
        assert call("preprocess", "dataset=folder", f"dataset.root={root}", "dry_run=true") == 0
    assert call("eval", "checkpoint=~/nowhere") == 2
    assert f"checkpoint: {place}/home/nowhere does not exist" in capsys.readouterr().err
    config = schema.TrainRoot(
        dataset=schema.WebDatasetConfig(urls=["~/a.tar", "b.tar"], store="~/s"),
        vision=schema.TransformersVisionConfig(name="~/v"),
        text=schema.CausalLMConfig(name="x/~y", weights="~/w"),
        init=schema.InitConfig(text="~/t"),
        run=schema.RunConfig(dir="~nobody-of-that-name/x"),
    )
    expand_homes(config)
    home = place / "home"
    assert config.dataset.urls == [f"{home}/a.tar", "b.tar"] and config.dataset.store == f"{home}/s"
    assert (config.vision.name, config.text.name, config.text.weights) == (f"{home}/v", "x/~y", f"{home}/w")
    assert config.init.text == f"{home}/t" and config.run.dir == f"{place}/~nobody-of-that-name/x"


def where(*words: str, capsys) -> str:
    code = call("train", "--where", *words)
    said = capsys.readouterr()
    assert code == (2 if said.err else 0) and (said.err or said.out).count("\n") == 1
    return (said.err or said.out).strip()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("1e3", "1e3"),
        ("true", "true"),
        ("a/b", "a/b"),
        ("x y", "x y"),
        ("été", "été"),
        ("it's", "it's"),
        ("'q'", "q"),
        ("007", "007"),
    ],
)
def test_a_name_is_text_as_typed(name, folder, capsys):
    assert where(f"name={name}", capsys=capsys) == f"runs/train/{folder}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "velm: name= is empty: is a shell variable unset? (name=null means none)"),
        ("''", "is no folder of its own"),
        ("../up", "is no folder of its own"),
        (".", "is no folder of its own"),
        ("a/../b", "is no folder of its own"),
        ("a/", "is no folder of its own"),
        ("/abs", "leads elsewhere"),
        ("~/x", "leads elsewhere"),
        ("a\tb", "velm: name=a\\tb holds characters that cannot be shown"),
        ("a\x1b[2J", "holds characters that cannot be shown"),
        ("\u202egnp", "holds characters that cannot be shown"),
        ("n" * 10_000, "is longer than 200 bytes"),
        ("${nope}", "velm: name: ${nope} is the value of another option, and there is no option 'nope'"),
    ],
)
def test_a_name_that_is_no_folder_of_its_own_is_refused(name, said, capsys):
    line = where(f"name={name}", capsys=capsys)
    assert said in line and len(line) < 200


def test_a_sweep_refuses_such_a_name_too(capsys):
    assert call("train", "-m", "--where", "name=../up", "seed=0,1") == 2
    assert "is no folder of its own" in capsys.readouterr().err


def test_whose_width_it_is_can_be_seen_in_the_name(capsys):
    name = where("text.width=64", "run.batch_size=4", "loss.beta=linear(0,1,5)", capsys=capsys)
    assert name == ("runs/train/shapes-convnet-transformer-cross_modal-beta_linear_0_1_5_-batch_size_4-text.width_64")


def test_a_run_under_its_older_name_is_found_again(place, capsys):
    words = ["text.width=64", "loss.beta=linear(0,1,5)"]
    assert call("train", *words, "--cfg", "job") == 0
    older = place / "runs/train/shapes-convnet-transformer-cross_modal-beta__linear_0_1_5_-width_64"
    text = capsys.readouterr().out
    compose.register("train")
    older.mkdir(parents=True)
    (older / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(text)))
    assert where(*words, capsys=capsys) == str(older.relative_to(place))
    other = where("vision.width=64", "loss.beta=linear(0,1,5)", capsys=capsys)
    assert other.endswith("-vision.width_64"), "another experiment that once had the same name"


def test_a_known_option_with_a_plus_works_and_an_unknown_one_does_not(capsys):
    for plus in ("+", "++"):
        assert call("train", f"{plus}run.max_steps=3", f"{plus}fusion=add", "--cfg", "job") == 0
        said = capsys.readouterr().out
        assert "max_steps: 3\n" in said and "kind: add\n" in said
        assert call("train", f"{plus}run.max_stepz=3") == 2
        assert capsys.readouterr().err == "velm: run.max_stepz: no such option; did you mean 'run.max_steps'?\n"
        assert call("train", f"{plus}hello=1") == 2
        assert capsys.readouterr().err.startswith("velm: hello: no such option; train has: name, seed")


def test_options_of_another_packages_fusion_need_no_plus(capsys):
    for word in ("fusion.options.scale=0.5", "+fusion.options.scale=0.5", "fusion.options={scale: 0.5}"):
        assert call("train", "fusion=external", "fusion.name=x", word, "--cfg", "job") == 0
        assert "    scale: 0.5\n" in capsys.readouterr().out


def test_of_an_option_given_twice_the_last_counts_with_a_note(capsys):
    assert call("train", "seed=1", "seed=2", "run.batch_size=0") == 2
    said = capsys.readouterr()
    assert said.out == "note        seed is given more than once; the last counts: seed=2\n"
    assert said.err.count("\n") == 1
    assert call("train", "text.width=8", "text.width=16", "--where") == 0
    said = capsys.readouterr()
    assert said.out == "runs/train/shapes-convnet-transformer-cross_modal-text.width_16\n"
    assert said.err == "velm: note: text.width is given more than once; the last counts: text.width=16\n"
