"""One interface of every kind of store: what each answers is what the examples say, worked out by hand here."""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velm_cli.data.examples import Corpus, Example, ImageRef, captioned
from velm_cli.data.image_table import ImageTable
from velm_cli.data.making import build_part, build_store
from velm_cli.data.opening import open_store
from velm_cli.data.parts import Part
from velm_cli.data.store import Store
from velm_cli.data.stream_building import build_stream
from velm_cli.errors import StageError, UserError
from velm_cli.schema import (
    DoctorRoot,
    ManifestConfig,
    PreprocessConfig,
    TokenizerConfig,
    TokenizerKind,
    WebDatasetConfig,
)
from velm_cli.stages import doctor

SPLITS = ("train", "val", "test")
DATASET = ManifestConfig(root="photos", image_size=16)
SMALL = PreprocessConfig(workers=1, shard_images=7, num_concepts=20)
WORDS = ["dog", "cat", "tree", "two", "yes", "no", "é", "the"]


@dataclass
class Case:
    """A store, and what it was made of: its examples by number, and the pixels' number of each image."""

    store: Store
    examples: list[Example]
    pictures: dict[int | str, int]


def picture(number: int, side: int = 24) -> bytes:
    """A JPEG whose red value says its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (8 * number, 0, 255 - 8 * number)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def number_of(jpeg: bytes) -> int:
    return round(np.asarray(Image.open(io.BytesIO(jpeg)))[..., 0].mean() / 8)


def sentence(rng: random.Random, most: int = 6) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def questions(folder: Path, seed: int, bad: tuple[int, ...] = ()) -> tuple[list[Example], dict[int | str, int]]:
    """Random questions of 0 to 3 of 20 images; some without source, answers or facts. In the order of a store."""
    rng = random.Random(seed)
    folder.mkdir()
    refs = []
    for number in range(20):
        path = folder / f"{number}.jpg"
        path.write_bytes(b"no image" if number in bad else picture(number))
        refs.append(ImageRef(number * 10 if number % 2 else f"image {number}", path))
    examples = []
    for split in SPLITS:
        for name in range(15):
            examples.append(
                Example(
                    id=name + 100 * SPLITS.index(split),
                    split=split,
                    images=tuple(rng.sample(refs, rng.choice((0, 1, 1, 1, 2, 3)))),
                    source=sentence(rng) if rng.random() < 0.8 else None,
                    targets=tuple(sentence(rng, 2) for _ in range(rng.randint(0, 10))),
                    about={key: rng.choice("abc") for key in ("question_type", "answer_type") if rng.random() < 0.7},
                )
            )
    return examples, {ref.id: number for number, ref in enumerate(refs)}


def vqa(folder: Path) -> Case:
    examples, pictures = questions(folder / "photos", random.randrange(10**6))
    store = build_store(Corpus(examples), DATASET, SMALL, folder / "store", progress=False)
    assert store.manifest["format"] == 2
    return Case(store, examples, pictures)


def captions(folder: Path) -> Case:
    (folder / "photos").mkdir()
    rng, examples, pictures = random.Random(), [], {}
    for number in range(30):
        path = folder / "photos" / f"{number}.jpg"
        path.write_bytes(picture(number))
        texts = [sentence(rng) for _ in range(rng.randint(0, 5))]
        examples.append(captioned(number, SPLITS[number // 10], path, texts))
        pictures[number] = number
    store = build_store(Corpus(examples), DATASET, SMALL, folder / "store", progress=False)
    assert store.manifest["format"] == 1
    return Case(store, examples, pictures)


def stream(folder: Path) -> Case:
    """Two shards to train on and one that is held out: only the latter's samples have numbers."""
    rng, examples = random.Random(), []
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(10 * shard, 10 * shard + 10):
                texts = [sentence(rng) for _ in range(rng.randint(1, 5))]
                about = json.dumps({"captions": texts, "image_id": number}).encode()
                for name, content in ((f"{number:03d}.jpg", picture(number)), (f"{number:03d}.json", about)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                if shard == 2:
                    examples.append(captioned(number, "val", folder / "x", texts))
    config = WebDatasetConfig(urls=str(folder / "{0,1}.tar"), val_urls=str(folder / "2.tar"), image_size=16)
    store = build_stream(config, SMALL, folder / "store", progress=False)
    return Case(store, examples, {number: number for number in range(30)})


@pytest.fixture(scope="module", params=[vqa, captions, stream], ids=lambda make: make.__name__)
def case(request, tmp_path_factory) -> Case:
    return request.param(tmp_path_factory.mktemp("contract"))


def test_it_has_all_that_a_store_has(case):
    members = {name for name in vars(Store) if not name.startswith("_")} | {"__len__", "__reduce__"}
    assert len(members) > 25 and all(hasattr(case.store, name) for name in members)
    opened = open_store(case.store.path)
    assert type(opened) is type(case.store) and opened.hash == case.store.hash
    assert Store not in type(case.store).__mro__, "they are of one shape, not of one family"


def test_examples_come_back(case):
    store, examples = case.store, case.examples
    assert len(store) == len(examples) and list(store.ids) == [example.id for example in examples]
    for i, example in enumerate(examples):
        assert store.example_id(i) == example.id
        assert store.targets(i) == list(example.targets)
        assert store.source(i) == example.source
        assert store.about(i) == example.about
        start, stop = store.target_range(i)
        assert [store.all_targets[c] for c in range(start, stop)] == list(example.targets)
        named = {store.concept_names[label] for label in store.concepts(i)}
        assert named == {word for text in example.targets for word in text.split()} & set(store.concept_names)
    some = np.array(random.choices(range(len(examples)), k=20))
    assert store.target_ranges(some).tolist() == [list(store.target_range(i)) for i in some.tolist()]
    for split in SPLITS:
        assert store.split(split).tolist() == [i for i, example in enumerate(examples) if example.split == split]
    with pytest.raises(UserError, match="no split 'dev'"):
        store.split("dev")
    sources = [example.source or "" for example in examples]
    assert [store.all_sources[i] for i in range(len(store.all_sources))] == (sources if any(sources) else [])


def test_images_come_back_each_once(case):
    store, examples = case.store, case.examples
    used = list(dict.fromkeys(ref.id for example in examples for ref in example.images))
    assert store.has_images and store.num_images == len(used)
    assert [store.image_name(x) for x in range(store.num_images)] == used  # in the order of first use
    assert [number_of(store.image_bytes(x)) for x in range(store.num_images)] == [case.pictures[name] for name in used]
    numbers = [[used.index(ref.id) for ref in example.images] for example in examples]
    assert store.one_image_each == (numbers == [[i] for i in range(len(examples))])


def test_images_of_examples_are_as_by_hand(case):
    store, examples = case.store, case.examples
    for count in (0, 1, 2, 7, 40):
        chosen = random.choices(range(len(examples)), k=count)
        images_X, image_of_BI = store.images_of(np.array(chosen, np.int64))
        wanted = [[ref.id for ref in examples[i].images] for i in chosen]
        distinct = list(dict.fromkeys(name for names in wanted for name in names))
        assert images_X.dtype == image_of_BI.dtype == np.int64
        assert [store.image_name(x) for x in images_X.tolist()] == distinct
        most = max(map(len, wanted), default=0)
        expected = [[distinct.index(name) for name in names] + [-1] * (most - len(names)) for names in wanted]
        assert image_of_BI.shape == (count, most) and image_of_BI.tolist() == expected


def test_each_column_has_tokens_of_its_own(case):
    store, examples = case.store, case.examples
    config = TokenizerConfig(min_count=1, max_tokens=4, max_source_tokens=3)
    targets = store.tokens(config)
    texts = [store.all_targets[c] for c in range(len(store.all_targets))]
    assert len(targets.offsets) == len(texts) + 1
    for c, ids in enumerate(targets.tokenizer.encode_batch(texts)):
        assert targets.caption(c).tolist() == ids[:4]
    assert targets.cut == sum(len(text.split()) > 4 for text in texts)
    if len(store.all_sources):
        sources = store.tokens(config, "sources")
        assert sources.tokenizer.digest == targets.tokenizer.digest and sources.folder != targets.folder
        for i, example in enumerate(examples):
            ids = sources.tokenizer.encode_batch([example.source or ""])[0]
            assert sources.caption(i).tolist() == ids[:3]
        assert sources.cut == sum(len((example.source or "").split()) > 3 for example in examples)
        again = store.encode(targets.tokenizer, 3, "sources")
        assert again.folder == sources.folder


def test_it_travels_to_other_processes_by_name(case):
    data = pickle.dumps(case.store)
    assert len(data) < 2000
    other = pickle.loads(data)
    assert list(other.ids) == list(case.store.ids) and other.image_bytes(3) == case.store.image_bytes(3)


def test_doctor_reads_all_of_it(case, capsys):
    assert doctor.run(DoctorRoot(store=str(case.store.path))) == 0
    assert "all bytes are as they were written" in capsys.readouterr().out
    assert list(case.store.damage()) == [None] * len(list(case.store.damage()))


# ---------------------------------------------------------------------------------------- two tables


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return Corpus(questions(tmp_path / "photos", 3, bad=(4, 11))[0])


def test_a_refused_image_takes_its_examples_with_it(corpus, tmp_path):
    store = build_store(corpus, DATASET, SMALL, tmp_path / "store", progress=False)
    bad = {"image 4", 110}
    lost = [e for e in corpus.examples if bad & {ref.id for ref in e.images}]
    kept = [e for e in corpus.examples if not bad & {ref.id for ref in e.images}]
    assert lost and list(store.ids) == [example.id for example in kept]
    for i, example in enumerate(kept):
        images_X, image_of_BI = store.images_of(np.array([i]))
        assert [store.image_name(x) for x in images_X[image_of_BI[0]].tolist()] == [ref.id for ref in example.images]
    rejects = {r["image_id"]: r for r in map(json.loads, (store.path / "rejects.jsonl").read_text().splitlines())}
    assert rejects.keys() == bad
    for name, reject in rejects.items():
        assert reject["reason"].startswith("not an image")
        assert reject["examples"] == sum(name in {ref.id for ref in e.images} for e in corpus.examples)
    counts = store.manifest["counts"]
    assert (counts["records"], counts["refused"]) == (len(kept), 2)
    for split in SPLITS:
        mine = [example for example in kept if example.split == split]
        assert counts["splits"][split] == {
            "records": len(mine),
            "captions": sum(len(example.targets) for example in mine),
            "images": len({ref.id for example in mine for ref in example.images}),
            "sources": sum(example.source is not None for example in mine),
        }


def test_parts_in_any_order_and_other_shards_make_the_same_content(corpus, tmp_path):
    whole = build_store(corpus, DATASET, SMALL, tmp_path / "whole", progress=False)
    for number in (3, 1, 2):
        build_part(corpus, DATASET, SMALL, tmp_path / "parts", Part(number, 3), progress=False)
    parts = build_store(corpus, DATASET, SMALL, tmp_path / "parts", progress=False)
    other = PreprocessConfig(workers=1, shard_images=100, num_concepts=20)
    assert whole.hash == parts.hash == build_store(corpus, DATASET, other, tmp_path / "o", progress=False).hash
    same = {file.name: file.read_bytes() for file in (tmp_path / "whole").glob("*") if file.is_file()}
    assert same == {file.name: file.read_bytes() for file in (tmp_path / "parts").glob("*") if file.is_file()}


@pytest.mark.parametrize("change", ["source", "about", "images", "target", "id", "order of images"])
def test_the_hash_and_the_plan_tell_every_change(corpus, tmp_path, change):
    first = build_store(corpus, DATASET, SMALL, tmp_path / "store", progress=False)
    examples = list(corpus.examples)
    at = next(i for i, e in enumerate(examples) if len(e.images) > 1 and {r.id for r in e.images} & {4, 110} == set())
    old = examples[at]
    examples[at] = {
        "source": Example(old.id, old.split, old.images, "another question", old.targets, old.about),
        "about": Example(old.id, old.split, old.images, old.source, old.targets, {"answer_type": "new"}),
        "images": Example(old.id, old.split, old.images[:1], old.source, old.targets, old.about),
        "target": Example(old.id, old.split, old.images, old.source, (*old.targets, "more"), old.about),
        "id": Example("new", old.split, old.images, old.source, old.targets, old.about),
        "order of images": Example(old.id, old.split, old.images[::-1], old.source, old.targets, old.about),
    }[change]
    with pytest.raises(UserError, match=r"was made from something else: other"):
        build_store(Corpus(examples), DATASET, SMALL, tmp_path / "store", progress=False)
    assert build_store(Corpus(examples), DATASET, SMALL, tmp_path / "b", progress=False).hash != first.hash


def test_every_byte_of_the_new_files_is_checked(corpus, tmp_path):
    store = build_store(corpus, DATASET, SMALL, tmp_path / "store", progress=False)
    names = ["example_images.npy", "example_image_offsets.npy", "source_text.npy", "source_offsets.npy", "about.npy"]
    for name in [*names, "image_ids.json", "about.json"]:
        file = store.path / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises((UserError, StageError), match=rf"is damaged \({name} has changed"):
            open_store(store.path)
        file.write_bytes(whole)
    assert open_store(store.path).hash == store.hash


def test_vocabulary_comes_from_training_answers_and_questions(tmp_path):
    def example(number: int, split: str, question: str, answer: str) -> Example:
        return Example(number, split, source=question, targets=(answer,))

    examples = [example(1, "train", "what colour", "red"), example(2, "val", "what shape", "round")]
    text = ManifestConfig(root="photos", images=False)
    store = build_store(Corpus(examples), text, SMALL, tmp_path / "store")
    assert not store.has_images and store.num_images == 0
    assert [part.tolist() for part in store.images_of(np.array([0, 1]))] == [[], [[], []]]
    config = TokenizerConfig(kind=TokenizerKind.word, min_count=1)
    sources, targets = store.tokens(config, "sources"), store.tokens(config)
    unknown = targets.tokenizer.unk_id
    assert (targets.ids != unknown).tolist() == [True, False]
    assert (sources.ids != unknown).tolist() == [True, True, True, False]


def test_two_ids_with_one_file_are_two_images_and_one_id_is_one_file(tmp_path):
    path = tmp_path / "a.jpg"
    examples = [
        Example(1, "train", (ImageRef(1, path), ImageRef(2, path))),
        Example(2, "train", (ImageRef(2, path),)),
        Example(3, "train", (ImageRef(2, tmp_path / "b.jpg"),)),
    ]
    table = ImageTable(Corpus(examples).examples)
    assert [(table[x].id, table[x].path.name) for x in range(len(table))] == [(1, "a.jpg"), (2, "a.jpg"), (2, "b.jpg")]
    assert list(table.numbers()) == [[0, 1], [1], [2]]
    assert [table.examples_of(x) for x in range(3)] == [1, 2, 1]
    assert [(one.path.name, other.path.name) for one, other in table.clashes()] == [("a.jpg", "b.jpg")]
