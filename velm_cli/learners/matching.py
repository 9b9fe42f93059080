"""Images and captions in one space: their embeddings, and the matching head's logits of pairs, as training has them.

`metrics/retrieval.py` ranks by the cosines of the embeddings, and says which pairs are worth the head's judgement.

Shapes: B images, K captions an image, N texts, T tokens, D width, E width of the shared space; P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from velm_cli.data.batch import Batch
from velm_cli.data.transfer import on_device
from velm_cli.metrics.embeddings import Embeddings
from velm_cli.metrics.retrieval import Best
from velm_cli.models.memories import Memory
from velm_cli.models.text.remembered import Remembered
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.joint import ContrastiveLoss, MatchingLoss, SigmoidLoss

TEXTS_AT_ONCE = 256


class Matcher(Protocol):
    """A learner that has L_joint."""

    model: VelmModel
    joint_loss: ContrastiveLoss | SigmoidLoss | None
    matching_loss: MatchingLoss | None
    remembered: Remembered | None


def embed_images(learner: Matcher, features: ImageFeatures) -> Tensor:
    """Unit vectors (B, E)."""
    assert learner.joint_loss is not None
    return learner.joint_loss.embed_images(learner.joint_loss.pool_images(features))


def embed_texts(learner: Matcher, tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
    """Unit vectors (N, E); `lengths` count BOS, words and EOS, and 0 is an empty slot, whose vector is anything."""
    assert learner.joint_loss is not None
    read_N = (lengths_N - 1).clamp(min=0)  # EOS ends what is written, and is not read
    states_NTD = _states(learner, tokens_NT[:, :-1], read_N)
    return learner.joint_loss.embed_texts(learner.joint_loss.pool_texts(states_NTD, read_N))


def _states(learner: Matcher, tokens_NT: Tensor, lengths_N: Tensor) -> Tensor:
    """(N, T, D): of texts without an image, which several batches of images may ask for."""
    if learner.remembered is not None:
        return learner.remembered(tokens_NT, lengths_N)
    states_NTD, _ = learner.model.text(tokens_NT, lengths_N=lengths_N)
    return states_NTD


class Texts(NamedTuple):
    """The captions of `Embeddings`, as the matching head reads them."""

    tokens_CT: Tensor  # int64, never on a device: BOS, words, EOS, then anything
    lengths_C: Tensor  # int64


class Embedded(NamedTuple):
    """An image and its K captions: unit vectors in float32, and the captions' tokens (BOS, words, EOS)."""

    image_E: np.ndarray
    text_KE: np.ndarray
    tokens: list[np.ndarray]


@torch.no_grad()
def embedded(learner: Matcher, batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[int | str, Embedded]]:
    """The image and all captions of each example, by its id; the caller chooses the precision."""
    for batch in on_device(batches, device):
        image_BE = embed_images(learner, _features(learner, batch)).float().cpu().numpy()
        there_BK = batch.lengths_BK > 0
        tokens_NT, lengths_N = batch.tokens_BKT[there_BK], batch.lengths_BK[there_BK]
        parts = [np.zeros((0, image_BE.shape[1]), np.float32)]
        for part in _in_parts(torch.arange(len(lengths_N), device=device)):
            longest = int(lengths_N[part].max())
            parts.append(embed_texts(learner, tokens_NT[part, :longest], lengths_N[part]).float().cpu().numpy())
        text_NE, rows = np.concatenate(parts), tokens_NT.cpu().numpy()
        lengths, start = lengths_N.tolist(), 0
        for number, image_E, count in zip(batch.ids, image_BE, there_BK.sum(dim=1).tolist(), strict=True):
            own = range(start, start := start + count)
            yield number, Embedded(image_E, text_NE[own.start : own.stop], [rows[c, : lengths[c]] for c in own])


def together(found: Mapping[int | str, Embedded]) -> tuple[Embeddings, Texts]:
    """All examples in one, in their order."""
    each = list(found.values())
    tokens = [torch.from_numpy(row) for one in each for row in one.tokens]
    embeddings = Embeddings(
        list(found),
        np.stack([one.image_E for one in each]),
        np.concatenate([one.text_KE for one in each]),
        np.repeat(np.arange(len(each)), [len(one.text_KE) for one in each]),
    )
    lengths_C = torch.tensor([len(row) for row in tokens], dtype=torch.long)
    padded_CT = pad_sequence(tokens, batch_first=True) if tokens else torch.zeros((0, 0), dtype=torch.long)
    return embeddings, Texts(padded_CT, lengths_C)


def _in_parts(numbers_N: Tensor) -> tuple[Tensor, ...]:
    """TEXTS_AT_ONCE each; none of no texts, as of images without captions."""
    return numbers_N.split(TEXTS_AT_ONCE) if len(numbers_N) else ()


def _features(learner: Matcher, batch: Batch) -> ImageFeatures:
    """Of the images of each example; of its first one where the model does not tell several apart."""
    features = learner.model.encode_image(batch.image_XCHW, batch.feature_XSD)
    assert features is not None
    if learner.model.places is not None:
        return learner.model.of_examples(features, batch.image_of_BI)
    return features if batch.image_of_BI is None else features.select(batch.image_of_BI[:, 0])


# ---------------------------------------------------------------------------------------- the matching head


@torch.no_grad()
def judge_split(
    learner: Matcher,
    batches: Iterable[Batch],
    device: torch.device,
    embeddings: Embeddings,
    texts: Texts,
    best: tuple[Best, Best],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores by space and matching head, [C, k] and [I, k], of the candidates that `best_both_ways` has found.

    cosine / temperature + logit. The head has learned to tell pairs from negatives that are drawn with probability
    proportional to exp(cosine / temperature), so its logit is the logarithm of how much likelier than by that space the
    two belong together, and the sum is the log-odds by both (noise-contrastive estimation; Gutmann & Hyvarinen 2010).
    The logit alone (ALBEF) or with the bare cosine (BLIP) lets a head that knows less than the space overrule it.

    A pair that both ways have is judged once, and the keys and values of an image are made once. Candidates that are
    images of no batch get NaN: several processes may share the batches, and put their logits together.
    """
    assert isinstance(learner.joint_loss, ContrastiveLoss)  # matching's
    scale = learner.joint_loss.log_scale.exp().item()
    captions = max(1, len(embeddings.text_CE))  # of a split without any all candidates are -1
    images_Ck, texts_Ik = (each.numbers_Qk for each in best)
    key_Ck = np.where(images_Ck < 0, -1, images_Ck * captions + np.arange(captions)[:, None])
    key_Ik = np.where(texts_Ik < 0, -1, np.arange(len(texts_Ik))[:, None] * captions + texts_Ik)
    keys, at = np.unique(np.concatenate([key_Ck.ravel(), key_Ik.ravel()]), return_inverse=True)
    image_P, text_P = np.divmod(keys, captions)  # sorted by image; -1 gives image -1
    logits_P = np.full(len(keys), np.nan, np.float32)
    row_of = {identity: row for row, identity in enumerate(embeddings.image_ids)}
    for batch in on_device(batches, device):
        rows = np.array([row_of[identity] for identity in batch.ids])
        starts, stops = np.searchsorted(image_P, rows), np.searchsorted(image_P, rows + 1)
        places = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
        used, text_p = np.unique(text_P[places], return_inverse=True)
        lengths_N = texts.lengths_C[used]
        tokens_NT = texts.tokens_CT[used, : max(lengths_N.tolist(), default=1)]
        pairs_P2 = torch.from_numpy(np.stack([np.repeat(np.arange(len(rows)), stops - starts), text_p], axis=1))
        logits = match_logits(learner, _features(learner, batch), tokens_NT.to(device), lengths_N.to(device), pairs_P2)
        logits_P[places] = logits.cpu().numpy()
    logits_Ck, logits_Ik = np.split(logits_P[at], [key_Ck.size])
    of_texts, of_images = (scale * each.cosines_Qk for each in best)
    return of_texts + logits_Ck.reshape(key_Ck.shape), of_images + logits_Ik.reshape(key_Ik.shape)


def match_logits(
    learner: Matcher, features: ImageFeatures, tokens_NT: Tensor, lengths_N: Tensor, pairs_P2: Tensor
) -> Tensor:
    """(P,), float32: does image p0 of `features` belong to text p1? The larger, the more.

    `pairs` are on the CPU, the rest and the result on the model's device. Texts that pass their encoder without the
    image do so once for all images.
    """
    assert learner.matching_loss is not None
    model = learner.model
    memory = Memory(model.memory(features), len(features.pooled_BD))
    of_images = [memory.images_of(image, image + 1).nested() for image in range(memory.images)]
    logits_P = torch.empty(len(pairs_P2), device=lengths_N.device)
    order_N = lengths_N.cpu().argsort(stable=True)  # texts of like lengths need little padding
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N))
    group_P, row_P = place_N[pairs_P2[:, 1]] // TEXTS_AT_ONCE, place_N[pairs_P2[:, 1]] % TEXTS_AT_ONCE
    for group, texts in enumerate(_in_parts(order_N)):
        lengths_n = lengths_N[texts.to(lengths_N.device)]
        tokens_nT = tokens_NT[texts.to(lengths_N.device), : int(lengths_n.max())]
        states_nTD = _states(learner, tokens_nT, lengths_n) if model.fusion.after_text else None
        for image, of_image in enumerate(of_images):
            pairs = ((group_P == group) & (pairs_P2[:, 0] == image)).nonzero()[:, 0]
            if not len(pairs):
                continue
            rows = row_P[pairs].to(lengths_N.device)
            if states_nTD is None:
                fused_nTD, _ = model.fusion.read(model.text, tokens_nT[rows], of_image, lengths_N=lengths_n[rows])
            else:
                fused_nTD, _ = model.fusion(states_nTD[rows], of_image, lengths_N=lengths_n[rows])
            last_n = torch.arange(len(rows), device=rows.device), (lengths_n[rows] - 1).clamp(min=0)
            logits_P[pairs.to(rows.device)] = learner.matching_loss.logits(fused_nTD[last_n])
    return logits_P
