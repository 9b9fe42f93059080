"""Several images of an example: every fusion tells them apart, and what is not there changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from test_matrix import FUSION, JUDGING, TEXT, images, open_gates
from tiny_models import VOCAB
from torch.nn import functional as F

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.learners.interface import Moment
from velm_cli.learners.judging import JudgingLearner
from velm_cli.learners.writing import WritingLearner
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.weights import constant

PLACES = 3
FUSIONS = FUSION | JUDGING
VIT = schema.ViTConfig(image_size=16, patch_size=8, width=24, layers=1, heads=2, images=PLACES)
POOLED = replace(VIT, output=schema.VisionOutput.pooled)
SHOWN = torch.tensor([[0, 1, -1], [1, 0, -1], [2, -1, -1], [0, 1, 2], [-1, -1, -1]])


def build(fusion: str, vision: schema.VisionConfig = VIT, *, source: int | None = None) -> VelmModel:
    torch.manual_seed(0)
    model = VelmModel(
        vision=vision,
        text=TEXT["transformer"](),
        fusion=FUSIONS[fusion](),
        vocab_size=VOCAB,
        causal=fusion not in JUDGING,
        source=source,
    )
    open_gates(model)
    return model.double()


def said(model: VelmModel, features: ImageFeatures, image_of: torch.Tensor | None, tokens: torch.Tensor):
    fused, _ = model.fusion.read(model.text, tokens, model.memory(features, image_of))
    return model.logits(fused)


@pytest.mark.parametrize("vision", [VIT, POOLED], ids=["grid", "pooled"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_images_that_change_places_are_another_example(fusion, vision):
    model = build(fusion, vision).eval()
    tokens = torch.randint(3, VOCAB, (5, 4))
    tokens[1] = tokens[0]
    with torch.no_grad():
        features = model.encode_image(images("vit", 3).double())
        whole = said(model, features, SHOWN, tokens)
        assert (whole[0] - whole[1]).abs().max() > 1e-6, "image 0 left of 1 is as 1 left of 0"
        for row, shown in enumerate(SHOWN.tolist()):  # how many images others have changes nothing
            own = torch.tensor([[image for image in shown if image >= 0] or [-1]])
            torch.testing.assert_close(said(model, features, own, tokens[row : row + 1])[0], whole[row])
        # Nor does what is in the place of an absent image.
        other = replace(features, tokens_BSD=features.tokens_BSD.clone(), pooled_BD=features.pooled_BD.clone())
        other.tokens_BSD[2], other.pooled_BD[2] = 3.0, -2.0
        moved = (said(model, other, SHOWN, tokens) - whole).abs().amax((1, 2))
        assert moved[[0, 1, 4]].max() == 0 and moved[[2, 3]].min() > 1e-10
        # Without `image_of` every example has one image, in the first place.
        alone = said(model, features, None, tokens[:3])
        torch.testing.assert_close(said(model, features, torch.tensor([[0], [1], [2]]), tokens[:3]), alone)
        placed = model.of_examples(features, SHOWN)
        assert placed.images == PLACES
        torch.testing.assert_close(said(model, placed, None, tokens), whole)  # and are not put into places twice
        torch.testing.assert_close(
            said(model, placed.select(torch.tensor([3, 1])), None, tokens[[3, 1]]), whole[[3, 1]]
        )


def test_as_a_bag_images_have_no_order():
    model = build("cross_modal", replace(VIT, images=0)).eval()
    assert model.places is None and not any("places" in name for name in model.state_dict())
    tokens = torch.randint(3, VOCAB, (1, 4)).expand(2, -1)
    with torch.no_grad():
        features = model.encode_image(images("vit", 2).double())
        one, other = said(model, features, torch.tensor([[0, 1], [1, 0]]), tokens)
    torch.testing.assert_close(one, other)


def test_a_model_of_one_image_is_as_before():
    """No parameter, no number drawn: what an older velm has trained is read, and goes on bit for bit."""
    now, several = build("concat", replace(VIT, images=1)), build("concat")
    assert {name.split(".")[0] for name in several.state_dict().keys() - now.state_dict().keys()} == {"places"}
    features = now.encode_image(images("vit", 2).double())
    assert now.of_examples(features, None) is features
    torch.testing.assert_close(
        now.of_examples(features, torch.tensor([[1], [0]])).pooled_BD, features.pooled_BD.flip(0)
    )


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "prefix_tokens"])
def test_a_source_behind_several_images(fusion):
    if fusion in JUDGING:
        pytest.skip("it writes nothing")
    model = build(fusion, source=1).eval()
    tokens, source = torch.randint(3, VOCAB, (1, 4)).expand(3, -1), torch.randint(3, VOCAB, (1, 5)).expand(3, -1)
    with torch.no_grad():
        features = model.encode_image(images("vit", 3).double())
        shown = torch.tensor([[0, 1], [1, 0], [0, -1]])
        context = model.context(features, shown, source, torch.tensor([5, 5, 5]))
        assert context.images == 2 and context.of_image == 2 * features.tokens_BSD.shape[1]
        one, other, alone = said(model, context, None, tokens)
        assert (one - other).abs().max() > 1e-5 and (one - alone).abs().max() > 1e-5
        single = model.context(features, shown[2:, :1], source[2:], torch.tensor([5]))
        torch.testing.assert_close(said(model, single, None, tokens[2:])[0], alone)


def batch_of_questions(images: torch.Tensor, image_of: torch.Tensor, labels: torch.Tensor) -> Batch:
    B = len(image_of)
    return Batch.of(
        torch.zeros(B, 0, 0, dtype=torch.long),
        torch.zeros(B, 0, dtype=torch.long),
        images=list(range(len(images))),
        image_XCHW=images,
        image_of_BI=image_of,
        source_BL=torch.tensor([[1, 5, 2]]).expand(B, -1),
        source_lengths_B=torch.full((B,), 3),
        labels={"answers": F.one_hot(labels, 2).double()},
    )


def left_is_bright(count: int) -> Batch:
    """Pairs of a bright and a dark image; the label says whether the bright one is the left one."""
    bright = torch.rand(count) < 0.5
    level = torch.stack([torch.where(bright, 0.8, 0.2), torch.where(bright, 0.2, 0.8)], 1).flatten()
    pictures = (level[:, None, None, None] + 0.2 * torch.rand(2 * count, 3, 16, 16)).double()
    return batch_of_questions(pictures, torch.arange(2 * count).view(-1, 2), bright.long())


@pytest.mark.parametrize("fusion", [*FUSIONS, "none", "bag"])
def test_training_learns_which_image_is_left(fusion):
    """`none`: the pooled images are judged. A bag of images cannot tell."""
    vision = replace(VIT, images=0 if fusion == "bag" else 2)
    torch.manual_seed(0)
    model = VelmModel(
        vision=vision,
        text=TEXT["transformer"](),
        fusion=FUSIONS.get({"bag": "concat"}.get(fusion, fusion), schema.NoFusionConfig)(),
        vocab_size=VOCAB,
        causal=False,
    ).double()
    weights, loss = constant("joint"), schema.LossConfig(joint=schema.JointLoss.label)
    judge = JudgingLearner(model, loss, weights=weights, labels=2, dropout=0.0, reads=fusion != "none").double()
    optimiser = torch.optim.Adam(judge.parameters(), lr=1e-3)
    for step in range(100 if fusion == "bag" else 300):
        term = judge(left_is_bright(32), Moment(judge.active, step))["joint"]
        optimiser.zero_grad()
        (term.sum / term.count).backward()
        optimiser.step()
        if term.sum.item() / term.count < 0.02:
            break
    test = left_is_bright(200)
    right = judge.eval().predict(test).logits_BC.argmax(1) == test.labels["answers"].argmax(1)
    share = right.double().mean().item()
    assert share < 0.65 if fusion == "bag" else share > 0.95, f"{share} after {step + 1} steps"


@pytest.mark.parametrize("fusion", ["concat", "cross_modal", "prefix_tokens"])
@pytest.mark.parametrize("vision", [VIT, POOLED], ids=["grid", "pooled"])
def test_what_is_trained_of_the_places_has_a_gradient(fusion, vision):
    weights = constant("text", "joint", "image")
    for active in ({"text"}, {"joint"}, {"text", "joint", "image"}):
        model = build(fusion, vision)
        some = {name: weights[name] for name in active}
        learner = WritingLearner(model, schema.LossConfig(), weights=some, concepts=3).double()
        tokens, lengths = torch.randint(3, VOCAB, (5, 1, 4)), torch.full((5, 1), 4)
        batch = Batch.of(
            tokens, lengths, image_XCHW=images("vit", 3).double(), image_of_BI=SHOWN, images=[0, 1, 2],
            labels={"concepts": torch.ones(5, 3).double()},
        )  # fmt: skip
        terms = learner(batch, Moment(learner.active))
        sum(term.sum for term in terms.values()).backward()
        for name, parameter in learner.named_parameters():
            if "places" in name:
                assert (parameter.grad is not None) is parameter.requires_grad, (active, name)
                assert parameter.grad is None or parameter.grad.any(), (active, name)
        assert any(p.requires_grad for p in model.places.parameters())


def test_the_state_comes_back():
    model = build("attention")
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.places.place_ID)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.places.place_ID, model.places.place_ID)
