"""velm score: files in, the field's numbers out; against another system; mistakes in one line."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import velm as harness
from java_support import needs_java, random_captions
from pycocoevalcap.cider.cider import Cider

from velm_cli.metrics import ptb
from velm_cli.metrics.coco_words import CATEGORIES
from velm_cli.metrics.java import Launcher, find_java
from velm_cli.metrics.tokenize import flatten, ptb_tokenize, unflatten

FAST = "metrics.names=[bleu,rouge_l,cider]"


@pytest.fixture
def files(tmp_path, monkeypatch) -> tuple[dict, dict]:
    """references.json, good.json and bad.json in the working directory; what is in the first two."""
    monkeypatch.chdir(tmp_path)
    references, good = random_captions(random.Random(), 120)
    annotations = [
        {"id": number, "image_id": image, "caption": caption}
        for number, (image, caption) in enumerate((i, c) for i, group in references.items() for c in group)
    ]
    Path("references.json").write_text(
        json.dumps({"images": [{"id": i} for i in references], "annotations": annotations})
    )
    shuffled = dict(zip(good, reversed(good.values()), strict=True))
    for name, captions in (("good", good), ("bad", shuffled)):
        Path(f"{name}.json").write_text(json.dumps([{"image_id": i, "caption": c} for i, c in captions.items()]))
    return references, good


@pytest.mark.java
def test_scores_are_pycocoevalcaps_and_the_better_system_is_better(files, tmp_path):
    needs_java()
    references, good = files
    done = harness.velm(
        *("score", "predictions=good.json", "references=references.json", "vs=bad.json", "out=scored", FAST),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with Launcher(find_java()) as launcher:
        tokenized = unflatten(ptb_tokenize(flatten(references), launcher, timeout=60), references)
        answers = ptb_tokenize(list(good.values()), launcher, timeout=60)
    wanted, each = Cider().compute_score(tokenized, dict(zip(good, ([a] for a in answers), strict=True)))
    saved = json.loads(Path("scored/scores.json").read_text())
    assert saved["CIDEr"] == pytest.approx(wanted, abs=1e-9)
    lines = [json.loads(line) for line in Path("scored/per_image.jsonl").read_text().splitlines()]
    assert [line["scores"]["CIDEr"] for line in lines] == pytest.approx(list(each), abs=1e-9)
    low, high = saved["intervals"]["CIDEr"]
    assert low < wanted < high
    assert saved["language"]["words"] == pytest.approx(sum(len(a.split()) for a in answers) / len(answers))
    rows = {line.split()[0]: line.split() for line in done.stdout[done.stdout.index("against") :].splitlines() if line}
    this, that, difference, p = (float(cell) for cell in rows["CIDEr"][1:5])
    assert this == pytest.approx(100 * wanted, abs=0.051)
    assert difference == pytest.approx(this - that, abs=0.11)
    assert that < this / 2
    assert p == pytest.approx(1 / 10_001, abs=1e-4)


def test_a_system_against_itself_has_no_difference(files, tmp_path):
    done = harness.velm(
        *("score", "predictions=good.json", "references=references.json", "vs=good.json", FAST), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "CIDEr" in done.stdout
    rows = done.stdout[done.stdout.index("against") :].splitlines()[1:]
    differences = [row.split()[-5:] for row in rows if row.startswith(("BLEU", "ROUGE", "CIDEr"))]
    assert differences == [["+0.0", "1.0000", "+0.0", "to", "+0.0"]] * 6


@pytest.mark.java
def test_frequencies_can_come_from_other_references(files):
    needs_java()
    save = ("score", "predictions=good.json", "references=references.json", FAST)
    assert harness.call(*save, "save_df=df.npz", "out=own") == 0
    few = [json.loads(line) for line in Path("own/per_image.jsonl").read_text().splitlines()[:5]]
    Path("few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in few))
    assert harness.call("score", "predictions=few.jsonl", "references=few.jsonl", FAST, "out=few") == 0
    own = json.loads(Path("few/scores.json").read_text())
    assert any("come from these 5 images only" in warning for warning in own["warnings"])
    assert (
        harness.call(*("score", "predictions=few.jsonl", "references=few.jsonl", FAST, "metrics.df=df.npz", "out=with"))
        == 0
    )
    borrowed = json.loads(Path("with/scores.json").read_text())
    assert borrowed["warnings"] == []
    assert borrowed["signature"]["cider_df"].endswith("120 images")
    scores = [json.loads(line)["scores"]["CIDEr"] for line in Path("with/per_image.jsonl").read_text().splitlines()]
    assert scores == pytest.approx([line["scores"]["CIDEr"] for line in few], abs=1e-9)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (["predictions=nothing.json"], "velm: predictions=nothing.json does not exist"),
        (["metrics.names=[bleu,spcie]"], "velm: metrics: no metric 'spcie'; did you mean 'spice'?"),
        (["metrics.df=nothing.npz"], "velm: no document frequencies in nothing.npz: there is no such file"),
        (["mismatch=skip"], "velm: mismatch=skip: expected one of error, ignore"),
    ],
)
def test_a_mistake_is_one_line(files, capsys, change, line):
    assert harness.call("score", "predictions=good.json", "references=references.json", FAST, *change) == 2
    assert line in capsys.readouterr().err


def test_files_that_do_not_fit_are_refused_or_cut(files, capsys):
    _, good = files
    few = [{"image_id": i, "caption": c} for i, c in list(good.items())[:100]]
    Path("few.json").write_text(json.dumps(few))
    command = ("score", "predictions=few.json", "references=references.json", FAST)
    assert harness.call(*command) == 2
    error = capsys.readouterr().err
    assert error.startswith("velm: few.json: no prediction for 20 images (")
    assert error.count("\n") == 1
    assert harness.call(*command, "mismatch=ignore") == 0
    out = capsys.readouterr().out
    assert "100 images" in out
    assert "note: left out: no prediction for 20 images (" in out


def test_a_damaged_image_costs_its_picture_only(files, tmp_path):
    from PIL import Image

    references = json.loads(Path("references.json").read_text())
    Path("images").mkdir()
    for number, image in enumerate(references["images"][:3]):
        image["file_name"] = f"{number}.jpg"
        Image.new("RGB", (9, 9)).save(f"images/{number}.jpg")
    Path("images/1.jpg").write_bytes(Path("images/1.jpg").read_bytes()[:30])
    Path("references.json").write_text(json.dumps(references))
    command = ("score", "predictions=good.json", "references=references.json", "metrics.names=[rouge_l]")
    assert harness.call(*command, "images=images", "out=scored") == 0
    assert Path("scored/report.html").read_text().count('id="thumbnail-') == 2


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_results_go_to_new_folders_or_over_their_own(files, capsys, tmp_path):
    command = ("score", "predictions=good.json", "references=references.json", "metrics.names=[rouge_l]")
    assert harness.call(*command, "out=deep/new") == 0
    assert "written: deep/new" in capsys.readouterr().out
    Path("deep/new/notes.md").write_text("mine")
    assert harness.call(*command, "out=deep/new") == 0  # the same again
    assert "replaced: deep/new" in capsys.readouterr().out
    assert Path("deep/new/notes.md").read_text() == "mine"

    for name, spoil in {
        "run": lambda folder: [(folder / n).write_text("{}") for n in ("config.yaml", "scores.json", "report.html")],
        "own": lambda folder: (folder / "notes.md").write_text("mine"),
        "sealed": lambda folder: (folder / "inputs.json").write_text(
            '{"made_by": "velm score", "inputs": {}, "crc32": "0"}'
        ),
        "other": lambda folder: (folder / "inputs.json").write_text('{"made_by": "npm", "inputs": {}}'),
    }.items():
        Path(name).mkdir()
        spoil(Path(name))
        before = contents(Path(name))
        assert harness.call(*command, f"out={name}") == 2
        error = capsys.readouterr().err
        assert error.startswith("velm: out=") and error.count("\n") == 1 and "give another folder" in error
        assert contents(Path(name)) == before

    before = contents(Path("deep"))
    assert harness.call(*command[:1], "predictions=bad.json", *command[2:], "out=deep/new") == 2
    assert "velm: out=deep/new holds the scores of other files" in capsys.readouterr().err
    assert contents(Path("deep")) == before

    Path("deep/new/notes.md").unlink()
    Path("deep/new/inputs.json").unlink()  # as an older velm left it
    assert harness.call(*command, "out=deep/new") == 0
    assert "replaced: deep/new" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("out=good.json", "is not a folder"),
        ("out=good.json/x", "cannot be written: "),
        ("out=loop", "cannot be written: "),
        ("save_df=good.json", "is there and is not a table of document frequencies"),
        ("save_df=good.json/x.npz", "cannot be written: "),
        ("save_df=loop", "cannot be written: "),
        ("save_df=.", "is a folder"),
    ],
)
def test_places_that_cannot_be_written_are_named_before_the_work(files, capsys, tmp_path, option, line):
    Path("loop").symlink_to("loop")
    before = contents(tmp_path)
    assert harness.call("score", "predictions=good.json", "references=references.json", FAST, option) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"velm: {option} ") and line in said.err and said.err.count("\n") == 1
    assert "ROUGE" not in said.out
    assert contents(tmp_path) == before


def test_a_table_of_frequencies_replaces_another_only(files, capsys):
    command = ("score", "predictions=good.json", "references=references.json", "metrics.names=[rouge_l]")
    assert harness.call(*command, "save_df=new/df.npz") == 0
    assert "written: new/df.npz" in capsys.readouterr().out
    Path("link.npz").symlink_to("new/df.npz")
    assert harness.call(*command, "save_df=link.npz") == 0
    assert "replaced: link.npz" in capsys.readouterr().out
    assert Path("link.npz").is_symlink()


def test_what_is_not_set_is_asked_for(files, capsys):
    assert harness.call("score", "references=references.json") == 2
    assert "velm: predictions is not set" in capsys.readouterr().err


def test_sets_and_training_captions_are_described(files, capsys):
    # What stands before and after it must not matter: `u.s.` at an end is another word before a capital letter.
    good = {image: f"so {caption} now" for image, caption in files[1].items()}
    lines = [{"image_id": image, "captions": [caption, "a zebra sings", caption]} for image, caption in good.items()]
    Path("sets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = [{"image_id": 1, "caption": caption.upper()} for caption in list(good.values())[:30]]
    Path("seen.json").write_text(json.dumps({"annotations": seen}))
    command = (
        "score",
        "predictions=sets.jsonl",
        "references=references.json",
        FAST,
        "training=seen.json",
        "out=scored",
    )
    assert harness.call(*command) == 0
    found = json.loads(Path("scored/scores.json").read_text())["language"]
    assert found["sets"] == len(good)
    seen_again = set(ptb.tokenize([line["caption"] for line in seen]))
    answers = ptb.tokenize(list(good.values()))
    assert found["novel"] == pytest.approx(sum(answer not in seen_again for answer in answers) / len(answers))
    assert found["novel"] < 1
    words = [[*answer.split(), "a", "zebra", "sings", *answer.split()] for answer in answers]
    assert found["div_1"] == pytest.approx(sum(len(set(each)) / len(each) for each in words) / len(words))
    assert f"{len(good)} sets: Div-1 {found['div_1']:.3f}" in capsys.readouterr().out
    assert harness.call(*command[:-2], "training=nothing.json") == 2
    assert "velm: training=nothing.json does not exist" in capsys.readouterr().err


def test_domains_are_scored_apart(files, capsys):
    annotations, answers = (json.loads(Path(f"{name}.json").read_text()) for name in ("references", "good"))
    # Letters only: what a full stop belongs to depends on the caption that follows, which another one will be.
    for row in (*annotations["annotations"], *answers):
        row["caption"] = re.sub("[^A-Za-z ]", "", row["caption"])
    Path("good.json").write_text(json.dumps(answers))
    for number, image in enumerate(annotations["images"]):
        image["domain"] = ["in-domain", "out-domain"][number % 2]
    Path("nocaps.json").write_text(json.dumps(annotations))
    assert harness.call("score", "predictions=good.json", "references=nocaps.json", FAST, "out=scored") == 0
    found = json.loads(Path("scored/domains.json").read_text())
    lines = [json.loads(line) for line in Path("scored/per_image.jsonl").read_text().splitlines()]
    for domain, place in (("in-domain", 0), ("out-domain", 1)):
        each = [line["scores"]["CIDEr"] for line in lines[place::2]]
        assert found[domain]["images"] == len(each) == 60
        assert found[domain]["CIDEr"] == pytest.approx(sum(each) / len(each))
    assert "out-domain" in capsys.readouterr().out
    for domain, place in (("in-domain", 0), ("out-domain", 1)):  # as if there were no others
        kept = {image["id"] for image in annotations["images"][place::2]}
        part = {key: [row for row in rows if row.get("image_id", row["id"]) in kept] for key, rows in annotations.items()
                if key in ("images", "annotations")}  # fmt: skip
        Path("part.json").write_text(json.dumps({**annotations, **part}))
        Path("answers.json").write_text(json.dumps([answer for answer in answers if answer["image_id"] in kept]))
        assert harness.call("score", "predictions=answers.json", "references=part.json", FAST, f"out={domain}") == 0
        alone = json.loads(Path(domain, "scores.json").read_text())
        assert found[domain]["Bleu_4"] == pytest.approx(alone["Bleu_4"], rel=1e-12)


def test_objects_that_are_not_there_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES, 1)]
    dog = 1 + list(CATEGORIES).index("dog")
    instances = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": categories,
        "annotations": [{"id": 1, "image_id": 1, "category_id": dog}],
    }
    Path("instances.json").write_text(json.dumps(instances))
    references = [{"image_id": 1, "captions": ["it runs"]}, {"image_id": 2, "captions": ["a cat sits"]}]
    Path("references.jsonl").write_text("".join(json.dumps(line) + "\n" for line in references))
    answers = [{"image_id": 1, "caption": "a dog and a cat"}, {"image_id": 2, "caption": "a cat"}]
    Path("answers.json").write_text(json.dumps(answers))
    command = ("score", "predictions=answers.json", "references=references.jsonl", "metrics.names=[rouge_l]")
    assert harness.call(*command, "instances=instances.json", "out=scored") == 0
    found = json.loads(Path("scored/chair.json").read_text())
    assert found["CHAIR_i"] == pytest.approx(1 / 3)
    assert found["CHAIR_s"] == 0.5
    assert found["recall"] == 1.0
    assert found["hallucinated"] == [{"image_id": 1, "words": ["cat"]}]
    assert "CHAIR-i    33.3" in capsys.readouterr().out
