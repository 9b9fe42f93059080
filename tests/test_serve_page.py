"""The web page of `velm serve` in a real headless Chromium: drop, paste, captions, questions, where the model looked."""

from __future__ import annotations

import pytest
from serving import CAPTIONS, photo, serving, tiny_runs
from test_report_page import Page, browser  # noqa: F401

import velm_cli
from velm_cli.inference.model import Model

TOKEN = "correct-horse-battery"
HOSTILE = '<img src=x onerror="window.hacked=1"> & </script><script>window.hacked=1</script>'


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("serve-page"))
        yield tiny_runs(captions=CAPTIONS, answers=["task=vqa"])


@pytest.fixture(scope="module")
def writer(runs):
    return velm_cli.load(runs["captions"], "cpu", precision="fp32")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(5))
    return path


@pytest.fixture
def shown(browser):  # noqa: F811
    """`shown(client)` opens the page of a service; afterwards the console must hold nothing but `expected`."""
    browser.get("about:blank")
    browser.get_log("browser")
    expected = []

    class Served(Page):
        def __init__(self, client, **options):
            address = type("Address", (), {"resolve": lambda self: self, "as_uri": lambda _: f"http://{client.host}/"})
            super().__init__(browser, address(), **options)
            self.expected = expected

        def give(self, path):
            self.find("#file").send_keys(str(path))

    yield Served
    left = [line for line in browser.get_log("browser") if not any(word in line["message"] for word in expected)]
    assert left == []


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const file = new File([bytes], "x.jpg", {type: "image/jpeg"});
const data = new DataTransfer();
data.items.add(file);
const event = arguments[1] === "drop"
  ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
  : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
document.getElementById("drop").dispatchEvent(event);
"""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_dropped_or_pasted_photo_is_captioned(writer, shown, how):
    import base64

    with serving(writer) as client:
        page = shown(client)
        page.driver.execute_script(DROP, base64.b64encode(photo(5)).decode(), how)
        page.until("document.querySelectorAll('.words button').length > 0")
        assert " ".join(page.texts(".words button")) == " ".join(writer.caption(photo(5)).split())
        assert page.js("document.getElementById('photo').naturalWidth") == 96


def test_each_word_shows_where_the_model_looked_by_keyboard_too(writer, shown, image):
    from selenium.webdriver.common.keys import Keys

    with serving(writer) as client:
        page = shown(client)
        page.expected.append("willReadFrequently")  # of this test's own reading
        page.give(image)
        page.until("document.querySelectorAll('.words button').length > 1")
        heat = "[...overlay.getContext('2d').getImageData(0, 0, overlay.width, overlay.height).data].some(Boolean)"
        assert not page.js(heat)
        words = page.all(".words button")
        page.driver.execute_script("arguments[0].focus()", words[0])
        assert page.js(heat) and f"“{words[0].text}”: most at" in page.find("#looked").text
        page.press(Keys.ARROW_RIGHT)
        assert page.js("document.activeElement === arguments[0]", words[1])
        assert words[1].get_attribute("aria-pressed") == "true"
        page.press(Keys.ESCAPE)
        assert not page.js(heat) and page.find("#looked").text == ""
        page.hover(words[0])
        assert page.js(heat)


def test_several_captions_and_how_they_begin(writer, shown, image):
    with serving(writer) as client:
        page = shown(client)
        assert not page.find("#several").is_enabled(), "nothing to caption yet"
        page.give(image)
        page.until("document.querySelectorAll('.words button').length > 0 && !status.textContent")
        page.find("#beams").clear()
        page.type("#beams", "2")
        page.type("#prompt", "a\n")
        wanted = " ".join(writer.caption(photo(5), beams=2, prompt="a").split())
        page.until(
            "[...document.querySelectorAll('.words button')].map(b => b.textContent).join(' ') === arguments[0]", wanted
        )
        page.find("#several").click()
        page.until("document.querySelectorAll('#drawn li').length === 5")


def test_questions_have_answers_with_probabilities(runs, shown, image):
    model = velm_cli.load(runs["answers"], "cpu", precision="fp32")
    with serving(model) as client:
        page = shown(client)
        assert not page.find("#captions").is_displayed() and not page.find("#comparison").is_displayed()
        page.give(image)
        page.type("#question", "is there a circle?\n")
        page.until("document.querySelectorAll('#answers li').length === 1")
        wanted = model.answer(photo(5), "is there a circle?", probabilities=5)
        assert page.texts(".answer") == [next(iter(wanted))]
        assert page.texts(".bar > :first-child") == list(wanted)
        page.type("#choices", "yes, zebra crossing")
        page.expected.append("422")
        page.find("#question-form button").click()
        page.until("document.getElementById('error').textContent.includes('zebra crossing')")


def test_texts_are_compared(writer, shown, image):
    with serving(writer) as client:
        page = shown(client)
        page.give(image)
        page.type("#texts", "a red box\na blue circle")
        page.find("#texts-form button").click()
        page.until("document.querySelectorAll('#similarities .bar').length === 2")
        cosines = writer.embed_texts(["a red box", "a blue circle"]) @ writer.embed_images(photo(5))
        assert page.texts("#similarities [aria-hidden]") == [f"{each:.3f}" for each in sorted(cosines, reverse=True)]


def test_a_token_is_asked_for_and_kept_in_the_page_only(writer, shown, image):
    with serving(writer, TOKEN) as client:
        page = shown(client)
        page.expected.append("401")
        page.give(image)
        page.until("document.getElementById('secret').open")
        page.type("#token", "wrong\n")
        page.until("document.getElementById('secret').open && !document.getElementById('token').value")
        page.type("#token", TOKEN + "\n")
        page.until("document.querySelectorAll('.words button').length > 0")
        assert page.js("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]


def test_what_is_no_photo_gets_the_servers_line_and_hostile_words_stay_words(writer, shown, tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "photo.jpg").write_bytes(photo(5))
    (tmp_path / "large.jpg").write_bytes(bytes(1_000_001))
    monkeypatch.setattr(Model, "captions_of", lambda self, jpegs, *_, **__: [HOSTILE] * len(jpegs))
    with serving(writer, body_mb=1.0) as client:
        page = shown(client)
        page.expected.append("422")
        page.give(tmp_path / "text.jpg")
        page.until("document.getElementById('error').textContent.startsWith('The image cannot be used: not an image')")
        page.give(tmp_path / "large.jpg")
        page.until("document.getElementById('error').textContent.includes('this server takes 1.')")
        page.give(tmp_path / "photo.jpg")
        page.until("document.querySelector('#caption').textContent.includes('onerror')")
        assert page.js("window.hacked === undefined")


def test_nothing_of_it_is_wider_than_a_phone_and_every_control_has_a_name(writer, shown, image):
    with serving(writer) as client:
        page = shown(client, width=360, height=700, scheme="dark")
        page.give(image)
        page.until("document.querySelectorAll('.words button').length > 0")
        assert page.js("document.documentElement.scrollWidth") == 360
        assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(21, 21, 20)"
        unnamed = """[...document.querySelectorAll('button, input, textarea, img')].filter((node) =>
            !(node.textContent.trim() || node.labels?.length || node.getAttribute('aria-label') || node.alt)).map(n => n.id)"""
        assert page.js(unnamed) == []


def test_the_page_loads_nothing_from_elsewhere(writer, shown, image):
    with serving(writer) as client:
        page = shown(client)
        page.give(image)
        page.until("document.querySelectorAll('.words button').length > 0")
        loaded = page.js("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert {address.rsplit("/", 1)[0] for address in loaded if not address.startswith(("blob:", "data:"))} == {
            f"http://{client.host}"
        }


def test_a_page_of_another_origin_can_neither_ask_nor_read(writer, browser, tmp_path):  # noqa: F811
    """As if somebody had opened a stranger's page while the service runs."""
    stranger = tmp_path / "stranger.html"
    stranger.write_text("<!doctype html><title>stranger</title>")
    with serving(writer) as client:
        browser.get(stranger.as_uri())
        script = """
            const done = arguments[arguments.length - 1];
            fetch(arguments[0] + "/caption", {method: "POST", body: new Blob(["x"], {type: "text/plain"})})
              .then((answer) => answer.text()).then((text) => done("read: " + text), (error) => done("kept out"));"""
        assert browser.execute_async_script(script, f"http://{client.host}") == "kept out"
        blind = 'fetch(arguments[0] + "/caption", {method: "POST", mode: "no-cors", body: new Blob(["x"])}).then(arguments[1], arguments[1])'
        browser.execute_async_script(blind, f"http://{client.host}")
        figures = client.ask("/metrics")[1]
        assert 'path="/caption",status="403"} 2' in figures
    browser.get("about:blank")
    browser.get_log("browser")
