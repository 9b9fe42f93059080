"""Answers are right, checked from the drawn facts alone; and the question alone says nothing of them."""

import itertools
import json
import random
from collections import Counter, defaultdict

import pytest

from velm_cli.data.readers import read
from velm_cli.data.shapes_grammar import HELD_OUT, NOUNS, RELATIONS, Scene, make_scene, plural
from velm_cli.data.shapes_questions import QUESTION_KINDS, write_questions
from velm_cli.schema import ShapesConfig, VqaConfig

SHAPE_OF = {form: shape for shape, nouns in NOUNS.items() for noun in nouns for form in (noun, plural(noun))}


def asked(part: str, scenes: int, seed: int = 5):
    rng = random.Random(seed)
    for _ in range(scenes):
        scene = make_scene(part, rng)
        for question in write_questions(scene, part, rng):
            yield scene, question


def mentioned(words: list[str], groups) -> list[int | None]:
    """Of each `colour noun` in the question, the number of the scene's group that it is; None if there is none."""
    found = []
    for colour, noun in itertools.pairwise(words):
        if noun in SHAPE_OF and colour != "the":
            kinds = [(group.colour, group.shape) for group in groups]
            found.append(kinds.index((colour, SHAPE_OF[noun])) if (colour, SHAPE_OF[noun]) in kinds else None)
    return found


def answer(scene, question: str) -> str:
    """Read from the question's words and the scene's facts, in no way as they were written."""
    words = question.split()
    groups, kinds = scene.groups, mentioned(words, scene.groups)
    counts = [0 if kind is None else groups[kind].count for kind in kinds]
    if question.startswith("is there"):
        return "yes" if counts[0] else "no"
    if question.startswith("how many"):
        return str(counts[0])
    if question.startswith("what colour"):
        (colour,) = [group.colour for group in groups if group.shape == SHAPE_OF[words[-1]]]
        return colour
    if "more" in words or "fewer" in words:
        return "yes" if (counts[0] > counts[1]) == ("more" in words) and counts[0] != counts[1] else "no"
    if "as many" in question:
        return "yes" if counts[0] == counts[1] else "no"
    said = next(name for name, phrases in RELATIONS.items() for phrase in phrases if f" {phrase} the " in question)
    true = scene.relation if kinds == [0, 1] else {"left of": "right of", "above": "below"}[scene.relation]
    return "yes" if said == true else "no"


@pytest.mark.parametrize("part", ["train", "test"])
def test_answers_are_right(part):
    for scene, question in asked(part, 2000):
        assert question.answer == answer(scene, question.question), (scene, question)


def test_every_kind_is_asked_with_all_its_answers_alike():
    answers: dict[str, Counter] = defaultdict(Counter)
    for _, question in asked("train", 8000):
        answers[question.kind][question.answer] += 1
    assert tuple(answers) == QUESTION_KINDS
    for kind, counts in answers.items():
        expected = {"count": 4, "colour": 8}.get(kind, 2)
        assert len(counts) == expected
        for share in counts.values():
            assert share / counts.total() == pytest.approx(1 / expected, rel=0.15), (kind, counts)


def test_the_words_of_a_question_say_nothing_of_its_answer():
    """The most common answer to each question, learnt on many scenes, is hardly better than chance on others."""
    learnt: dict[str, Counter] = defaultdict(Counter)
    by_kind: dict[str, Counter] = defaultdict(Counter)
    for _, question in asked("train", 40_000, seed=1):
        learnt[question.question][question.answer] += 1
        by_kind[question.kind][question.answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for _, question in asked("test", 4000, seed=2):
        known = learnt.get(question.question) or by_kind[question.kind]
        right[question.kind].append(known.most_common(1)[0][0] == question.answer)
    for kind, hits in right.items():
        chance = {"count": 1 / 4, "colour": 1 / 8}.get(kind, 1 / 2)
        assert sum(hits) / len(hits) < chance + 0.06, kind


def test_questions_of_test_scenes_are_about_kinds_that_training_never_shows():
    unseen = sum(any((g.size, g.colour, g.shape) in HELD_OUT for g in scene.groups) for scene, _ in asked("test", 200))
    assert unseen == sum(1 for _ in asked("test", 200))


def test_the_article_fits():
    questions = [question.question for _, question in asked("train", 3000) if question.kind == "exist"]
    assert any("is there an orange" in question for question in questions)
    assert not any("is there a orange" in question or "an red" in question for question in questions)


def test_they_are_examples_and_files_of_vqas_form(tmp_path):
    """The files say what the store holds, and the scenes are drawn as without questions."""
    sizes = {"num_train": 30, "num_val": 6, "num_test": 6}
    plain = read(ShapesConfig(root=str(tmp_path / "plain"), **sizes))
    corpus = read(ShapesConfig(root=str(tmp_path / "asked"), questions=True, **sizes))
    for file in (tmp_path / "plain").rglob("*"):
        twin = tmp_path / "asked" / file.relative_to(tmp_path / "plain")
        assert twin.is_dir() if file.is_dir() else twin.read_bytes() == file.read_bytes()
    scenes = json.loads((tmp_path / "asked/scenes.json").read_text())
    splits = {example.id: example.split for example in plain.examples}
    images = {image.id for example in corpus.examples for image in example.images}
    assert images == splits.keys() and 6 * len(images) < len(corpus.examples) < 11 * len(images)
    for example in corpus.examples:
        (image,) = example.images
        assert example.split == splits[image.id] and example.id // 100 == image.id
        assert example.targets == (answer(Scene.from_json(scenes[str(image.id)]), example.source),)
        kind = {"count": "number", "colour": "other"}.get(example.about["question_type"], "yes/no")
        assert example.about["answer_type"] == kind and example.about["question_type"] in QUESTION_KINDS
    official = read(VqaConfig(root=str(tmp_path / "asked")))
    assert official.examples == corpus.examples and not official.refused

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "asked").rglob("*")}
    assert read(ShapesConfig(root=str(tmp_path / "asked"), questions=True, **sizes)).examples == corpus.examples
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "asked").rglob("*")}


def test_a_scene_has_many_different_questions():
    rng = random.Random()
    counts = []
    for _ in range(500):
        scene = make_scene("train", rng)
        asked = [question.question for question in write_questions(scene, "train", rng)]
        assert len(set(asked)) == len(asked)
        counts.append(len(asked))
    assert sum(counts) / len(counts) > 8 and max(counts) <= 11
