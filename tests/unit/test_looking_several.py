"""Where a model looked in several images of an example: a map of each, on a sheet with their tiles."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from test_attribution import SAID, of_images
from test_matrix import FUSION, TEXT, open_gates
from test_several_images import VIT, left_is_bright
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.learners.attribution import Said, looked
from velm_cli.learners.interface import Moment
from velm_cli.learners.judging import JudgingLearner
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant
from velm_cli.report.sheets import ACROSS, on_sheet, sheet


def writer(fusion: str, images: int, source: int | None = None) -> WritingLearner:
    torch.manual_seed(0)
    vision, text = replace(VIT, images=images), TEXT["transformer"]()
    model = VelmModel(vision=vision, text=text, fusion=FUSION[fusion](), vocab_size=VOCAB, source=source)
    open_gates(model)
    return WritingLearner(model, schema.LossConfig(), weights=constant("text"), concepts=0).eval()


def examples(image_of: list[list[int]], source: bool = False) -> Batch:
    batch = of_images("vit", 3)
    B = len(image_of)
    parts = {"source_BL": torch.randint(3, VOCAB, (B, 4)), "source_lengths_B": torch.full((B,), 4)} if source else {}
    return Batch.of(
        torch.zeros(B, 0, 0, dtype=torch.long), torch.zeros(B, 0, dtype=torch.long),
        images=[0, 1, 2], image_XCHW=batch.image_XCHW, image_of_BI=torch.tensor(image_of), **parts,
    )  # fmt: skip


@pytest.mark.parametrize("images", [3, 0], ids=["places", "bag"])
@pytest.mark.parametrize("source", [None, 1])
@pytest.mark.parametrize(("fusion", "method"), [("cross_modal", "attention"), ("attention_additive", "attention"),
                                                ("concat", "gradient"), ("cross_modal", "occlusion")])  # fmt: skip
def test_the_maps_of_an_example_are_shares_of_one(fusion, method, source, images):
    learner = writer(fusion, images, source)
    found = looked(learner, examples([[0, 1], [2, -1]], source is not None), SAID, method)
    assert [each.shape[:2] for each in found] == [(2, 2), (1, 2)]
    for each in found:
        total = each.sum((1, 2, 3))
        assert (total < 1 + 1e-5).all() and (each >= 0).all()
        if method != "attention":  # or words look at the source too; at BOS and class tokens
            assert ((total > 0.999) | (total == 0)).all()
    assert not found[1][:, 1].any(), "of an image that is not there"
    if method == "attention" and source is None:
        np.testing.assert_allclose(found[0].sum((1, 2, 3)), 1, rtol=1e-4)


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_one_image_has_the_map_that_it_had(method):
    """Of a model of one image, and of an example whose other place is empty."""
    learner = writer("cross_modal", 2)
    alone = looked(learner, examples([[0], [2]]), SAID, method)
    padded = looked(learner, examples([[0, -1], [2, -1]]), SAID, method)
    for one, other in zip(alone, padded, strict=True):
        assert one.ndim == 3 and not other[:, 1].any()
        np.testing.assert_allclose(one, other[:, 0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("fusion", "method"), [("concat", "occlusion"), ("concat", "gradient")])
def test_the_image_that_decides_is_the_one_that_was_looked_at(fusion, method):
    """A judge that has learned to look at the left image only."""
    torch.manual_seed(0)
    model = VelmModel(
        vision=replace(VIT, images=2), text=TEXT["transformer"](), fusion=FUSION[fusion](), vocab_size=VOCAB,
        causal=False,
    )  # fmt: skip
    judge = JudgingLearner(
        model, schema.LossConfig(joint=schema.JointLoss.label), weights=constant("joint"), labels=2, dropout=0.0
    )
    optimiser = torch.optim.Adam(judge.parameters(), lr=1e-3)

    def batch(count: int) -> Batch:
        """The label is the brightness of the upper left quarter of the left image; the right one is noise."""
        one = left_is_bright(count)
        images = 0.5 + 0.3 * (torch.rand(2 * count, 3, 16, 16) - 0.5)
        bright = one.labels["answers"].argmax(1).float()
        images[0::2, :, :8, :8] += (0.5 * (bright - 0.5))[:, None, None, None]
        return replace(one, image_XCHW=images, labels={"answers": one.labels["answers"].float()})

    for step in range(200):
        term = judge(batch(32), Moment(judge.active, step))["joint"]
        optimiser.zero_grad()
        (term.sum / term.count).backward()
        optimiser.step()
        if term.sum.item() / term.count < 0.02:
            break
    judge.eval()
    test = batch(16)
    labels = judge.predict(test).logits_BC.argmax(1).tolist()
    found = np.stack(looked(judge, test, [Said(["x"], label=label) for label in labels], method))
    left = found[:, 0, 0].sum((1, 2)).mean()
    assert left > 0.6, f"{left:.2f} of what was looked at is left, after {step + 1} steps"


@pytest.mark.parametrize("images", [2, 8, 9])
def test_maps_lie_on_the_tiles_of_their_images(images):
    side, rng = 20, np.random.default_rng(0)
    jpegs = []
    for number in range(images):
        Image.new("RGB", (40, 30), (25 * number,) * 3).save(out := BytesIO(), "JPEG", quality=95)
        jpegs.append(out.getvalue())
    picture = np.asarray(Image.open(BytesIO(sheet(jpegs, [(0.1, 0.0, 0.9, 1.0)] * images, side))).convert("L"))
    maps = rng.random((3, images, 4, 4))
    placed = on_sheet(maps)
    across = min(images, ACROSS)
    assert picture.shape == (-(-images // across) * side, across * side)
    assert placed.shape == (3, picture.shape[0] // side * 4, across * 4)
    for number in range(images):
        row, column = divmod(number, across)
        middle = picture[row * side + 5 : row * side + 15, column * side + 5 : column * side + 15]
        assert abs(middle.mean() - 25 * number) < 3
        np.testing.assert_array_equal(placed[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4], maps[:, number])
    assert np.isclose(placed.sum(), maps.sum())
