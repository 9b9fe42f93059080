"""velm score on strangers' files and habits: two systems, folders of results, images, languages without spaces."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from velm import call

WORDS = ["a", "the", "dog", "cat", "man", "runs", "sits", "on", "grass", "near", "red", "old", "house"]
FAST = "metrics.names=[CIDEr,BLEU-4]"


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    """A.json is nearly as the references, B.json is worse, C.json is A by file names; refs.json is COCO's form."""
    monkeypatch.chdir(tmp_path)
    captions = {i: " ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(1, 8)) for i in range(1, 41)}
    names = {i: f"COCO_val2014_{i:012d}.jpg" for i in captions}
    references = {
        "images": [{"id": i, "file_name": name} for i, name in names.items()],
        "annotations": [{"id": 1, "image_id": i, "caption": c} for i, one in captions.items() for c in (one, f"{one} now")],
    }  # fmt: skip
    Path("refs.json").write_text(json.dumps(references))
    worse = {i: " ".join(c.split()[: 3 + i % 4]) for i, c in captions.items()}
    for name, written in (("A", captions), ("B", worse)):
        Path(f"{name}.json").write_text(json.dumps([{"image_id": i, "caption": c} for i, c in written.items()]))
    Path("C.json").write_text(json.dumps({names[i]: c for i, c in captions.items()}))
    Path("hyp.txt").write_text("".join(f"{c}\n" for c in captions.values()))
    Path("ref.txt").write_text("".join(f"{c} now\n" for c in captions.values()))


def page_data(path: str) -> dict:
    return json.loads(Path(path).read_text("utf-8").split('id="data">')[1].split("</script>")[0])


def test_terminal_page_and_file_agree_on_who_is_better(files, capsys):
    assert call("score", "predictions=B.json", "references=refs.json", "vs=A.json", FAST, "out=BA") == 0
    out = capsys.readouterr().out
    saved = json.loads(Path("BA/scores.json").read_text())["comparison"]
    cider = saved["differences"]["CIDEr"]
    assert cider["difference"] == pytest.approx(cider["this"] - cider["that"]) and cider["difference"] < 0
    low, high = cider["interval"]
    assert low < cider["difference"] < high < 0
    sentence = f"B is worse than A: CIDEr {-100 * cider['difference']:.1f} lower, 95 % interval of the difference "
    assert saved["verdict"].startswith(sentence) and f"\n{saved['verdict']}\n" in out
    (row,) = [line.split() for line in out[out.index("against") :].splitlines() if line.startswith("CIDEr")]
    assert row[3] == f"{100 * cider['difference']:+.1f}"
    data = page_data("BA/report.html")
    assert [run["name"] for run in data["runs"]] == ["A", "B"], "differences are to the first"
    assert data["title"] == "B against A" and data["verdicts"] == [saved["verdict"]]
    column = [metric["name"] for metric in data["metrics"]].index("CIDEr")
    first, second = (run["scores"][column] for run in data["runs"])
    assert second - first == pytest.approx(cider["difference"], abs=2e-6)
    assert data["runs"][1]["differences"][column]["interval"] == pytest.approx([low, high], abs=2e-6)
    assert data["runs"][1]["about"]["predictions"] == "B.json"

    assert call("report", "BA", "metric=cider") == 2  # no run folder: it has no config
    capsys.readouterr()
    assert call("score", "predictions=A.json", "references=refs.json", "vs=B.json", FAST) == 0
    assert "A is better than B: CIDEr " in capsys.readouterr().out
    assert call("score", "predictions=A.json", "references=refs.json", "vs=C.json", FAST) == 0
    out = capsys.readouterr().out
    assert "A and C do not differ by more than chance explains: CIDEr 0.0 higher" in out
    assert 'matched: 40 by equal text, such as "COCO_val2014_000000000001.jpg" is 1' in out


@pytest.mark.parametrize("change", ["vs=A.json", "metrics.names=[cider]", "metrics.resamples=50", "mismatch=ignore", "training=ref.txt"])  # fmt: skip
def test_a_folder_of_results_is_never_replaced_by_others(files, capsys, change):
    command = ("score", "predictions=B.json", "references=refs.json", "metrics.names=[bleu]", "out=there")
    assert call(*command) == 0
    before = {path.name: path.read_bytes() for path in Path("there").iterdir()}
    assert call(*command, "metrics.names=BLEU-4", "metrics.required=bleu", "images=.") == 0  # the same numbers
    assert "replaced: there" in capsys.readouterr().out
    assert call(*command, change) == 2
    error = capsys.readouterr().err
    assert re.match(
        r"velm: out=there holds (the scores of other files|scores with \S+=\S+, and here it is \S+): ", error
    )
    assert error.count("\n") == 1
    after = {path.name: path.read_bytes() for path in Path("there").iterdir()}
    assert {**after, "report.html": b""} == {**before, "report.html": b""}


def test_results_of_an_older_velm_are_replaced_by_the_same_files(files, capsys):
    command = ("score", "predictions=B.json", "references=refs.json", "metrics.names=[bleu]", "out=there")
    assert call(*command) == 0
    from velm_cli.files import read_sealed, sealed, write_json

    inputs = read_sealed(Path("there/inputs.json"))
    write_json(Path("there/inputs.json"), sealed({key: inputs[key] for key in ("made_by", "inputs")}))
    assert call(*command) == 0
    assert "replaced: there" in capsys.readouterr().out


def test_images_are_found_by_name_and_number_and_bad_ones_are_named(files, capsys):
    Path("photos/val").mkdir(parents=True)
    for number in range(1, 39):
        Image.new("RGB", (20, 12), (5 * number, 9, 9)).save(f"photos/val/{number:012d}.jpg")
    Path("photos/val/000000000002.jpg").write_bytes(Path("photos/val/000000000002.jpg").read_bytes()[:200])
    command = ("score", "predictions=A.json", "references=refs.json", "metrics.names=rouge")
    assert call(*command, "images=photos", "out=seen") == 0
    out = capsys.readouterr().out
    assert "images: 38 of 40 in photos" in out
    assert "note: no file in photos of 2 images (39, 40)" in out
    assert re.search(r"note: the page has no picture of 1 image \(2: (truncated|undecodable): ", out)
    assert len(page_data("seen/report.html")["images"]["pictures"]) == 37
    for wrong in ("nowhere", "refs.json"):
        assert call(*command, f"images={wrong}", "out=unseen") == 2
        assert capsys.readouterr().err == f"velm: images={wrong} is not a folder\n"


def test_captions_by_line_are_scored(files, capsys):
    assert call("score", "predictions=hyp.txt", "references=ref.txt", FAST, "out=lines") == 0
    assert "40 images, 40 references" in capsys.readouterr().out
    assert json.loads(Path("lines/per_image.jsonl").read_text().splitlines()[2])["image_id"] == 3


@pytest.mark.parametrize(
    ("captions", "warned"),
    [
        (["三个女孩躺在草地上，手里拿着", "一个男人走过马路"], True),
        (["犬が草の上を走っている", "赤い家の前に男がいる"], True),
        (["สุนัขกำลังวิ่งอยู่บนสนามหญ้า", "แมวนั่งอยู่บนเสื่อ"], True),
        (["三 个 女孩 躺 在 草地 上", "一 个 男人 走过 马路"], False),
        (["犬 が 草 の 上 を 走って いる", "赤い 家"], False),
        (["สุนัข กำลัง วิ่ง อยู่ บน สนาม หญ้า", "แมว นั่ง"], False),
        (["개가 풀밭에서 뛰고 있다", "ein Junge läuft über die Straße"], False),
        (["a sign that reads 東京タワー駅前 in red", "a dog"], False),
    ],
)
def test_captions_without_spaces_are_named(files, capsys, captions, warned):
    lines = "".join(json.dumps({"image_id": n, "caption": c}) + "\n" for n, c in enumerate(captions))
    Path("own.jsonl").write_text(lines)
    assert call("score", "predictions=own.jsonl", "references=own.jsonl", "metrics.names=[bleu]") == 0
    out = capsys.readouterr().out
    assert ("the predictions of 2 images (0, 1) are written without spaces" in out) == warned
    assert ("cut both files into words first" in out) == warned
