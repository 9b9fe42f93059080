"""Scores of the parts that a test set says it has: nocaps' domains, by how far its images are from COCO's.

Agrawal et al. 2019, "nocaps: novel object captioning at scale".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from velm_cli.errors import on_one_line
from velm_cli.metrics.scores import ImageId, Scores
from velm_cli.metrics.significance import Summands
from velm_cli.schema.metric_names import CAPTION_COLUMNS


def by_domain(scores: Scores, domains: Mapping[ImageId, str]) -> dict[str, dict[str, float | None]]:
    """The scores of each domain's images (nocaps: in-domain, near-domain, out-domain), with their number.

    CIDEr's document frequencies stay those of all images, so the whole is between its parts.
    None is a score that no image of the domain has.
    """
    where = np.array([domains.get(image, "") for image in scores.per_image])
    found: dict[str, dict[str, float | None]] = {}
    for domain in dict.fromkeys(where.tolist()):
        if domain:
            found[domain] = {"images": int((where == domain).sum())}
            for name, whole in scores.summands.items():
                part = Summands(whole.rows_IS[where == domain], whole.score).total()
                found[domain][name] = None if math.isnan(part) else part
    return found


def domain_table(domains: Mapping[str, Mapping[str, float | None]]) -> str:
    """One line a domain, scores times 100."""
    shown = [column for column in CAPTION_COLUMNS if all(column.key in scores for scores in domains.values())]
    named = [(on_one_line(domain), scores) for domain, scores in domains.items()]  # as a stranger's file has them
    width = max(map(len, ["domain", *(domain for domain, _ in named)]))
    rows = [f"{'domain':<{width}}{'images':>8}" + "".join(f"{column.label:>9}" for column in shown)]
    for domain, scores in named:
        cells = "".join(f"{column.shown(scores[column.key]):>9}" for column in shown)
        rows.append(f"{domain:<{width}}{scores['images']:>8,}{cells}")
    return "\n".join(rows)
