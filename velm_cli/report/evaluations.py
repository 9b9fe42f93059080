"""What a report shows of one evaluated model, as plain data: read from a finished folder, or built by a stage.

The page (`page.py`) knows these classes alone, so whatever wrote the scores (train, evaluate, a file of
somebody else's predictions) is shown in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from velm_cli import configs
from velm_cli.data.looked import Attention
from velm_cli.errors import UserError
from velm_cli.metrics.comparison import Difference, summands_of
from velm_cli.metrics.scores import ImageId, Scores, read_images, read_summary
from velm_cli.metrics.significance import Summands
from velm_cli.report.about import about_folder
from velm_cli.report.logs import is_number, read_figures
from velm_cli.schema.metric_names import CAPTION_COLUMNS, CAPTION_PRIMARY, Column, columns_of_json

Point = tuple[int, float]  # optimisation step, value


@dataclass(frozen=True, slots=True)
class Curves:
    """The learning curves of the training run: losses, and the task's primary score (CIDEr of greedy captions)."""

    train_loss: Sequence[Point] = ()
    validation_loss: Sequence[Point] = ()
    validation_score: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model's predictions of a split and their scores. Scores are as in `Scores`; None means not computed.

    `scores` and `intervals` (95 %) are of the corpus; `differences` are to the first run of the page, with the
    interval of the difference and p of the paired test. `reasons` says why a score is None. `references` are those
    it was scored against. `details` are further figures as text, by name; `signature` is what the scores depend on.
    """

    name: str
    scores: Mapping[str, float | None]
    per_image: Mapping[ImageId, Mapping[str, float | None]]
    hypotheses: Mapping[ImageId, str]
    references: Mapping[ImageId, Sequence[str]]
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    differences: Mapping[str, Difference] = field(default_factory=dict)
    summands: Mapping[str, Summands] = field(default_factory=dict)  # what each score is made of, an image a row
    reasons: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    about: Mapping[str, str] = field(default_factory=dict)  # model, data, decoding, command ..., by name
    details: Mapping[str, str] = field(default_factory=dict)
    signature: Mapping[str, Any] = field(default_factory=dict)
    curves: Curves | None = None
    attention: Mapping[ImageId, Attention] = field(default_factory=dict)
    task: str = "caption"
    columns: Sequence[Column] = CAPTION_COLUMNS
    primary: str = CAPTION_PRIMARY
    floors: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # what trivial rules score
    examples: Mapping[ImageId, Mapping[str, Any]] = field(default_factory=dict)  # what else is known of each

    def own_score(self, example: ImageId) -> float | None:
        """The primary score of an example; where that is of all together (mAP), the first that examples have."""
        scores = self.per_image.get(example, {})
        return scores.get(self.primary, next(iter(scores.values()), None))


def read_evaluation(folder: Path) -> Evaluated:
    """The evaluation in a folder that holds `scores.json` and `per_image.jsonl`, as every stage writes them.

    Its curves are those of the training run, where that is still to be found. Raises UserError when the
    folder has no scores or they are damaged.
    """
    try:
        summary = read_summary(folder)
        images = read_images(folder)
        columns, primary = columns_of_json(summary.get("columns")), summary["primary"]
        keys = [column.key for column in columns]
        return Evaluated(
            name=folder.resolve().name,
            scores={key: summary.get(key) for key in keys},
            per_image={image["image_id"]: image["scores"] for image in images},
            hypotheses={image["image_id"]: image["hypothesis"] for image in images},
            references={image["image_id"]: image["references"] for image in images},
            intervals={name: tuple(ends) if ends else None for name, ends in summary.get("intervals", {}).items()},
            reasons=summary["reasons"],
            warnings=summary["warnings"],
            about=about_folder(folder),
            details=_details(summary),
            signature=summary["signature"],
            curves=curves_behind(folder, primary),
            summands={key: one for key in keys if (one := summands_of(images, key)) is not None},
            task=summary["task"],
            columns=columns,
            primary=primary,
            floors=summary.get("floors", {}),
            examples={image["image_id"]: image.get("about", {}) for image in images},
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: it has no {Path(error.filename).name}; give the folder of a finished run"
        ) from error
    except PermissionError as error:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: its scores are damaged ({error}); evaluate again with fresh=true") from error


def evaluated_of(
    scores: Scores,
    name: str,
    found: Mapping[str, Difference] | None = None,
    *,
    about: Mapping[str, str] | None = None,
    facts: Mapping[str, float | None] | None = None,
    curves: Curves | None = None,
) -> Evaluated:
    """The same of scores at hand; `found` are the differences to the page's first run, `facts` are of `score_facts`."""
    told = {key.replace("_", " "): f"{value:.3f}" for key, value in (facts or {}).items() if value is not None}
    return Evaluated(
        name=name,
        scores=scores.corpus,
        per_image=scores.per_image,
        hypotheses=scores.hypotheses,
        references=scores.references,
        intervals=scores.intervals,
        differences=found or {},
        reasons=scores.reasons,
        warnings=scores.warnings,
        about=about or {},
        details=_details(
            {"language": scores.language, "spice_categories": scores.spice_categories, "groups": scores.groups}
        )
        | told,
        signature=scores.signature,
        curves=curves,
        task=scores.task,
        columns=scores.columns,
        primary=scores.primary,
        floors=scores.floors,
        examples=scores.about,
    )


def _details(summary: Mapping[str, Any]) -> dict[str, str]:
    """The figures of the captions' language as they are; SPICE's categories and the scores of groups times 100."""
    language = {
        name.replace("_", " "): f"{value:,.4g}"
        for name, value in summary.get("language", {}).items()
        if value is not None
    }
    categories = summary.get("spice_categories", {}).items()
    found = language | {f"SPICE, {name}": f"{100 * value:.1f}" for name, value in categories if value is not None}
    for heading, groups in summary.get("groups", {}).items():
        for name, figures in groups.items():
            scores = (
                f"{key} {100 * value:.1f}" for key, value in figures.items() if key != "count" and value is not None
            )
            found[f"{heading}: {name}"] = f"{', '.join(scores)} ({figures.get('count') or 0:,.0f})"
    return found


def read_curves(folder: Path, primary: str = CAPTION_PRIMARY) -> Curves:
    """The curves of the run in `folder`. A step that was done twice, after a resumption, counts as it was last.

    The loss is the text's, or the plain sum of the others where the text has none.
    """
    train_loss, validation_loss, validation_score = {}, {}, {}
    logged = primary.lower()  # figures of validations are logged in small letters
    for line in read_figures(folder):
        if line["kind"] == "train":
            train_loss[line["step"]] = _loss_of(line)
        elif line["kind"] == "validation":
            validation_loss[line["step"]] = _loss_of(line)
            score = line.get(logged)
            validation_score[line["step"]] = score if is_number(score) else None
    return Curves(_points(train_loss), _points(validation_loss), _points(validation_score))


def _loss_of(line: Mapping[str, float]) -> float | None:
    losses = {key: value for key, value in line.items() if key.startswith("loss_")}
    return losses.get("loss_text", sum(losses.values())) if losses else line.get("loss")


def _points(values: Mapping[int, float | None]) -> list[Point]:
    return [(step, value) for step, value in sorted(values.items()) if value is not None and math.isfinite(value)]


def curves_behind(folder: Path, primary: str = CAPTION_PRIMARY) -> Curves | None:
    """Those of the run itself, or of the run that it evaluates; None when that is gone or never was."""
    home = folder
    if (folder / "config.yaml").is_file():
        config = OmegaConf.to_container(configs.read_config(folder / "config.yaml"))
        assert isinstance(config, dict)
        if isinstance(config.get("checkpoint"), str) and config.get("stage") == "evaluate":
            try:
                home = configs.run_folder_of(config["checkpoint"])
            except UserError:
                return None
    return read_curves(home, primary) if (home / "metrics.jsonl").is_file() else None
