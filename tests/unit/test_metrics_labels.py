"""Figures of classification equal scikit-learn's on random inputs with ties; intervals, floors and tables of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from velm_cli.errors import UserError
from velm_cli.metrics.classification import (
    average_precisions,
    f1_by_class,
    f1_of_images,
    f1_overall,
    mean_average_precision,
    top_k,
)
from velm_cli.metrics.label_scores import Found, score_labels
from velm_cli.metrics.significance import bootstrap
from velm_cli.report.evaluations import evaluated_of
from velm_cli.schema import MetricsConfig


def draw(seed: int, images: int = 60, labels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels that some images and perhaps some label have not."""
    random = np.random.default_rng(seed)
    return random.integers(0, 6, (images, labels)) / 5, random.random((images, labels)) < random.random(labels) / 2


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_scikit_learns(seed):
    scores_IC, right_IC = draw(seed)
    found_C = average_precisions(scores_IC, right_IC)
    there_C = right_IC.any(axis=0)
    assert (np.isnan(found_C) == ~there_C).all()
    theirs_C = [metrics.average_precision_score(right_IC[:, c], scores_IC[:, c]) for c in np.flatnonzero(there_C)]
    assert np.allclose(found_C[there_C], theirs_C, atol=1e-12)
    whole = metrics.average_precision_score(right_IC[:, there_C], scores_IC[:, there_C], average="macro")
    assert np.isclose(mean_average_precision(scores_IC, right_IC).total(), whole, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_f1_is_scikit_learns(seed):
    scores_IC, right_IC = draw(seed)
    chosen_IC = scores_IC >= 0.6
    there_C = right_IC.any(axis=0)
    some = right_IC[:, there_C], chosen_IC[:, there_C]
    precision = metrics.precision_score(*some, average="macro", zero_division=0)
    recall = metrics.recall_score(*some, average="macro", zero_division=0)
    assert np.isclose(f1_by_class(chosen_IC, right_IC).total(), 2 * precision * recall / (precision + recall))
    assert np.isclose(f1_overall(chosen_IC, right_IC).total(), metrics.f1_score(right_IC, chosen_IC, average="micro"))
    theirs = metrics.f1_score(right_IC, chosen_IC, average="samples", zero_division=1)
    assert np.isclose(f1_of_images(chosen_IC, right_IC).mean(), theirs)


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_is_the_mean_of_scikit_learns_over_the_orders_of_ties(k):
    random = np.random.default_rng(k)
    scores_IC = random.integers(0, 4, (40, 6)).astype(float)
    label_I = random.integers(0, 6, 40)
    mean = np.mean([
        metrics.top_k_accuracy_score(label_I, scores_IC + random.random(scores_IC.shape) / 10, k=k, labels=range(6))
        for _ in range(3000)
    ])  # fmt: skip
    assert abs(top_k(scores_IC, label_I, k).mean() - mean) < 0.005


def test_ties_count_by_their_share():
    scores_IC = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    assert top_k(scores_IC, np.array([0, 2, 0, -1]), 1).tolist() == [0.5, 1 / 3, 1.0, 0.0]
    assert top_k(scores_IC, np.array([2, 2, 1, 0]), 2).tolist() == [0.0, 2 / 3, 0.0, 0.5]


def test_resampled_map_is_that_of_the_images_drawn():
    scores_IC, right_IC = draw(3)
    summands = mean_average_precision(scores_IC, right_IC)
    drawn = np.random.default_rng(0).integers(len(scores_IC), size=len(scores_IC))
    times_1I = np.bincount(drawn, minlength=len(scores_IC))[None].astype(float)
    again = mean_average_precision(scores_IC[drawn], right_IC[drawn]).total()
    assert np.isclose(summands.score(times_1I @ summands.rows_IS)[0], again)
    low, high = bootstrap(summands, resamples=200)
    assert low < summands.total() < high


def found(scores: dict[int, list[float]], labels=("ants", "bees", "wasps"), several: bool = False) -> Found:
    arrays = {name: np.array(each) for name, each in scores.items()}
    chosen = {
        name: [labels[c] for c in (np.flatnonzero(each >= 0.5) if several else [each.argmax()])]
        for name, each in arrays.items()
    }
    return Found(labels, chosen, arrays)


def test_floors_and_confusions_of_single_labels():
    truth = {1: ["ants"], 2: ["ants"], 3: ["bees"], 4: ["moths"]}
    scores = {1: [0.9, 0.1, 0], 2: [0.2, 0.7, 0.1], 3: [0.1, 0.8, 0.1], 4: [0.5, 0.3, 0.2]}
    training = [["bees"]] * 3 + [["ants"]]
    done = score_labels(truth, found(scores), MetricsConfig(resamples=100), single=True, training=training)
    assert done["top1"] == 0.5 and done["top5"] is None and done.headline == 0.5
    assert done.reasons["top5"] == "there are 4 labels"
    assert {name: floor["top1"] for name, floor in done.floors.items()} == {
        "majority: bees": 0.25, "the commonest of those scored: ants": 0.5,
    }  # fmt: skip
    assert done.files["confusion.csv"].decode().splitlines() == [
        "right,ants,bees,wasps,moths", "ants,1,1,0,0", "bees,0,1,0,0", "wasps,0,0,0,0", "moths,1,0,0,0",
    ]  # fmt: skip
    assert any("moths" in line and "none that can be predicted" in line for line in done.warnings)
    assert any("no better than the floor" in line for line in done.warnings)
    assert done.per_image[2] == {"top1": 0.0}


def test_floors_and_table_of_several_labels():
    truth = {1: ["ants", "bees"], 2: ["bees"], 3: ["bees", "wasps"], 4: []}
    scores = {1: [0.9, 0.8, 0], 2: [0.2, 0.7, 0.1], 3: [0.1, 0.8, 0.4], 4: [0.1, 0.3, 0.2]}
    done = score_labels(truth, found(scores, several=True), MetricsConfig(resamples=100), single=False)
    assert done["mAP"] == 1 and done.primary == "mAP" and done.intervals["OF1"] is not None
    assert np.isclose(done["OF1"], 2 * 4 / (4 + 5)) and np.isclose(done["CF1"], 2 / 3)
    assert np.isclose(done.floors["every label"]["OF1"], 2 * 5 / (12 + 5))
    assert np.isclose(done.floors["label frequencies"]["mAP"], (1 / 4 + 3 / 4 + 1 / 4) / 3)
    assert b"wasps,0,1,0,3" in done.files["confusion.csv"]
    assert done.groups["label"]["bees"] == {"count": 3, "recall": 1.0, "precision": 1.0, "AP": 1.0}
    undecided = found(scores, several=True)
    undecided.decided = False
    done = score_labels(truth, undecided, MetricsConfig(resamples=0), single=False)
    assert done["mAP"] == 1 and done["CF1"] is None and "order labels" in done.reasons["CF1"]


def test_a_truth_that_does_not_fit_is_refused():
    two = found({1: [1, 0, 0], 2: [0, 1, 0]})
    for truth, said in (
        ({1: ["ants"]}, "no label in the references of 1 images"),
        ({1: ["ants"], 2: ["bees"], 3: ["bees"]}, "no prediction for 1 images"),
        ({1: ["ants"], 2: ["bees", "ants"]}, "several labels in the references of 1 images"),
        ({}, "no labels to score"),
    ):
        with pytest.raises(UserError, match=said):
            score_labels(truth, two, MetricsConfig(resamples=0), single=True)


def test_examples_of_several_labels_are_ordered_by_their_own_score():
    truth = {1: ["ants", "bees"], 2: ["bees"]}
    done = score_labels(
        truth, found({1: [0.9, 0.1, 0], 2: [0.2, 0.7, 0.1]}, several=True), MetricsConfig(resamples=0), single=False
    )
    shown = evaluated_of(done, "model")
    assert shown.primary == "mAP" and shown.own_score(2) == 1 and shown.own_score(1) == pytest.approx(2 / 3)
    assert shown.own_score(3) is None
