"""Embeddings and the matching head's logits are what training compares and judges, whatever fusion and text encoder."""

import numpy as np
import pytest
import torch
from tiny_models import POSITIONS, VOCAB, batch_of, folder
from torch.nn import functional as F

from velm_cli import schema
from velm_cli.data.batch import Batch
from velm_cli.learners import matching
from velm_cli.learners.interface import Moment
from velm_cli.learners.matching import embed_images, embed_texts, embedded, judge_split, match_logits, together
from velm_cli.learners.writing import WritingLearner
from velm_cli.metrics.retrieval import best_both_ways, rank_both_ways, rerank_both_ways
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.joint import hard_negatives
from velm_cli.objectives.weights import constant
from velm_cli.schema import JointLoss, TextLoss

CPU = torch.device("cpu")
ALL = slice(None)
TEXTS = {
    "transformer": lambda: schema.TransformerConfig(width=16, layers=1, heads=2),
    "lstm": lambda: schema.LSTMConfig(width=16),
    "bert": lambda: schema.BertConfig(name=folder("bert")),
    "gpt2": lambda: schema.CausalLMConfig(name=folder("gpt2")),
}
FUSIONS = {
    "cross_modal": lambda: schema.CrossModalConfig(layers=1, heads=2),
    "co_attention": lambda: schema.CoAttentionConfig(layers=2, heads=2),
    "concat": schema.ConcatConfig,
    "gated": lambda: schema.GatedConfig(heads=2),
    "prefix": lambda: schema.PrefixConfig(length=2),
}


def learner_of(
    text: str, fusion: str, joint: JointLoss = JointLoss.matching, causal: bool = True, queries: int = 0
) -> WritingLearner:
    torch.manual_seed(0)
    kind = TextLoss.next_token if causal else TextLoss.masked
    loss = schema.LossConfig(joint=joint, text=kind, joint_queries=queries, joint_dropout=0.5)
    model = VelmModel(
        vision=schema.ConvNetConfig(image_size=16, width=24, stages=2),
        text=TEXTS[text](),
        fusion=FUSIONS[fusion](),
        vocab_size=VOCAB,
        causal=causal,
    )
    task = WritingLearner(model, loss, concepts=5, weights=constant("joint"))
    with torch.no_grad():
        for parameter in task.parameters():  # gates too, which are closed at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    return task.eval()


CELLS = [
    ("transformer", "cross_modal", True),
    ("transformer", "co_attention", False),
    ("transformer", "gated", True),
    ("lstm", "concat", True),
    ("bert", "cross_modal", False),
    ("gpt2", "prefix", True),
    ("gpt2", "gated", True),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)))
@pytest.mark.parametrize("at_once", [2, 256])
def test_the_loss_of_training_is_that_of_these_embeddings_and_logits(cell, at_once, monkeypatch):
    monkeypatch.setattr(matching, "TEXTS_AT_ONCE", at_once)
    text, fusion, causal = cell
    learner = learner_of(text, fusion, causal=causal, queries=3 if at_once == 2 else 0)
    batch = batch_of(torch.randn(3, 3, 16, 16))
    B, K, _ = batch.tokens_BKT.shape
    with torch.no_grad():
        torch.manual_seed(3)
        found = learner(batch, Moment(frozenset({"joint"})))["joint"].sum

        features = learner.model.encode_image(batch.image_XCHW)
        tokens_NT, lengths_N = batch.tokens_BKT.flatten(0, 1), batch.lengths_BK.flatten()
        image_BE, text_NE = embed_images(learner, features), embed_texts(learner, tokens_NT, lengths_N)
        torch.testing.assert_close(text_NE.norm(dim=1), torch.ones(B * K))
        cosines_KBB = torch.einsum("be,cke->kbc", image_BE, text_NE.view(B, K, -1))
        scale = learner.joint_loss.log_scale.exp()
        targets = torch.arange(B)
        wanted = sum(
            (F.cross_entropy(part, targets, reduction="sum") + F.cross_entropy(part.T, targets, reduction="sum")) / 2
            for part in scale * cosines_KBB
        )

        torch.manual_seed(3)
        image, caption, counts = hard_negatives(scale * cosines_KBB[0], torch.ones(B, dtype=torch.bool))
        assert counts.all()
        pairs_P2 = torch.stack([torch.cat([targets, image]), K * torch.cat([targets, caption])], dim=1)
        logits_P = match_logits(learner, features, tokens_NT, lengths_N, pairs_P2)
        right_P = (torch.arange(3 * B) < B).float()
        wanted = wanted + B * K / (3 * B) * F.binary_cross_entropy_with_logits(logits_P, right_P, reduction="sum")
    torch.testing.assert_close(found, wanted)


def split_of(images: int, most: int) -> list[Batch]:
    """Images with up to `most` captions each, the last one without any, in batches of three."""
    batches = []
    for start in range(0, images, 3):
        ids = list(range(100 + start, 100 + min(start + 3, images)))
        counts_B = torch.randint(1, most + 1, (len(ids),))
        counts_B[-1] *= start + 3 < images
        lengths_BK = torch.randint(3, 8, (len(ids), most)) * (torch.arange(most) < counts_B[:, None])
        batches.append(
            Batch.of(
                torch.randint(3, VOCAB, (len(ids), most, 7)), lengths_BK, ids=ids,
                image_XCHW=torch.randn(len(ids), 3, 16, 16),
            )
        )  # fmt: skip
    return batches


@pytest.mark.parametrize(("text", "fusion"), [("transformer", "cross_modal"), ("gpt2", "prefix")])
def test_a_split_is_ranked_and_ranked_again_as_pair_by_pair(text, fusion, monkeypatch):
    monkeypatch.setattr(matching, "TEXTS_AT_ONCE", 4)
    assert POSITIONS > 10
    learner = learner_of(text, fusion)
    batches = split_of(8, 4)
    embeddings, texts = together(dict(embedded(learner, batches, CPU)))
    lengths_N = torch.cat([batch.lengths_BK.flatten() for batch in batches])
    there = lengths_N > 0
    assert embeddings.image_ids == list(range(100, 108))
    owner_N = torch.arange(8).repeat_interleave(len(lengths_N) // 8)
    assert embeddings.image_of_C.tolist() == owner_N[there].tolist() and 7 not in embeddings.image_of_C
    logit, cosine = np.zeros((2, 8, len(texts.lengths_C)))
    with torch.no_grad():  # one pair at a time
        for i, (batch, row) in enumerate((each, row) for each in batches for row in range(len(each.ids))):
            features = learner.model.encode_image(batch.image_XCHW[row : row + 1])
            memory = learner.model.memory(features)
            for c, length in enumerate(texts.lengths_C.tolist()):
                tokens = texts.tokens_CT[c : c + 1, :length]
                fused, _ = learner.model.fusion.read(learner.model.text, tokens, memory)
                logit[i, c] = learner.matching_loss.classifier(fused[0, -1])
                states, _ = learner.model.text(tokens[:, :-1])
                pair = learner.joint_loss.embed(features.pooled_BD, states.mean(dim=1)[:, None])
                cosine[i, c] = (pair[0] * pair[1][:, 0]).sum()
    image, text_rows, owner = embeddings.image_IE, embeddings.text_CE, embeddings.image_of_C
    np.testing.assert_allclose(image @ text_rows.T, cosine, atol=1e-5)
    best = best_both_ways(image, text_rows, owner, 5)
    score = cosine * learner.joint_loss.log_scale.exp().item() + logit
    assert learner.joint_loss.log_scale.exp() > 10, "not the bare cosine"
    scores = judge_split(learner, batches, CPU, embeddings, texts, best)
    captions = np.arange(len(owner))
    np.testing.assert_allclose(scores[0], score[best[0].numbers_Qk, captions[:, None]], atol=1e-4)
    np.testing.assert_allclose(scores[1], score[np.arange(8)[:, None], best[1].numbers_Qk], atol=1e-4)
    ranks = rerank_both_ways(image, text_rows, owner, best, scores)
    for c in captions:
        order = np.argsort(-cosine[:, c])
        order = [*order[:5][np.argsort(-score[order[:5], c])], *order[5:]]
        assert ranks.text_C[c] == 1 + order.index(owner[c])
    plain = rank_both_ways(image, text_rows, owner)
    assert np.isnan(plain.image_I[7]) and not np.isnan(plain.image_I[:7]).any()

    half = judge_split(learner, batches[:1], CPU, embeddings, texts, best)
    mine = best[0].numbers_Qk < 3
    np.testing.assert_allclose(half[0][mine], scores[0][mine], atol=1e-4)
    assert np.isnan(half[0][~mine]).all() and np.isnan(half[1][3:]).all(), "another process judges these"


def test_examples_that_share_an_image_have_its_embedding():
    learner = learner_of("transformer", "cross_modal", JointLoss.sigmoid)
    batch = split_of(3, 2)[0]
    apart, _ = together(dict(embedded(learner, [batch], CPU)))
    batch.image_of_BI = torch.tensor([[1], [1], [0]])
    shared, _ = together(dict(embedded(learner, [batch], CPU)))
    np.testing.assert_array_equal(shared.image_IE, apart.image_IE[[1, 1, 0]])
    np.testing.assert_array_equal(shared.text_CE, apart.text_CE)
