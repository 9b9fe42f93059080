"""Statements judged true or false, scored as NLVR and NLVR2 are: accuracy, and consistency over groups.

The six orders of a picture are not six independent examples, nor are the pictures of one sentence, so intervals and
paired tests draw whole sets (`Summands.clusters_I`). Balanced data still have floors: in NLVR's dev part 55 % are true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from velm_cli import __version__
from velm_cli.errors import UserError, on_one_line
from velm_cli.metrics.floors import warn_of_floors
from velm_cli.metrics.scores import ExampleId, Scores
from velm_cli.metrics.significance import Summands, bootstrap_all, mean_of
from velm_cli.schema import MetricsConfig
from velm_cli.schema.metric_names import Column

REASON_PRIMARY = "accuracy"
REASON_COLUMNS = (
    Column("accuracy", "Accuracy", "acc", digits=2, meaning="share of the predictions that are right"),
    Column(
        "consistency",
        "Consistency",
        "cons",
        digits=2,
        meaning="share of the groups (one sentence with all its pictures) whose every prediction is right",
    ),
)
TRUE = "true"


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence with its pictures and its label, `true` or `false`. `group`: see `data.statements.Named`."""

    label: str
    group: str
    text: str = ""
    kind: str = ""
    images: tuple[str, ...] = ()

    @property
    def cluster(self) -> str:
        """The set that it belongs to: in NLVR2 its pictures have other sentences too."""
        return self.group.split("--")[0]


def score_reason(
    truth: Mapping[ExampleId, Statement],
    predicted: Mapping[ExampleId, str],
    config: MetricsConfig,
    *,
    training: Collection[str] | None = None,
    alternatives: Mapping[ExampleId, Sequence[tuple[str, float]]] | None = None,
) -> Scores:
    """The scores of one label per example, by its id.

    The majority is that of the `training` labels, or, without them, of the scored ones, which the signature then says.
    Raises UserError when the ids differ.
    """
    for problem, ids in (
        ("no prediction for", [one for one in truth if one not in predicted]),
        ("no reference for", [one for one in predicted if one not in truth]),
    ):
        if ids:
            raise UserError(f"{problem} {examples_listed(ids)}")
    if not truth:
        raise UserError("there is nothing to score")
    clusters_I = np.unique([one.cluster for one in truth.values()], return_inverse=True)[1]
    counts = Counter(training if training else (one.label for one in truth.values()))
    majority = max(sorted(counts), key=lambda label: counts[label])
    right = {number: predicted[number] == one.label for number, one in truth.items()}
    own, summands = _judged(truth, right, clusters_I)
    scores = Scores(
        corpus={key: one.total() for key, one in summands.items()},
        intervals=dict(bootstrap_all(summands, resamples=config.resamples)),
        reasons={},
        per_image=own,
        signature={
            "velm": __version__,
            "metric": "accuracy; consistency as in the official scripts of NLVR and NLVR2 (lil-lab/nlvr 1892484)",
            "examples": len(truth),
            "groups": len({one.group for one in truth.values()}),
            "intervals": f"{len(set(clusters_I.tolist()))} sets of examples are drawn whole",
            "floors": f"majority {majority!r} of "
            + (f"{len(training):,} training labels" if training else "the scored labels themselves, no training's"),
        },
        warnings=[],
        references={number: [one.label] for number, one in truth.items()},
        hypotheses={number: predicted[number] for number in truth},
        summands=summands,
        task="reason",
        columns=REASON_COLUMNS,
        primary=REASON_PRIMARY,
        groups=_by_kind(truth, right),
        about={
            number: _about(one, None if alternatives is None else alternatives.get(number))
            for number, one in truth.items()
        },
    )
    for name, label in (("majority", majority), ("always true", TRUE)):
        _, floor = _judged(truth, {number: one.label == label for number, one in truth.items()}, clusters_I)
        scores.floor_summands[name] = floor
        scores.floors[name] = {key: one.total() for key, one in floor.items()}
    warn_of_floors(scores, config.resamples)
    return scores


def examples_listed(ids: Sequence[ExampleId]) -> str:
    """`7 examples (dev-1-0-0, dev-1-0-1, ...)`."""
    shown = ", ".join(on_one_line(str(number)) for number in ids[:3])
    return f"{len(ids):,} example{'s' * (len(ids) > 1)} ({shown}{', ...' * (len(ids) > 3)})"


def _judged(
    truth: Mapping[ExampleId, Statement], right: Mapping[ExampleId, bool], clusters_I: np.ndarray
) -> tuple[dict[ExampleId, dict[str, float | None]], dict[str, Summands]]:
    """The scores of each example, and what the corpus scores are made of. A group's consistency is its first one's."""
    whole: dict[str, bool] = {}
    first: dict[str, ExampleId] = {}
    for number, one in truth.items():
        whole[one.group] = whole.get(one.group, True) and right[number]
        first.setdefault(one.group, number)
    own: dict[ExampleId, dict[str, float | None]] = {
        number: {
            "accuracy": float(right[number]),
            "consistency": float(whole[one.group]) if first[one.group] == number else None,
        }
        for number, one in truth.items()
    }
    keys = [column.key for column in REASON_COLUMNS]
    return own, {key: mean_of([each[key] for each in own.values()], clusters_I) for key in keys}


def _by_kind(
    truth: Mapping[ExampleId, Statement], right: Mapping[ExampleId, bool]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Count and accuracy of each kind of statement, where the data name any."""
    members: dict[str, list[bool]] = {}
    for number, one in truth.items():
        if one.kind:
            members.setdefault(one.kind, []).append(right[number])
    kinds: dict[str, dict[str, float | None]] = {
        kind: {"count": len(found), "accuracy": sum(found) / len(found)} for kind, found in sorted(members.items())
    }
    return {"kind": kinds} if kinds else {}


def _about(one: Statement, alternatives: Sequence[tuple[str, float]] | None) -> dict[str, Any]:
    """What the page shows beside the label; only what is known. `cluster` is what intervals of folders go by."""
    told: dict[str, Any] = {
        "source": one.text,
        "kind": one.kind,
        "group": one.group,
        "cluster": one.cluster,
        "images": list(one.images),
        "alternatives": None if alternatives is None else [[text, float(share)] for text, share in alternatives],
    }
    return {key: value for key, value in told.items() if value not in ("", None, [])}
