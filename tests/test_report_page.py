"""report.html in a real headless Chromium: every control is used, and what it does is compared with Python.

The pages are made from random scores, coloured pictures and captions, some of them hostile. After each
test the browser's console must be empty.
"""

import base64
import hashlib
import json
import math
import os
import random
import re
import shutil
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from velm_cli.data.images import ImageRefused
from velm_cli.data.looked import Attention
from velm_cli.metrics.comparison import Difference
from velm_cli.report.evaluations import Curves, Evaluated
from velm_cli.report.page import Picture, thumbnail, write_page
from velm_cli.schema.metric_names import CAPTION_COLUMNS, NAMES, Column

_TEXT = "red green blue small large dog cat catalogue bus horse above below left of a the two three"
WORDS = _TEXT.split()
HOSTILE = {
    "ends the script": '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>',
    "comment": "<!--<script>window.hacked=1//",
    "handler": "\"><svg onload=window.hacked=1> & ' ` ${window.hacked=1}",
    "placeholder": "%SCRIPT% %DATA% %BLOCKS% {{x}}",
    "right to left": "כלב רץ \u202e gnp.exe ركض",
    "separators": "one\u2028two\u2029three\x00\x0b",
    "surrogate": "half \ud83d and \udc15",
    "emoji": "🐶 plays 👩‍👩‍👧 with 🇫🇷",
    "lines": "first\nsecond\r\n\tthird ||| fourth",
    "long": "word " * 10_000,
    "one word": "w" * 30_000,
    "empty": "",
    "blank": " \n ",
}


# ------------------------------------------------------------------ data


def picture(rng: np.random.Generator, width: int = 96, height: int = 64) -> bytes:
    """A JPEG of coloured blocks."""
    blocks = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(out, "JPEG")
    return out.getvalue()


def random_run(name: str, images: list, seed: int, **more) -> Evaluated:
    rng = random.Random(seed)
    per_image = {image: {metric: round(rng.random(), 4) for metric in NAMES} for image in images}
    references = {
        image: [" ".join(random.Random(f"{image}{k}").choices(WORDS, k=8)) for k in range(5)] for image in images
    }
    return Evaluated(
        name=name,
        scores={metric: rng.random() for metric in NAMES},
        per_image=per_image,
        hypotheses={image: " ".join(rng.choices(WORDS, k=7)) for image in images},
        references=references,
        **more,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two runs of 90 images, the first with attention on some; a few images have no CIDEr."""
    rng = np.random.default_rng()
    images = list(range(100, 190))
    pictures = {image: Picture(thumbnail(picture(rng)), picture(rng, 300, 200)) for image in images}
    seed = random.randrange(10**6)
    curves = Curves([(10 * k, 3 / (k + 1)) for k in range(900)], [(100, 2.0), (200, 1.5)], [(100, 0.4), (200, 0.9)])
    first = random_run("first", images, seed, curves=curves, intervals=dict.fromkeys(NAMES, (0.4, 0.6)))
    second = random_run(
        "second",
        images,
        seed + 1,
        differences={"CIDEr": Difference(0.8, 0.7, (-0.05, 0.25), 0.0123)},
        warnings=["few images"],
        details={"novel": "0.5"},
    )
    for image, value in zip(images[:3], (None, math.nan, math.inf), strict=True):
        first.per_image[image]["CIDEr"] = value
        second.per_image[image]["CIDEr"] = value
    maps_THW = np.full((7, 4, 6), 0.01)
    for word in range(7):
        maps_THW[word, word % 4, word % 6] = 0.8
    first.attention.update({image: Attention(first.hypotheses[image].split(), maps_THW) for image in images[3:40]})
    half = Attention(first.hypotheses[140].split(), maps_THW, box=(1 / 3, 0.0, 1.0, 1.0))
    first.attention[140] = half
    folder = tmp_path_factory.mktemp("small")
    write_page(folder / "one.html", [first], pictures, title="one run")
    write_page(folder / "two.html", [first, second], pictures, title="two runs")
    return folder, first, second


# ------------------------------------------------------------------ the browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; missing, it is a failure when VELM_REQUIRE_BROWSER is set and a skip otherwise."""
    programs = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    try:
        from selenium import webdriver
    except ImportError:
        programs.append(None)
    if None in programs:
        problem = "Chromium, chromedriver or the package selenium is missing"
        if os.environ.get("VELM_REQUIRE_BROWSER"):
            pytest.fail(f"VELM_REQUIRE_BROWSER is set, but: {problem}")
        pytest.skip(problem)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


class Page:
    """One page in the browser, with the words that the tests speak in."""

    def __init__(self, driver, path, width=1280, height=900, scheme="light"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get(path.resolve().as_uri())
        self.driver = driver

    def js(self, code, *args):
        return self.driver.execute_script(f"return {code}", *args)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector):
        return self.js("[...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector)

    def type(self, selector, *keys):
        self.find(selector).send_keys(*keys)

    def press(self, *keys):
        self.driver.switch_to.active_element.send_keys(*keys)

    def choose(self, selector, text):
        from selenium.webdriver.support.ui import Select

        Select(self.find(selector)).select_by_visible_text(text)

    def hover(self, node):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).move_to_element(node).perform()

    def until(self, code, *args):
        """Waits until the expression is true."""
        end = time.monotonic() + 10
        while not self.js(code, *args):
            assert time.monotonic() < end, f"never true: {code}"
            time.sleep(0.02)

    def load_all(self):
        """Scrolls until every card is there; the ids in the order shown."""
        self.until("(window.scrollTo(0, document.body.scrollHeight), gallery.made === gallery.shown.length)")
        return [int(text[1:]) for text in self.texts(".card .id")]


@pytest.fixture
def show(browser):
    """`show(path)` opens a page; afterwards the console must hold nothing."""
    browser.get("about:blank")
    browser.get_log("browser")
    yield lambda path, **options: Page(browser, path, **options)
    assert browser.get_log("browser") == []


@pytest.fixture
def keys(browser):
    from selenium.webdriver.common.keys import Keys

    return Keys


# ------------------------------------------------------------------ the overview


def test_scores_intervals_and_differences_are_those_given(small, show):
    folder, first, second = small
    page = show(folder / "two.html")
    assert page.find("h1").text == "two runs"
    assert page.find("#summary").text == "90 images · 450 references · 2 runs"
    expected = [f"{100 * first.scores[name]:.1f}" for name in NAMES]
    assert page.texts(".scores tbody tr:nth-child(1) .value") == expected
    assert page.texts(".scores tbody tr:nth-child(1) .interval") == ["40.0 to 60.0"] * len(NAMES)
    differences = page.texts(".scores .difference td span:first-child")
    for name, text in zip(NAMES, differences, strict=True):
        change = float(f"{100 * (second.scores[name] - first.scores[name]):.1f}")
        assert float(text.replace("−", "-")) == pytest.approx(change, abs=1e-9)
        assert text[0] in ("+−" if change else "0−")
    assert page.texts(".scores .difference .interval") == ["−5.0 to +25.0", "p = 0.012"]
    assert page.texts("#notes li") == ["second few images"]
    assert not page.find("#details table").is_displayed()
    page.find("#details summary").click()
    assert page.find("#details tbody").text == "novel – 0.5"
    assert not page.find("#signature").is_displayed(), "neither run has one"


def test_learning_curves_are_drawn_and_thinned(small, show):
    page = show(small[0] / "one.html")
    counts = page.js("[...document.querySelectorAll('#curves polyline')].map(line => line.points.numberOfItems)")
    assert counts == [300, 2, 2], "900 points of training loss, thinned; validation loss; validation CIDEr"
    labels = [svg.get_attribute("aria-label") for svg in page.all("#curves svg")]
    assert labels[1] == "CIDEr in validation, times 100: first 90.00 at step 200"
    y = page.js("[...document.querySelectorAll('#curves .strong')].at(-1).querySelector('polyline').points")
    assert y[0]["y"] > y[1]["y"], "a rising score rises on the screen"


def test_dark_and_light_follow_the_system(small, show):
    for scheme, brightness in (("dark", range(0, 60)), ("light", range(230, 256))):
        page = show(small[0] / "one.html", scheme=scheme)
        red = int(re.findall(r"\d+", page.js("getComputedStyle(document.body).backgroundColor"))[0])
        assert red in brightness


# ------------------------------------------------------------------ the gallery


@pytest.mark.parametrize("width", [1100, 390])
def test_pictures_stand_above_what_was_said_where_there_are_no_scores(width, tmp_path, show):
    rng = np.random.default_rng()
    said = {image: f"a dog number {image}" for image in range(3)}
    run = Evaluated(name="said", scores={}, per_image={image: {} for image in said}, hypotheses=said, references={})
    pictures = {image: Picture(thumbnail(picture(rng))) for image in said}
    write_page(tmp_path / "page.html", [run], pictures, title="said", columns=())
    page = show(tmp_path / "page.html", width=width)
    edges = "(node => { const box = node.getBoundingClientRect(); return [box.width, box.bottom, box.top]; })"
    image_width, image_bottom, _ = page.js(f"{edges}(document.querySelector('.card img'))")
    card_width, _, _ = page.js(f"{edges}(document.querySelector('.card'))")
    _, _, said_top = page.js(f"{edges}(document.querySelector('.card .hypotheses'))")
    assert image_width > 0.8 * card_width and said_top >= image_bottom
    border = page.js("getComputedStyle(document.querySelector('#search')).borderRightWidth")
    assert border == "1px", "the field of the search is closed where nothing stands beside it"


def shown_count(page) -> int:
    return int(re.match(r"\d+", page.find("#count").text).group())


def test_search_finds_words_by_their_beginning_and_marks_them(small, show, keys):
    folder, first, _ = small
    page = show(folder / "one.html")
    page.type("body", "/")
    assert page.js("document.activeElement.id") == "search", "the key / goes to the search field"
    page.press("cat")
    told = {image: [first.hypotheses[image], *first.references[image]] for image in first.hypotheses}

    def with_word(start, captions_of):
        return {
            image
            for image, captions in captions_of.items()
            if any(w.startswith(start) for c in captions for w in c.split())
        }

    assert set(page.load_all()) == with_word("cat", told), "cat finds cat and catalogue"
    assert set(page.texts(".card mark")) == {"cat"}
    page.press("alogue")
    assert set(page.load_all()) == with_word("catalogue", told)
    page.choose("#where", "in hypotheses")
    hypotheses = {image: [text] for image, text in first.hypotheses.items()}
    assert set(page.load_all()) == with_word("catalogue", hypotheses)
    page.type("#search", keys.CONTROL + "a")
    page.type("#search", "atalogue")
    assert page.find("#count").text.startswith("No image fits"), "the middle of a word is no match"
    page.find("#reset").click()
    assert page.find("#count").text == "90 images"
    assert page.find("#search").get_attribute("value") == ""
    page.choose("#where", "everywhere")
    page.type("#search", "106")
    assert page.load_all() == [106], "ids are found too"


def test_orders_are_pythons_and_images_without_a_score_come_last(small, show):
    folder, first, _ = small
    page = show(folder / "one.html")
    values = {image: scores["CIDEr"] for image, scores in first.per_image.items()}
    missing = [image for image, value in values.items() if value is None or not math.isfinite(value)]
    assert len(missing) == 3
    rising = sorted((image for image in values if image not in missing), key=lambda image: values[image])

    def is_sorted(ids, expected):
        assert ids[-3:] == missing
        assert [values[image] for image in ids[:-3]] == [values[image] for image in expected]

    is_sorted(page.load_all(), rising[::-1])
    page.choose("#order", "worst first")
    is_sorted(page.load_all(), rising)
    assert page.texts(".card:last-child td.chosen") == ["–"]
    page.choose("#order", "as stored")
    assert page.load_all() == list(values)
    page.choose("#order", "random")
    shuffled = page.load_all()
    page.find("#shuffle").click()
    again = page.load_all()
    assert sorted(shuffled) == sorted(again) == sorted(values)
    assert len({tuple(shuffled), tuple(again), tuple(values)}) == 3
    page.choose("#metric", "ROUGE-L")
    page.choose("#order", "best first")
    rouge = [first.per_image[image]["ROUGE_L"] for image in page.load_all()]
    assert rouge == sorted(rouge, reverse=True)


def test_the_score_range_filters_with_the_keyboard(small, show, keys):
    folder, first, _ = small
    page = show(folder / "one.html")
    values = [
        100 * scores["CIDEr"]
        for scores in first.per_image.values()
        if scores["CIDEr"] and math.isfinite(scores["CIDEr"])
    ]
    page.type("#low", *[keys.ARROW_RIGHT] * 12)
    low = float(page.find("#low").get_attribute("value"))
    assert shown_count(page) == sum(value >= low for value in values) < 87
    page.type("#high", *[keys.ARROW_LEFT] * 9)
    high = float(page.find("#high").get_attribute("value"))
    assert shown_count(page) == sum(low <= value <= high for value in values)
    assert page.find("#range-text").text == f"{low:.0f} to {high:.0f}"
    page.type("#low", keys.END)
    assert float(page.find("#low").get_attribute("value")) == high, "the ends do not cross"
    page.find("#reset").click()
    assert shown_count(page) == 90, "images without a score are back"


def test_two_runs_are_compared(small, show):
    folder, first, second = small
    page = show(folder / "two.html")
    assert page.find("#run").get_attribute("value") == "1"
    changes = {image: second.per_image[image]["METEOR"] - first.per_image[image]["METEOR"] for image in first.per_image}
    page.choose("#metric", "METEOR")
    page.choose("#order", "differ most")
    sizes = [round(abs(changes[image]), 6) for image in page.load_all()]
    assert sizes == sorted(sizes, reverse=True)
    page.choose("#order", "behind first")
    ids = page.load_all()
    assert ids[0] == min(changes, key=changes.__getitem__)
    assert [round(changes[image], 6) for image in ids] == sorted(round(change, 6) for change in changes.values())
    card = page.all(".card")[0]
    hypotheses = [node.text for node in card.find_elements("css selector", ".hypotheses .caption")]
    assert hypotheses == [first.hypotheses[ids[0]], second.hypotheses[ids[0]]]
    column = 2 + NAMES.index("METEOR")
    cells = [cell.text for cell in card.find_elements("css selector", f"tbody tr > :nth-child({column})")]
    ours, theirs = (100 * run.per_image[ids[0]]["METEOR"] for run in (first, second))
    assert all(re.fullmatch(r"−?\d+\.\d", cell) for cell in cells)
    # Of numbers with six decimals: what lies on the edge of a tenth may be rounded to either side.
    assert [float(cell.replace("−", "-")) for cell in cells] == pytest.approx([ours, theirs, theirs - ours], abs=0.0502)
    assert "worse" in card.find_element("css selector", f".difference > :nth-child({column})").get_attribute("class")


def test_cards_are_made_as_one_scrolls_and_walked_with_arrows(small, show, keys):
    page = show(small[0] / "one.html", height=700)
    assert len(page.all(".card")) < 90
    page.until("[...document.querySelectorAll('.card img')].every(image => image.naturalWidth > 0)")
    page.type("#search", keys.ARROW_DOWN)
    position = "Number(document.activeElement.closest('.card').dataset.position)"
    assert page.js(position) == 0
    page.press(keys.ARROW_RIGHT)
    assert page.js(position) == 1
    page.press(keys.ARROW_DOWN)
    row = page.js(position) - 1
    tops = page.js("[...document.querySelectorAll('.card')].map(card => card.offsetTop)")
    assert row == tops.count(tops[0]) > 1, "down is one row down"
    page.press(*[keys.ARROW_DOWN] * 50)
    assert page.js(position) + row >= 90, "arrows reach the end of the list"
    page.press(keys.HOME)
    assert page.js(position) == 0
    assert page.js("document.querySelectorAll('.opener[tabindex=\"0\"]').length") == 1, "one stop for the Tab key"


# ------------------------------------------------------------------ one image, close


def hottest(page) -> tuple[float, float]:
    """Where the overlay is warmest (red minus blue), in shares of the picture's height and width."""
    row, column = page.js(
        """(overlay => {
            const [width, height] = [overlay.width, overlay.height];
            const copy = Object.assign(document.createElement("canvas"), {width, height});
            const context = copy.getContext("2d", {willReadFrequently: true});
            context.drawImage(overlay, 0, 0);
            const rgba = context.getImageData(0, 0, width, height).data;
            const warmth = Array.from({length: width * height}, (_, at) => rgba[4 * at] - rgba[4 * at + 2]);
            const warmest = warmth.reduce((most, one) => Math.max(most, one)) - 3;
            let [rows, columns, count] = [0, 0, 0];
            warmth.forEach((one, at) => {
                if (one < warmest) return;
                rows += (Math.floor(at / width) + 0.5) / height;
                columns += ((at % width) + 0.5) / width;
                count += 1;
            });
            return [rows / count, columns / count];
        })(document.querySelector("#view canvas"))"""
    )
    return row, column


def open_image(page, image):
    page.choose("#order", "as stored")
    page.type("#search", str(image))
    page.find(f'[aria-label="Open image {image}"]').click()
    page.until("document.querySelector('#view img').naturalWidth === 300")
    page.until("document.querySelector('#view canvas').width === 400")


def test_words_show_where_the_model_looked(small, show, keys):
    folder, first, _ = small
    page = show(folder / "one.html")
    open_image(page, 110)
    assert page.find("#view-title").text.startswith("Image 110")
    words = page.all("#view .words button")
    assert [word.text for word in words] == first.hypotheses[110].split()
    for position in (2, 5, 0):
        page.hover(words[position])
        row, column = hottest(page)
        assert row == pytest.approx((position % 4 + 0.5) / 4, abs=0.13)
        assert column == pytest.approx((position % 6 + 0.5) / 6, abs=0.09)
        assert page.find(".looked").text.startswith(f"“{words[position].text}”: most at")
    assert page.find(".looked").text.endswith("upper left, 80 % on one cell (even: 4.2 %)")
    page.hover(page.find("#view-title"))
    page.press(keys.ARROW_RIGHT, keys.ARROW_RIGHT, keys.ARROW_RIGHT)
    assert page.js("[...document.querySelectorAll('#view .words button')].indexOf(document.activeElement)") == 3
    assert hottest(page) == pytest.approx((3.5 / 4, 3.5 / 6), abs=0.13)
    page.press(keys.ARROW_LEFT)
    assert hottest(page) == pytest.approx((2.5 / 4, 2.5 / 6), abs=0.13)
    assert [row.text for row in page.all("#view .references li")] == first.references[110]
    scores = dict(zip(page.texts(".detailed th"), page.texts(".detailed td"), strict=True))
    # JavaScript rounds a half up, Python to the even digit
    assert float(scores["SPICE"]) == pytest.approx(100 * first.per_image[110]["SPICE"], abs=0.0501)


def test_attention_lies_on_the_part_that_the_encoder_saw(small, show, keys):
    page = show(small[0] / "one.html")
    open_image(page, 140)
    row, column = hottest(page)
    assert (row, column) == pytest.approx((0.5 / 4, 1 / 3 + 2 / 3 * 0.5 / 6), abs=0.1), (
        "the first word, upper left of the box"
    )


def test_the_close_view_opens_turns_and_closes_by_keys(small, show, keys):
    page = show(small[0] / "two.html")
    page.type("#search", keys.ENTER)
    page.press(keys.ENTER)
    assert page.js("document.getElementById('view').open")
    title = page.find("#view-title").text
    assert title.endswith("1 of 90")
    assert not page.find("#previous").is_enabled()
    page.press("n")
    assert page.find("#view-title").text.endswith("2 of 90")
    page.find("#next").click()
    page.press("p")
    assert page.find("#view-title").text.endswith("2 of 90")
    assert [node.text for node in page.all("#view .hypothesis .run")] == ["first", "second"]
    page.press(keys.ESCAPE)
    assert not page.js("document.getElementById('view').open")
    assert page.js("document.activeElement.closest('.card').dataset.position") == "1", (
        "the focus is on the image seen last"
    )


# ------------------------------------------------------------------ other people's text, small screens, many images


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    names = list(HOSTILE)
    texts = {name: HOSTILE[name] for name in names}
    run = Evaluated(
        name=HOSTILE["ends the script"],
        scores={"CIDEr": 0.5, "SPICE": None},
        per_image={name: {"CIDEr": 0.5, "SPICE": None} for name in names},
        hypotheses=texts,
        references={name: [text, text] for name, text in texts.items()},
        reasons={"SPICE": HOSTILE["handler"]},
        warnings=list(HOSTILE.values())[:8],
        signature={HOSTILE["handler"]: HOSTILE["ends the script"]},
        curves=Curves(validation_score=[(1, 0.1)]),
        attention={name: Attention([text[:2000], ""], np.ones((2, 2, 2))) for name, text in texts.items()},
    )
    pictures = {name: Picture(picture(np.random.default_rng())) for name in names}
    path = tmp_path_factory.mktemp("hostile") / "page.html"
    write_page(path, [run, run], pictures, title=HOSTILE["ends the script"])
    return path


def units(text: str) -> list[int]:
    """The UTF-16 units of which a browser makes strings."""
    return list(memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"))


@pytest.mark.parametrize("width", [1280, 375])
def test_hostile_captions_stay_text(hostile, show, keys, width):
    page = show(hostile, width=width)
    assert page.find("h1").text.startswith("</script><img src=x")
    page.choose("#order", "as stored")
    assert len(page.all(".card")) == len(HOSTILE)
    for position, text in enumerate(HOSTILE.values()):
        code = "[...arguments[0].textContent].flatMap(c => c.split('').map(unit => unit.charCodeAt()))"
        got = page.js(code, page.all(".card .hypotheses .caption:first-child")[position])
        whole = text if text.strip() else "empty"
        assert got == units(whole if len(whole) <= 400 else whole[:400] + "…")
    page.type(".opener", keys.ENTER)
    for text in HOSTILE.values():
        assert page.js("document.querySelector('#view .references .caption').textContent.length") == len(
            units(text if text.strip() else "empty")
        )
        assert page.js("document.getElementById('view').scrollWidth <= innerWidth")
        page.press("n")
    page.press(keys.ESCAPE)
    page.type("#search", "(.*+?[\\ " + "window")
    page.type("#search", keys.CONTROL + "a", keys.BACKSPACE)
    page.type("#search", "כלב")
    assert page.texts(".card .id") == ["#right to left"]
    assert page.js("window.hacked === undefined && document.querySelectorAll('script:not([type])').length === 1")
    assert page.js("document.documentElement.scrollWidth") <= width, "nothing makes the page scroll sideways"


def test_the_policy_stops_what_would_get_past_the_escaping(hostile, show):
    page = show(hostile)
    page.js(
        'document.body.insertAdjacentHTML(\'beforeend\', \'<img src="data:,x" onerror="window.hacked=1"><p id=styled style="color:red">\')'
    )
    page.js("document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=1'}))")
    page.js("document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    time.sleep(0.3)
    messages = [entry["message"] for entry in page.driver.get_log("browser")]
    assert page.js("window.hacked === undefined")
    assert sum("Content Security Policy" in message for message in messages) >= 4, messages


@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_a_phone_shows_everything_without_scrolling_sideways(small, show, keys, name):
    page = show(small[0] / name, width=375, height=720)
    page.load_all()
    assert page.js("document.documentElement.scrollWidth") == 375
    outside = page.js(
        "[...document.querySelectorAll('body *')].filter(n => !n.closest('.scroll') && n.getBoundingClientRect().right > 376).map(n => n.outerHTML.slice(0, 80))"
    )
    assert outside == []
    page.js("scrollTo(0, 0)")
    page.type(".opener", keys.ENTER)
    box = page.js("document.getElementById('view').getBoundingClientRect().toJSON()")
    assert (box["left"], box["width"]) == (0, 375)
    assert page.js("document.getElementById('view-body').scrollWidth") <= 375


def test_five_thousand_images_are_light(tmp_path, show):
    rng = np.random.default_rng()
    noise = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480)) for _ in range(20)]
    jpegs = []
    for image in noise:
        out = BytesIO()
        image.save(out, "JPEG")
        jpegs.append(Picture(thumbnail(out.getvalue())))
    images = list(range(5000))
    runs = [random_run(name, images, seed) for seed, name in enumerate("ab")]
    started = time.monotonic()
    path = tmp_path / "report.html"
    write_page(path, runs, {image: jpegs[image % 20] for image in images})
    written = time.monotonic() - started
    page = show(path)
    paint = page.js("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    loaded = page.js("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    print(
        f"{path.stat().st_size / 1e6:.1f} MB written in {written:.1f} s; first paint {paint:.2f} s, loaded {loaded:.2f} s"
    )
    assert path.stat().st_size < 60e6
    assert page.find("#count").text == "5,000 images"
    assert len(page.all(".card")) <= 80
    assert len(page.all(".card img[src]")) == len(page.all(".card"))
    page.type("#search", "catalogue horse")
    assert 0 < int(page.find("#count").text.split()[0].replace(",", "")) < 5000


# ------------------------------------------------------------------ without a browser


def test_a_thumbnail_is_a_small_jpeg(tmp_path):
    for mode in ("RGB", "L", "CMYK"):
        out = BytesIO()
        Image.new(mode, (1200, 700)).save(out, "JPEG")
        small = Image.open(BytesIO(thumbnail(out.getvalue())))
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (160, 93))
    assert Image.open(BytesIO(thumbnail(picture(np.random.default_rng(), 90, 50)))).size == (90, 50), "never enlarged"
    with pytest.raises(ImageRefused, match="not an image"):
        thumbnail(b"no image")


def test_the_file_names_its_own_script_and_loads_nothing(small):
    text = (small[0] / "two.html").read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text).group(1)
    for element, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(f"<{element}>(.*?)</{element}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|fetch|import)\b", text)


def test_the_data_is_strict_json_without_nan(small):
    text = (small[0] / "two.html").read_text("utf-8")
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    data = json.loads(block, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    cider = [metric["name"] for metric in data["metrics"]].index("CIDEr")
    assert data["runs"][0]["values"][cider][:3] == [None, None, None]
    assert None not in data["runs"][0]["values"][cider][3:]


def test_a_metric_is_shown_when_it_has_a_value_or_a_reason(tmp_path):
    def shown(columns=CAPTION_COLUMNS, **run):
        evaluated = Evaluated("a", per_image={1: {}}, hypotheses={1: "x"}, references={1: ["y"]}, **run)
        write_page(tmp_path / "page.html", [evaluated], columns=columns)
        block = re.search(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text("utf-8")).group(1)
        return [metric["name"] for metric in json.loads(block)["metrics"]]

    reasons = {"SPICE": "not requested", "METEOR": "no Java"}
    assert shown(scores={"CIDEr": 0.1, "SPICE": None, "METEOR": None}, reasons=reasons) == ["METEOR", "CIDEr"]
    chair = Column("CHAIRi", "CHAIR-i", "CHi", higher_is_better=False)
    assert shown(scores={"CHAIRi": 0.1, "CIDEr": math.nan}, columns=[*CAPTION_COLUMNS, chair]) == ["CHAIRi"]


def test_runs_need_not_have_the_same_images_or_references(tmp_path, show):
    first, second = random_run("first", [1, 2], 0), random_run("second", [2, 3], 1)
    second.references[2] = ["another"]
    write_page(tmp_path / "page.html", [first, second])
    page = show(tmp_path / "page.html")
    page.choose("#order", "as stored")
    assert page.load_all() == [1, 2, 3]
    assert page.texts(".card:first-child .hypotheses .caption")[1] == "no caption"
    assert page.texts("#notes li") == ["second has other references than are shown here for 1 of the images"]
    assert page.texts(".card:nth-child(2) .references li") == first.references[2]
    page.choose("#order", "differ most")
    assert page.load_all()[0] == 2, "one score alone is no difference"


def test_a_failure_leaves_the_old_page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    run = random_run("a", [1], 0, attention={1: Attention(["one", "two"], np.ones((3, 2, 2)))})
    with pytest.raises(AssertionError):
        write_page(path, [run])
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"
