"""Conversations out of LLaVA's files, FineVision's rows and messages; and what bad rows become."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velm_cli import schema
from velm_cli.data.conversations import Message, parsed
from velm_cli.data.examples import Corpus, Example
from velm_cli.data.readers import read
from velm_cli.data.readers.chat_forms import said_in
from velm_cli.errors import UserError


def images_in(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 40, 90, 30)).save(folder / name)


def corpus_of(root: Path, rows, name: str = "train.json", **options) -> Corpus:
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    (root / name).write_text(text, encoding="utf-8")
    return read(schema.ChatConfig(root=str(root), file=options.pop("file", name), **options))


def llava(*said: str, image=None, **more) -> dict:
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    return {"id": "one", "conversations": turns} | ({} if image is None else {"image": image}) | more


def talk(example: Example) -> list[Message]:
    assert example.source is not None
    return parsed(example.source)


def test_llavas_rows(tmp_path):
    images_in(tmp_path, "coco/a.jpg", "b.png")
    rows = [
        llava("<image>\nWhat is\r\nit?", "A cat.\n- black", "And where?", "On a mat.", image="coco/a.jpg"),
        llava("Is <image> like <image> or\n<image>?", "No.", image=["b.png", "coco/a.jpg", "b.png"], id=7),
        llava("Hello!", "Hi.", id="text"),
    ]
    corpus = corpus_of(tmp_path, rows)
    number, one, text = corpus.examples
    assert talk(one) == [
        Message("user", (0, "What is\nit?")),
        Message("assistant", ("A cat.\n- black",)),
        Message("user", ("And where?",)),
    ]
    assert one.targets == ("On a mat.",) and [image.path for image in one.images] == [tmp_path / "coco/a.jpg"]
    assert one.about == {"turns": "2", "images": "1"}
    assert talk(number) == [Message("user", ("Is ", 0, " like ", 1, " or", 0, "?"))] and number.id == 7
    assert [image.id for image in number.images] == ["b.png", "coco/a.jpg"]
    assert text.images == () and talk(text) == [Message("user", ("Hello!",))]
    assert not corpus.refused and {example.split for example in corpus.examples} == {"train"}


def test_pairs_and_messages(tmp_path):
    images_in(tmp_path, "a.jpg", "b.jpg")
    rows = [
        {"images": ["a.jpg", {"path": "b.jpg"}], "source": "ai2d",
         "texts": [{"user": "Which?", "assistant": "B", "source": "x"}, {"user": "Sure?", "assistant": "Yes"}]},
        {"messages": [{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"},
                                                   {"type": "text", "text": " here."}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "Seen."}]}], "images": ["b.jpg"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.jpg"}, "what?"]},
                      {"role": "assistant", "content": "It."}]},
    ]  # fmt: skip
    corpus = corpus_of(tmp_path, rows, "train.jsonl")
    pairs, own, system = sorted(corpus.examples, key=lambda example: len(talk(example)), reverse=True)
    if len(talk(own)) == 1:
        own, system = system, own
    assert talk(pairs)[0] == Message("user", (0, 1, "Which?")) and pairs.targets == ("Yes",)
    assert pairs.about == {"turns": "2", "images": "2", "source": "ai2d"}
    assert talk(own) == [Message("system", ("Be brief.",)), Message("user", ("See ", 0, " here."))]
    assert talk(system) == [Message("user", (0, "what?"))] and system.images[0].path == tmp_path / "a.jpg"


def test_parts_and_shares(tmp_path):
    images_in(tmp_path, *(f"{n}.jpg" for n in range(40)))
    rows = [llava("<image>what?", "this", image=f"{n % 40}.jpg", id=n) for n in range(120)]
    corpus = corpus_of(tmp_path, rows, "all.json", val_fraction=0.2, test_fraction=0.2)
    part_of: dict[str, set[str]] = {}
    for example in corpus.examples:
        part_of.setdefault(str(example.images[0].id), set()).add(example.split)
    assert all(len(parts) == 1 for parts in part_of.values()) and len(set.union(*part_of.values())) == 3
    assert any("split by a hash of the first image" in note for note in corpus.notes)
    shutil.copy(tmp_path / "all.json", tmp_path / "more.json")
    both = read(schema.ChatConfig(root=str(tmp_path), file={"train": "all.json", "val": ["more.json"]}))
    assert both.counts() == {"train": 120, "val": 120, "test": 0}
    assert any("120 ids came again" in note for note in both.notes)
    with pytest.raises(UserError, match=r"dataset.file: tran is not train, val or test.*train"):
        read(schema.ChatConfig(root=str(tmp_path), file={"tran": "all.json"}))
    with pytest.raises(UserError, match="does not exist"):
        read(schema.ChatConfig(root=str(tmp_path), file="nothing.json"))
    with pytest.raises(UserError, match=r"dataset.file is not set"):
        read(schema.ChatConfig())


def test_a_test_file_may_end_with_a_question(tmp_path):
    rows = [llava("Hi.", "Hello.", "And now?", id=1), llava("What?", id=2)]
    corpus = corpus_of(tmp_path, rows, "test.json", images=False)
    assert [(len(talk(example)), example.targets) for example in corpus.examples] == [(3, ()), (1, ())]
    corpus = corpus_of(tmp_path, [rows[0]], "train.json", images=False)
    assert [(len(talk(example)), example.targets) for example in corpus.examples] == [(1, ("Hello.",))]
    assert any("1 conversations without the turns that no reply follows" in note for note in corpus.notes)


BAD = {
    "two places": (llava("<image><image>?", "a", image="a.jpg"), "1 images, and 2 places for them"),
    "no image": (llava("<image>?", "a"), "0 images, and 1 places for them"),
    "unknown role": ({"conversations": [{"from": "tool", "value": "x"}]}, "unknown role 'tool' in turn 1"),
    "no role": ({"messages": [{"content": "x"}]}, "unknown role 'None' in turn 1"),
    "no reply": (llava("what?"), "no assistant turn"),
    "empty reply": (llava("what?", " \n"), "the last reply is empty"),
    "empty reply before": (llava("what?", "", "so?", "a"), "an assistant's turn is empty"),
    "empty question": (llava(" ", "a"), "a user's turn is empty"),
    "number": ({"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]}, "turn 1 is not text"),
    "null": ({"conversations": [{"from": "human", "value": None}]}, "turn 1 is not text"),
    "no turns": ({"conversations": []}, "is no list of turns"),
    "text as turns": ({"conversations": "hello"}, "is no list of turns"),
    "turn as text": ({"conversations": ["hello"]}, "turn 1 is not an object"),
    "nothing": ({"image": "a.jpg"}, "no conversations, messages or texts: the keys are image"),
    "only a system": ({"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}, ""),
    "late system": (
        {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]},
        "a system turn stands behind others",
    ),
    "image in the reply": (llava("?", "a <image>", image="a.jpg"), "an image stands in the last reply"),
    "address": (llava("<image>?", "a", image="http://x/a.jpg"), "the image is an address on the web"),
    "data": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
        "the image is inside the text",
    ),
    "part": ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "neither text nor image: video"),
    "image number": (llava("<image>?", "a", image=3), "holds no paths"),
    "bytes": (llava("<image>?", "a", image={"bytes": "abc"}), "holds no paths"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_its_reason_and_the_others_stay(tmp_path, name):
    row, reason = BAD[name]
    images_in(tmp_path, "a.jpg")
    corpus = corpus_of(tmp_path, [row, llava("<image>?", "yes", image="a.jpg", id="good"), "junk", None, 7])
    assert [example.id for example in corpus.examples] == ["good"]
    reasons = [why for _, why in corpus.refused]
    assert len(reasons) == 4 and reason in reasons[0] and all("not an object" in why for why in reasons[1:])


def test_hostile_texts_and_files(tmp_path):
    images_in(tmp_path, "a.jpg")
    odd = "nul\0 esc\x1b bom\ufeff half\ud800 line\u2028end\tTab"
    corpus = corpus_of(tmp_path, [llava(odd, odd, id="odd")], "odd.train.jsonl")
    (example,) = corpus.examples
    assert example.targets == ("nul  esc  bom  half  line\nend\tTab",)
    (tmp_path / "bom.train.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([llava("a", "b")]).encode())
    assert len(read(schema.ChatConfig(file=str(tmp_path / "bom.train.json"), images=False)).examples) == 1
    (tmp_path / "lines.jsonl").write_text('{"conversations": \n' + json.dumps(llava("a", "b")) + "\n[1]\n\n")
    corpus = read(schema.ChatConfig(file=str(tmp_path / "lines.jsonl"), images=False, val_fraction=0, test_fraction=0))
    assert len(corpus.examples) == 1 and len(corpus.refused) == 2
    for content in ("", "[]", "{}", '"text"', "[1, 2", '{"data": [{}]}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError):
            read(schema.ChatConfig(file=str(tmp_path / "bad.json")))
    deep: list = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValueError, match="neither text nor image"):
        said_in({"messages": [{"role": "user", "content": deep}]})


def test_absent_images(tmp_path):
    images_in(tmp_path, "a.jpg")
    rows = [llava("<image>?", "a", image=f"{name}.jpg", id=name) for name in "ab"]
    with pytest.raises(UserError, match=r"1 of 2 examples have an image that is missing.*b\.jpg"):
        corpus_of(tmp_path, rows)
    corpus = corpus_of(tmp_path, rows, missing=schema.Missing.skip)
    assert [example.id for example in corpus.examples] == ["a"]
    assert len(corpus_of(tmp_path, rows, images=False).examples) == 2


def test_too_many_images(tmp_path):
    images_in(tmp_path, "a.jpg", "b.jpg")
    rows = [llava("<image><image>", "a", image=["a.jpg", "b.jpg"]), llava("?", "b", id=2)]
    corpus = corpus_of(tmp_path, rows, max_images=1)
    assert [why for _, why in corpus.refused] == ["2 images, dataset.max_images=1"]


def test_parquet_with_images_inside(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from velm_cli.data.images import ImageRefused
    from velm_cli.data.table_images import normalise_any

    def png(colour) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (24, 16), colour).save(out, "PNG")
        return out.getvalue()

    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    rows = [
        {"images": [{"bytes": png(colours[0]), "path": None}, {"bytes": png(colours[1]), "path": "x.png"}],
         "texts": [{"user": "which?", "assistant": "left", "source": "t"}], "source": "toy"},
        {"images": [], "texts": [{"user": "hello", "assistant": "hi", "source": "t"}], "source": "toy"},
        {"images": [{"bytes": png(colours[2]), "path": None}],
         "texts": [{"user": "what?", "assistant": "blue", "source": "t"}], "source": "toy"},
        {"images": [{"bytes": b"no image", "path": None}],
         "texts": [{"user": "what?", "assistant": "bad", "source": "t"}], "source": "toy"},
    ]  # fmt: skip
    file = tmp_path / "train-00000.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    corpus = read(schema.ChatConfig(file=str(file)))
    assert [len(example.images) for example in corpus.examples] == [2, 0, 1, 1]
    limits = {"image_size": 16, "quality": 95, "max_pixels": 10**6}
    seen = []
    for example in list(corpus.examples)[:3]:
        for image in example.images:
            pixels = np.asarray(Image.open(io.BytesIO(normalise_any(image.path, **limits).jpeg)))
            seen.append(pixels.mean(axis=(0, 1)).round(-1).clip(0, 250).tolist())
    assert seen == [list(map(float, colour)) for colour in colours[:3]]
    (broken,) = list(corpus.examples)[3].images
    with pytest.raises(ImageRefused):
        normalise_any(broken.path, **limits)
    with pytest.raises(ImageRefused, match="unreadable"):
        normalise_any(Path(f"{file}#row=99image=0"), **limits)
    with pytest.raises(ImageRefused, match="unreadable"):
        normalise_any(Path(f"{tmp_path}/absent.parquet#row=0image=0"), **limits)
    parquet.write_table(pa.Table.from_pylist([{"a": 1}]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has no column conversations, messages"):
        read(schema.ChatConfig(file=str(tmp_path / "other.parquet")))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read(schema.ChatConfig(file=str(tmp_path / "broken.parquet")))


@pytest.mark.parametrize("content", ["", "[]", '{"data": []}'])
def test_a_file_without_rows_is_said_to_be_empty(tmp_path, content):
    (tmp_path / "none.json").write_text(content)
    with pytest.raises(UserError, match=r"none\.json holds no conversations: it has no rows"):
        read(schema.ChatConfig(file=str(tmp_path / "none.json")))


def test_what_is_no_file_is_told_what_conversations_lie_in(tmp_path):
    for name, what in (("absent.json", "does not exist"), ("", "is a folder")):
        with pytest.raises(UserError, match=f"{what}; give files of conversations") as error:
            read(schema.ChatConfig(file=str(tmp_path / name)))
        assert "captions" not in str(error.value) and "dataset=folder" not in str(error.value)
