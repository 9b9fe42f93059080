"""A domain's scores are those of its images alone; one that none of them has is None, and can be written."""

from __future__ import annotations

import json

import pytest

from velm_cli.metrics.domains import by_domain, domain_table
from velm_cli.metrics.scores import Scores
from velm_cli.metrics.significance import mean_of
from velm_cli.schema.metric_names import NAMES


def test_undefined_scores_of_a_domain_are_none():
    spice, cider = [0.5, None, None, 0.25], [1.0, 2.0, 4.0, 3.0]
    images = {image: dict.fromkeys(NAMES) for image in range(4)}
    summands = {"SPICE": mean_of(spice), "CIDEr": mean_of(cider)}
    scores = Scores({}, {}, {}, images, {}, [], {}, {}, summands=summands)
    found = by_domain(scores, {0: "in", 1: "out", 2: "out"})
    assert found == {
        "in": {"images": 1, "SPICE": 0.5, "CIDEr": 1.0},
        "out": {"images": 2, "SPICE": None, "CIDEr": pytest.approx(3.0)},
    }
    json.dumps(found, allow_nan=False)
    assert [row.split() for row in domain_table(found).splitlines()] == [
        ["domain", "images", "CIDEr", "SPICE"],
        ["in", "1", "100.0", "50.0"],
        ["out", "2", "300.0", "-"],
    ]


def test_a_strangers_domain_stays_in_its_row():
    found = {"in\n\x1b[2Jvelm: all good": {"images": 1, "CIDEr": 1.0}, "out": {"images": 2, "CIDEr": 0.5}}
    rows = domain_table(found).splitlines()
    assert len(rows) == 3 and all(row.isprintable() for row in rows)
