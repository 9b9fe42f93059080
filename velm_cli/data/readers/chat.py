"""Instruction data: conversations about images, or about none, out of JSON, JSON lines and parquet.

A row is one example: what is said before the last reply of the assistant, and that reply. The earlier replies are
learned as well. What the rows look like is known in `chat_forms.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from velm_cli import schema
from velm_cli.data.conversations import ASSISTANT, dumped
from velm_cli.data.examples import Corpus, Examples, ImageRef
from velm_cli.data.readers.assemble import Listing, Question, assemble
from velm_cli.data.readers.chat_forms import IMAGES, TURNS, Said, said_in
from velm_cli.data.readers.json_forms import holds_lines
from velm_cli.data.readers.manifest import manifest_files
from velm_cli.data.readers.part_files import SPLITS
from velm_cli.data.readers.parting import check_fractions, hash_part
from velm_cli.data.readers.splits import PARTS, part_of_name
from velm_cli.data.table_images import OF_TABLE, in_row
from velm_cli.errors import UserError, did_you_mean
from velm_cli.lines import json_lines, load_json, not_the_file, opened

Rows = Iterator[
    tuple[str, dict[str, Any], str | None]
]  # where it stands, the row, what paths of its content begin with
LISTS = ("data", "rows", "samples", "annotations")  # keys under which a JSON file may have its rows
KEYS = ("id", "question_id", "sample_id")  # of a row's id
WANTED = "files of conversations (JSON, JSON lines or parquet), or a pattern such as 'FOLDER/*.parquet'"


class TableListing(Listing):
    """Which files exist, images inside of parquet files among them."""

    def __contains__(self, path: Path) -> bool:
        return super().__contains__(Path(OF_TABLE.sub("", str(path))))


def read_chat(config: schema.ChatConfig, root: Path | None) -> Corpus:
    """An example for each conversation with a reply. Rows that are no such are refused, with the reason."""
    check_fractions(config.val_fraction, config.test_fraction)
    corpus = Corpus(Examples(), splits=SPLITS)
    listing = TableListing() if config.images else None
    files = chat_files(config.file, root)
    reading = _Reading(config, root, listing, corpus)

    def entries() -> Iterator[Question]:
        for path, part in files:
            yield from reading.of_file(path, part)
        if not reading.rows and not corpus.refused:
            raise UserError(f"dataset.file={config.file} holds no conversations: it has no rows")

    assemble(corpus, entries(), listing, config.missing, f"dataset.file={config.file}")
    corpus.notes += reading.notes()
    return corpus


def chat_files(given: Any, root: Path | None) -> list[tuple[Path, str | None]]:
    """Each file with its part: as the option says, else as its name does; None: a hash decides, row by row."""
    named = given.items() if isinstance(given, dict) else [(None, given)]
    found: list[tuple[Path, str | None]] = []
    for name, value in named:
        part = None if name is None else PARTS.get(str(name))
        if name is not None and part is None:
            hint = did_you_mean(str(name), PARTS)
            raise UserError(f"dataset.file: {name} is not train, val or test{hint}")
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or not text:
                raise UserError(f"dataset.file={given}: give a file, a list of files or {{train: FILE, val: FILE}}")
            path = Path(text).expanduser()
            if root is not None and not path.exists() and (root / path).exists():
                path = root / path
            for file in manifest_files(path, WANTED):
                found.append((file, part or part_of_name(file.name)))
    return found


class _Reading:
    """Turns rows into examples, and counts what the user should know of."""

    def __init__(self, config: schema.ChatConfig, root: Path | None, listing: Listing | None, corpus: Corpus) -> None:
        self._config, self._root, self._listing, self._corpus = config, root, listing, corpus
        self._seen: Counter[str] = Counter()  # ids
        self._place_of: dict[str, Path] = {}  # of an image's name
        self._hashed = False
        self.rows = 0
        self._lost = self._again = 0

    def of_file(self, path: Path, part: str | None) -> Iterator[Question]:
        """The examples of a file."""
        for where, row, inside in _rows(path, self._corpus):
            self.rows += 1
            try:
                said = said_in(row, inside, replied=part != "test")
                if len(said.images) > self._config.max_images:
                    raise ValueError(f"{len(said.images)} images, dataset.max_images={self._config.max_images}")
                yield self._example(where, row, said, path, part)
            except ValueError as error:
                self._corpus.refused.append((where, str(error)))

    def _example(self, where: str, row: dict[str, Any], said: Said, file: Path, part: str | None) -> Question:
        given = next((row[key] for key in KEYS if isinstance(row.get(key), (str, int)) and row[key] != ""), None)
        name: int | str = where if given is None or isinstance(given, bool) else given
        self._lost += bool(said.lost)
        self._seen[str(name)] += 1
        if (times := self._seen[str(name)]) > 1:  # LLaVA's ids are those of images, of which it has several rows
            self._again += 1
            name = f"{name}#{times}"
            self._seen[name] += 1
        images = tuple(self._image(name, file) for name in said.images) if self._config.images else ()
        if part is None:
            self._hashed = True
            about_what = said.images[0] if said.images else str(name)
            part = hash_part(about_what, self._config.val_fraction, self._config.test_fraction)
        replies = sum(message.role == ASSISTANT for message in said.before) + (said.reply is not None)
        about = {"turns": str(replies) if replies < 4 else "4 or more", "images": str(len(said.images))}
        if isinstance(kind := row.get("source"), str) and kind:
            about["source"] = kind[:100]
        answers: list[object] = [] if said.reply is None else [said.reply]
        before = said.before if self._config.images else tuple(map(_without_images, said.before))
        return Question(name, part, images, dumped(before), answers, about, unlabelled=not answers, verbatim=True)

    def _image(self, name: str, file: Path) -> ImageRef:
        """Two files that call different images by one name have them by their paths."""
        if OF_TABLE.search(name):
            return ImageRef(f"{file.name}{name[len(str(file)) :]}", Path(name))
        folders = [folder for folder in (self._root, file.parent) if folder is not None]
        places = [folder / name for folder in folders]
        found = places[0]
        if self._listing is not None:
            found = next((place for place in places if place in self._listing), places[0])
        first = self._place_of.setdefault(name, found)
        return ImageRef(name if first == found else str(found), found)

    def notes(self) -> list[str]:
        """Lines on what was left out or decided here."""
        found = []
        if self._lost:
            found.append(f"{self._lost:,} conversations without the turns that no reply follows, or that begin them")
        if self._again:
            found.append(f"{self._again:,} ids came again: their rows are called ID#2 and so on")
        if self._hashed:
            shown = ", ".join(f"{part} {count:,}" for part, count in self._corpus.counts().items())
            found.append(
                f"split by a hash of the first image ({shown}), as no file says its part: dataset.val_fraction= and "
                "dataset.test_fraction= change the shares, dataset.file={train: FILE, val: FILE} decides instead"
            )
        return found


def _without_images(message: Any) -> Any:
    return message._replace(parts=tuple(part for part in message.parts if isinstance(part, str)))


# ------------------------------------------------------------------------------------------ rows


def _rows(path: Path, corpus: Corpus) -> Rows:
    with opened(path) as file:
        start = file.read(1 << 12)
    if other := not_the_file(start):
        raise UserError(f"{path} is {other}")
    if start.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    if holds_lines(path):
        values: Iterator[tuple[Any, Any]] = json_lines(path, corpus.refused)
        form = "{}:{}"
    else:
        values, form = enumerate(_list_in(load_json(path), path)), "{}[{}]"
    for number, row in values:
        where = form.format(path.name, number)
        if isinstance(row, dict):
            yield where, row, None
        else:
            corpus.refused.append((where, f"not an object but {str(row)[:40]}"))


def _list_in(value: Any, path: Path) -> list[Any]:
    if isinstance(value, dict):
        if any(key in value for key in TURNS):
            return [value]
        value = next((value[key] for key in LISTS if isinstance(value.get(key), list)), None)
    if not isinstance(value, list):
        raise UserError(f'{path} holds no list of conversations, such as LLaVA\'s [{{"image", "conversations"}}]')
    return value


def _parquet(path: Path) -> Rows:
    """Without the content of images, which stays in the file until it is wanted."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path} is a parquet file, which needs pyarrow: pip install pyarrow") from None
    try:
        file = parquet.ParquetFile(path)
        names = [str(name) for name in file.schema_arrow.names]
        if not any(key in names for key in TURNS):
            raise UserError(f"{path} has no column {', '.join(TURNS)}: its columns are {', '.join(names)[:200]}")
        leaves = [file.metadata.schema.column(number).path for number in range(file.metadata.num_columns)]
        content = {leaf for leaf in leaves if leaf.split(".")[0] in IMAGES and leaf.endswith(".bytes")}
        content = {leaf for leaf in content if leaf.removesuffix("bytes") + "path" in leaves}  # which counts them
        known = {*TURNS, *IMAGES, *KEYS, "source"}
        wanted = [leaf for leaf in leaves if leaf.split(".")[0] in known and leaf not in content]
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            for item in batch.to_pylist():
                for key in IMAGES:
                    _mark(item, key, bool(content))
                yield f"{path.name}#{row}", item, in_row(path, row)
                row += 1
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None


def _mark(item: dict[str, Any], key: str, content: bool) -> None:
    """Say of images whose content is here that it is, whatever their path says, which is that of another machine."""
    images = item.get(key)
    if isinstance(images, list):
        item[key] = [_marked(image, content) for image in images]
    elif images is not None:
        item[key] = _marked(images, content)


def _marked(image: Any, content: bool) -> Any:
    inside = isinstance(image, bytes) or (isinstance(image, dict) and (content or image.get("bytes") is not None))
    return {"bytes": None} if inside else image
