"""Maps of where a model looked: they are what they say they are, for every kind of model, and they find the object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_matrix import FUSION, TEXT, VISION, images, open_gates
from test_matrix_judging import learner as judge
from test_matrix_judging import questions, rows_of
from tiny_models import VOCAB

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.errors import UserError
from velm_cli.learners import attribution
from velm_cli.learners.attribution import METHODS, Said, chosen, looked, said_of, score_of, spelled, why_not
from velm_cli.learners.writing import WritingLearner
from velm_cli.models import attributing
from velm_cli.models.attributing import CELLS, WINDOW, encoded, gradient_maps, occlusion_maps, shares
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.weights import constant

SAID = [Said(["a", "bc"], [1, 5, 6, 7], [0, 1, 1]), Said(["d"], [1, 8], [0])]


def writer(vision: str, text: str, fusion: str) -> WritingLearner:
    torch.manual_seed(0)
    model = VelmModel(vision=VISION[vision](), text=TEXT[text](), fusion=FUSION[fusion](), vocab_size=VOCAB)
    open_gates(model)
    return WritingLearner(model, schema.LossConfig(), weights=constant("text"), concepts=0).eval()


def of_images(vision: str, count: int = 2) -> Batch:
    torch.manual_seed(1)
    return Batch.of(
        torch.zeros(count, 0, 0, dtype=torch.long),
        torch.zeros(count, 0, dtype=torch.long),
        images=list(range(count)),
        image_XCHW=images(vision, count),
    )


# ---------------------------------------------------------------------------------- what maps are


@pytest.mark.parametrize("vision", ["convnet", "vit", "dinov2", "clip", "pooled"])
def test_gradients_equal_finite_differences(vision, monkeypatch):
    """Of one position at a time, along the way from the mean, at every step."""
    made = writer(vision, "transformer", "add").double()
    batch = of_images(vision)
    image = batch.image_XCHW.double()
    score = score_of(made, batch, SAID)
    found = gradient_maps(made.model, image, score)
    places = attributing._places(made.model, image)
    if vision in ("clip", "dinov2"):  # pooled is a class token: of the last block's grid it knows nothing
        next(places)
    place = next(places)
    grid, mean = place.grid, place.grid.mean(1, keepdim=True)
    (size, positions), step = (2, grid.shape[1]), 1e-5
    wanted = torch.zeros(size, 2, positions, dtype=torch.float64)
    with torch.no_grad():
        for share in (torch.arange(attributing.STEPS) + 0.5) / attributing.STEPS:
            along = mean + share * (grid - mean)
            for position in range(positions):
                change = torch.zeros_like(grid)
                change[:, position] = step * (grid - mean)[:, position]
                wanted[:, :, position] += (
                    score(place.features(along + change)) - score(place.features(along - change))
                ) / (2 * step * attributing.STEPS)
    torch.testing.assert_close(found.flatten(2), wanted, rtol=1e-5, atol=1e-7)


def test_gradients_add_up_to_what_the_score_gains(monkeypatch):
    monkeypatch.setattr(attributing, "STEPS", 400)
    made = writer("vit", "transformer", "cross_modal").double()
    batch = of_images("vit")
    image, score = batch.image_XCHW.double(), score_of(made, batch, SAID)
    found = gradient_maps(made.model, image, score)
    place = next(attributing._places(made.model, image))
    with torch.no_grad():
        gained = score(place.features(place.grid)) - score(
            place.features(place.grid.mean(1, keepdim=True).expand_as(place.grid))
        )
    torch.testing.assert_close(found.sum((2, 3)), gained, rtol=1e-3, atol=1e-6)


def test_occlusion_equals_brute_force():
    made = writer("convnet", "gru", "concat").double()
    batch = of_images("convnet")
    image, score = batch.image_XCHW.double(), score_of(made, batch, SAID)
    found = occlusion_maps(made.model, image, score)
    side, pixels = image.shape[-1], image.shape[-1] // CELLS
    drops = [[[[] for _ in range(CELLS)] for _ in range(CELLS)] for _ in range(2)]
    with torch.no_grad():
        for number in range(2):
            one = Batch.of(batch.tokens_BKT[:1], batch.lengths_BK[:1], image_XCHW=image[number : number + 1])
            of_one = score_of(made, one, [SAID[number]])
            whole = of_one(encoded(made.model, one.image_XCHW))[0]
            for top in range(0, side - WINDOW * pixels + 1, pixels):
                for left in range(0, side - WINDOW * pixels + 1, pixels):
                    changed = one.image_XCHW.clone()
                    for colour in range(3):
                        part = changed[0, colour, top : top + WINDOW * pixels, left : left + WINDOW * pixels]
                        part[...] = one.image_XCHW[0, colour].mean()
                    lost = whole - of_one(encoded(made.model, changed))[0]
                    for row in range(top // pixels, top // pixels + WINDOW):
                        for column in range(left // pixels, left // pixels + WINDOW):
                            drops[number][row][column].append(lost)
    for number in range(2):
        words = len(SAID[number].words)
        wanted = torch.stack([torch.stack([torch.stack(cell).mean(0) for cell in row]) for row in drops[number]])
        torch.testing.assert_close(found[number, :words], wanted.permute(2, 0, 1))
    assert not found[1, 1:].any(), "a text with fewer words has nothing there"


def test_a_words_score_is_that_of_its_tokens():
    made = writer("convnet", "transformer", "cross_modal")
    batch = of_images("convnet")
    with torch.no_grad():
        features = encoded(made.model, batch.image_XCHW)
        found = score_of(made, batch, SAID)(features)
        tokens = torch.tensor([SAID[0].tokens])
        fused, _ = made.model.fusion.read(
            made.model.text, tokens[:, :-1], made.model.memory(features.select(torch.tensor([0])))
        )
        log_p = made.model.logits(fused)[0].log_softmax(-1)[range(3), tokens[0, 1:]]
    torch.testing.assert_close(found[0], torch.stack([log_p[0], log_p[1] + log_p[2]]))
    assert found[1, 1] == 0


def test_shares_are_of_what_speaks_for_a_word():
    maps = torch.tensor([[[[3.0, -1.0], [1.0, 0.0]], [[-1.0, -2.0], [0.0, 0.0]]]])
    torch.testing.assert_close(shares(maps), torch.tensor([[[[0.75, 0.0], [0.25, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]]))


# ------------------------------------------------------------------------------ every kind of model


SLOW = ("rcnn", "vit_b_16")  # to be asked 49 times
MODELS = [(vision, "transformer", "add") for vision in VISION if vision != "rcnn"]
MODELS += [("vit", "transformer", fusion) for fusion in FUSION]
MODELS += [(vision, "gru", "cross_modal") for vision in ("convnet", "resnet18", "clip", "siglip", "rcnn")]
MODELS += [("pooled", "gru", "cross_modal"), ("dinov2", "causal_lm_frozen", "prefix"), ("dinov2", "gpt2", "gated")]


@pytest.mark.parametrize(("vision", "text", "fusion"), MODELS, ids=["-".join(model) for model in MODELS])
def test_every_model_gives_maps_or_a_reason(vision, text, fusion):
    made, batch = writer(vision, text, fusion), of_images(vision)
    attends = fusion.startswith(("attention", "cross_modal", "gated")) and vision != "pooled"
    assert (why_not(made, "attention") is None) is attends
    assert why_not(made) is None and chosen(made) in METHODS
    if attends and vision == "resnet18":  # whose grid has one position at this size
        attends = False
        with pytest.raises(UserError, match="attend to no positions"):
            looked(made, batch, SAID, "attention")
    methods = ["attention"] * attends + ["gradient"] + ["occlusion"] * (vision not in SLOW)
    for method in methods:
        found = looked(made, batch, SAID, method)
        assert [len(each) for each in found] == [2, 1], "a map for each word"
        for maps in found:
            assert maps.dtype == np.float32 and min(maps.shape[1:]) >= 2 and np.isfinite(maps).all()
            assert (maps >= 0).all() and (maps.sum((1, 2)) < 1 + 1e-4).all()
        assert method == "occlusion" or any(maps.any() for maps in found)


@pytest.mark.parametrize("fusion", ["add", "cross_modal", "co_attention", "prefix"])
def test_answers_that_are_judged_have_one_map_each(fusion):
    made, _ = judge("convnet", "transformer", fusion, active="joint")
    batch, said = questions("convnet"), [Said([f"answer {label}"], label=label) for label in (1, 6, 0, 2)]
    found = looked(made, batch, said, "gradient")
    assert [maps.shape[0] for maps in found] == [1] * 4
    for row in range(4):  # questions about one image do not mix, and others in the batch change nothing
        (alone,) = looked(made, rows_of(batch, [row]), said[row : row + 1], "gradient")
        np.testing.assert_allclose(found[row], alone, atol=1e-5)
    if fusion == "cross_modal":
        assert looked(made, batch, said, "attention")[0].sum() <= 1 + 1e-5
    elif fusion == "co_attention":
        assert "attend to no positions" in why_not(made, "attention"), "through the image every word knows every other"


def test_what_sees_no_image_says_so():
    blind = VelmModel(vision=schema.NoVisionConfig(), text=TEXT["gru"](), fusion=schema.NoFusionConfig(), vocab_size=9)
    made = WritingLearner(blind, schema.LossConfig(), weights=constant("text"), concepts=0)
    assert "does not depend on the image" in why_not(made)
    apart = VelmModel(vision=VISION["vit"](), text=TEXT["gru"](), fusion=schema.NoFusionConfig(), vocab_size=9)
    made = WritingLearner(apart, schema.LossConfig(), weights=constant("text"), concepts=0)
    assert "does not depend on the image" in why_not(made)


def test_training_mode_and_gradients_of_weights_are_left_as_they_were():
    made, batch = writer("vit", "transformer", "cross_modal"), of_images("vit")
    made.train()
    for method in METHODS:
        looked(made, batch, SAID, method)
    assert made.training and all(parameter.grad is None for parameter in made.parameters())


def test_a_large_encoder_is_not_asked_49_times_for_many_images(monkeypatch):
    made = writer("convnet", "gru", "add")
    weights = sum(parameter.numel() for parameter in made.model.vision.parameters())
    monkeypatch.setattr(attribution, "OCCLUDED", 10 * weights)
    assert (chosen(made, images=10), chosen(made, images=11)) == ("occlusion", "gradient")
    assert chosen(made, "occlusion", images=11) == "occlusion"


# ------------------------------------------------------------------------------------------- words


class Pieces:
    """A tokenizer whose words have several tokens, some of blanks alone."""

    bos_id = 1
    pieces = {5: " ", 6: "a", 7: " do", 8: "g", 9: "\n"}

    def encode_batch(self, texts):
        return [[6, 7, 8, 5] if text == "a dog " else [5, 9] for text in texts]

    def decode(self, ids):
        return "".join(self.pieces[token] for token in ids)


def test_the_tokens_of_a_word_belong_together():
    assert spelled(Pieces(), "a dog ") == Said(["a", "dog"], [1, 6, 7, 8, 5], [0, 1, 1, 1])


def test_texts_without_words_and_unknown_answers_get_a_line():
    made, _ = judge("convnet", "transformer", "add", active="joint")
    with pytest.raises(UserError, match="no words to look for"):
        said_of(writer("convnet", "gru", "add"), Pieces(), " \n")
    with pytest.raises(UserError, match="not among the 2 answers"):
        said_of(made, Pieces(), "blue", answers=["red", "green"], asked=True)
    assert said_of(made, Pieces(), "Green", answers=["red", "green"], asked=True) == Said(["Green"], label=1)


# ------------------------------------------------------------------------------------- the object


SIDE, OBJECT = 32, 8


def scenes(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Grey noise with a square of one of three colours somewhere: images, colours, and masks of the squares."""
    image = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    colour = torch.randint(3, (count,), generator=generator)
    corner = torch.randint(SIDE - OBJECT + 1, (count, 2), generator=generator)
    mask = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for number, (top, left) in enumerate(corner.tolist()):
        mask[number, top : top + OBJECT, left : left + OBJECT] = True
        image[number, colour[number]][mask[number]] += 1.5
    return image, colour, mask


@pytest.mark.parametrize(
    "fusion",
    [schema.AddConfig(), schema.PrefixConfig(length=2), schema.CrossModalConfig(layers=1, heads=2)],
    ids=lambda f: f.kind,
)
def test_a_trained_model_looked_at_the_object_that_it_names(fusion):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = VelmModel(
        vision=schema.ConvNetConfig(image_size=SIDE, width=24, stages=2),
        text=schema.TransformerConfig(width=24, layers=1, heads=2, dropout=0.0),
        fusion=fusion,
        vocab_size=8,
    )
    made = WritingLearner(model, schema.LossConfig(), weights=constant("text"), concepts=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    model.train()
    for _ in range(80):
        image, colour, _ = scenes(16, generator)
        start = torch.ones(16, 1, dtype=torch.long)
        fused, _ = model.fusion.read(model.text, start, model.memory(model.encode_image(image)))
        loss = torch.nn.functional.cross_entropy(model.logits(fused[:, 0]), colour + 3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.2, "it has learned to name the colour"
    image, colour, mask = scenes(24, generator)
    batch = Batch.of(torch.zeros(24, 0, 0, dtype=torch.long), torch.zeros(24, 0, dtype=torch.long), image_XCHW=image)
    said = [Said([str(label)], [1, label + 3], [0]) for label in colour.tolist()]
    share = (OBJECT / SIDE) ** 2
    methods = METHODS if fusion.kind == "cross_modal" else METHODS[1:]
    for method in methods:
        within = []
        for maps, inside in zip(looked(made, batch, said, method), mask, strict=True):
            cells = torch.from_numpy(maps[0])
            fine = cells.repeat_interleave(SIDE // len(cells), 0).repeat_interleave(SIDE // len(cells), 1)
            within.append(float((fine * inside).sum() / fine.sum()))
        assert np.mean(within) > 3 * share, (method, np.mean(within), share)
