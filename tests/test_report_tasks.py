"""report.html of questions and of retrieval, in a real headless Chromium."""

import dataclasses
import random

import numpy as np
import pytest
from test_report_page import HOSTILE, browser, picture, show  # noqa: F401

from velm_cli.data.looked import Attention
from velm_cli.metrics.label_scores import Found, score_labels
from velm_cli.metrics.retrieval import Ranks
from velm_cli.metrics.retrieval_scores import score_retrieval
from velm_cli.metrics.vqa import accuracy
from velm_cli.metrics.vqa_scores import Question, score_vqa
from velm_cli.report.evaluations import evaluated_of
from velm_cli.report.page import Picture, thumbnail, write_page
from velm_cli.schema import MetricsConfig

METRICS = MetricsConfig(resamples=50)
NASTY = list(HOSTILE.values())[:6]


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Thirty questions on ten images, three types, some texts hostile."""
    rng = random.Random()
    truth, predicted, alternatives = {}, {}, {}
    for number in range(30):
        answers = tuple(rng.choices(["yes", "no", "two", "red"], k=10))
        text = NASTY[number] if number < len(NASTY) else f"what is number {number}?"
        kind = ("is there", "how many", "what")[number % 3]
        truth[number] = Question(answers, text, "other", kind, image=f"image-{number % 10}")
        predicted[number] = rng.choice(["yes", "no", "blue"])
        alternatives[number] = [(predicted[number], 0.5), ("green </script>", 0.25)]
    scores = score_vqa(truth, predicted, METRICS, alternatives=alternatives)
    own = {f"image-{n}": Picture(thumbnail(picture(np.random.default_rng(n)))) for n in range(10)}
    path = tmp_path_factory.mktemp("page") / "vqa.html"
    corner = np.zeros((1, 4, 4))
    corner[0, 3, 0], corner[0, 0, 0] = 0.75, 0.25
    maps = {17: Attention([predicted[17]], corner, method="occlusion"), 18: Attention([predicted[18]], 0 * corner)}
    run = dataclasses.replace(evaluated_of(scores, "model"), attention=maps)
    write_page(path, [run], {number: own[q.image] for number, q in truth.items()})
    return path, truth, predicted, scores


def test_a_question_stands_with_its_image_answers_and_probabilities(questions, show):  # noqa: F811
    path, truth, predicted, scores = questions
    assert path.read_text("utf-8").count('id="thumbnail-') == 10, "an image of three questions is there once"
    page = show(path)
    different = {answer for question in truth.values() for answer in question.answers}
    assert page.find("#summary").text == f"30 questions · {len(different)} different answers"
    assert page.load_all() != list(truth), "the best first"
    for card in page.all(".card"):
        number = int(card.find_element("css selector", ".id").text[1:])
        question = truth[number]
        prompt = page.js("arguments[0].querySelector('.prompt').textContent", card)
        assert prompt == question.text
        value = accuracy(question.answers, predicted[number])
        mark = "right" if value >= 1 else "partly" if value > 0 else "wrong"
        answer = card.find_element("css selector", ".answer > .caption")
        assert mark in answer.get_attribute("class").split()
        assert page.js("arguments[0].textContent", answer) == f"{predicted[number]} ({mark})"
        shares = [node.text for node in card.find_elements("css selector", ".share")]
        assert shares == ["50.0 %", "25.0 %"]
        widths = page.js("[...arguments[0].querySelectorAll('.bar rect')].map(bar => bar.getAttribute('width'))", card)
        assert widths == ["50", "25"]
        people = {node.text for node in card.find_elements("css selector", ".references li")}
        assert people == {f"{answer} × {question.answers.count(answer)}" for answer in question.answers}
        assert page.js("arguments[0].querySelector('img').src.startsWith('data:image/jpeg')", card)
    floors = page.texts(".floor td:first-child")
    assert [text.partition("floor: ")[2] for text in floors] == list(scores.floors)
    shown = [float(text.partition("floor")[0]) for text in floors]
    assert shown == pytest.approx([100 * values["VQA"] for values in scores.floors.values()], abs=0.01)


def test_questions_are_filtered_by_type(questions, show):  # noqa: F811
    path, truth, *_ = questions
    page = show(path)
    assert page.texts("#group option") == ["all", "how many (10)", "is there (10)", "what (10)"]
    page.choose("#group", "how many (10)")
    assert {truth[number].question_type for number in page.load_all()} == {"how many"}
    assert page.find("#count").text == "10 of 30 questions"
    page.find("#reset").click()
    assert page.find("#count").text == "30 questions"
    page.type("#search", "number 17")
    page.until("gallery.shown.length === 1")
    page.find(".opener").click()
    assert "what is number 17?" in page.find("#view-body").text and "Answers by people" in page.find("#view-body").text


def test_an_answer_shows_where_the_model_looked_for_it(questions, show):  # noqa: F811
    path, _, predicted, _ = questions
    page = show(path)
    assert page.load_all() and len(page.all(".badge")) == 2
    page.type("#search", "number 17")
    page.until("gallery.shown.length === 1")
    page.find(".opener").click()
    page.until("document.querySelector('#view canvas').width > 0")
    assert [word.text for word in page.all("#view .words button")] == ["where it looked"]
    assert page.js("document.querySelector('#view .answer > .caption').nextSibling.className") == "words"
    told = page.find("#view .looked").text
    assert told.startswith("Point at the answer") or "most at lower left" in told
    page.hover(page.find("#view .words button"))
    assert page.find("#view .looked").text == (
        f"“{predicted[17]}”: most at lower left, 75 % on one cell (even: 6.3 %), by hiding squares"
    )
    page.find("#close").click()
    page.find("#reset").click()
    page.type("#search", "number 18")
    page.until("gallery.shown.length === 1")
    page.find(".opener").click()
    page.hover(page.find("#view .words button"))
    assert page.find("#view .looked").text == f"“{predicted[18]}”: nothing in the image speaks for it"


def test_an_image_stands_with_what_it_found_and_what_found_it(tmp_path, show):  # noqa: F811
    image_of_C = np.repeat(np.arange(4), 2)
    ranks = Ranks(text_C=np.array([1, 2, 1, 1, 4, 3, 1, 1.5]), image_I=np.array([1, 3, 1, 2.0]))
    captions = [f"caption {number}" for number in range(7)] + [HOSTILE["right to left"]]
    about = [
        {"retrieved": [["caption 0", True], ["caption 5", False]], "found_images": [["a", "b"], ["c", "a"]]}
        for _ in range(4)
    ]
    scores = score_retrieval(ranks, image_of_C, METRICS, images=list("abcd"), captions=captions, about=about)
    pictures = {image: Picture(thumbnail(picture(np.random.default_rng(n)))) for n, image in enumerate("abc")}
    write_page(tmp_path / "page.html", [evaluated_of(scores, "model")], pictures)
    page = show(tmp_path / "page.html")
    page.choose("#order", "as stored")
    first = page.find(".card")
    assert [node.text for node in first.find_elements("css selector", ".references li")] == [
        "caption 0 rank 1",
        "caption 1 rank 2",
    ]
    of_table = page.js("[...arguments[0].querySelectorAll('.figures th')].map(cell => cell.textContent)", first)
    assert of_table == [*(f"{way} R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)), "rsum"], "what an image has"
    notes = "[...document.querySelectorAll('.note')].map(note => getComputedStyle(note).direction)"
    assert page.js(notes) == ["ltr"] * 8, "also behind a caption that turns the direction round"
    marks = page.js("[...arguments[0].querySelectorAll('.candidates li')].map(row => row.className)", first)
    assert marks == ["right", "wrong"]
    page.find(".opener").click()
    found = page.js("[...document.querySelectorAll('.found')].map(row => [...row.children].map(n => n.className))")
    assert found == [["right", ""], ["", "right"]]
    assert len(page.all("#view-body .found img")) == 4


def test_which_label_was_taken_for_which(tmp_path, show):  # noqa: F811
    labels = ["ants", "bees", NASTY[0]]
    truth = {n: [labels[n % 3]] for n in range(12)}
    scores = {n: np.roll([0.7, 0.2, 0.1], (n + (n > 8)) % 3) for n in truth}
    chosen = {n: [labels[int(each.argmax())]] for n, each in scores.items()}
    done = score_labels(truth, Found(labels, chosen, scores), METRICS, single=True)
    path = tmp_path / "labels.html"
    write_page(
        path, [evaluated_of(done, "model")], {n: Picture(thumbnail(picture(np.random.default_rng(n)))) for n in truth}
    )
    page = show(path)
    cells = page.js(
        "[...document.querySelectorAll('.confusions tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    found = {row[0]: row[1:] for row in cells}
    heads = page.js("[...document.querySelectorAll('.confusions thead th')].map((c) => c.textContent)")
    assert set(heads) == set(found) == set(labels)
    for right in labels:
        for place, told in enumerate(heads):
            count = sum(truth[n] == [right] and chosen[n] == [told] for n in truth)
            assert found[right][place] == (str(count) if count else "·")
    card = page.all(".card")[0]
    assert page.js("arguments[0].querySelectorAll('.candidates li').length", card) == 3
