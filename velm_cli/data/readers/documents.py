"""Documents with summaries as JSON lines, in the form that CNN/DailyMail is handed around in.

{"article": ..., "highlights": ..., "id": ...}, a file a part: train.jsonl, val.jsonl or validation.jsonl, test.jsonl.
Images are optional: "image" or "file_name" is one, "images" a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.readers.assemble import Listing, Question, assemble
from velm_cli.data.readers.finding import walk
from velm_cli.data.readers.splits import part_of_name
from velm_cli.errors import UserError
from velm_cli.lines import json_lines

SPLITS = ("train", "val", "test")
SOURCES = ("article", "document", "source", "text", "dialogue", "content")
TARGETS = ("highlights", "summary", "summaries", "target", "targets", "abstract")
IMAGES = ("images", "file_name", "image")
_END = re.compile(r"[.!?]['\"”’)]*$")


def read_documents(config: schema.DocumentsConfig, root: Path) -> Corpus:
    """A document an example: its text is the source, its summary the target. UserError where no file is found."""
    corpus = Corpus(Examples())
    files: dict[str, list[Path]] = {}
    for folder, names in walk(root):
        for name in sorted(names):
            if name.removesuffix(".gz").endswith(".jsonl") and (part := part_of_name(name)):
                files.setdefault(part, []).append(Path(folder) / name)
    if not files:
        raise UserError(f"dataset.root={root}: no JSON lines whose name says the part (train.jsonl ...) are below it")
    listing = Listing() if config.images else None
    base = Path(config.images_root).expanduser() if config.images_root else root

    def entries() -> Iterator[Question]:
        seen: set[str] = set()
        for part in SPLITS:
            for path in files.get(part, ()):
                yield from _of_file(path, part, config, base, seen, corpus)

    return assemble(corpus, entries(), listing, config.missing, f"dataset.root={root}")


def _of_file(
    path: Path, part: str, config: schema.DocumentsConfig, base: Path, seen: set[str], corpus: Corpus
) -> Iterator[Question]:
    for number, row in json_lines(path, corpus.refused):
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            corpus.refused.append((where, "not an object"))
            continue
        source = _first(row, (config.source_column,) if config.source_column else SOURCES)
        target = _first(row, (config.target_column,) if config.target_column else TARGETS)
        summaries = [_sentences(text) for text in (target if isinstance(target, list) else [target]) if text]
        if not isinstance(source, str) or not source.strip() or not summaries:
            corpus.refused.append((where, "no document, or no summary, that is text"))
            continue
        given = _first(row, IMAGES)
        images = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if not all(_is_inside(image) for image in images):
            corpus.refused.append((where, "an image of it is no text, or lies outside the folder of images"))
            continue
        given_id = row.get("id")
        name = str(given_id) if isinstance(given_id, (str, int)) and str(given_id) else f"{part}-{number}"
        if name in seen:
            corpus.refused.append((where, f"its id {name[:40]} is there already: the first one counts"))
            continue
        seen.add(name)
        references = tuple(ImageRef(image, base / image) for image in dict.fromkeys(images))
        yield Question(name, part, references, _sentences(source), list(summaries))


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((row[key] for key in keys if row.get(key)), None)


def _sentences(text: Any) -> Any:
    """A text on one line, whose lines are sentences and end as such: stores keep no line breaks."""
    if not isinstance(text, str):
        return text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line if _END.search(line) or len(lines) == 1 else f"{line} ." for line in lines)


def _is_inside(name: object) -> bool:
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return False
    return not Path(name).is_absolute() and ".." not in Path(name).parts
