"""VQA accuracy against the official rule, written out slowly, and against the cases in which toolkits differ."""

import random
import re

import pytest

from velm_cli.metrics.vqa import CONTRACTIONS, accuracy, normalised, soft_targets


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1,000 km/h", "1000 kmh"),  # digit, comma, digit: every mark is deleted
        ("t-shirt", "t shirt"),
        ("U.S.A.", "usa"),
        ("5.", "5"),
        ("2.5", "2.5"),
        ("a", ""),
        ("one way", "1 way"),
        ("None", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("shes", "shes"),  # not in the official table
        ("lets", "lets"),
        ("somebody'd", "somebodyd"),
        ("man's: hat", "man's: hat"),  # ' and : stay
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("yes/no", "yes no"),
        ("The  Eiffel\ttower", "eiffel tower"),
        ("." * 40, "." * 8),  # 32 full stops at most
    ],
)
def test_normalised(answer, expected):
    assert normalised(answer) == expected


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1), (10, 1)])
def test_accuracy_of_agreement(agreeing, expected):
    answers = ["red"] * agreeing + [f"colour{number}" for number in range(10 - agreeing)]
    assert accuracy(answers, "red") == pytest.approx(expected)
    assert accuracy(answers, "red", always=True) == pytest.approx(expected)


def test_unanimous_answers_are_not_normalised_by_the_official_rule():
    assert accuracy(["yes"] * 10, "Yes.") == 0
    assert accuracy(["yes"] * 10, "Yes.", always=True) == 1
    assert accuracy(["yes"] * 9 + ["no"], "Yes.") == 1


def official(answers: list[str], prediction: str) -> float:
    """The evaluation's loops, by index of the annotator."""
    given = [text.replace("\n", " ").replace("\t", " ").strip() for text in answers]
    said = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(given)) > 1:
        given, said = [slowly(text) for text in given], slowly(said)
    terms = []
    for one in range(len(given)):
        others = [given[other] for other in range(len(given)) if other != one]
        terms.append(min(1, sum(text == said for text in others) / 3))
    return sum(terms) / len(terms)


def slowly(text: str) -> str:
    out = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        if mark + " " in text or " " + mark in text or re.search(r"(\d)(\,)(\d)", text):
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    out = re.sub(r"(?!<=\d)(\.)(?!\d)", "", out, count=32)
    digits = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
    digits |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}
    words = [digits.get(word, word) for word in out.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def test_accuracy_is_the_official_one_on_random_answers():
    draw = random.Random()
    pieces = [
        "a",
        "the",
        "two",
        "dont",
        "Yes",
        "no",
        "1,000",
        "t-shirt",
        "U.S.",
        "red",
        ",",
        " - ",
        "?",
        "\n",
        "(b)",
        "none",
        "' ",
    ]
    for _ in range(3000):
        pool = [
            "".join(draw.choice(pieces) + draw.choice(["", " "]) for _ in range(draw.randint(0, 4))) for _ in range(3)
        ]
        answers = [draw.choice(pool) for _ in range(draw.choice([4, 7, 10]))]
        for said in pool:
            assert accuracy(answers, said) == pytest.approx(official(answers, said), abs=1e-12), (answers, said)
            assert normalised(said) == slowly(said)


def test_soft_targets_are_the_accuracies_of_the_answers():
    answers = ["two"] * 3 + ["2", "a", "Red!"] + ["blue"] * 2 + ["red", "green"]
    targets = soft_targets(answers)
    assert targets == {word: pytest.approx(accuracy(answers, word)) for word in ("2", "red", "blue", "green")}
    assert targets["2"] == 1 and targets["red"] == pytest.approx(0.6)


def test_with_few_annotators_all_others_have_to_agree():
    assert [accuracy(["cat"], answer) for answer in ("cat", "dog")] == [1.0, 0.0]
    assert accuracy([], "cat") == 0.0
    assert [accuracy(["cat", "dog"], answer) for answer in ("cat", "cow")] == [0.5, 0.0]
    assert accuracy(["cat", "cat", "dog"], "cat") == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert accuracy(["cat", "cat", "cat"], "cat") == 1.0
    assert accuracy(["cat"] * 4, "cat") == 1.0
