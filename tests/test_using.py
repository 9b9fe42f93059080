"""A trained model on anybody's images: `velm caption`, `velm answer`, `velm search`, `velm_cli.load`."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from velm import TINY, TINY_MODEL, call, velm

import velm_cli
from velm_cli.files import sealed
from velm_cli.inference.index import Index

RUN = "checkpoint=runs/train/tiny"
FAST = ["run.batch_size=8", "run.max_steps=150", "run.validate_every=0", "optim.lr=1e-2", "optim.warmup_steps=5",
        "run.validate_images=2"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A captioner that can embed, one that answers, the words of `velm eval`, and photos/ with the same images."""
    home = tmp_path_factory.mktemp("using")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call("train", *TINY, *TINY_MODEL, *FAST, "loss.gamma=0.3", "metrics.names=[bleu]", "name=tiny") == 0
        assert call("eval", RUN, "metrics.names=[bleu]", "report.page=false", "name=words") == 0
        asks = [*TINY, "dataset.questions=true", "task=vqa"]
        assert call("preprocess", *("dataset=shapes", *TINY, "dataset.questions=true")) == 0
        assert call("train", *asks, *TINY_MODEL, *FAST, "name=asked") == 0
        assert call("eval", "checkpoint=runs/train/asked", "report.page=false", "name=answers", "limit=9") == 0
    words = json.loads((home / "runs/evaluate/words/predictions.json").read_text())
    (home / "photos").mkdir()
    for each in words:
        shutil.copy(_file(home, each["image_id"]), home / "photos")
    return home


def _file(home: Path, image_id: int) -> Path:
    return next((home / "data/shapes").glob(f"*/COCO_*_{image_id:012d}.jpg"))


def _expected(home: Path) -> dict[str, str]:
    words = json.loads((home / "runs/evaluate/words/predictions.json").read_text())
    return {f"photos/{_file(home, each['image_id']).name}": each["caption"] for each in words}


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    """A working folder with the runs and a copy of the photos."""
    for name in ("runs", "stores", "data"):
        (tmp_path / name).symlink_to(trained / name)
    shutil.copytree(trained / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def damaged(folder: Path) -> None:
    whole = sorted(folder.glob("*.jpg"))[0].read_bytes()
    (folder / "cut.jpg").write_bytes(whole[:300])
    (folder / "text.png").write_text("no image")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.docx").write_text("is not looked at")


# ------------------------------------------------------------------------------------------ captions


def test_a_folder_gets_the_words_of_an_evaluation_and_the_damaged_are_listed(trained, home, capsys):
    damaged(home / "photos")
    assert call("caption", RUN, "images=photos", "out=found/captions.json") == 0
    said = capsys.readouterr().out
    captions = json.loads((home / "found/captions.json").read_text())
    expected = _expected(trained)
    assert {each["image"]: each["caption"] for each in captions} == expected and len(captions) == len(expected)
    assert len(set(expected.values())) > 1, "captions that are all the same would show nothing"
    assert all(each.keys() == {"image", "caption"} for each in captions)
    refused = [json.loads(line) for line in (home / "found/captions.json.refused.jsonl").read_text().splitlines()]
    assert {each["image"]: each["refused"].split(":")[0] for each in refused} == {
        "photos/cut.jpg": "truncated",
        "photos/text.png": "not an image",
        "photos/phone.heic": "unsupported",
    }
    assert "written     found/captions.json  8 of 11 images" in said and "refused     photos/cut.jpg: truncated" in said
    page = (home / "found/captions.html").read_text()
    assert all(caption in page for caption in expected.values()) and page.count('id="thumbnail-') == 8
    assert {file.name for file in (home / "found").iterdir()} == {
        *("captions.json", "captions.json.about.json", "captions.json.refused.jsonl", "captions.html")
    }


def test_every_form_of_images_and_results(trained, home, monkeypatch, capsys):
    expected = _expected(trained)
    names = sorted(expected)
    with tarfile.open("all.tar", "w") as tar:
        tar.add("photos")
    Path("list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names[:3]).encode() + b"\r\n")  # as Windows has it
    forms = {
        "images=photos/*[135].jpg": [name for name in names if name[-5] in "135"],
        "images=list.txt": names[:3],
        f"images=[{names[1]},{names[0]},{names[1]}]": [names[1], names[0]],
    }
    for number, (images, wanted) in enumerate(forms.items()):
        out = f"o{number}.jsonl"
        assert call("caption", RUN, images, f"out={out}", "page=false") == 0
        rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
        assert [row["image"] for row in rows] == wanted
        assert all(row["caption"] == expected[row["image"]] for row in rows)
    assert call("caption", RUN, "images=all.tar", "out=tar.csv", "page=false") == 0
    rows = list(csv.reader(io.StringIO(Path("tar.csv").read_text())))
    assert rows[0] == ["image", "caption"] and dict(rows[1:]) == {f"all.tar/{k}": v for k, v in expected.items()}
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{names[2]}\n\n{names[0]}\n".encode())))
    assert call("caption", RUN, "images=-") == 0
    assert capsys.readouterr().out == "".join(f"{name}\t{expected[name]}\n" for name in (names[2], names[0]))
    assert call("caption", RUN, f"images={names[0]}") == 0
    assert capsys.readouterr().out == f"{expected[names[0]]}\n"


def test_sidecars_stand_beside_the_images_and_replace_nothing(trained, home, capsys):
    expected = _expected(trained)
    first, *others = sorted(expected)
    mine = Path(first).with_suffix(".txt")
    mine.write_text("my own words\n")
    before = {name: Path(name).read_bytes() for name in expected}
    assert call("caption", RUN, "images=photos", "out=sidecar") == 0
    said = capsys.readouterr().out
    assert "left alone  1 images" in said and "written     7 .txt files" in said
    assert mine.read_text() == "my own words\n"
    assert all(Path(name).with_suffix(".txt").read_text() == f"{expected[name]}\n" for name in others)
    assert call("caption", RUN, "images=photos", "out=xmp", "prompt=a <small>") == 0
    tree = ElementTree.parse(Path(first).with_suffix(".xmp"))
    texts = [node.text for node in tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")]
    assert len(texts) == 1 and texts[0].startswith("a ")
    assert before == {name: Path(name).read_bytes() for name in expected}, "no pixel and no byte of a photo changes"


def test_images_of_one_stem_have_sidecars_of_their_own(trained, home):
    first, second = sorted(Path("photos").glob("*.jpg"))[:2]
    second.rename(first.with_suffix(".jpeg"))
    assert call("caption", RUN, f"images=[{first},{first.with_suffix('.jpeg')}]", "out=sidecar") == 0
    assert Path(f"{first}.txt").exists() and Path(f"{first.with_suffix('.jpeg')}.txt").exists()
    assert not first.with_suffix(".txt").exists()


def test_an_image_that_has_changed_makes_other_work(home, capsys):
    command = ("caption", RUN, "images=photos", "out=c.json", "page=false")
    assert call(*command) == 0
    first, second = sorted(Path("photos").glob("*.jpg"))[:2]
    shutil.copy(second, first)
    assert call(*command) == 2 and "was made with another images" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["./x.tar", "sub//x.tar"])
def test_a_tar_is_read_however_it_is_named(home, images):
    Path("sub").mkdir()
    for place in ("x.tar", "sub/x.tar"):
        with tarfile.open(place, "w") as tar:
            tar.add("photos")
    assert call("caption", RUN, f"images={images}", "out=c.json", "page=false", "limit=3") == 0
    assert len(json.loads(Path("c.json").read_text())) == 3


def test_a_signal_ends_it_with_an_error(home):
    for copy in range(60):
        shutil.copytree(home / "photos", home / f"many/{copy}")
    command = [sys.executable, "-m", "velm_cli", "caption", RUN, "images=many", "out=c.json", "decode.batch_size=16"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    journal = Path("c.json.part")
    while not (journal.exists() and journal.stat().st_size > 1000):
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped by SIGTERM after" in said and not Path("c.json").exists()


def test_the_same_command_is_complete_and_another_replaces_nothing(home, capsys):
    command = ("caption", RUN, "images=photos", "out=c.json", "page=false")
    assert call(*command) == 0
    first = Path("c.json").read_bytes()
    assert call(*command) == 0 and "complete    c.json" in capsys.readouterr().out
    assert call(*command, "decode=greedy") == 2
    assert "was made with another decode" in capsys.readouterr().err and Path("c.json").read_bytes() == first
    assert call(*command, "decode=greedy", "fresh=true") == 0
    assert json.loads(Path("c.json.about.json").read_text())["about"]["decode"]["beams"] == 1
    Path("c.json").write_text("[]")
    assert call(*command, "fresh=true") == 2 and Path("c.json").read_text() == "[]"
    assert "is not as velm wrote it" in capsys.readouterr().err
    Path("d.json.refused.jsonl").write_text("mine\n")
    assert call("caption", RUN, "images=photos", "out=d.json") == 2 and not Path("d.json").exists()
    Path("e.json.part").write_text("{")
    assert call("caption", RUN, "images=photos", "out=e.json") == 2 and Path("e.json.part").read_text() == "{"
    Path("mine.csv").write_text("mine\n")
    assert call("caption", RUN, "images=photos", "out=mine.csv") == 2 and Path("mine.csv").read_text() == "mine\n"


def test_a_kill_loses_a_chunk_at_most_and_each_image_is_captioned_once(trained, home, monkeypatch, capsys):
    """Killed between chunks and within the journal's last line; the files are those of a run without a kill."""
    expected = _expected(trained)
    for copy in range(6):
        shutil.copytree(trained / "photos", home / f"many/{copy}")
    damaged(home / "many/0")
    command = ("caption", RUN, "images=many", "page=false", "decode.batch_size=16")
    assert call(*command, "out=whole.json") == 0
    capsys.readouterr()

    from velm_cli.inference.journal import Journal

    append, done = Journal.append, []

    def dies(self, rows):
        append(self, rows)
        done.append(len(rows))
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", dies)
    assert call(*command, "out=cut.json") == 130 and not Path("cut.json").exists()
    with open("cut.json.part", "ab") as file:
        file.write(b'{"rows": [{"image": "many/')  # torn
    assert call(*command, "out=cut.json", "decode=greedy") == 2  # other work
    assert "begun with another decode" in capsys.readouterr().err
    assert call(*command, "out=cut.json") == 0
    assert "goes on     32 of 51 images are done" in capsys.readouterr().out
    assert Path("cut.json").read_bytes() == Path("whole.json").read_bytes() and not Path("cut.json.part").exists()
    rows = json.loads(Path("cut.json").read_text())
    assert len(rows) == len({row["image"] for row in rows}) == 48
    assert all(row["caption"] == expected[f"photos/{Path(row['image']).name}"] for row in rows)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_before_the_file_is_in_its_place(home, monkeypatch, replaces):
    """Its note is there then, and it is not: the same command goes on, also where it replaces an older one."""
    command = ("caption", RUN, "images=photos", "out=c.json", "page=false")
    if replaces:
        assert call(*command, "prompt=a") == 0
        command = (*command, "fresh=true")
    replace = os.replace

    def dies(source, target):
        if str(target) == "c.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("velm_cli.files.os.replace", dies)
        assert call(*command) == 130
    assert Path("c.json").exists() is replaces and Path("c.json.about.json").exists()
    assert call(*(word for word in command if word != "fresh=true")) == 0
    found = json.loads(Path("c.json").read_text())
    assert len(found) == 8 and not all(each["caption"].startswith("a ") for each in found)
    assert call(*(word for word in command if word != "fresh=true")) == 0


@pytest.mark.slow
def test_killed_twice_for_real(home):
    """SIGKILL whenever something has been written: 2,000 images, some of them damaged, each exactly once."""
    for copy in range(240):
        folder = home / f"many/{copy}"
        shutil.copytree(home / "photos", folder)
    damaged(home / "many/7")
    command = [sys.executable, "-m", "velm_cli", "caption", RUN, "images=many", "out=c.jsonl", "page=false"]
    for size in (1000, 60_000):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = Path("c.jsonl.part")
        while not (journal.exists() and journal.stat().st_size > size):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    rows = [json.loads(line) for line in Path("c.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["image"] for row in rows}) == 240 * 8
    assert len(Path("c.jsonl.refused.jsonl").read_text().splitlines()) == 3


MISTAKES = [
    (["images=photos"], "velm: checkpoint is not set: velm caption checkpoint=runs/train/NAME images=FOLDER"),
    ([RUN], "velm: images is not set: velm caption checkpoint=runs/train/NAME images=FOLDER"),
    ([RUN, "images=nowhere"], "velm: images=nowhere does not exist: give a file, a folder, a pattern or a tar"),
    ([RUN, "images=*.gif"], "velm: images=*.gif: there is no image"),
    ([RUN, "images=https://x.org/a.jpg"], "velm opens no addresses; download the images first"),
    ([RUN, "images=photos", "out=c.xlsx"], "its suffix says what is written: .json, .jsonl or .csv"),
    ([RUN, "images=all.tar", "out=sidecar"], "lies in a tar: out=FILE"),
    ([RUN, "images=photos/cut.jpg"], "velm: photos/cut.jpg: truncated"),
    (["checkpoint=runs/train/asked", "images=photos"], "has not learned task=caption"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_mistakes_get_one_line(home, capsys, words, said):
    damaged(home / "photos")
    with tarfile.open("all.tar", "w") as tar:
        tar.add("photos")
    assert call("caption", *words) == 2
    assert said in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- answers


def test_questions_get_the_answers_of_an_evaluation(trained, home, capsys):
    per_example = (trained / "runs/evaluate/answers/per_example.jsonl").read_text().splitlines()
    rows, expected = [], {}
    for line in per_example:
        found = json.loads(line)
        expected[found["id"]] = found["prediction"]
        image = _file(trained, found["about"]["image"])
        rows.append({"image": image.name, "question": found["about"]["question"], "id": found["id"]})
    Path("asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    folder = image.parent
    command = ("answer", "checkpoint=runs/train/asked", "questions=asked.jsonl", f"images={folder}")
    assert call(*command, "out=a.json", "probabilities=2") == 0
    answers = json.loads(Path("a.json").read_text())
    assert {each["question_id"]: each["answer"] for each in answers} == expected
    for each in answers:
        shares = list(each["probabilities"].values())
        assert next(iter(each["probabilities"])) == each["answer"] and shares == sorted(shares, reverse=True)
    assert Path("a.html").exists()
    capsys.readouterr()
    first = sorted(Path("photos").glob("*.jpg"))[0]
    ask = ("answer", "checkpoint=runs/train/asked", f"images={first}")
    assert call(*ask, "question=how many circles are there?", "choices=[yes,no]") == 0
    assert capsys.readouterr().out in ("yes\n", "no\n")
    assert call(*ask) == 2 and "give question=" in capsys.readouterr().err
    assert call(*ask, "question=x", "choices=[yes,maybe so]") == 2
    assert "'maybe so' is not among the" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- search


def test_search_is_exact_and_an_index_goes_on(trained, home, monkeypatch, capsys):
    names = sorted(_expected(trained))
    monkeypatch.setattr("velm_cli.inference.index.BLOCK", 3)
    Path("some.txt").write_text("\n".join(names[:5]))
    damaged(home / "photos")
    assert call("search", "index=idx", RUN, "images=some.txt") == 0
    assert "index       idx  5 images, 5 of them new" in capsys.readouterr().out
    with open("idx/vectors.f32", "ab") as file:
        file.write(b"torn by a kill")
    assert call("search", "index=idx", "images=photos") == 0
    said = capsys.readouterr().out
    assert "index       idx  8 images, 3 of them new" in said and "photos/cut.jpg: truncated" in said

    model = velm_cli.load("runs/train/tiny")
    vectors = model.embed_images(names)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    query = "two red circles above a blue star"
    cosines = vectors.astype(np.float64) @ model.embed_texts(query).astype(np.float64)
    best = [names[place] for place in np.argsort(-cosines)]
    assert call("search", "index=idx", f"query={query}", "top=6", "out=found.json") == 0
    rows = json.loads(Path("found.json").read_text())
    assert [row["image"] for row in rows] == [os.path.abspath(name) for name in best[:6]] and [
        row["rank"] for row in rows
    ] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([row["cosine"] for row in rows], sorted(cosines)[::-1][:6], atol=2e-3)
    assert Path("found.html").exists()
    capsys.readouterr()
    assert call("search", "index=idx", f"image={names[4]}", "top=1") == 0
    assert capsys.readouterr().out.split() == ["1.000", os.path.abspath(names[4])]
    shutil.copy(names[0], names[4])  # another image of the same name is embedded again
    assert call("search", "index=idx", "images=photos", f"image={names[0]}", "top=9", "out=now.json") == 0
    assert "8 images, 1 of them new" in capsys.readouterr().out
    found = [row["image"] for row in json.loads(Path("now.json").read_text())]
    assert set(found[:2]) == {os.path.abspath(names[0]), os.path.abspath(names[4])} and len(set(found)) == 8
    assert call("search", "index=idx") == 2 and call("search", "index=none", "query=a") == 2
    assert "is no index: make one with velm search" in capsys.readouterr().err
    (home / "idx/images.jsonl").write_text(
        json.dumps(sealed({"made_by": "velm", "about": Index(Path("idx")).about | {"weights": "0"}})) + "\n"
    )
    assert call("search", "index=idx", RUN, "query=a") == 2 and "other weights" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- Python


def test_images_come_in_any_form_and_give_the_same_caption(trained, home):
    expected = _expected(trained)
    model, name = velm_cli.load("runs/train/tiny", "cpu"), sorted(expected)[0]
    assert model.can == ("caption", "embed") and model.config.text.kind == "transformer"
    opened = Image.open(name)
    pixels = np.asarray(opened.convert("RGB"))
    forms = [name, Path(name), Path(name).read_bytes(), opened, pixels]
    assert model.caption(name) == expected[name]
    found = model.caption(forms)
    assert found[:3] == [expected[name]] * 3 and all(isinstance(each, str) and each for each in found)
    assert model.caption([]) == [] and model.embed_images([]).shape == (0, model.width)
    assert model.caption(str(each) for each in sorted(expected)) == [expected[each] for each in sorted(expected)]
    assert opened.size == Image.open(name).size, "the caller's image stays as it was"
    three = model.caption(name, n=3, seed=1)
    assert len(three) == 3 and model.caption([name, name], n=3, seed=1) != [three, three[::-1]]
    assert model.caption(name, n=3, seed=1) == three
    assert model.embed_texts("a star").shape == (model.width,) and model.embed_texts(["a", "b"]).shape[0] == 2


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("https://x.org/a.jpg", "velm opens no addresses"),
        ("nowhere.jpg", "nowhere.jpg cannot be used: unreadable: No such file"),
        (b"hello", "not an image"),
        (np.zeros((4, 4, 3), np.float32), "give uint8"),
        (Image.new("RGB", (3, 3)), "too small"),
    ],
)
def test_what_is_no_image_is_said(home, image, said):
    model = velm_cli.load("runs/train/tiny")
    with pytest.raises(velm_cli.UserError, match=said):
        model.caption(image)
    with pytest.raises(velm_cli.UserError, match="has not learned task=vqa"):
        model.answer("photos", "what?")
    with pytest.raises(velm_cli.UserError, match="beams=0"):
        model.caption("x.jpg", beams=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_p": 0.0, "n": 2}, "top_p=0: must be at least"),
        ({"temperature": 0, "n": 2}, "temperature=0: must be at least"),
        ({"length_penalty": float("nan")}, "length_penalty=nan: must be a number"),
        ({"length_penalty": "x"}, "length_penalty='x': must be a number"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number"),
        ({"seed": -1}, "seed=-1: must be a whole number, at least 0"),
        ({"top_k": 5}, "top_k=5 has no effect without n"),
        ({"temperature": 0.5, "best": 2}, "temperature=0.5 has no effect without n"),
        ({"length_penalty": 2.0, "n": 2}, "length_penalty=2.0 has no effect with n"),
        ({"prompt": None}, "prompt: give a text"),
        ({"prompt": "\ud800"}, "is no text that UTF-8 can hold"),
    ],
)
def test_options_out_of_bounds_are_said(home, options, said):
    with pytest.raises(velm_cli.UserError, match=re.escape(said)):
        velm_cli.load("runs/train/tiny").caption("photos", **options)


def test_what_is_neither_image_nor_text_is_said(home):
    model = velm_cli.load("runs/train/tiny")
    for given in (None, 3, "a\0b.jpg"):
        with pytest.raises(velm_cli.UserError):
            model.caption(given)
    with pytest.raises(velm_cli.UserError, match="an open file"), next(Path("photos").iterdir()).open("rb") as file:
        model.caption(file)
    for texts in (None, 5, [None], "\ud800"):
        with pytest.raises(velm_cli.UserError):
            model.embed_texts(texts)
    with pytest.raises(velm_cli.UserError):
        velm_cli.load("runs/train/tiny", device="meta")


def test_a_prompt_is_read_before_the_first_word(trained, home):
    """By brute force: each next token is the likeliest behind image, BOS, prompt and what was written so far."""
    import torch

    model = velm_cli.load("runs/train/tiny", "cpu", precision="fp32")
    names = sorted(_expected(trained))
    prompt = "two blue"
    found = model.caption(names, prompt=prompt, beams=1, max_length=6)
    able, learner = model._able, model._able.learner
    tokenizer = able.tokenizer
    banned = tokenizer.never_written
    for name, caption in zip(names, found, strict=True):
        batch = next(model._batches(_given(model, name), 1))
        with torch.no_grad():
            memory = learner.memory(batch)
            text = [tokenizer.bos_id, *tokenizer.encode_batch([prompt])[0]]
            for _ in range(6):
                fused, _ = learner.model.fusion.read(learner.model.text, torch.tensor([text]), memory)
                logits = learner.model.logits(fused[0, -1:])[0]
                logits[banned] = -torch.inf
                token = int(logits.argmax())
                if token == tokenizer.eos_id:
                    break
                text.append(token)
        assert caption == tokenizer.decode(text) and caption.startswith(prompt)


def _given(model, name):
    from velm_cli.inference.examples import Given

    return Given([model.stored(name)])


def test_one_text_is_no_list_of_texts(trained, home):
    """Its letters would be taken for the answers."""
    asking, captioning, name = (
        velm_cli.load("runs/train/asked"),
        velm_cli.load("runs/train/tiny"),
        sorted(_expected(trained))[0],
    )
    with pytest.raises(velm_cli.UserError, match="choices='yes': give a list of texts"):
        asking.answer(name, "is it red", choices="yes")
    with pytest.raises(velm_cli.UserError, match="allowed='a dog': give a list of texts"):
        captioning.caption(name, allowed="a dog")


def test_options_of_writing_are_refused_where_the_answer_is_chosen(trained, home, capsys):
    model, name = velm_cli.load("runs/train/asked"), sorted(_expected(trained))[0]
    with pytest.raises(velm_cli.UserError, match="min_length has no effect: the answer is the likeliest of a list"):
        model.answer(name, "is it red", min_length=3)
    Path("allowed.txt").write_text("maybe\n")
    for option in ("allowed=allowed.txt", "no_repeat_ngram=2", "method=nucleus"):
        command = ["answer", "checkpoint=runs/train/asked", f"images={name}", "question=is it red"]
        assert call(*command, f"decode.{option}") == 2
        assert f"{option.partition('=')[0]} has no effect" in capsys.readouterr().err


def test_answers_of_lists_in_pairs_and_of_one_image(trained, home):
    model, names = velm_cli.load("runs/train/asked"), sorted(_expected(trained))[:3]
    asked = ["how many circles are there?", "is there a red star?", "what colour is the square?"]
    of_one = model.answer(names[0], asked)
    assert of_one == [model.answer(names[0], each) for each in asked]
    assert model.answer(names, asked) == [model.answer(name, each) for name, each in zip(names, asked, strict=True)]
    assert model.answer(names, asked[0]) == [model.answer(name, asked[0]) for name in names]
    shares = model.answer(names[0], asked[1], choices=["no", "yes"], probabilities=2)
    assert set(shares) == {"no", "yes"} and sum(shares.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(velm_cli.UserError, match="2 images and 3 questions"):
        model.answer(names[:2], asked)


def test_scores_are_those_of_velm_score(trained, home):
    references = {1: ["a red circle", "one red circle"], 2: ["two blue stars", "blue stars"]}
    predictions = {1: "a red circle", 2: "two stars"}
    Path("p.json").write_text(json.dumps([{"image_id": k, "caption": v} for k, v in predictions.items()]))
    Path("r.json").write_text(json.dumps({str(k): v for k, v in references.items()}))
    assert call("score", "predictions=p.json", "references=r.json", "metrics=fast", "out=scored") == 0
    written = json.loads(Path("scored/scores.json").read_text())
    for one, other in (
        (predictions, references),
        ("p.json", "r.json"),
        ([*predictions.values()], [*references.values()]),
    ):
        found = velm_cli.score(one, other)
        assert found["CIDEr"] == pytest.approx(written["CIDEr"], abs=1e-12)
        assert found["Bleu_4"] == pytest.approx(written["Bleu_4"], abs=1e-12)
    answers = velm_cli.score({7: "no"}, {7: ["no"] * 9 + ["yes"]}, task="vqa")
    assert answers["VQA"] == 1
    with pytest.raises(velm_cli.UserError, match="no prediction"):
        velm_cli.score({1: "a"}, references)


def test_importing_it_loads_no_torch_and_takes_no_time():
    code = (
        "import sys, time; began = time.perf_counter(); import velm_cli; took = time.perf_counter() - began\n"
        "assert not {'torch', 'numpy', 'hydra', 'omegaconf'} & set(sys.modules), 'heavy'\n"
        "assert {'load', 'score', 'Model', 'UserError'} <= set(dir(velm_cli))\n"
        "print(took)"
    )
    took = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(3)
    )
    assert took < 0.1


def test_a_dry_run_writes_nothing(home):
    done = velm("caption", RUN, "images=photos", "out=x/c.json", "dry_run=true", cwd=home)
    assert done.returncode == 0 and "would caption 8 images" in done.stdout and not Path("x/c.json").exists()


# ------------------------------------------------------------------ several captions, and lists of them


def test_all_captions_of_an_image_are_in_results_and_on_the_page(home, capsys):
    best = ["decode.beams=3", "decode.samples=3"]
    assert call("caption", RUN, "images=photos", "out=one.json", "decode.beams=3") == 0
    assert call("caption", RUN, "images=photos", "out=few.json", *best) == 0
    one, few = (json.loads((home / name).read_text()) for name in ("one.json", "few.json"))
    assert [row["caption"] for row in few] == [row["caption"] for row in one]
    assert all(row["captions"][0] == row["caption"] and len(row["captions"]) == 3 for row in few)
    further = next(text for row in few for text in row["captions"][1:] if text not in {each["caption"] for each in few})
    assert f'"{further}"' in (home / "few.html").read_text()
    assert call("caption", RUN, "images=photos", "out=few.csv", "page=false", *best) == 0
    rows = list(csv.DictReader((home / "few.csv").read_text().splitlines()))
    assert [json.loads(row["captions"]) for row in rows] == [row["captions"] for row in few]
    capsys.readouterr()
    assert call("caption", RUN, f"images={few[0]['image']}", *best) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "\t".join(few[0]["captions"])
    model = velm_cli.load("runs/train/tiny")
    photo = few[0]["image"]
    assert model.caption(photo, beams=3, best=3) == few[0]["captions"]
    assert model.caption([photo], beams=3, best=2) == [few[0]["captions"][:2]]
    with pytest.raises(velm_cli.UserError, match="give one of them"):
        model.caption(photo, n=2, best=2)
    with pytest.raises(velm_cli.UserError, match=r"best=4: there are no more captions than beams=3"):
        model.caption(photo, beams=3, best=4)


def test_an_evaluation_scores_the_first_caption_and_keeps_all(home, tmp_path):
    shutil.rmtree(tmp_path / "evaluated", ignore_errors=True)
    where = [RUN, "metrics.names=[bleu]", "limit=4", f"run.dir={tmp_path / 'evaluated'}"]
    assert call("eval", *where, "decode.beams=2") == 0
    assert call("eval", *where, "decode.beams=2", "decode.samples=2", "decode.min_length=3") == 0
    plain, several = sorted((tmp_path / "evaluated" / "evaluate").iterdir(), key=lambda path: len(path.name))
    assert several.name == f"{plain.name}-samples_2-min_length_3"
    told = [json.loads((path / "scores.json").read_text())["signature"]["decoding"] for path in (plain, several)]
    assert told[0] == "2 beams, length penalty 1.0, at most 30 tokens"
    assert told[1] == f"{told[0]}, samples 2, min length 3"
    first = {row["image_id"]: row["caption"] for row in json.loads((several / "predictions.json").read_text())}
    found = json.loads((several / "all_captions.json").read_text())
    assert {row["image_id"]: row["captions"][0] for row in found} == first
    assert all(len(row["captions"]) == 2 for row in found)
    assert (
        f'"others":{json.dumps([row["captions"][1:] for row in found], separators=(",", ":"))}'
        in (several / "report.html").read_text()
    )
    assert call("report", str(several), f"out={tmp_path / 'again.html'}") == 0
    assert '"others":[[' in (tmp_path / "again.html").read_text()


def test_captions_of_a_list(home, capsys):
    words = list(_expected(home).values())
    listed = [*dict.fromkeys(words[:3]), " ".join(words[0].split()[::-1])]
    (home / "listed.txt").write_text("\ufeff" + "\r\n".join([*listed, "", listed[0]]))
    out = ["images=photos", "page=false", "decode.allowed=listed.txt"]
    assert call("caption", RUN, "out=greedy.json", "decode.beams=1", *out) == 0
    assert call("caption", RUN, "out=beams.json", "decode.beams=4", *out) == 0
    for name in ("greedy.json", "beams.json"):
        assert {row["caption"] for row in json.loads((home / name).read_text())} <= set(listed)
    (home / "listed.txt").write_text(listed[-1])
    assert call("caption", RUN, "out=beams.json", "decode.beams=4", *out) == 2
    assert "another decode" in capsys.readouterr().err, "the file has changed"
    model = velm_cli.load("runs/train/tiny")
    photo = next(iter(_expected(home)))
    assert model.caption(photo, allowed=[listed[-1]]) == listed[-1]
    assert set(model.caption(photo, n=4, allowed=listed)) <= set(listed)
    for texts, line in ((["a zyzzyva"], "not in the vocabulary"), ([], "at least one"), ([listed[0]], "max_length=")):
        with pytest.raises(velm_cli.UserError, match=line):
            model.caption(photo, allowed=texts, max_length=2 if line == "max_length=" else 30)
    begin, rest = listed[0].split(" ", 1)
    assert model.caption(photo, prompt=begin, allowed=[rest]) == listed[0]
    with pytest.raises(velm_cli.UserError, match="all of them begin with it"):  # the beginning would be written twice
        model.caption(photo, prompt=begin, allowed=[listed[0]])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["decode.samples=3"], "decode.samples=3: no more texts than beams"),
        (["decode.min_length=31"], "decode.min_length=31 is above decode.max_length=30"),
        (["decode.allowed=nowhere.txt"], "decode.allowed=nowhere.txt: no such file"),
        (["decode.top_k=5"], "decode.top_k=5 has no effect with decode.method=beam"),
        (["decode.repetition_penalty=0"], "decode.repetition_penalty=0: must be above 0"),
        (["decode.no_repeat_ngram_size=3"], "did you mean 'decode.no_repeat_ngram'"),
    ],
)
def test_options_of_decoding_that_do_not_fit_get_one_line(home, words, line, capsys):
    assert call("caption", RUN, "images=photos", "decode.beams=1", *words) == 2
    assert line in capsys.readouterr().err
