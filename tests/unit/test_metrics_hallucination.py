"""CHAIR counts what captions really say: words are understood, numbers equal those of captions made to order."""

from __future__ import annotations

import json
import random
import tracemalloc

import pytest

from velm_cli.errors import UserError
from velm_cli.metrics.coco_words import CATEGORIES, MEANINGS, plural
from velm_cli.metrics.hallucination import WORD, chair, ground_truth, mentions
from velm_cli.metrics.significance import bootstrap, paired_permutation

COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush""".replace("\n", " ").split(", ")
NO_NAMES_IN_CAPTIONS = {
    "sports ball",
    "orange",
    "bear",
    "keyboard",
}  # these words have a second meaning or need context


def likeliest(caption: str) -> list[str]:
    return [mention.categories[0] for mention in mentions(caption)]


def instances(objects: dict[int, list[str]]) -> dict:
    """COCO's instances file with the given categories in each image."""
    ids = {name: number for number, name in enumerate(COCO, 1)}
    outline = [round(random.uniform(0, 640), 2) for _ in range(60)]
    annotations = [
        {"id": 1, "image_id": image, "category_id": ids[name], "segmentation": [outline]}
        for image, names in objects.items()
        for name in names
    ]
    return {
        "info": {"year": 2014},
        "licenses": [{"id": 1, "name": "none", "url": ""}],
        "images": [{"id": image, "file_name": f"{image}.jpg", "license": 1} for image in objects],
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "thing"} for name, number in ids.items()],
    }


def test_the_table_has_the_80_categories_and_each_entry_can_be_met():
    assert len(COCO) == 80
    assert set(COCO) == CATEGORIES
    for phrase in MEANINGS:
        assert WORD.findall(" ".join(phrase)) == list(phrase)


def test_what_names_nothing_hides_a_word_that_would():
    for phrase in (phrase for phrase, categories in MEANINGS.items() if not categories):
        ends = range(1, len(phrase) + 1)
        parts = {phrase[start:end] for end in ends for start in range(end)} - {phrase}
        assert any(MEANINGS.get(part) for part in parts), phrase


@pytest.mark.parametrize("name", sorted(set(COCO) - NO_NAMES_IN_CAPTIONS))
def test_each_category_is_known_by_its_name_and_its_plural(name):
    assert [mention.categories for mention in mentions(f"a {name} in a field")] == [(name,)]
    many = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep", "broccoli": "broccoli"}
    many |= {"skis": "skis", "scissors": "scissors"}
    assert likeliest(f"two {many.get(name, plural(name))} in a field") == [name]


def test_regular_plurals():
    words = {"bus": "buses", "box": "boxes", "bench": "benches", "brush": "brushes", "puppy": "puppies", "boy": "boys"}
    assert {word: plural(word) for word in words} == words


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man and two women watch children", ["person"] * 3),
        ("a hot dog and a hotdog next to a dog", ["hot dog", "hot dog", "dog"]),
        ("a teddy bear and a stuffed animal", ["teddy bear"] * 2),
        ("a polar bear", ["bear"]),
        ("a baby elephant with its mother", ["elephant", "person"]),
        ("three adult giraffes", ["giraffe"]),
        ("a baby boy", ["person"]),
        ("a toilet seat but no sink and no toilet paper", ["toilet"]),
        ("train tracks at a train station", []),
        ("a passenger train and a train car", ["train", "train"]),
        ("people wait at a bus stop", ["person"]),
        ("a school bus", ["bus"]),
        ("an orange cat and an orange and white boat", ["cat", "boat"]),
        ("oranges and an orange on a plate", ["orange", "orange"]),
        ("a couple of zebras; a couple sitting on a bench", ["zebra", "person", "bench"]),
        ("a pool table on a table cloth near a dining table", ["dining table"]),
        ("a fire-hydrant by a stop-sign", ["fire hydrant", "stop sign"]),
        ("a fire engine and a fire hydrant", ["truck", "fire hydrant"]),
        ("a pick-up truck parked behind an SUV", ["truck", "car"]),
        ("a carrot cake with carrots", ["cake", "carrot"]),
        ("an apple laptop, an apple pie and an apple", ["laptop", "apple"]),
        ("a laptop computer with a computer mouse", ["laptop", "mouse"]),
        ("mickey mouse on a mouse pad", []),
        ("talking on a cell phone in a phone booth", ["cell phone"]),
        ("a man's tie", ["person", "tie"]),
        ("a batter at bat swings a bat", ["person", "baseball bat"]),
        ("glasses of wine and a glass table", ["wine glass", "dining table"]),
        ("a flower bed and a bunk bed", ["bed"]),
        ("a cake shaped like a train", ["cake"]),
        ("a street without any cars", []),
        ("a nothing with no cars and a car", ["car"]),
        ("a skateboarder on a skateboard ramp", ["person"]),
        ("A DOG", ["dog"]),
        ("", []),
        ("🐕 犬 ... \n", []),
    ],
)
def test_what_captions_mention(caption, expected):
    assert likeliest(caption) == expected


def test_a_word_of_two_meanings_is_right_with_either():
    captions = {1: "a man on a bike", 2: "a man on a bike", 3: "a man on a bike"}
    truth = {1: {"person", "bicycle"}, 2: {"person", "motorcycle"}, 3: {"person", "horse"}}
    scored = chair(captions, {image: frozenset(objects) for image, objects in truth.items()})
    assert scored.words == {3: ("bike",)}
    assert (scored.chair_i, scored.chair_s, scored.recall) == (1 / 6, 1 / 3, 5 / 6)


def test_the_scores_are_those_of_captions_made_to_order():
    names = sorted(set(COCO) - NO_NAMES_IN_CAPTIONS)
    hypotheses, truth, invented_words = {}, {}, {}
    said = false = wrong_captions = recalled = there = 0
    for image in range(300):
        held = random.sample(names, random.randint(0, 6))
        right = random.choices(held, k=random.randint(0, 4)) if held else []
        wrong = random.choices([name for name in names if name not in held], k=random.choice([0, 0, 1, 2]))
        shuffled = random.sample([*right, *wrong], len(right) + len(wrong))
        hypotheses[image] = "there is " + " and ".join(f"a {name}" for name in shuffled)
        truth[image] = frozenset(held)
        said, false, wrong_captions = said + len(shuffled), false + len(wrong), wrong_captions + bool(wrong)
        recalled, there = recalled + len(set(right)), there + len(held)
        if wrong:
            invented_words[image] = sorted(wrong)
    scored = chair(hypotheses, truth)
    assert scored.chair_i == pytest.approx(false / said)
    assert scored.chair_s == pytest.approx(wrong_captions / 300)
    assert scored.recall == pytest.approx(recalled / there)
    assert {image: sorted(words) for image, words in scored.words.items()} == invented_words
    assert sum(count.hallucinated for count in scored.per_image.values()) == false
    for name, value in {"CHAIR_i": scored.chair_i, "CHAIR_s": scored.chair_s, "recall": scored.recall}.items():
        assert scored.summands[name].total() == value
        low, high = bootstrap(scored.summands[name], resamples=200)
        assert low < value < high
    none = chair(dict.fromkeys(hypotheses, "there is nothing"), truth)
    assert paired_permutation(scored.summands["CHAIR_s"], none.summands["CHAIR_s"], permutations=200) < 0.01


def test_captions_without_objects_have_no_rate_of_mentions():
    scored = chair({1: "", 2: "a sunny day"}, {1: frozenset(), 2: frozenset()})
    assert (scored.chair_i, scored.chair_s, scored.recall) == (None, 0.0, None)


def test_the_truth_unites_instances_and_references(tmp_path):
    path = tmp_path / "instances_val2014.json"
    content = instances({1: ["dog", "motorcycle"], 2: [], 3: ["cat"]})
    content["annotations"].append({"image_id": 2, "category_id": 1, "segmentation": {"counts": [1], "size": [1, 1]}})
    path.write_text(json.dumps(content))
    references = {1: ["A man on a bike.", "a puppy"], 2: ["a bike in the rain", "an umbrella"], 3: ["unused"]}
    assert ground_truth(path, references, [1, 2]) == {
        1: {"dog", "motorcycle", "person"},
        2: {"person", "bicycle", "umbrella"},
    }


def test_a_large_file_takes_less_memory_than_plain_reading(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(instances({image: random.choices(COCO, k=7) for image in range(150)})))
    tracemalloc.start()
    try:
        ground_truth(path, {}, [])
        ours = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with path.open() as file:
            json.load(file)
        plain = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ours < plain


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}, "not an instances file"),
        ([{"image_id": 1, "category_id": 1}], "not an instances file"),
        ("text", "not an instances file"),
        (instances({1: []}) | {"annotations": [{"image_id": 1}]}, "not an instances file"),
        (instances({1: []}) | {"annotations": [{"category_id": 1}]}, "not an instances file"),
        (instances({1: []}) | {"annotations": [{"image_id": 9, "category_id": 1}]}, "not an instances file"),
        (instances({1: []}) | {"categories": [{"id": 1, "name": "person"}]}, "80 categories"),
        (instances({2: ["dog"]}), r"does not know 1 image \(1\)"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, content, complaint):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint) as error:
        ground_truth(path, {1: ["a dog"]}, [1])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json does not exist"):
        ground_truth(tmp_path / "absent.json", {}, [])
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(UserError, match="broken JSON"):
        ground_truth(tmp_path / "half.json", {}, [])
