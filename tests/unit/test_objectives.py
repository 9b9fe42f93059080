"""Each loss against a naive double-precision loop; weights and their schedules."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from velm_cli.errors import UserError
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives import text
from velm_cli.objectives.image import ConceptLoss, MaskedPatchLoss
from velm_cli.objectives.joint import ContrastiveLoss, MatchingLoss, SigmoidLoss, hard_negatives
from velm_cli.objectives.pooling import QueryPooling
from velm_cli.objectives.text import hide_words, next_token_loss, own_words, words_loss
from velm_cli.objectives.weights import parse_weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_next_token_loss_is_the_cross_entropy_with_the_smoothed_target(smoothing):
    logits, targets = torch.randn(11, 7).double(), torch.randint(0, 7, (11,))
    expected = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_p = row - row.exp().sum().log()
        wanted = torch.full((7,), smoothing / 7).double()
        wanted[target] += 1 - smoothing
        expected -= float((wanted * log_p).sum())
    found = next_token_loss(logits, targets, label_smoothing=smoothing)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cap", [0.0, 0.8])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [0, 1, 4, 11, 50])
def test_the_chunked_loss_and_its_gradients_equal_the_plain_one(chunk, smoothing, cap, monkeypatch):
    monkeypatch.setattr(text, "ALL_AT_ONCE", 0)
    monkeypatch.setitem(text.LOGITS, "cpu", 20 * 8)  # chunk=0: two positions
    monkeypatch.setitem(text.IN_CACHE, "cpu", 4 * 7 * 8)  # and four of the larger chunks
    layer, targets = torch.nn.Linear(5, 7).double(), torch.randint(0, 7, (11,))
    states = torch.randn(11, 5).double().requires_grad_()
    parameters = (layer.weight, layer.bias)
    # in float64, where next_token_loss would compute in float32
    logits = cap * (layer(states) / cap).tanh() if cap else layer(states)
    plain = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    found = words_loss(states, *parameters, targets, cap=cap, chunk=chunk, label_smoothing=smoothing)
    torch.testing.assert_close(found, plain)
    expected = torch.autograd.grad(plain / 3, [states, *parameters])
    for one, other in zip(torch.autograd.grad(found / 3, [states, *parameters]), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_chunked_loss_computes_in_the_precision_of_autocast_and_only_gradients_that_are_wanted():
    layer, targets = torch.nn.Linear(32, 70), torch.randint(0, 70, (40,))
    states = torch.randn(40, 32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        plain = next_token_loss(layer(states), targets)
        found = words_loss(states, layer.weight, layer.bias, targets, chunk=16)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, plain)
    for one, other in zip(
        torch.autograd.grad(found, [states, *layer.parameters()]),
        torch.autograd.grad(plain, [states, *layer.parameters()]), strict=True,
    ):  # fmt: skip
        assert one.dtype is torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
    with FlopCounterMode(display=False) as counter:
        words_loss(states, layer.weight, layer.bias, targets, chunk=16).backward()
    assert counter.get_total_flops() == 3 * 2 * 40 * 32 * 70, "all that the step's utilisation (mfu) is made of"
    layer.requires_grad_(False)
    states.grad = layer.weight.grad = None
    words_loss(states, layer.weight, layer.bias, targets, chunk=16).backward()
    assert states.grad is not None and layer.weight.grad is None
    with torch.no_grad():
        assert not words_loss(states, layer.weight, layer.bias, targets, chunk=16).requires_grad


def test_capped_logits_of_few_words_are_those_of_many():
    layer, targets, states = torch.nn.Linear(5, 7), torch.randint(0, 7, (11,)), 9 * torch.randn(11, 5)
    few = words_loss(states, layer.weight, layer.bias, targets, cap=2.0)
    torch.testing.assert_close(few, words_loss(states, layer.weight, layer.bias, targets, cap=2.0, chunk=3))
    assert few < words_loss(states, layer.weight, layer.bias, targets), "no word is improbable within the cap"


def test_the_chunked_loss_computes_on_the_meta_device_as_dry_runs_do():
    with torch.device("meta"):
        layer, states = torch.nn.Linear(8, 70), torch.empty(40, 8)
        words_loss(states, layer.weight, layer.bias, torch.zeros(40, dtype=torch.long), chunk=16).backward()
    assert layer.weight.grad is not None and layer.weight.grad.shape == (70, 8)


def test_concept_loss_is_binary_cross_entropy_summed():
    loss = ConceptLoss(5, 4).double()
    pooled, labels = torch.randn(3, 5).double(), torch.randint(0, 2, (3, 4)).double()
    p = torch.sigmoid(loss.classifier(pooled))
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum()
    assert float(loss(pooled, labels)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("extra", [0, 1])
def test_masked_patch_loss_equals_the_naive_one(extra):
    """A 12-pixel image, a 3 x 3 grid (after a class token, if any), squares of 6 pixels."""
    loss = MaskedPatchLoss(5, 9 + extra, 12, patch_size=6, share=0.5).double()
    image, tokens = torch.randn(2, 3, 12, 12).double(), torch.randn(2, 9 + extra, 5).double()
    hidden, where = loss.hide(image)
    assert where.sum() == 2 * 2 * 36, "half of the four squares of each image"
    assert torch.equal(hidden, image.masked_fill(where, 0.0))
    expected = 0.0
    for b in range(2):
        errors = []
        for y in range(12):
            for x in range(12):
                if not where[b, 0, y, x]:
                    continue
                token = tokens[b, extra + 3 * (y // 4) + x // 4]
                painted = (loss.paint.weight @ token + loss.paint.bias).view(3, 4, 4)[:, y % 4, x % 4]
                errors += (painted - image[b, :, y, x]).abs().tolist()
        expected += sum(errors) / len(errors)
    assert float(loss(tokens, image, where)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="12 pixels is not divided evenly by a grid of 5 x 5 positions"):
        MaskedPatchLoss(5, 25, 12, patch_size=6, share=0.5)


def test_hidden_words_are_words_and_as_many_as_asked():
    torch.manual_seed(0)
    tokens = torch.randint(10, 50, (2000, 12))
    lengths = torch.randint(0, 13, (2000,))
    words = int((lengths - 2).clamp(min=0).sum())
    hidden, chosen = hide_words(tokens, lengths, share=0.3, words=words, mask_id=1, vocab_size=50)
    rows, columns = chosen // 12, chosen % 12
    assert (columns >= 1).all() and (columns < lengths[rows] - 1).all(), "never BOS, EOS or padding"
    assert len(chosen) == len(set(chosen.tolist())) == round(0.3 * words)
    before, after = tokens.flatten()[chosen], hidden.flatten()[chosen]
    assert float((after == 1).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((after == before).float().mean()) == pytest.approx(0.1, abs=0.02)
    untouched = torch.ones(tokens.numel(), dtype=torch.bool).index_fill(0, chosen, False)
    assert torch.equal(tokens.flatten()[untouched], hidden.flatten()[untouched])
    _, one = hide_words(tokens[:1], torch.tensor([5]), share=1e-9, words=3, mask_id=1, vocab_size=50)
    assert len(one) == 1, "a batch always has something to learn from"
    _, none = hide_words(tokens[:1], torch.tensor([2]), share=0.5, words=0, mask_id=1, vocab_size=50)
    assert len(none) == 0


def test_own_words_are_drawn_from_the_distribution_before_them():
    inputs = torch.tensor([[1, 11, 12, 13], [1, 14, 0, 0], [1, 15, 16, 0]])  # BOS words padding
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 10])  # where a word or EOS follows
    logits = torch.full((9, 30), -30.0)
    logits[torch.arange(9), torch.arange(20, 29)] = 30.0  # certain of 20, 21, ... at these positions
    assert torch.equal(own_words(inputs, logits, positions, probability=0.0), inputs)
    always = own_words(inputs, logits, positions, probability=1.0)
    assert always.tolist() == [[1, 20, 21, 22], [1, 24, 0, 0], [1, 26, 27, 0]]
    torch.manual_seed(0)
    mixed = torch.stack([own_words(inputs, logits, positions, probability=0.25) for _ in range(2000)])
    share = (mixed != inputs).float().mean(0)
    assert share[always != inputs].tolist() == pytest.approx([0.25] * 6, abs=0.05)


def test_own_words_are_none_that_decoding_never_writes():
    """Padding, BOS and unknown words are as likely as the rest here, and are never drawn."""
    inputs = torch.full((50, 8), 9)
    positions = torch.arange(50 * 8)
    torch.manual_seed(0)
    mixed = own_words(inputs, torch.zeros(400, 6), positions, probability=1.0, banned=[0, 1, 3])
    assert set(mixed[:, 1:].flatten().tolist()) == {2, 4, 5}


def naive_contrastive(loss, image, text, present) -> float:
    """CLIP's loss, one softmax at a time, for each caption slot by itself."""
    scale = float(loss.log_scale.exp())
    unit_image = torch.nn.functional.normalize(loss.image(image), dim=-1)
    unit_text = torch.nn.functional.normalize(loss.text(text), dim=-1)
    total = 0.0
    B, K = present.shape
    for k in range(K):
        for b in range(B):
            if not present[b, k]:
                continue
            own = scale * float(unit_image[b] @ unit_text[b, k])
            texts = [scale * float(unit_image[b] @ unit_text[c, k]) for c in range(B) if present[c, k]]
            imgs = [scale * float(unit_image[c] @ unit_text[b, k]) for c in range(B)]
            total += 0.5 * (math.log(sum(map(math.exp, texts))) - own)
            total += 0.5 * (math.log(sum(map(math.exp, imgs))) - own)
    return total


def test_contrastive_loss_equals_the_naive_one_with_empty_slots():
    loss = ContrastiveLoss(6, 5, 4, temperature=0.2).double()
    image, text = torch.randn(4, 6).double(), torch.randn(4, 3, 5).double()
    present = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0]]).bool()
    found = loss(image, text, present)
    assert float(found) == pytest.approx(naive_contrastive(loss, image, text, present), rel=1e-5)
    found.backward()
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


def test_empty_slots_of_the_contrastive_loss_get_no_gradient():
    loss = ContrastiveLoss(6, 5, 4, temperature=0.2)
    text = torch.randn(3, 2, 5, requires_grad=True)
    present = torch.tensor([[1, 1], [1, 0], [1, 1]]).bool()
    loss(torch.randn(3, 6), text, present).backward()
    assert text.grad[1, 1].abs().max() == 0
    assert text.grad[0, 1].abs().max() > 0


def test_pooling_by_queries_equals_the_naive_one_and_sees_no_padding():
    pooling = QueryPooling(5, 3, dropout=0.0).double()
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.add_(torch.randn_like(parameter))
    given, states, lengths = torch.randn(4, 5).double(), torch.randn(4, 6, 5).double(), [6, 2, 1, 0]
    visible = torch.arange(6) < torch.tensor(lengths)[:, None]
    found = pooling(given, states, visible)
    assert found.shape == (4, 20) and found.isfinite().all()
    for row, length in enumerate(lengths[:3]):
        x = pooling.norm_positions(states[row, :length])
        parts = [given[row]]
        for query in pooling.query_DH.T:
            weights = torch.stack([query @ position for position in x]).softmax(0)
            parts.append(sum(weight * position for weight, position in zip(weights, x, strict=True)))
        torch.testing.assert_close(found[row], pooling.norm(torch.cat(parts)))
    torch.testing.assert_close(pooling(given, states), pooling(given, states, torch.ones(4, 6, dtype=torch.bool)))
    pooling.dropout.p = 0.5
    assert (pooling(given, states, visible) == 0).any() and not (pooling.eval()(given, states, visible) == 0).any()


def test_without_queries_the_space_is_of_pooled_images_and_mean_states():
    loss = ContrastiveLoss(6, 5, 4, temperature=0.2)
    assert sorted(name for name, _ in loss.named_parameters()) == ["image.weight", "log_scale", "text.weight"]
    features = ImageFeatures(torch.randn(3, 7, 6), torch.randn(3, 6))
    assert loss.pool_images(features) is features.pooled_BD
    states = torch.randn(2, 4, 5)
    torch.testing.assert_close(loss.pool_texts(states, torch.tensor([4, 2]))[1], states[1, :2].mean(0))


def test_sigmoid_loss_equals_the_naive_one_with_empty_slots():
    loss = SigmoidLoss(6, 5, 4).double()
    with torch.no_grad():
        loss.bias.fill_(-0.7)
    image, text = torch.randn(4, 6).double(), torch.randn(4, 2, 5).double()
    present = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]]).bool()
    unit_image = torch.nn.functional.normalize(loss.image(image), dim=-1)
    unit_text = torch.nn.functional.normalize(loss.text(text), dim=-1)
    expected = 0.0
    for b in range(4):
        for c in range(4):
            for k in range(2):
                if present[c, k]:
                    logit = 10 * float(unit_image[b] @ unit_text[c, k]) - 0.7
                    expected += math.log1p(math.exp(-logit if b == c else logit))
    assert float(loss(image, text, present)) == pytest.approx(expected, rel=1e-5)


def test_matching_loss_is_binary_cross_entropy_summed():
    loss = MatchingLoss(5).double()
    states, match = torch.randn(6, 5).double(), torch.tensor([1.0, 0, 1, 0, 0, 1]).double()
    p = torch.sigmoid(loss.classifier(states)[:, 0])
    each = -(match * p.log() + (1 - match) * (1 - p).log())
    assert float(loss(states, match, torch.ones(6).bool())) == pytest.approx(float(each.sum()), rel=1e-5)
    counts = torch.tensor([1, 1, 0, 1, 0, 1]).bool()
    assert float(loss(states, match, counts)) == pytest.approx(float(each[counts].sum()), rel=1e-5)


def test_hard_negatives_never_belong_together_and_follow_the_similarity():
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, 1.0, 3.0, 5.0], [1.0, 9.0, 1.0, 5.0], [1.0, 1.0, 9.0, 5.0], [1.0, 1.0, 1.0, 9.0]])
    present = torch.tensor([True, True, True, False])  # the last image has no caption
    drawn = torch.zeros(2, 4, 4)
    for _ in range(4000):
        images, captions, counts = hard_negatives(similarity, present)
        assert counts.tolist() == [True] * 4 + [True] * 3 + [False]  # a caption an image, an image a caption
        assert (images != captions)[counts].all()
        assert (captions[counts] != 3).all()
        for way, pairs in enumerate((slice(0, 4), slice(4, 8))):
            drawn[way].index_put_((images[pairs], captions[pairs]), torch.ones(4), accumulate=True)

    def share_is(found: torch.Tensor, expected: float) -> None:
        assert float(found) == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / 4000))

    share_is(drawn[0, 0, 2] / 4000, math.exp(3) / (math.exp(1) + math.exp(3)))  # captions 1 and 2 for image 0
    share_is(drawn[1, 0, 2] / 4000, math.exp(3) / (math.exp(3) + 2 * math.exp(1)))  # images 0, 1, 3 for caption 2
    _, _, counts = hard_negatives(torch.ones(1, 1), torch.ones(1, dtype=torch.bool))
    assert counts.tolist() == [False, False], "one image alone has no negatives"
    _, _, counts = hard_negatives(torch.ones(2, 2), torch.tensor([True, False]))
    assert counts.tolist() == [False, True, True, False]


def test_weights():
    assert parse_weight("loss.alpha", "learned").learned
    assert parse_weight("loss.alpha", "0.5").at(10**9, 1.0) == 0.5
    ramp = parse_weight("loss.beta", "linear(0, 2, 100)")
    assert [ramp.at(step, 7.0) for step in (0, 25, 100, 10**6)] == [0.0, 0.5, 2.0, 2.0]
    epochs = parse_weight("loss.gamma", "linear(1,0,5ep)")
    assert [epochs.at(step, 10.0) for step in (0, 25, 50, 60)] == [1.0, 0.5, 0.0, 0.0]
    late = parse_weight("loss.alpha", "step(0,1,10)")
    assert [late.at(step, 1.0) for step in (0, 9, 10, 11)] == [0.0, 0.0, 1.0, 1.0]
    cosine = parse_weight("loss.gamma", "cosine(1,0,10)")
    assert cosine.at(0, 1.0) == 1.0
    assert cosine.at(5, 1.0) == pytest.approx(0.5)
    assert parse_weight("loss.beta", "0").always_zero
    assert not ramp.always_zero


@pytest.mark.parametrize(
    "text", ["abc", "nan", "inf", "-1", "1e38", "linear(0,1e30,2)", "linear(0,1)", "linear(0,x,5)", "ramp(0,1,5)", ""]
)
def test_a_bad_weight_is_explained(text):
    with pytest.raises(UserError, match=r"loss.alpha: .* is neither a number from 0 to 1e\+06 nor a schedule"):
        parse_weight("loss.alpha", text)


@pytest.mark.parametrize("kind", [ContrastiveLoss, SigmoidLoss])
def test_cosines_are_not_rounded_under_autocast(kind):
    loss = kind(8, 8, 16, 0.07) if kind is ContrastiveLoss else kind(8, 8, 16)
    image_BD, text_BKD = torch.randn(5, 8), torch.randn(5, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        image_BE, text_BKE = loss.embed(image_BD, text_BKD)
        found = loss.cosines(image_BD, text_BKD)
        total = loss(image_BD, text_BKD, torch.ones(5, 2, dtype=torch.bool))
    assert found.dtype == total.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack([image_BE @ text_BKE[:, slot].t() for slot in range(2)]))
