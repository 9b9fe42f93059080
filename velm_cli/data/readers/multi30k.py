"""Multi30k: image descriptions with their translations (Elliott et al. 2016, 2017).

Two forms are read: JSON lines {"image": name, "en": ..., "de": ...}, whose `file_name`, where there is one, is the
file; and the official text files, a sentence a line: train.en, train.de (or .gz), with the images' names in
train_images.txt or image_splits/train.txt. The parts are train, val and the test sets: test2016, test2017, testcoco, or
test where a file says no year.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.readers.assemble import Listing, Question, assemble
from velm_cli.data.readers.finding import walk
from velm_cli.errors import UserError
from velm_cli.lines import Refused, json_lines, text_lines

SPLITS = ("train", "val", "test", "test2016", "test2017", "test2018", "testcoco")
# A file's name up to its ending: train, val, test_2016_flickr, test2017, test_2017_mscoco, with anything before it.
_STEM = re.compile(r"(?:.*[_\-.])?(train|val|valid|dev|test(?:[_-]?(20\d\d))?(?:[_-]?(flickr|mscoco|coco))?)")
_UNSAID = "no text in {}"

Row = tuple[str, object, object, str | None]  # where, source, target, file of the image


def read_multi30k(config: schema.Multi30kConfig, root: Path) -> Corpus:
    """A pair of sentences an example, by the image's name; the source sentence is its source, its target the other."""
    languages = (config.source_lang, config.target_lang)
    if languages[0] == languages[1]:
        raise UserError(f"dataset.source_lang and dataset.target_lang are both {languages[0]}: give two languages")
    files = _files(root, languages, images=config.images)
    corpus = Corpus(Examples(), tuple(part for part in SPLITS if part in files or part in ("train", "val")))
    if not files:
        raise UserError(
            f"dataset.root={root}: neither JSON lines (train.jsonl ...) nor pairs of text files (train.{languages[0]}, "
            f"train.{languages[1]} ...) of a part are below it"
        )
    base = Path(config.images_root).expanduser() if config.images_root else root
    listing = Listing() if config.images else None

    def entries() -> Iterator[Question]:
        seen: set[str] = set()
        for part in SPLITS:
            if path := files.get(part):
                rows = _json_rows if path.suffix != f".{languages[0]}" and _is_json(path) else _text_rows
                yield from _examples(part, rows(path, languages, config.images, corpus.refused), base, seen, corpus)

    return assemble(corpus, entries(), listing, config.missing, f"dataset.root={root}")


def _examples(part: str, rows: Iterator[Row], base: Path, seen: set[str], corpus: Corpus) -> Iterator[Question]:
    reasons: Counter[str] = Counter()
    for number, (where, source, target, image) in enumerate(rows, start=1):
        if image is not None and (Path(image).is_absolute() or ".." in Path(image).parts):
            corpus.refused.append((where, f"its image lies outside the folder of images: {image[:80]}"))
            continue
        name = image or f"{part}-{number}"
        if name in seen:  # as the descriptions of task 2 share an image
            name = f"{name}#{part}-{number}"
            reasons["name an image that an earlier one names"] += 1
        seen.add(name)
        images = (ImageRef(image, base / image),) if image else ()
        yield Question(name, part, images, source, [target])
    corpus.notes += [f"{part}: {count:,} pairs {reason}" for reason, count in reasons.items()]


# ------------------------------------------------------------------------------------------ which files


def part_of_stem(stem: str) -> str | None:
    """`test_2017_mscoco` -> testcoco, `test_2016_flickr` -> test2016, `dev` -> val; None of no part."""
    if (found := _STEM.fullmatch(stem.lower())) is None:
        return None
    word, year, source = found.groups()
    if not word.startswith("test"):
        return "train" if word == "train" else "val"
    if source in ("mscoco", "coco"):
        return "testcoco"
    part = f"test{year or ''}"
    return part if part in SPLITS else None


def _files(root: Path, languages: tuple[str, str], *, images: bool) -> dict[str, Path]:
    """Part -> its JSON lines, or its text file in the source's language; UserError where two files are of a part."""
    found: dict[str, list[Path]] = {}
    for folder, names in walk(root):
        present = set(names)
        for name in names:
            bare = name.removesuffix(".gz")
            stem, _, ending = bare.rpartition(".")
            partner = name.replace(f".{languages[0]}", f".{languages[1]}") if ending == languages[0] else None
            if ending != "jsonl" and (partner is None or partner not in present):
                continue
            if part := part_of_stem(stem):
                found.setdefault(part, []).append(Path(folder) / name)
    chosen = {}
    for part, paths in found.items():
        if len(paths) > 1:  # the same pairs with and without files of images: what is asked for decides
            with_files = [path for path in paths if _is_json(path) and _names_files(path)]
            paths = (with_files if images else [path for path in paths if path not in with_files]) or paths
        if len(paths) > 1:
            shown = " and ".join(str(path) for path in sorted(paths)[:2])
            raise UserError(f"dataset.root={root}: {shown} are both of the part {part}: give the folder of one of them")
        chosen[part] = paths[0]
    return chosen


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _names_files(path: Path) -> bool:
    """Whether the first row says which file its image is."""
    row = next((row for _, row in json_lines(path, [])), None)
    return isinstance(row, dict) and isinstance(row.get("file_name"), str)


# ------------------------------------------------------------------------------------------ what is in them


def _json_rows(path: Path, languages: tuple[str, str], images: bool, refused: Refused) -> Iterator[Row]:
    count = 0
    for number, row in json_lines(path, refused):
        where = f"{path}:{number}"
        texts = [row.get(language) if isinstance(row, dict) else None for language in languages]
        if reason := _unusable(texts, languages):
            refused.append((where, reason))
            continue
        name = row.get("file_name", row.get("image"))
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            if images:
                refused.append((where, 'it names no image: neither "file_name" nor "image" is text'))
                continue
            name = None
        count += 1
        yield where, texts[0], texts[1], name
    if not count and refused:
        raise UserError(f"{path}: no pair of {languages[0]} and {languages[1]} is in it ({refused[-1][1]})")


def _text_rows(path: Path, languages: tuple[str, str], images: bool, refused: Refused) -> Iterator[Row]:
    other = path.with_name(path.name.replace(f".{languages[0]}", f".{languages[1]}"))
    columns: list[tuple[Path, dict[int, str]]] = [(each, dict(text_lines(each, refused))) for each in (path, other)]
    if images:
        names = _image_list(path, languages[0])
        columns.append((names, {number: line.split("#")[0].strip() for number, line in text_lines(names, refused)}))
    ends = {str(place): max(lines, default=0) for place, lines in columns}
    if len(set(ends.values())) > 1:
        shown = ", ".join(f"{place} {end:,}" for place, end in ends.items())
        raise UserError(f"line n of one file is the translation of line n of the other, and they differ: {shown} lines")
    for number in range(1, max(ends.values()) + 1):
        where = f"{path}:{number}"
        texts: list[Any] = [lines.get(number) for _, lines in columns]
        if reason := _unusable(texts[:2], languages):
            refused.append((where, reason))
        elif images and not texts[2]:
            refused.append((where, f"{columns[2][0]} names no image of this line"))
        else:
            yield where, texts[0], texts[1], texts[2] if images else None


def _image_list(path: Path, language: str) -> Path:
    """The file that names the images of a text file's lines."""
    stem = path.name.removesuffix(".gz").removesuffix(f".{language}")
    places = [path.with_name(f"{stem}{middle}images.txt") for middle in ("_", ".", "-")]
    places += [folder / "image_splits" / f"{stem}.txt" for folder in (path.parent, path.parent.parent)]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"{path}: no list of its images, neither {places[0].name} beside it nor {places[-1]}: add it, or say "
        "dataset.images=false for the texts alone"
    )


def _unusable(texts: list[Any], languages: tuple[str, str]) -> str | None:
    for text, language in zip(texts, languages, strict=True):
        if not isinstance(text, str) or not text.strip():
            return _UNSAID.format(language)
    return None
