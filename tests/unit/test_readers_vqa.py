"""The official files of VQA, wherever they lie and however they are named; and what is wrong with them, in a line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from velm_cli.data.examples import Corpus, Example, ImageRef
from velm_cli.data.readers import read
from velm_cli.errors import UserError
from velm_cli.schema import ManifestConfig, Missing, VqaConfig

KINDS = ("what is", "is the", "how many")
TYPES = ("other", "yes/no", "number")


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(value).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def question_rows(ids: range) -> list[dict]:
    return [{"question_id": n, "image_id": 9 + n // 3, "question": f"Is it {n}?\n"} for n in ids]


def annotation_rows(ids: range) -> list[dict]:
    return [
        {
            "question_id": n,
            "image_id": 9 + n // 3,
            "question_type": KINDS[n % 3],
            "answer_type": TYPES[n % 3],
            "multiple_choice_answer": "a",
            # several have one number, and what is given is kept: `none`, two blanks
            "answers": [
                {"answer": ["none", "a  b", "Yes.", str(n)][k % 4], "answer_id": 1, "answer_confidence": "yes"}
                for k in range(10)
            ],
        }
        for n in reversed(ids)
    ]


def questions_of(subtype: str, ids: range) -> dict:
    return {"info": {}, "data_type": "mscoco", "data_subtype": subtype, "questions": question_rows(ids)}


def annotations_of(subtype: str, ids: range) -> dict:
    return {"info": {}, "data_type": "mscoco", "data_subtype": subtype, "annotations": annotation_rows(ids)}


def images(folder: Path, subtype: str, ids: range) -> None:
    (folder / subtype).mkdir(parents=True, exist_ok=True)
    for n in ids:
        (folder / subtype / f"COCO_{subtype}_{9 + n // 3:012d}.jpg").touch()


def example(n: int, part: str, subtype: str, home: Path, answered: bool = True) -> Example:
    path = home / subtype / f"COCO_{subtype}_{9 + n // 3:012d}.jpg"
    answers = tuple(["none", "a  b", "Yes.", str(n)][k % 4] for k in range(10)) if answered else ()
    about = (
        {"question_type": KINDS[n % 3], "answer_type": TYPES[n % 3], "multiple_choice_answer": "a"} if answered else {}
    )
    return Example(n, part, (ImageRef(9 + n // 3, path),), f"Is it {n}?", answers, about)


def official(root: Path, version: str = "v2_") -> list[Example]:
    """The files as they are downloaded: training, validation, test without answers and a part of it."""
    for part, subtype, name, ids in (
        ("train", "train2014", "train2014", range(0, 12)),
        ("val", "val2014", "val2014", range(30, 40)),
        ("test", "test2015", "test2015", range(60, 70)),
        ("test", "test2015", "test-dev2015", range(60, 64)),
    ):
        write(root / f"{version}OpenEnded_mscoco_{name}_questions.json", questions_of(subtype, ids))
        if part != "test":
            write(root / f"{version}mscoco_{name}_annotations.json", annotations_of(subtype, ids))
        images(root, subtype, ids)
    return [
        *(example(n, "train", "train2014", root) for n in range(0, 12)),
        *(example(n, "val", "val2014", root) for n in range(30, 40)),
        *(example(n, "test", "test2015", root, answered=False) for n in range(60, 70)),
    ]


@pytest.mark.parametrize("version", ["v2_", ""])
def test_official_names_below_the_root(tmp_path, version):
    expected = official(tmp_path, version)
    write(tmp_path / f"{version}MultipleChoice_mscoco_train2014_questions.json", questions_of("train2014", range(12)))
    corpus = read(VqaConfig(root=str(tmp_path)))
    assert corpus.examples == expected and not corpus.refused
    assert any("1 multiple choice, 1 a part of the test questions" in note for note in corpus.notes)
    assert any("test: no annotations file" in note for note in corpus.notes)


def test_version_2_goes_before_version_1(tmp_path):
    expected = official(tmp_path)
    write(tmp_path / "OpenEnded_mscoco_train2014_questions.json", questions_of("train2014", range(3)))
    write(tmp_path / "mscoco_train2014_annotations.json", annotations_of("train2014", range(3)))
    corpus = read(VqaConfig(root=str(tmp_path)))
    assert corpus.examples == expected
    assert sum("1 of version 1, and version 2 is there" in note for note in corpus.notes) == 2


def test_folders_say_the_part_before_names_do(tmp_path):
    """As in cuts of the training data; the images lie elsewhere, and one image is asked about in all parts."""
    expected = []
    for k, part in enumerate(("train", "val", "test")):
        ids = range(k, 30, 3)
        write(tmp_path / part / "v2_OpenEnded_mscoco_train2014_questions.json.gz", questions_of("train2014", ids))
        write(tmp_path / part / "v2_mscoco_train2014_annotations.json", annotations_of("train2014", ids))
        expected += [example(n, part, "train2014", tmp_path / "coco") for n in ids]
    images(tmp_path / "coco", "train2014", range(30))
    config = VqaConfig(root=str(tmp_path), images_root=str(tmp_path / "coco"))
    assert read(config).examples == expected

    files = {kind: [str(f) for f in sorted(tmp_path.glob(f"*/*{kind}.json*"))] for kind in ("questions", "annotations")}
    assert read(VqaConfig(images_root=config.images_root, **files)).examples == expected
    by_part = {kind: {Path(f).parent.name: f for f in paths} for kind, paths in files.items()}
    assert read(VqaConfig(images_root=config.images_root, **by_part)).examples == expected
    renamed = {kind: {"validation" if part == "val" else part: f for part, f in named.items()}
               for kind, named in by_part.items()}  # fmt: skip
    assert read(VqaConfig(images_root=config.images_root, **renamed)).examples == expected
    bare = read(VqaConfig(images=False, **files))
    assert bare.examples == [Example(e.id, e.split, (), e.source, e.targets, e.about) for e in expected]


def test_what_is_left_out_is_counted_and_named(tmp_path):
    rows = question_rows(range(6))
    rows[1]["question"] = " "
    rows[2] = {"question_id": 2}
    rows.append({"question_id": 77, "image_id": 9, "question": "who?"})
    answers = annotation_rows(range(8))
    by_id = {row["question_id"]: row for row in answers}
    by_id[3]["answers"][4]["answer"] = "\n"
    by_id[4]["answers"] = [{"answer": None}]
    by_id[5]["answers"] = "yes"
    answers.append({"question_type": "?"})
    write(tmp_path / "train_questions.json", {"data_subtype": "train2014", "questions": rows})
    write(tmp_path / "train_annotations.json", {"annotations": answers})
    images(tmp_path, "train2014", range(6))
    corpus = read(VqaConfig(root=str(tmp_path)))
    assert [example.id for example in corpus.examples] == [0, 3]
    assert len(corpus.examples[1].targets) == 9
    reasons = dict(corpus.refused)
    assert reasons.pop(f"{tmp_path}/train_questions.json questions[2]").startswith("it has no usable")
    assert reasons.pop(f"{tmp_path}/train_annotations.json annotations[8]").startswith("it has no usable")
    assert reasons.pop(f"{tmp_path}/train_annotations.json annotations[2]").startswith("it has no usable")
    assert reasons == {
        "1": "no usable question: it is empty",
        "3": "answer 5 is empty",
        "4": "no usable answer",
        "5": "no annotation of train has its answers",
        "77": "no annotation of train has its answers",
    }
    assert any("3 annotations are of questions that no file has (first: 2, 6, 7)" in note for note in corpus.notes)


def test_absent_images_are_an_error_unless_skipped(tmp_path):
    official(tmp_path)
    (tmp_path / "train2014/COCO_train2014_000000000010.jpg").unlink()
    with pytest.raises(UserError, match=r"3 of 32 examples have an image that is missing, first .*0010.jpg; .*skip"):
        read(VqaConfig(root=str(tmp_path)))
    corpus = read(VqaConfig(root=str(tmp_path), missing=Missing.skip))
    assert len(corpus.examples) == 29
    assert any("skipped 3 of 32 examples whose image is missing (first: 3, 4, 5)" in note for note in corpus.notes)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"root": None}, "dataset.root is not set"),
        ({"root": "empty"}, "no questions file below it"),
        ({"images_root": "nowhere"}, "dataset.images_root: .*nowhere does not exist"),
        ({"questions": "nowhere.json"}, "dataset.questions: nowhere.json does not exist"),
        ({"questions": {"trian": "a_questions.json"}}, "write dataset.questions=.*; did you mean 'train'"),
        ({"questions": "a_questions.json"}, "neither its folder nor its name says train, val or test"),
        ({"questions": 7}, "give a file, a list of files or"),
        ({"questions": {"train": "a_questions.json"}, "annotations": []}, "no annotations file has their answers"),
        ({"questions": {"train": "a_questions.json"}, "annotations": {"train": "a_questions.json"}}, 'no list "annot'),
        ({"questions": {"val": "a_questions.json"}}, "has the answers of train, and no questions file"),
    ],
)
def test_mistakes_get_a_line(tmp_path, options, line, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    images(tmp_path, "train2014", range(3))
    write(tmp_path / "a_questions.json", questions_of("train2014", range(3)))
    write(tmp_path / "train_annotations.json", annotations_of("train2014", range(3)))
    with pytest.raises(UserError, match=line) as error:
        read(VqaConfig(**{"root": str(tmp_path), "images_root": str(tmp_path), **options}))
    assert "\n" not in str(error.value)


def test_a_question_that_is_there_twice_or_answered_in_two_ways(tmp_path):
    images(tmp_path, "train2014", range(6))
    write(tmp_path / "train_questions.json", questions_of("train2014", range(6)))
    write(tmp_path / "train_annotations.json", annotations_of("train2014", range(6)))
    changed = annotations_of("train2014", range(6))
    changed["annotations"][0]["answers"][0]["answer"] = "other"
    write(tmp_path / "more/train_annotations.json", changed)
    with pytest.raises(UserError, match="the question 5 has several annotations, and they differ"):
        read(VqaConfig(root=str(tmp_path)))
    write(tmp_path / "more/train_annotations.json", annotations_of("train2014", range(6)))
    corpus = read(VqaConfig(root=str(tmp_path)))
    assert len(corpus.examples) == 6 and len(corpus.refused) == 6
    write(tmp_path / "val_questions.json", questions_of("train2014", range(5, 7)))
    with pytest.raises(
        UserError, match=r"the example id 5 stands for both 'Is it 5\?' \(train\) and 'Is it 5\?' \(val\)"
    ):
        read(VqaConfig(root=str(tmp_path)))


@pytest.mark.parametrize("annotated", [True, False])
def test_a_question_that_is_asked_again_says_so(tmp_path, annotated):
    part = "train" if annotated else "test"
    rows = question_rows(range(3))
    again = {**rows[1], "question": "Is it another?"}
    images(tmp_path, "train2014", range(3))
    write(tmp_path / f"{part}_questions.json", {"data_subtype": "train2014", "questions": [*rows, again, rows[2]]})
    if annotated:
        write(tmp_path / "train_annotations.json", annotations_of("train2014", range(3)))
    corpus = read(VqaConfig(root=str(tmp_path)))
    assert [example.source for example in corpus.examples] == ["Is it 0?", "Is it 1?", "Is it 2?"]
    reason = f"it is asked again in {tmp_path / f'{part}_questions.json'}: the first one counts"
    assert corpus.refused == [("1", reason), ("2", reason)]


def test_forms_that_others_hand_around(tmp_path):
    """OK-VQA keeps the raw answer beside; ids may be text in one of the files; a question may be null."""
    rows, answers = question_rows(range(3)), annotation_rows(range(3))
    for row in answers:
        row["question_id"] = str(row["question_id"])
        for answer in row["answers"]:
            answer["raw_answer"] = answer["answer"] + "s"
    rows[2]["question"] = None
    images(tmp_path, "train2014", range(3))
    write(tmp_path / "train_questions.json", {"data_subtype": "train2014", "questions": rows})
    write(tmp_path / "train_annotations.json", {"annotations": answers})
    corpus = read(VqaConfig(root=str(tmp_path)))
    assert corpus.examples == [example(n, "train", "train2014", tmp_path) for n in range(2)]
    assert [reason for _, reason in corpus.refused] == ['it has no usable "question_id", "image_id" or "question"']


def test_nothing_that_can_be_used_is_not_counted_as_captions(tmp_path):
    write(tmp_path / "train_questions.json", {"data_subtype": "train2014", "questions": question_rows(range(3))})
    write(tmp_path / "train_annotations.json", {"annotations": annotation_rows(range(5, 8))})
    line = r"no example is left: nothing in it can be used; 3 entries refused, first 0 \(no annotation of train has its answers\)"
    with pytest.raises(UserError, match=line):
        read(VqaConfig(root=str(tmp_path)))


# ---------------------------------------------------------------------------------------- tables of one's own


def table(folder: Path, name: str, rows: list[dict]) -> Corpus:
    for n in range(5):
        (folder / f"{n}.jpg").touch()
    text = "\n".join(map(json.dumps, rows))
    if name.endswith(".csv"):
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    (folder / name).write_text(text)
    return read(ManifestConfig(file=str(folder / name)))


@pytest.mark.parametrize("source", ["source", "question", "Question"])
@pytest.mark.parametrize("answers", ["answers", "answer", "targets", "labels"])
@pytest.mark.parametrize("name", ["q.jsonl", "q.csv"])
def test_questions_in_tables(tmp_path, source, answers, name):
    rows = [
        {"id": 7, "image": "0.jpg", source: "what?", answers: "none", "split": "train"},
        {"id": 8, "image": "0.jpg", source: "who?", answers: "a man", "split": "val"},
        {"id": 7, "image": "0.jpg", source: "what?", answers: "a dog", "split": "train"},
    ]
    image = (ImageRef("0.jpg", tmp_path / "0.jpg"),)
    corpus = table(tmp_path, name, rows)
    assert corpus.examples == [
        Example(7, "train", image, "what?", ("none", "a dog")),
        Example(8, "val", image, "who?", ("a man",)),
    ]
    assert not corpus.refused


def test_questions_of_several_images_and_without_ids(tmp_path):
    rows = [
        {"images": ["0.jpg", "1.jpg"], "question": "same?", "answers": ["yes", "yes"], "split": "train"},
        {"images": "2.jpg", "question": "what?", "split": "test"},
        {"images": ["1.jpg", "1.jpg"], "question": "twice?", "answers": ["no"], "split": "train"},
        {"images": ["1.jpg"], "question": None, "answers": ["no"], "split": "train"},
    ]
    corpus = table(tmp_path, "q.jsonl", rows)
    refs = [ImageRef(f"{n}.jpg", tmp_path / f"{n}.jpg") for n in range(3)]
    assert corpus.examples == [
        Example(0, "train", (refs[0], refs[1]), "same?", ("yes", "yes")),
        Example(1, "test", (refs[2],), "what?"),
    ]
    assert [reason for _, reason in corpus.refused] == ["no question: it is not text", "names an image twice"]
    assert any("3 questions have no id" in note for note in corpus.notes)


def test_captions_are_read_as_ever_where_a_table_also_has_questions(tmp_path):
    rows = [{"image": "0.jpg", "caption": "a dog runs", "question": "what?", "answer": "dog", "split": "train"}]
    corpus = table(tmp_path, "c.csv", rows)
    assert corpus.examples.captions_only and list(corpus.examples.targets()) == [["a dog runs"]]
    assert any("not used: question, answer" in note for note in corpus.notes)
    asked = read(ManifestConfig(file=str(tmp_path / "c.csv"), source_column="question"))
    assert [(e.source, e.targets) for e in asked.examples] == [("what?", ("dog",))]
    with pytest.raises(UserError, match=r"dataset.source_column=q: .* has the columns image, caption, question"):
        read(ManifestConfig(file=str(tmp_path / "c.csv"), source_column="q"))


def test_rows_of_one_id_that_differ_are_refused(tmp_path):
    rows = [
        {"id": 1, "image": "0.jpg", "question": "what?", "answer": "dog", "split": "train"},
        {"id": 1, "image": "0.jpg", "question": "who?", "answer": "dog", "split": "train"},
    ]
    corpus = table(tmp_path, "q.jsonl", rows)
    assert len(corpus.examples) == 1
    assert corpus.refused[0][1].startswith("conflict: ") and "gave id 1 to another question" in corpus.refused[0][1]


def test_answers_of_vizwiz_are_objects(tmp_path):
    answers = [{"answer": "a dog", "answer_confidence": "maybe"}, {"answer": "dog", "answer_confidence": "yes"}]
    rows = [{"image": "0.jpg", "question": "what?", "answers": answers, "answerable": 1, "split": "train"}]
    corpus = table(tmp_path, "q.jsonl", rows)
    assert [example.targets for example in corpus.examples] == [("a dog", "dog")] and not corpus.refused


def test_a_named_column_of_questions_that_is_not_there_is_named(tmp_path):
    rows = [{"image": "0.jpg", "caption": "a dog", "question": "what?", "answer": "dog", "split": "train"}]
    table(tmp_path, "q.jsonl", rows)
    with pytest.raises(UserError, match=r'no "ask", which dataset.source_column= names: the keys are image, caption'):
        read(ManifestConfig(file=str(tmp_path / "q.jsonl"), source_column="ask"))


def test_a_list_of_numbers_in_a_cell_is_a_list_of_answers(tmp_path):
    (tmp_path / "0.jpg").touch()
    lines = ["image,question,answers,split", '0.jpg,how many?,"[2, 2, 3.5]",train', "0.jpg,which?,['a' '2'],train"]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    corpus = read(ManifestConfig(file=str(tmp_path / "q.csv")))
    assert [example.targets for example in corpus.examples] == [("2", "2", "3.5"), ("a", "2")]
