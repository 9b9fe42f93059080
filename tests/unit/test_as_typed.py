"""What a user types reaches the option as it was typed, through Hydra's own grammar."""

import random

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from velm_cli.as_typed import for_hydra, quote, split, unquoted
from velm_cli.errors import UserError
from velm_cli.options import choices

AS_TYPED = [
    "photos (1)", "été", "照片", "O'Brien", "a=b", "a#b", "a&b", "~/photos", "a,b", "beam=5,len=20.jsonl", "1e3", "true",
    "[a]", "{a}", "{a:1}", "C:\\x", "end\\", "two\\\\", 'say "hi"', "'tis", "it''s", "'q'x'", "tab\there", "new\nline",
    "😀", "שלום", "\u202eevil", "a:b", "007", "1_0", "NaN", " lead", "trail ", "a  b", "x;y", "$(ls)", "`ls`", "choice(1)",
    "range(1,2)", "100%", "(1", "a]", "*", "-dash", "!x", "a|b", "=v", "é" * 5000, "\\'", "a\\'b", '"', "'", "((", "a\\", "\\",
]  # fmt: skip


def hydras(*args: str, stage: str = "train") -> dict[str, object]:
    """What Hydra's grammar makes of a command: value by key."""
    words = [word for word in for_hydra(stage, args, note=lambda _: None) if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(words)
    return {override.key_or_group: override.value() for override in parsed}


@pytest.mark.parametrize("text", AS_TYPED)
def test_text_arrives_as_it_was_typed(text):
    assert hydras(f"dataset.root={text}")["dataset.root"] == text
    assert hydras(f"++dataset.root={text}")["dataset.root"] == text


def test_any_text_survives_quoting():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("ab'\"\\ ,()[]{}=~$é\n:", k=draw.randint(1, 9)))
        assert unquoted(quote(text)) == text
        (override,) = OverridesParser.create().parse_overrides([f"key={quote(text)}"])
        assert override.value() == text, text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("'photos (1)'", "photos (1)"),
        ('"a,b"', "a,b"),
        ("'it\\'s'", "it's"),
        ("null", None),
        ("NULL", None),
        ("'null'", "null"),
    ],
)
def test_what_is_quoted_for_hydra_keeps_its_meaning(typed, meant):
    assert hydras(f"dataset.root={typed}")["dataset.root"] == meant


def test_in_a_sweep_commas_separate_and_functions_work():
    def points(word: str) -> list[str]:
        words = for_hydra("train", ["-m", word], note=lambda _: None)
        assert words[0] == "-m"
        (override,) = OverridesParser.create().parse_overrides(words[1:])
        return list(override.sweep_string_iterator())

    assert points("loss.beta=linear(0,0.3,5),0") == ["'linear(0,0.3,5)'", "0"]
    assert points("dataset.store=a b,c (1)") == ['"a b"', '"c (1)"']
    assert points("dataset.store='a,b',c") == ["'a,b'", "c"]
    assert points("fusion=choice(add,concat)") == ["add", "concat"]
    assert points("text.width=range(1,3)") == ["1", "2"]
    assert points("name=O'Brien, d'Arc") == ['"O\'Brien"', '"d\'Arc"']
    assert points("metrics.names=cider,bleu") == ["[cider]", "[bleu]"]


def test_a_single_value_of_a_list_is_a_list_of_one():
    assert hydras("metrics.names=cider")["metrics.names"] == ["cider"]
    assert hydras("metrics.names=cider,bleu")["metrics.names"] == ["cider", "bleu"]
    assert hydras("metrics.required=[cider]")["metrics.required"] == ["cider"]
    assert hydras("metrics.names=a b")["metrics.names"] == ["a b"]


def test_shards_of_a_shell_are_one_list():
    words = ["dataset.urls=a b.tar", "dataset.urls=c,d.tar"]
    assert hydras(*words)["dataset.urls"] == ["a b.tar", "c,d.tar"]
    assert hydras("dataset.urls={00..03}.tar")["dataset.urls"] == "{00..03}.tar"
    assert hydras("dataset.urls=[a,b]")["dataset.urls"] == ["a", "b"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a b.json", "a b.json"),
        ("a,b.json", "a,b.json"),
        ("7", "7"),
        ("null", None),
        ("[a (1).json, b.json]", ["a (1).json", "b.json"]),
        ("{train: a/b.json, val: O'Brien.json}", {"train": "a/b.json", "val": "O'Brien.json"}),
        ("{train:[a.json,b c.json],val:C:/d.json,}", {"train": ["a.json", "b c.json"], "val": "C:/d.json"}),
    ],
)
def test_files_of_parts_keep_their_names(typed, read):
    assert hydras(f"dataset.questions={typed}", stage="preprocess")["dataset.questions"] == read


def test_questions_of_shapes_are_a_switch():
    assert hydras("dataset.questions=true")["dataset.questions"] is True


def test_numbers_and_choices_are_read_as_before():
    assert hydras("optim.lr=1e-3", "seed=1_000", "fusion=add", "data.flip=true") == {
        "optim.lr": 1e-3, "seed": 1000, "fusion": "add", "data.flip": True,
    }  # fmt: skip
    assert hydras("loss.beta=0.1")["loss.beta"] == 0.1, "a number of a schedule names the run as it always did"
    assert hydras("run.max_steps = 3")["run.max_steps"] == 3


def test_interpolations_stay_interpolations():
    assert hydras("name=x-${optim.lr}")["name"] == "x-${optim.lr}"
    for word in ("seed=${oc.decode:'7'}", "name=${dataset.kind}/a-${seed}"):
        assert for_hydra("train", [word], note=print) == [word]
    assert hydras("name=it's ${seed}")["name"] == "it's ${seed}"


def test_flags_may_stand_anywhere_and_the_last_of_two_counts():
    notes: list[str] = []
    words = ["seed=1", "--cfg", "job", "fusion=add", "seed=2"]
    assert for_hydra("train", words, notes.append) == ["--cfg", "job", "seed=2", "fusion=add"]
    assert notes == ["seed is given more than once; the last counts: seed=2"]
    assert for_hydra("train", ["seed=1,2", "--multirun"], notes.append) == ["-m", "seed=1,2"]


def test_plus_of_a_group_in_the_users_own_folder_stays(tmp_path):
    (tmp_path / "setup").mkdir()
    assert for_hydra("train", [f"--config-dir={tmp_path}", "+setup=a", "+seed=1"], print)[1:] == ["+setup=a", "seed=1"]


@pytest.mark.parametrize("value", ["a'b,c", "(a,b),c", "'a,b',c", "a", "", ",", "[a,b]"])
def test_splitting_loses_nothing(value):
    assert ",".join(split(value)) == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.root=", "dataset.root= is empty: is a shell variable unset? (dataset.root=null means none)"),
        ("run.dir= ", "run.dir= is empty: is a shell variable unset? (leave it out for the default)"),
        ("~fusion", "~fusion: no option can be removed; give another value, such as key=null or fusion=none"),
        ("~optim.lr=3", "~optim.lr=3: no option can be removed; give another value, such as key=null or fusion=none"),
        ("dataset=[folder,manifest]", "dataset=[folder,manifest]: one choice is expected, such as dataset=chat"),
        ("fusion=add,concat", "fusion=add,concat: one value is expected; a sweep over several is velm train -m ..."),
        ("optim.lr=1,5", "optim.lr=1,5: one value is expected; a sweep over several is velm train -m ..."),
        ("vision.kind=vit", "vision.kind is not an option: it follows from the choice, vision=NAME"),
        ("stage=score", "stage is not an option: it follows from the first word, velm train"),
        ("vision.width.x=3", "vision.width.x: no such option; did you mean 'vision.width'?"),
        ("run..lr=3", "cannot read 'run..lr=3': 'run..lr' is no name of an option; write key=value"),
        ("lr", "'lr' has no value: did you mean optim.lr=VALUE?"),
        ("optim.lr", "'optim.lr' has no value: write optim.lr=value, without spaces around the ="),
        ("--lr=3", "--lr: no such flag; options are written key=value, without dashes: did you mean 'optim.lr'?"),
        ("-lr", "-lr: no such flag; options are written key=value, without dashes: did you mean 'optim.lr'?"),
        ("—dry_run", "—dry_run: begins with a long dash, which is no flag; options are written key=value"),
        ("--cfg", "--cfg needs a value: --cfg job"),
        ("vision=null", "vision=null: no such choice (choices: " + ", ".join(choices("vision")) + ")"),
        ("debug=../x", "debug=../x: no such choice (choices: overfit, smoke)"),
        ("--info=x", "--info=x: expected one of all, config, defaults, defaults-tree, plugins, searchpath"),
        ("--resolve", "--resolve goes with --cfg job: velm STAGE --cfg job --resolve"),
        ("--cfg=x", "--cfg=x: expected job, hydra or all"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(word, said):
    with pytest.raises(UserError) as error:
        for_hydra("train", [word], note=print)
    assert str(error.value) == said


@pytest.mark.parametrize("word", ["--config-path=/tmp", "--config-name=x", "-cn", "-cp=x"])
def test_configs_of_ones_own_have_another_door(word):
    with pytest.raises(UserError, match=r"config=RUN_OR_YAML .* experiment=NAME --config-dir=FOLDER"):
        for_hydra("train", [word], note=print)


def test_no_experiment_is_said_with_null():
    assert for_hydra("train", ["experiment=shapes_demo", "experiment=null", "seed=1"], note=print) == ["seed=1"]
    with pytest.raises(UserError, match=r"optim.lr=1,: a value is missing next to a comma"):
        for_hydra("train", ["-m", "optim.lr=1,"], note=print)
    with pytest.raises(UserError, match=r"--experimental-rerun: no such flag"):  # of Hydra's, which unpickles a file
        for_hydra("train", ["--experimental-rerun", "x"], note=print)


def test_an_evaluation_takes_no_option_of_training():
    with pytest.raises(UserError, match=r"run.max_steps has no effect on velm evaluate: .*run has dir, device"):
        for_hydra("evaluate", ["run.max_steps=3"], note=print)
    assert for_hydra("evaluate", ["run.device=cpu"], note=print) == ["run.device=cpu"]
