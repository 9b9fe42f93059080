"""What scoring gives, as a value, as text and as files: one format for every stage and report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError, on_one_line
from velm_cli.files import check_crc32, crc32, read_sealed, sealed, write_bytes, write_json
from velm_cli.metrics.comparison import counts_of
from velm_cli.metrics.significance import Summands
from velm_cli.schema.metric_names import (
    CAPTION_COLUMNS,
    CAPTION_PRIMARY,
    COLUMNS,
    Column,
    columns_as_json,
    columns_of_json,
)

ImageId = int | str
ExampleId = int | str
NOT_REQUESTED = "not requested"
CAPTIONS_FILE, EXAMPLES_FILE = "per_image.jsonl", "per_example.jsonl"


@dataclass(slots=True)
class Scores:
    """The scores of a task's predictions, by the id of the example. None means not computed.

    `corpus` has a value for each of `columns`, `primary` names the one that runs are compared by; `reasons` says for
    each None why and what to do. `intervals` (95 %, bootstrap over examples) and `per_image` have the same names.
    `signature` is what the numbers depend on; `warnings` is what to know about them. `reference_tokens` are the
    references as they were compared, `summands` what the scores are made of. `floors` has what trivial rules score, by
    their name, and `floor_summands` of those whose score of each example is known, of what it is made.

    Of captions, `language` describes them and `spice_categories` has SPICE's score of each kind of tuple. Of other
    tasks, `groups` has the scores of kinds of examples (heading -> kind -> `count` and scores), `about` what else is
    known of an example, and `truth` its answers as the page shows them, with counts. `files` are further ones, by name.
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
    task: str = "caption"
    columns: tuple[Column, ...] = CAPTION_COLUMNS
    primary: str = CAPTION_PRIMARY
    floors: dict[str, dict[str, float | None]] = field(default_factory=dict)
    floor_summands: dict[str, dict[str, Summands]] = field(default_factory=dict, repr=False, compare=False)
    groups: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    about: dict[ExampleId, dict[str, Any]] = field(default_factory=dict, repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float | None:
        return self.corpus[name]

    @property
    def headline(self) -> float | None:
        """The score that the run is compared by."""
        return self.corpus.get(self.primary)


def table(scores: Scores) -> str:
    """The requested scores as aligned text: name, fraction, percent, its 95 % interval; or `-` and a reason.

    Below them stand the floors: what trivial rules have of the primary score.
    """
    rows = []
    shown = [
        column
        for column in scores.columns
        if scores.corpus[column.key] is not None or scores.reasons.get(column.key) != NOT_REQUESTED
    ]
    width = max([8, *(len(column.label) + 1 for column in shown)])
    for column in shown:
        value, interval = scores.corpus[column.key], scores.intervals.get(column.key)
        if value is not None:
            error_bars = f"   {' to '.join(column.ends(interval))}" if interval else ""
            fraction = f"{value:.3f}" if column.scale != 1 else ""
            rows.append(f"{column.label:<{width}}{fraction:>7}{column.shown(value):>8}{error_bars}")
        else:
            rows.append(f"{column.label:<{width}}{'-':>7}{'-':>8}   {on_one_line(scores.reasons[column.key])}")
    return "\n".join([*rows, *_floor_lines(scores)])


def _floor_lines(scores: Scores) -> list[str]:
    """What trivial rules score, by the primary score: `floor   18.1  majority answer "no"`."""
    column = next(column for column in scores.columns if column.key == scores.primary)
    width = max(8, len(column.label) + 1)
    found = [(values[column.key], name) for name, values in scores.floors.items() if values.get(column.key) is not None]
    return [f"{'floor':<{width}}{'':>7}{column.shown(value):>8}   {on_one_line(name)}" for value, name in found]


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
    missing = [COLUMNS[name][-1] for name in required if scores.corpus.get(COLUMNS[name][-1]) is None]
    return "; ".join(f"{name}: {scores.reasons[name]}" for name in missing)


def save(
    scores: Scores,
    folder: Path,
    beside: Sequence[str] = (),
    weights: str | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> None:
    """Writes `scores.json` (corpus, counts, reasons, warnings, signature) and a line an example.

    The latter is `per_image.jsonl` for captions, `per_example.jsonl` for any other task. `scores.json` holds checksums
    of it and of the files `beside`: formats of lists, which have no room for one; the `comparison` with another system
    (`comparison.as_json`); and the SHA-256 of the `weights` that made the predictions, as the evaluation's
    `weights.json` does.
    """
    captions = scores.task == "caption"
    summary: dict[str, Any] = {**scores.corpus, "intervals": scores.intervals}
    if captions:
        summary |= {"spice_categories": scores.spice_categories, "language": scores.language}
    else:
        summary |= {"floors": scores.floors, "groups": scores.groups}
    summary |= {
        "images" if captions else "examples": len(scores.per_image),
        "reasons": scores.reasons,
        "warnings": scores.warnings,
        "signature": scores.signature,
    }
    if weights is not None:
        summary["weights"] = weights
    if comparison is not None:
        summary["comparison"] = comparison
    summary |= {"task": scores.task, "primary": scores.primary, "columns": columns_as_json(scores.columns)}
    lines = (
        (_caption_line if captions else _example_line)(scores, example, values, counts_of(scores.summands, number))
        for number, (example, values) in enumerate(scores.per_image.items())
    )
    folder.mkdir(parents=True, exist_ok=True)
    # ASCII: captions may hold lone surrogates, which JSON's escapes can carry and UTF-8 cannot.
    name = CAPTIONS_FILE if captions else EXAMPLES_FILE
    write_bytes(folder / name, ((json.dumps(line, allow_nan=False) + "\n").encode() for line in lines))
    for further, content in scores.files.items():
        write_bytes(folder / further, [content])
    summary["crc32_of"] = {each: crc32(folder / each) for each in (name, *beside, *scores.files)}
    write_json(folder / "scores.json", sealed(summary))


def _caption_line(scores: Scores, image: ImageId, values: Mapping[str, Any], counts: Mapping[str, Any]) -> dict:
    line = {
        "image_id": image,
        "hypothesis": scores.hypotheses[image],
        "references": scores.references[image],
        "scores": values,
        "counts": counts,
    }
    return line | scores.about.get(image, {})  # `captions`, where several were written


def _example_line(scores: Scores, example: ExampleId, values: Mapping[str, Any], counts: Mapping[str, Any]) -> dict:
    return {
        "id": example,
        "prediction": scores.hypotheses[example],
        "truth": scores.references[example],
        "about": scores.about.get(example, {}),
        "scores": values,
        "counts": counts,
    }


# Folders of scores may come from strangers: every type is checked where they are read, and not where they are used.


def read_summary(folder: Path) -> dict[str, Any]:
    """The `scores.json` that `save` wrote, without keys of other types than it wrote.

    OSError or ValueError when it or a file that it vouches for is damaged.
    """
    summary = read_sealed(_plain_file(folder / "scores.json"))
    vouched = _of("crc32_of", summary, lambda value: isinstance(value, str))
    for name, expected in vouched.items():
        if Path(name).name != name:
            raise ValueError(f"scores.json vouches for {name!r}")
        check_crc32(_plain_file(folder / name), expected)
    columns = columns_of_json(summary.get("columns"))
    for column in columns:
        if not _is_figure(summary.get(column.key)):
            raise ValueError(f"{column.key} is no number")
    if not isinstance(summary.setdefault("task", "caption"), str):
        raise ValueError("task is no text")
    if summary.setdefault("primary", CAPTION_PRIMARY) not in {column.key for column in columns}:
        raise ValueError("primary is none of the columns")
    _of("floors", summary, _are_named_figures)
    _of("groups", summary, lambda value: isinstance(value, dict) and all(map(_are_named_figures, value.values())))
    if (folder / "weights.json").exists():
        weights = read_sealed(_plain_file(folder / "weights.json")).get("sha256")
        if summary.get("weights", weights) != weights:  # an older velm's does not say
            raise ValueError("scores.json is of other weights than weights.json names")
    for key in ("language", "spice_categories"):
        _of(key, summary, _is_figure)
    _of("intervals", summary, _is_interval)
    _of("reasons", summary, lambda value: isinstance(value, str))
    _of("signature", summary, lambda value: True)
    if not _are_texts(summary.get("warnings", [])):
        raise ValueError("warnings is no list of texts")
    return summary


def scores_of_summary(summary: Mapping[str, Any]) -> Scores:
    """The scores in a `read_summary`, without the examples: for a table that is printed again."""
    columns = columns_of_json(summary.get("columns"))
    keys = [column.key for column in columns]
    return Scores(
        corpus={key: summary.get(key) for key in keys},
        intervals={key: tuple(ends) if (ends := summary["intervals"].get(key)) else None for key in keys},
        reasons=dict.fromkeys(keys, NOT_REQUESTED) | summary["reasons"],
        per_image={},
        signature=summary["signature"],
        warnings=summary["warnings"],
        references={},
        hypotheses={},
        task=summary["task"],
        columns=columns,
        primary=summary["primary"],
        floors=summary.get("floors", {}),
    )


def read_images(folder: Path) -> list[dict[str, Any]]:
    """The lines of `per_image.jsonl`, as `save` wrote them. OSError or ValueError when they are damaged.

    Those of `per_example.jsonl`, where the folder is of another task, in the same form, and `about`.
    """
    name = EXAMPLES_FILE if (folder / EXAMPLES_FILE).exists() else CAPTIONS_FILE
    images = []
    for number, line in enumerate(_plain_file(folder / name).read_bytes().splitlines(), 1):
        try:
            image = json.loads(line)
            if name == EXAMPLES_FILE:
                image = {
                    "image_id": image["id"],
                    "hypothesis": image["prediction"],
                    "references": image["truth"],
                    **{key: image[key] for key in ("about", "scores", "counts")},
                }
                if not isinstance(image["about"], dict):
                    raise ValueError
            elif isinstance(image, dict) and _are_texts(image.get("captions")):
                image["about"] = {"captions": image["captions"]}
            whole = (
                isinstance(image["image_id"], (int, str))
                and isinstance(image["hypothesis"], str)
                and _are_texts(image["references"])
                and bool(_of("scores", image, _is_figure))
                and _of("counts", image, _are_figures) is not None
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(f"line {number} of {name} is damaged")
        images.append(image)
    return images


def _plain_file(path: Path) -> Path:
    """`path`; OSError where nothing is, ValueError for what might be read for ever (a pipe, a device)."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    return path


def _of(key: str, values: Mapping[str, Any], fits: Callable[[Any], bool]) -> dict[str, Any]:
    """The object under `key`, empty where there is none; ValueError when it or a value in it does not fit."""
    found = values.get(key, {})
    if not isinstance(found, dict) or not all(map(fits, found.values())):
        raise ValueError(f"{key} is not what velm writes")
    return found


def _is_figure(value: Any) -> bool:
    """None or a finite number; whole ones have no bounds in JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1 << 64
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and all(each is not None and _is_figure(each) for each in value)


def _are_named_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_figure, value.values()))


def _is_interval(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(end is not None and _is_figure(end) for end in value)
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def check_vouched(path: Path) -> None:
    """UserError when a `scores.json` beside the file has another checksum of it; most files have none and pass."""
    try:
        expected = read_sealed(_plain_file(path.parent / "scores.json")).get("crc32_of", {}).get(path.name)
    except (OSError, ValueError, AttributeError):  # none there, or not velm's
        return
    try:
        check_crc32(path, expected)
    except ValueError as error:
        raise UserError(
            f"{path}: {error} (its checksum is in the scores.json next to it); if you changed it on purpose, "
            "put it into another folder"
        ) from error
