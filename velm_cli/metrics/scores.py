"""What scoring gives, as a value, as text and as files: one format for every stage and report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli.files import write_bytes, write_json

ImageId = int | str
# Requested name -> the columns it gives, under pycocoevalcap's names and in the order of papers.
COLUMNS: dict[str, tuple[str, ...]] = {
    "bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "meteor": ("METEOR",),
    "rouge_l": ("ROUGE_L",),
    "cider": ("CIDEr",),
    "spice": ("SPICE",),
}
NAMES = tuple(name for columns in COLUMNS.values() for name in columns)
LABELS = {name: name.replace("Bleu_", "BLEU-").replace("ROUGE_L", "ROUGE-L") for name in NAMES}
NOT_REQUESTED = "not requested"


@dataclass(slots=True)
class Scores:
    """What `score_captions` found. All scores are fractions; None means not computed.

    `corpus` has all of NAMES; `reasons` says for each None why and what to do. `per_image` has the same
    names for each image. `signature` is what the numbers depend on; `warnings` is what to know about them.
    """

    corpus: dict[str, float | None]
    reasons: dict[str, str]
    per_image: dict[ImageId, dict[str, float | None]]
    signature: dict[str, Any]
    warnings: list[str]
    references: dict[ImageId, list[str]] = field(repr=False)
    hypotheses: dict[ImageId, str] = field(repr=False)


def table(scores: Scores) -> str:
    """The requested scores as aligned text: name, fraction, percent; a missing one as `-` and its reason."""
    rows = []
    for name in NAMES:
        value = scores.corpus[name]
        if value is not None:
            rows.append(f"{LABELS[name]:<8}{value:>7.3f}{100 * value:>8.1f}")
        elif scores.reasons[name] != NOT_REQUESTED:
            rows.append(f"{LABELS[name]:<8}{'-':>7}{'-':>8}   {scores.reasons[name]}")
    return "\n".join(rows)


def save(scores: Scores, folder: Path) -> None:
    """Writes `scores.json` (corpus, images, reasons, warnings, signature) and `per_image.jsonl`."""
    summary = {
        **scores.corpus,
        "images": len(scores.per_image),
        "reasons": scores.reasons,
        "warnings": scores.warnings,
        "signature": scores.signature,
    }
    lines = (
        {
            "image_id": image,
            "hypothesis": scores.hypotheses[image],
            "references": scores.references[image],
            "scores": values,
        }
        for image, values in scores.per_image.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    # ASCII: captions may hold lone surrogates, which JSON's escapes can carry and UTF-8 cannot.
    write_bytes(folder / "per_image.jsonl", ((json.dumps(line, allow_nan=False) + "\n").encode() for line in lines))
    write_json(folder / "scores.json", summary)
