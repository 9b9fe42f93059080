"""What `caption` and `answer` share: where results go, work that goes on after a kill, and what is said at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from velm_cli import __version__, configs
from velm_cli.engine.device import pick_device, prepare
from velm_cli.engine.signals import StopRequest, stop_on_signals
from velm_cli.errors import StageError, UserError, on_one_line, visible
from velm_cli.files import read_sealed, sealed, sha256, write_json
from velm_cli.inference.bulk import Predict, rows_of, shown_refusals, told
from velm_cli.inference.foreign import ForeignModel
from velm_cli.inference.journal import Row, open_journal
from velm_cli.inference.listing import Listed
from velm_cli.inference.model import Model, load
from velm_cli.inference.results import BESIDE, beside, refuse_other_suffix, write_beside, write_results
from velm_cli.models.hf.writing import Refused
from velm_cli.progress import progress_bar
from velm_cli.report.evaluations import Evaluated
from velm_cli.report.page import GALLERY_SIDE, Picture, is_page, thumbnail, write_page
from velm_cli.schema import LATER_DECODING, ComputeConfig, DecodeConfig


def loaded(checkpoint: str, compute: ComputeConfig) -> Model:
    """The model on the device of the options, which are also set for the process."""
    device = _device(compute)
    return load(checkpoint, device, precision=compute.precision)


def loaded_or_foreign(checkpoint: str, compute: ComputeConfig) -> Model | ForeignModel:
    """The same, also of a model that velm did not train (`hf:FOLDER`)."""
    if configs.foreign_model(checkpoint) is None:
        return loaded(checkpoint, compute)
    return ForeignModel(checkpoint, _device(compute), compute.precision)


def _device(compute: ComputeConfig) -> torch.device:
    device = pick_device(compute.device)
    prepare(device, compute.threads)
    return device


@dataclass(frozen=True, slots=True)
class Output:
    """The result file and what lies beside it: how it was made, what was refused, the page."""

    path: Path

    @staticmethod
    def of(out: str) -> Output:
        refuse_other_suffix(out)
        path = Path(out)
        if path.is_dir():
            raise UserError(f"out={out} is a folder: give the name of a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out={out} cannot be written: {error.strerror}") from error
        return Output(path)

    @property
    def about(self) -> Path:
        return self._beside("about.json")

    @property
    def refused(self) -> Path:
        return self._beside("refused.jsonl")

    @property
    def page(self) -> Path:
        return self.path.with_suffix(".html") if self.path.suffix.lower() == ".json" else self._beside("html")

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    @property
    def journal(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    def made_before(self, about: Mapping[str, Any], fresh: bool) -> bool:
        """Whether the file is there, of the same work. UserError where it is of other work, or is not velm's."""
        if not self.path.exists() and not (self.about.exists() or self.refused.exists()):
            return False
        try:
            made = read_sealed(self.about)
        except (OSError, ValueError):
            made = {}
        here = sha256(self.path) if self.path.exists() else None
        if made.get("made_by") != "velm" or here not in (None, made.get("sha256"), made.get("before")):
            first = next(file for file in (self.path, self.about, self.refused) if file.exists())
            raise UserError(f"{first} is there, and is not as velm wrote it: give another out=, nothing was changed")
        if fresh or here != made.get("sha256"):  # a kill came before the file was in its place
            return False
        if made.get("about") != dict(about):
            before = made.get("about")
            changed = [key for key, value in about.items() if not isinstance(before, dict) or before.get(key) != value]
            raise UserError(
                f"out={self.path} was made with another {' and '.join(changed[:3])}: give another name, or fresh=true "
                "to replace it"
            )
        return True


def row_of(known: Row, column: str, found: Any) -> Row:
    """The row of what was predicted of an image; of one that the model's processor did not take, why."""
    return (
        {"image": known["image"], "refused": found.reason} if isinstance(found, Refused) else {**known, column: found}
    )


def plain(options: Any) -> dict[str, Any]:
    """A dataclass of options as JSON values."""
    return {key: value.value if isinstance(value, Enum) else value for key, value in asdict(options).items()}


def decoding(how: DecodeConfig) -> dict[str, Any]:
    """What results depend on of how texts are found: an older velm's noted as much of the same command."""
    usual = plain(DecodeConfig())
    told = {name: value for name, value in plain(how).items() if name not in LATER_DECODING or value != usual[name]}
    return told if how.allowed is None else told | {"allowed": sha256(Path(how.allowed))}


def digest_of(images: Sequence[Listed], asked: Sequence[str] = ()) -> str:
    """What stands for images, and what is asked about them, where two commands are compared."""
    digest = hashlib.sha256()
    for text in (*(part for image in images for part in (image.name, image.stamp)), *asked):
        digest.update(json.dumps(text).encode() + b"\n")
    return f"{len(images)} images, sha256 {digest.hexdigest()[:16]}"


def written(
    output: Output,
    images: Sequence[Listed],
    model: Model | ForeignModel,
    about: Mapping[str, Any],
    predict: Predict,
    *,
    columns: Sequence[str],
    chunk: int,
    workers: int,
    fresh: bool,
    doing: str,
    page: Callable[[Sequence[Row]], Evaluated] | None,
    page_images: int,
) -> None:
    """Predict all images into the output's files. StageError when a signal has stopped it before the end.

    A kill loses `chunk` images at most: the same command goes on. `page`: what the page shows of these rows.
    """
    if output.made_before(about, fresh):
        print(f"complete    {output.path}  (fresh=true makes it again)")
        return
    with open_journal(output.journal, about, fresh=fresh) as journal, stop_on_signals() as stop:
        left = [image for image in images if image.name not in journal.done]
        if len(left) < len(images):
            print(f"goes on     {len(images) - len(left):,} of {len(images):,} images are done ({output.journal})")
        with progress_bar(what=doing, total=len(images), initial=len(images) - len(left), unit="image") as bar:
            for rows in _until(stop, rows_of(left, model.form, predict, chunk=chunk, workers=workers)):
                journal.append(rows)
                bar.update(len({row["image"] for row in rows}))
        if stop:
            done = len({row["image"] for row in journal.rows()})
            raise StageError(
                f"stopped by {stop.signal_name} after {done:,} of {len(images):,} images; the same command goes on"
            )
        refused = [dict(row) for row in journal.rows() if "refused" in row]
        if refused:
            write_results(output.refused, refused, ("image", "refused"))
        else:
            output.refused.unlink(missing_ok=True)
        noting = noted(output, about, images=len(images), refused=len(refused))
        write_results(output.path, told(journal.rows(), columns), columns, noting)
        _say(output, len(images), refused)
        if page is not None:
            write_page_of(output.page, images, journal.rows(), page, page_images, model)
        journal.path.unlink()


def noted(output: Output, about: Mapping[str, Any], *, images: int, refused: int) -> Callable[[str], None]:
    """Writes how the result file of this SHA-256 was made, which is also the sign that it is velm's."""
    counted = {"images": images, "refused": refused, "velm": __version__}
    before = sha256(output.path) if output.path.exists() else None  # what it takes the place of

    def note(digest: str) -> None:
        made = {"made_by": "velm", "about": dict(about), **counted, "sha256": digest, "before": before}
        write_json(output.about, sealed(made))

    return note


def _until(stop: StopRequest, chunks: Iterator[list[Row]]) -> Iterator[list[Row]]:
    with contextlib.closing(chunks) as coming:  # type: ignore[type-var]
        for rows in coming:
            yield rows
            if stop:
                return


def _say(output: Output, images: int, refused: Sequence[Row]) -> None:
    print(f"written     {output.path}  {images - len(refused):,} of {images:,} images")
    for line in shown_refusals(refused):
        print(visible(line))
    if refused:
        print(f"            all {len(refused):,} are listed in {output.refused}")


def write_page_of(
    path: Path,
    images: Sequence[Listed],
    rows: Iterable[Row],
    page: Callable[[Sequence[Row]], Evaluated],
    most: int,
    model: Model | ForeignModel,
) -> None:
    """The first images with what was said of them; nothing where something else is in the page's place."""
    if path.exists() and not is_page(path):
        print(f"note: {path} is there and is no page of velm's, so none was written")
        return
    shown = list(islice((row for row in rows if "refused" not in row), most))
    if not shown or not images:
        return
    pictures: dict[int | str, Picture] = {}
    by_name = {image.name: image for image in images}
    wanted = [by_name[name] for name in dict.fromkeys(row["image"] for row in shown) if name in by_name]

    def seen(some: Sequence[Listed], jpegs: Sequence[bytes]) -> list[list[Row]]:
        pictures.update(
            (image.name, Picture(thumbnail(jpeg, GALLERY_SIDE))) for image, jpeg in zip(some, jpegs, strict=True)
        )
        return [[] for _ in some]

    for _ in rows_of(wanted, model.form, seen, chunk=max(1, len(wanted))):
        pass
    write_page(path, [page(shown)], pictures, title=path.stem, columns=())
    more = f", of the first {most:,} images" if len(images) > len(wanted) else ""
    print(f"page        {path}{more}")


def beside_images(
    images: Sequence[Listed],
    model: Model | ForeignModel,
    kind: str,
    predict: Predict,
    column: str,
    *,
    chunk: int,
    workers: int,
    doing: str,
) -> None:
    """Write a file beside each image that has none yet. StageError when a signal has stopped it before the end."""
    if packed := next((image for image in images if image.tar is not None), None):
        raise UserError(f"out={kind} writes next to the images, and {on_one_line(packed.name)} lies in a tar: out=FILE")
    files = beside([image.name for image in images], kind)
    left = [image for image in images if not os.path.lexists(files[image.name])]
    if len(left) < len(images):
        print(f"left alone  {len(images) - len(left):,} images that have a {BESIDE[kind]} file already")
    refused: list[Row] = []
    new = 0
    with stop_on_signals() as stop, progress_bar(what=doing, total=len(left), unit="image") as bar:
        for rows in _until(stop, rows_of(left, model.form, predict, chunk=chunk, workers=workers)):
            for row in rows:
                file = files[row["image"]]
                if "refused" in row:
                    refused.append(row)
                elif not os.path.lexists(file):  # somebody may have written one meanwhile
                    write_beside(file, row[column], kind)
                    new += 1
            bar.update(len(rows))
    if stop:
        raise StageError(f"stopped by {stop.signal_name}; the same command goes on")
    print(f"written     {new:,} {BESIDE[kind]} files")
    for line in shown_refusals(refused, most=20):
        print(visible(line))


def printed(
    images: Sequence[Listed],
    model: Model | ForeignModel,
    predict: Predict,
    told: Callable[[Row], Sequence[str]],
    *,
    chunk: int,
    workers: int,
) -> None:
    """To standard output: what is `told` of the image, or of each, behind its name; parts stand behind tabs."""
    refused: list[Row] = []
    for rows in rows_of(images, model.form, predict, chunk=chunk, workers=workers):
        for row in rows:
            if "refused" in row:
                refused.append(row)
            else:
                parts = told(row) if len(images) == 1 else (row["image"], *told(row))
                print("\t".join(map(on_one_line, parts)), flush=True)
    if refused:
        one = len(images) == 1
        lines = [f"{row['image']}: {row['refused']}" for row in refused]
        raise UserError(
            on_one_line(lines[0]) if one else "\n".join(["these could not be used:", *map(on_one_line, lines)])
        )
