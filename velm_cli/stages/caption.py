"""caption: what a trained model writes of anybody's images: to the console, a file, or beside each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from velm_cli.data.written import all_texts
from velm_cli.inference.arguments import text_of
from velm_cli.inference.journal import Row
from velm_cli.inference.listing import Listed, listed_images
from velm_cli.inference.results import BESIDE
from velm_cli.models.decoding import decoded_together
from velm_cli.report.evaluations import Evaluated
from velm_cli.schema import CaptionRoot
from velm_cli.stages import using

COLUMNS = ("image", "caption")


def run(config: CaptionRoot) -> None:
    text_of("prompt", config.prompt)
    images = listed_images(config.images)[: config.limit or None]
    output = None if config.out is None or config.out in BESIDE else using.Output.of(config.out)
    model = using.loaded_or_foreign(config.checkpoint, config.run)
    model.needs("caption")
    if config.dry_run:
        print(f"would caption {len(images):,} images with {model!r}{f' into {config.out}' if config.out else ''}")
        return

    def captioned(some: Sequence[Listed], jpegs: Sequence[bytes]) -> list[list[Row]]:
        texts = model.captions_of(jpegs, config.decode, seed=config.seed, prompt=config.prompt)
        return [[_row(config, image, text)] for image, text in zip(some, texts, strict=True)]

    chunk = decoded_together(len(images), config.decode.batch_size)  # as velm eval does, for the same words
    with model.ready():
        if config.out is None:
            using.printed(
                images,
                model,
                captioned,
                lambda row: row.get("captions", [row["caption"]]),
                chunk=chunk,
                workers=config.workers,
            )
        elif output is None:
            using.beside_images(
                images, model, config.out, captioned, "caption", chunk=chunk, workers=config.workers, doing="captions"
            )
        else:
            using.written(
                output,
                images,
                model,
                _about(config, model.sha256, images),
                captioned,
                columns=COLUMNS if config.decode.samples == 1 else (*COLUMNS, "captions"),
                chunk=chunk,
                workers=config.workers,
                fresh=config.fresh,
                doing="captions",
                page=(lambda rows: _shown(config, rows)) if config.page else None,
                page_images=config.page_images,
            )


def _row(config: CaptionRoot, image: Listed, text: Any) -> Row:
    """Where several captions are asked for, all of them beside the first."""
    row = using.row_of({"image": image.name}, "caption", text)
    return row if config.decode.samples == 1 else {**row, "captions": list(all_texts(text))}


def _about(config: CaptionRoot, weights: str, images: Sequence[Listed]) -> dict[str, Any]:
    """What the captions depend on."""
    return {
        "stage": "caption",
        "weights": weights,
        "images": using.digest_of(images),
        "prompt": config.prompt,
        "seed": config.seed,
        "decode": using.decoding(config.decode),
    }


def _shown(config: CaptionRoot, rows: Sequence[Row]) -> Evaluated:
    return Evaluated(
        name=Path(config.checkpoint).name,
        scores={},
        per_image={row["image"]: {} for row in rows},
        hypotheses={row["image"]: row["caption"] for row in rows},
        references={},
        about={"model": config.checkpoint},
        examples={row["image"]: {"captions": row["captions"]} for row in rows if "captions" in row},
    )
