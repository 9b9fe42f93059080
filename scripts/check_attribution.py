"""Whether maps point at what a model used: hiding that must cost more log probability than hiding as much elsewhere.

    python scripts/check_attribution.py RUN [--split test] [--images FOLDER] [--count 100] [--words N] [--fill blur]

For each word that the model itself says (and each answer that it gives) a fifth of the image is hidden: where the
word's map is largest; where it is smallest; under the same shape moved at random, round the borders; and under a random
square. What the word loses is its log probability before minus after, in nats; an example counts as the mean of its
words. The same examples and the same squares for all methods. Without FOLDER the images (and questions) are those of
the run's data set. A FOLDER is for captioners.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import velm_cli
from velm_cli.data.batch import Batch
from velm_cli.data.loader import eval_batches
from velm_cli.data.opening import open_store
from velm_cli.data.store import first_image
from velm_cli.errors import UserError
from velm_cli.inference.examples import Given
from velm_cli.inference.model import Model
from velm_cli.learners.attribution import METHODS, Said, images_apart, looked, said_of, score_of, why_not
from velm_cli.learners.judging import ANSWERS
from velm_cli.metrics.significance import bootstrap, mean_of
from velm_cli.models.attributing import encoded, hidden
from velm_cli.relocating import store_path
from velm_cli.schema import DecodeConfig

CELLS = 16  # a side, of which a fifth is hidden
SQUARE = 7  # cells a side: 49 of 256 cells, 19 %
SQUARES = 3  # random ones an image
ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


def main(arguments: Sequence[str]) -> dict[str, object]:
    given = _parsed(arguments)
    torch.manual_seed(given.seed)
    model = velm_cli.load(given.run, device=given.device)
    able, learner = model._able, model._able.learner
    methods = [method for method in METHODS if why_not(learner, method) is None]
    if not methods:
        raise UserError(str(why_not(learner)))
    losses: dict[str, list[float]] = defaultdict(list)
    for jpegs, questions, texts in _told(model, given):
        said = [
            said_of(learner, able.tokenizer, text, answers=able.spaces.get(ANSWERS, ()), asked=questions is not None)
            for text in texts
            if text.strip()
        ]
        rows = [row for row, text in enumerate(texts) if text.strip()]
        if not rows:
            continue
        kept = Given([jpegs[row] for row in rows], sources=questions and [questions[row] for row in rows])
        columns = kept.columns(able.tokenizer, able.config)
        pixels = learner.pixels
        for batch in eval_batches(kept, columns, range(len(kept)), batch_size=len(kept), pixels=pixels):
            for name, values in _lost(learner, images_apart(batch.to(model.device)), said, methods, given).items():
                losses[name] += values
        print(f"{len(next(iter(losses.values())))} examples", file=sys.stderr)
    if not losses:
        raise UserError(f"{given.run} says nothing of these images: train it longer")
    found = _summary(losses, methods)
    print(f"{given.run}: {len(losses['square'])} examples, hidden by {given.fill}; nats, 95 % intervals")
    for line in found:
        print(f"{line['what']:44s} {line['mean']:7.3f}  {line['low']:7.3f} to {line['high']:7.3f}")
    if given.out:
        Path(given.out).write_text(json.dumps({"run": given.run, "found": found}, indent=1))
    return {"found": found}


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", help="a folder of images, for a model that writes captions")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--words", type=int, default=0, help="at most so many of each caption, spread over it; 0: all")
    parser.add_argument("--fill", choices=("mean", "blur"), default="mean")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file for the figures")
    return parser.parse_args(arguments)


def _told(model: Model, given: argparse.Namespace) -> Iterator[tuple[list[bytes], list[str] | None, list[str]]]:
    """(images, questions, what the model says of them), some at a time."""
    how = DecodeConfig(beams=1)
    for jpegs, questions in _examples(model, given):
        if questions is None:
            yield jpegs, None, model.captions_of(jpegs, how)
        else:
            yield jpegs, questions, model.answers_of(jpegs, questions, range(len(jpegs)), how)


def _examples(model: Model, given: argparse.Namespace) -> Iterator[tuple[list[bytes], list[str] | None]]:
    if given.images:
        files = sorted(path for path in Path(given.images).rglob("*") if path.suffix.lower() in ENDINGS)
        chosen = _spread(np.arange(len(files)), given.count)
        for start in range(0, len(chosen), given.batch):
            yield [model.stored(files[number]) for number in chosen[start : start + given.batch]], None
        return
    dataset = model.config.dataset
    store = open_store(store_path(dataset), dataset)
    numbers = _spread(store.split(given.split), given.count)
    asks = "answer" in model.can
    for start in range(0, len(numbers), given.batch):
        some = [int(number) for number in numbers[start : start + given.batch]]
        jpegs = [store.image_bytes(first_image(store, number)) for number in some]
        yield jpegs, [store.source(number) or "" for number in some] if asks else None


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    return numbers if len(numbers) <= count else numbers[np.linspace(0, len(numbers) - 1, count).astype(int)]


@torch.no_grad()
def _lost(
    learner, batch: Batch, said: Sequence[Said], methods: Sequence[str], given: argparse.Namespace
) -> dict[str, list[float]]:
    """By what is hidden, the mean loss of each example's words."""
    image_BCHW = batch.image_XCHW
    assert image_BCHW is not None
    score = score_of(learner, batch, said)
    whole_BW = score(encoded(learner.model, image_BCHW))
    there_BW = torch.tensor([[w < len(each.words) for w in range(whole_BW.shape[1])] for each in said])
    columns = _spread(np.arange(whole_BW.shape[1]), given.words or whole_BW.shape[1]).tolist()
    there_BW &= torch.tensor([w in columns for w in range(whole_BW.shape[1])])
    instead = _blurred(image_BCHW) if given.fill == "blur" else None

    def lost(keep_Bnn: Tensor) -> Tensor:
        changed = hidden(image_BCHW, keep_Bnn.to(image_BCHW.device), instead)
        return (whole_BW - score(encoded(learner.model, changed))).float().cpu()

    def of_examples(lost_BW: Tensor) -> list[float]:
        return (torch.where(there_BW, lost_BW, 0.0).sum(1) / there_BW.sum(1)).tolist()

    squares = [lost(_squares(len(said))) for _ in range(SQUARES)]
    found = {"square": of_examples(torch.stack(squares).mean(0))}
    for method in methods:
        with torch.enable_grad():
            maps = looked(learner, batch, said, method)
        parts = {name: torch.zeros_like(whole_BW, device="cpu", dtype=torch.float32) for name in PLACES}
        for w in columns:
            map_Bnn = torch.stack([_in_cells(each[min(w, len(each) - 1)]) for each in maps])
            for name, keep_Bnn in _kept(map_Bnn).items():
                parts[name][:, w] = lost(keep_Bnn)[:, w]
        found |= {f"{method} {name}": of_examples(part_BW) for name, part_BW in parts.items()}
    return found


PLACES = ("most", "moved", "least")


def _kept(map_Bnn: Tensor) -> dict[str, Tensor]:
    """Masks of what stays, where the map is largest, the same moved at random, and where it is smallest."""
    noisy_BX = (map_Bnn + 1e-9 * torch.rand_like(map_Bnn)).flatten(1)  # ties, such as of zeros, at random
    order_BX = noisy_BX.argsort(1, descending=True)
    masks = []
    for cells_BY in (order_BX[:, : SQUARE**2], order_BX[:, -(SQUARE**2) :]):
        masks.append(torch.ones_like(noisy_BX, dtype=torch.bool).scatter(1, cells_BY, False).view_as(map_Bnn))
    moved = [
        torch.roll(mask_nn, torch.randint(1, CELLS, (2,)).tolist(), (0, 1)) for mask_nn in masks[0]
    ]  # never where it was
    return dict(zip(PLACES, (masks[0], torch.stack(moved), masks[1]), strict=True))


def _squares(count: int) -> Tensor:
    keep_Bnn = torch.ones(count, CELLS, CELLS, dtype=torch.bool)
    for keep_nn in keep_Bnn:
        top, left = torch.randint(0, CELLS - SQUARE + 1, (2,)).tolist()
        keep_nn[top : top + SQUARE, left : left + SQUARE] = False
    return keep_Bnn


def _in_cells(map_hw: np.ndarray) -> Tensor:
    map_11hw = torch.from_numpy(map_hw)[None, None]
    return functional.interpolate(map_11hw, (CELLS, CELLS), mode="bilinear", align_corners=False)[0, 0]


def _blurred(image_BCHW: Tensor) -> Tensor:
    """A box of a quarter of the image, three times, is nearly a Gaussian."""
    width = image_BCHW.shape[-1] // 8 * 2 + 1
    for _ in range(3):
        image_BCHW = functional.avg_pool2d(
            functional.pad(image_BCHW, [width // 2] * 4, mode="replicate"), width, stride=1
        )
    return image_BCHW


def _summary(losses: dict[str, list[float]], methods: Sequence[str]) -> list[dict[str, object]]:
    columns = dict(losses)
    for method in methods:
        for other in ("square", f"{method} moved", f"{method} least"):
            columns[f"{method} most - {other}"] = _minus(losses[f"{method} most"], losses[other])
    for place, method in enumerate(methods):
        for other in methods[place + 1 :]:
            columns[f"{other} most - {method} most"] = _minus(losses[f"{other} most"], losses[f"{method} most"])
    found: list[dict[str, object]] = []
    for name, values in columns.items():
        low, high = bootstrap(mean_of(values)) or (float("nan"), float("nan"))
        found.append({"what": name, "mean": float(np.mean(values)), "low": low, "high": high, "count": len(values)})
    return found


def _minus(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
