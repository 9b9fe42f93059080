"""What scoring gives, as a value, as text and as files: one format for every stage and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError
from velm_cli.files import check_crc32, crc32, read_sealed, sealed, write_bytes, write_json
from velm_cli.metrics.significance import Summands

ImageId = int | str
# Requested name -> the columns it gives, under pycocoevalcap's names and in the order of papers.
COLUMNS: dict[str, tuple[str, ...]] = {
    "bleu": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "meteor": ("METEOR",),
    "rouge_l": ("ROUGE_L",),
    "cider": ("CIDEr",),
    "spice": ("SPICE",),
    "clip": ("CLIPScore", "RefCLIPScore"),
}
NAMES = tuple(name for columns in COLUMNS.values() for name in columns)
LABELS = {name: name.replace("Bleu_", "BLEU-").replace("ROUGE_L", "ROUGE-L") for name in NAMES}
NOT_REQUESTED = "not requested"


@dataclass(slots=True)
class Scores:
    """What `score_captions` found. All scores are fractions; None means not computed.

    `corpus` has all of NAMES; `reasons` says for each None why and what to do. `intervals` (95 %, bootstrap over
    images) and `per_image` have the same names. `signature` is what the numbers depend on; `warnings` is what to
    know about them. `reference_tokens` are the references as they were compared, `summands` what the scores
    are made of; `language` describes the captions themselves, `spice_categories` has SPICE's score of each kind of
    tuple.
    """

    corpus: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]
    reasons: dict[str, str]
    per_image: dict[ImageId, dict[str, float | None]]
    signature: dict[str, Any]
    warnings: list[str]
    references: dict[ImageId, list[str]] = field(repr=False)
    hypotheses: dict[ImageId, str] = field(repr=False)
    reference_tokens: dict[ImageId, list[str]] = field(default_factory=dict, repr=False)
    summands: dict[str, Summands] = field(default_factory=dict, repr=False, compare=False)
    language: dict[str, float | None] = field(default_factory=dict)
    spice_categories: dict[str, float | None] = field(default_factory=dict)


def table(scores: Scores) -> str:
    """The requested scores as aligned text: name, fraction, percent, its 95 % interval; or `-` and a reason."""
    rows = []
    shown = [name for name in NAMES if scores.corpus[name] is not None or scores.reasons[name] != NOT_REQUESTED]
    width = max([8, *(len(LABELS[name]) + 1 for name in shown)])
    for name in shown:
        value, interval = scores.corpus[name], scores.intervals.get(name)
        if value is not None:
            error_bars = f"   {100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""
            rows.append(f"{LABELS[name]:<{width}}{value:>7.3f}{100 * value:>8.1f}{error_bars}")
        else:
            rows.append(f"{LABELS[name]:<{width}}{'-':>7}{'-':>8}   {scores.reasons[name]}")
    return "\n".join(rows)


def language_line(language: Mapping[str, float | None]) -> str:
    """What the captions are like, in one line: `9.4 words (references 10.5), 812 different, ...`."""
    if not language:
        return ""
    shown = [f"{language['words'] or 0:.1f} words (references {language['reference_words'] or 0:.1f})"]
    shown.append(f"vocabulary {language['vocabulary'] or 0:,.0f}")
    shares = {"different": "different", "novel": "not in training", "bad_endings": "cut off", "empty": "empty"}
    for name, meaning in shares.items():
        share = language[name]
        if share is not None and (share or name in ("different", "novel")):
            shown.append(f"{100 * share:.1f} % {meaning}")
    if "div_1" in language:
        names = {"div_1": "Div-1", "div_2": "Div-2", "mbleu_4": "mBLEU-4"}
        sets = " ".join(f"{name} {language[key]:.3f}" for key, name in names.items() if language[key] is not None)
        shown.append(f"{language['sets'] or 0:,.0f} sets: {sets}")
    return f"captions  {', '.join(shown)}"


def missing_scores(scores: Scores, required: Sequence[str]) -> str:
    """Those of the required metrics that have no number, each with the reason; empty when all have."""
    missing = [COLUMNS[name][-1] for name in required if scores.corpus[COLUMNS[name][-1]] is None]
    return "; ".join(f"{name}: {scores.reasons[name]}" for name in missing)


def save(scores: Scores, folder: Path, beside: Sequence[str] = ()) -> None:
    """Writes `scores.json` (corpus, images, reasons, warnings, signature) and `per_image.jsonl`.

    `scores.json` holds checksums of the latter and of the files `beside`: formats of lists, which have no room for one.
    """
    summary = {
        **scores.corpus,
        "intervals": scores.intervals,
        "spice_categories": scores.spice_categories,
        "language": scores.language,
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
    summary["crc32_of"] = {name: crc32(folder / name) for name in ("per_image.jsonl", *beside)}
    write_json(folder / "scores.json", sealed(summary))


def read_summary(folder: Path) -> dict[str, Any]:
    """The `scores.json` that `save` wrote. OSError or ValueError when it or a file that it vouches for is damaged."""
    summary = read_sealed(folder / "scores.json")
    for name, expected in summary.get("crc32_of", {}).items():
        check_crc32(folder / name, expected)
    return summary


def check_vouched(path: Path) -> None:
    """UserError when a `scores.json` beside the file has another checksum of it; most files have none and pass."""
    try:
        expected = read_sealed(path.parent / "scores.json").get("crc32_of", {}).get(path.name)
    except (OSError, ValueError, AttributeError):  # none there, or not velm's
        return
    try:
        check_crc32(path, expected)
    except ValueError as error:
        raise UserError(
            f"{path}: {error} (its checksum is in the scores.json beside it); if you changed it on purpose, "
            "put it into another folder"
        ) from error
