"""Where a run looked, as users get it: from Python, in the report of an evaluation, and by the script that checks maps."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from velm import TINY, TINY_MODEL, call

import velm_cli
from velm_cli.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FEW = ["run.batch_size=8", "run.max_steps=40", "run.validate_every=0", "run.validate_images=2", "optim.lr=1e-2",
       "optim.warmup_steps=5"]  # fmt: skip
RUNS = {"pooled": ["fusion=add", "metrics.names=[bleu]"], "asked": ["dataset.questions=true", "task=vqa"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs of a captioner whose fusion attends to nothing and of one that answers, and their evaluations."""
    folder = tmp_path_factory.mktemp("where")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, options in RUNS.items():
            asks = [option for option in options if option.startswith("dataset.")]
            assert call("preprocess", "dataset=shapes", *TINY, *asks) == 0
            model = [word for word in TINY_MODEL if not (name == "pooled" and word.startswith("fusion"))]
            assert call("train", *TINY, *model, *FEW, *options, f"name={name}") == 0
            page = [*options[1:], "report.attention=3", f"name={name}", "limit=6"]
            assert call("eval", f"checkpoint=runs/train/{name}", *page) == 0
        yield folder


def blocks(page: Path) -> list[dict]:
    found = re.findall(r'id="attention-\d+-\d+">(.*?)</script>', page.read_text("utf-8"))
    return [json.loads(text) for text in found]


@pytest.mark.parametrize("name", RUNS)
def test_the_report_has_maps_of_every_model(home, name):
    found = blocks(home / f"runs/evaluate/{name}/report.html")
    predicted = json.loads((home / f"runs/evaluate/{name}/predictions.json").read_text())
    texts = {each.get("caption", each.get("answer")) for each in predicted}
    assert 1 <= len(found) <= 3, "of as many examples as asked for, fewer where nothing was said"
    for block in found:
        assert block["method"] == "occlusion" and (block["height"], block["width"]) == (8, 8)
        assert len(block["peaks"]) == len(block["words"]) and " ".join(block["words"]) in texts


def test_python_gets_them_for_its_own_text_and_for_others(home):
    model = velm_cli.load(home / "runs/train/pooled", device="cpu")
    image = next((home / "data/shapes").glob("val2014/*.jpg"))
    known = json.loads((home / "data/shapes/annotations/captions_train2014.json").read_text())
    text = known["annotations"][0]["caption"]
    for method, used in (("auto", "occlusion"), ("gradient", "gradient")):
        found = model.attention(image, f" {text}  ", method=method)
        assert (list(found.words), found.method, found.box) == (text.split(), used, (0.0, 0.0, 1.0, 1.0))
        assert found.maps_THW.shape[0] == len(text.split()) and found.maps_THW.dtype == np.float32
        assert (found.maps_THW >= 0).all() and (found.maps_THW.sum((1, 2)) <= 1 + 1e-4).all()
    own = model.caption(image)
    if own:
        assert list(model.attention(image).words) == own.split()
    answering = velm_cli.load(home / "runs/train/asked", device="cpu")
    asked = answering.attention(image, question="how many circles are there", method="gradient")
    assert list(asked.words) == [answering.answer(image, "how many circles are there")] and len(asked.maps_THW) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "atention"}, "method='atention': one of auto, attention, gradient, occlusion"),
        ({"method": "attention"}, "method=attention: this model cannot show where it looked: its words attend to no"),
        ({"text": "  "}, "text='  ': it has no words to look for"),
        ({"question": "what is it"}, "has not learned"),
    ],
)
def test_what_cannot_be_shown_gets_one_line(home, options, said):
    model = velm_cli.load(home / "runs/train/pooled", device="cpu")
    image = next((home / "data/shapes").glob("val2014/*.jpg"))
    with pytest.raises(UserError) as error:
        model.attention(image, **{"text": "a circle"} | options)
    assert said in str(error.value)


@pytest.mark.parametrize("name", RUNS)
def test_maps_are_checked_by_hiding_what_they_point_at(home, name, capsys, monkeypatch):
    monkeypatch.chdir(home)
    command = [sys.executable, str(ROOT / "scripts/check_attribution.py"), f"runs/train/{name}", "--count", "4"]
    done = subprocess.run(
        [*command, "--words", "2", "--out", "found.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {line["what"]: line for line in json.loads((home / "found.json").read_text())["found"]}
    methods = {what.split()[0] for what in found} - {"square"}
    assert methods == ({"gradient", "occlusion"} if name == "pooled" else {"attention", "gradient", "occlusion"})
    mean = found["gradient most - square"]["mean"]
    assert mean == pytest.approx(found["gradient most"]["mean"] - found["square"]["mean"])
    assert all(np.isnan(line["low"]) or line["low"] <= line["mean"] <= line["high"] for line in found.values())
    assert "occlusion most" in done.stdout
