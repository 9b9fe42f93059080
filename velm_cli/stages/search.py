"""search: embed a folder of images once, then find those that a text or another image is nearest to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from velm_cli.engine.signals import stop_on_signals
from velm_cli.errors import StageError, UserError, on_one_line, visible
from velm_cli.inference.arguments import text_of
from velm_cli.inference.bulk import rows_of, shown_refusals
from velm_cli.inference.index import Index, Near, building
from velm_cli.inference.journal import Row
from velm_cli.inference.listing import Listed, listed_images
from velm_cli.inference.model import Model
from velm_cli.inference.results import write_results
from velm_cli.progress import progress_bar
from velm_cli.report.evaluations import Evaluated
from velm_cli.schema import SearchRoot
from velm_cli.stages import using

CHUNK = 256  # images that are embedded and written down together: what a kill loses
COLUMNS = ("rank", "image", "cosine")


def run(config: SearchRoot) -> None:
    _refuse(config)
    text_of("query", config.query or "")
    folder = Path(config.index)
    checkpoint = config.checkpoint or Index(folder).about.get("checkpoint")
    model = using.loaded(str(checkpoint), config.run)
    model.needs("retrieve")
    if config.images is not None:
        _embed(config, folder, model, str(checkpoint))
    if config.query is None and config.image is None:
        return
    index = Index(folder)
    if index.about.get("weights") != model.sha256:
        raise UserError(f"index={folder} was made by other weights than {checkpoint}: name the run that made it")
    vector = model.embed_texts(config.query) if config.query is not None else model.embed_images(str(config.image))
    found = index.nearest(np.asarray(vector), config.top)
    if config.out is None:
        for near in found:
            print(f"{near.cosine:6.3f}  {on_one_line(near.image)}")
    else:
        _write(config, model, found)


def _refuse(config: SearchRoot) -> None:
    if config.images is None and config.query is None and config.image is None:
        raise UserError('give images=FOLDER to embed, or query="..." or image=FILE to search for')
    if config.query is not None and config.image is not None:
        raise UserError("query= and image= are two searches: give one of them")
    if config.images is not None and config.checkpoint is None and not (Path(config.index) / "images.jsonl").exists():
        raise UserError("checkpoint is not set: velm search index=FOLDER checkpoint=RUN images=FOLDER")


def _embed(config: SearchRoot, folder: Path, model: Model, checkpoint: str) -> None:
    """Add the images to the index. StageError when a signal has stopped it before the end."""
    # An index outlives the folder that it was made from.
    images = [each._replace(name=os.path.abspath(each.name)) for each in listed_images(config.images)]
    about = {"checkpoint": str(Path(checkpoint).resolve()), "weights": model.sha256, "width": model.width}
    if folder.exists() and (folder / "images.jsonl").exists():  # the run may have moved since
        about["checkpoint"] = Index(folder).about.get("checkpoint", about["checkpoint"])
    vectors: list[np.ndarray] = []
    refused: list[Row] = []

    def embedded(some: Sequence[Listed], jpegs: Sequence[bytes]) -> list[list[Row]]:
        vectors.append(model.embeddings_of(jpegs))
        return [[{"image": image.name}] for image in some]

    with building(folder, about) as builder, stop_on_signals() as stop:
        stamps = {image.name: image.stamp for image in images}
        left = [image for image in images if not builder.has(image.name, stamps[image.name])]
        with progress_bar(what="embed", total=len(images), initial=len(images) - len(left), unit="image") as bar:
            for rows in rows_of(left, model.form, embedded, chunk=CHUNK, workers=config.workers):
                rows = [{**row, "stamp": stamps[row["image"]]} for row in rows]
                builder.add(rows, np.concatenate(vectors) if vectors else np.zeros((0, model.width)))
                vectors.clear()
                refused += [row for row in rows if "refused" in row]
                bar.update(len(rows))
                if stop:
                    raise StageError(f"stopped by {stop.signal_name}; the same command goes on")
    print(f"index       {folder}  {len(Index(folder)):,} images, {len(left) - len(refused):,} of them new")
    for line in shown_refusals(refused, most=20):
        print(visible(line))


def _write(config: SearchRoot, model: Model, found: Sequence[Near]) -> None:
    output = using.Output.of(str(config.out))
    about: dict[str, Any] = {
        "stage": "search",
        "weights": model.sha256,
        "query": config.query,
        "image": config.image,
        "top": config.top,
    }
    if output.path.exists():
        output.made_before(about, fresh=True)  # refuses what is not velm's
    rows: list[Row] = [
        {"rank": rank, "image": near.image, "cosine": round(near.cosine, 6)} for rank, near in enumerate(found, 1)
    ]
    write_results(output.path, rows, COLUMNS, using.noted(output, about, images=len(rows), refused=0))
    print(f"written     {output.path}  {len(rows):,} images")
    if config.page:
        images = [Listed(near.image) for near in found if Path(near.image).is_file()]
        using.write_page_of(output.page, images, rows, lambda some: _shown(config, some), len(rows), model)


def _shown(config: SearchRoot, rows: Sequence[Row]) -> Evaluated:
    return Evaluated(
        name=config.query or str(config.image),
        scores={},
        per_image={row["image"]: {} for row in rows},
        hypotheses={row["image"]: f"{row['rank']}. cosine {row['cosine']:.3f}" for row in rows},
        references={},
    )
