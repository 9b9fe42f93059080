"""Files of what a model says of images: JSON, JSON lines or CSV by the suffix, or a small file beside each image."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from velm_cli.errors import UserError
from velm_cli.files import whole_file, write_bytes

SUFFIXES = (".json", ".jsonl", ".csv")
BESIDE = {"sidecar": ".txt", "xmp": ".xmp"}  # `out=`: files beside the images, with this suffix instead of theirs


def refuse_other_suffix(out: str) -> None:
    if out not in BESIDE and Path(out).suffix.lower() not in SUFFIXES:
        raise UserError(
            f"out={out}: its suffix says what is written: .json, .jsonl or .csv; or out=sidecar, out=xmp for a file "
            "next to each image"
        )


def write_results(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    note: Callable[[str], object] = lambda sha256: None,
) -> None:
    """Replace `path`, whole or not at all. Names of files that are no UTF-8 keep their bytes as escapes.

    `note` is told the content's SHA-256 before the file is in its place: whatever is there was noted, at any kill.
    """
    form = {".json": _json, ".jsonl": _json_lines}.get(path.suffix.lower())
    parts = _csv(rows, columns) if form is None else form(rows)
    digest = hashlib.sha256()
    with whole_file(path) as file:
        for part in parts:
            content = part.encode("utf-8", "surrogateescape")
            digest.update(content)
            file.write(content)
        note(digest.hexdigest())


def _json(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    before = "[\n"
    for row in rows:
        yield f"{before} {json.dumps(row)}"
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (f"{json.dumps(row)}\n" for row in rows)


def _csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        yield line.getvalue()
        line.seek(0)
        line.truncate()
        writer.writerow([_cell(row.get(column)) for column in columns])
    yield line.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet takes text that begins with one of these for a formula, and runs it."""
    text = json.dumps(value) if isinstance(value, (dict, list)) else value
    return f"'{text}" if isinstance(text, str) and text[:1] in "=+-@\t\r" and text else text


def beside(images: Sequence[str], kind: str) -> dict[str, Path]:
    """The file beside each image that holds its caption: a.txt of a.jpg; where a.png lies beside, a.jpg.txt."""
    plain = {image: Path(image).with_suffix(BESIDE[kind]) for image in images}
    shared = Counter(plain.values())
    return {image: file if shared[file] == 1 else Path(f"{image}{BESIDE[kind]}") for image, file in plain.items()}


def write_beside(file: Path, text: str, kind: str) -> None:
    """The caption in a file of its own: the text and a line end, or an XMP packet with it as the description.

    XMP (ISO 16684-1) in a sidecar leaves the photo's own file as it is; photo software reads both as one.
    """
    content = f"{text}\n" if kind == "sidecar" else XMP.format(text=escape(text))
    write_bytes(file, [content.encode()])


XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:description>
    <rdf:Alt>
     <rdf:li xml:lang="x-default">{text}</rdf:li>
    </rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
