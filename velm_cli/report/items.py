"""What the page shows of an example of a task other than captioning: a question, or an image among captions.

The files of scores keep it under `about`; whatever is missing there, as in a stranger's folder, is not shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velm_cli.metrics.scores import ExampleId
from velm_cli.report.evaluations import Evaluated

MOST_SHOWN = 10  # alternatives of an example


@dataclass(frozen=True, slots=True)
class Item:
    """One example: what was asked, what is right (each with a note), and of which kind it is.

    `found` are, for each of the right texts, ids of the images that were ranked first for it.
    """

    prompt: str = ""
    truth: Sequence[tuple[str, str]] = ()
    group: str = ""
    found: Sequence[Sequence[ExampleId]] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run says of an example: how right it is (0 to 1), and (text, probability, right) of its candidates."""

    right: float | None
    candidates: Sequence[tuple[str, float | None, bool | None]] = ()


def item_of(run: Evaluated, example: ExampleId) -> Item:
    about, truth = run.examples.get(example, {}), run.references.get(example, ())
    if run.task == "retrieve":
        ranks = _numbers(about.get("t2i_ranks"), len(truth))
        notes = ["" if rank is None else f"rank {rank:g}" for rank in ranks]
        listed = about.get("found_images")
        found = [_ids(each) for each in listed] if isinstance(listed, list) else []
        (rank,) = _numbers([about.get("i2t_rank")], 1)
        prompt = "" if rank is None else f"Best own caption: rank {rank:g}"
        return Item(prompt, list(zip(truth, notes, strict=True)), found=found)
    if run.task == "classify":
        return Item(truth=[(label, "") for label in truth], group=truth[0] if len(truth) == 1 else "")
    counts = Counter(truth).most_common()
    return Item(
        prompt=_text(about, "question") or _text(about, "source"),
        truth=[(text, f"× {count}" if count > 1 or len(counts) > 1 else "") for text, count in counts],
        group=_text(about, "question_type") or _text(about, "kind"),
    )


def answer_of(run: Evaluated, example: ExampleId) -> Answer:
    scores, about = run.per_image.get(example, {}), run.examples.get(example, {})
    if run.task == "retrieve":
        pairs = _pairs(about.get("retrieved"), bool)
        return Answer(scores.get("i2t_R@1"), [(text, None, own) for text, own in pairs])
    pairs = _pairs(about.get("alternatives"), float)
    return Answer(run.own_score(example), [(text, max(0.0, min(1.0, share)), None) for text, share in pairs])


def _text(about: Mapping[str, Any], key: str) -> str:
    value = about.get(key)
    return value if isinstance(value, str) else ""


def _numbers(value: Any, count: int) -> list[float | None]:
    listed = value if isinstance(value, list) and len(value) == count else [None] * count
    return [float(each) if isinstance(each, (int, float)) else None for each in listed]


def _ids(value: Any) -> list[ExampleId]:
    return [each for each in value if isinstance(each, (int, str))] if isinstance(value, list) else []


def _pairs(value: Any, kind: type) -> list[tuple[str, Any]]:
    listed = value if isinstance(value, list) else []
    return [
        (each[0], each[1])
        for each in listed[:MOST_SHOWN]
        if isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) and isinstance(each[1], kind)
    ]
