"""Where a learner looked for what it said of an image: one door for captions, written answers and judged ones.

Shapes: B examples of I images each (R = B * I, those of an example side by side), W words of each example, T tokens, L
positions of a source, S image positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from velm_cli.data.batch import Batch
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.errors import UserError
from velm_cli.learners.branching import branches_of, prefix_of, read_branches
from velm_cli.learners.interface import Learner
from velm_cli.learners.judging import JudgingLearner
from velm_cli.learners.writing import WritingLearner
from velm_cli.metrics.vqa import normalised
from velm_cli.models.attributing import Score, encoded, gradient_maps, occlusion_maps, shares
from velm_cli.models.looking import attends, looks
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.schema.tasks import LabelLoss

OCCLUDED = 1 << 28  # images times parameters of their encoder: about a minute on a core of a CPU
METHODS = ("attention", "gradient", "occlusion")
NO_GRID = "its words attend to no positions of the image; method=gradient and method=occlusion show where it looked"


class Said(NamedTuple):
    """What is explained of an example: words, and which of them each token behind BOS belongs to, or a label."""

    words: Sequence[str]
    tokens: Sequence[int] = ()  # BOS and those of the words
    word_of: Sequence[int] = ()
    label: int = 0  # of what a judge chose


def spelled(tokenizer: Tokenizer, text: str) -> Said:
    """The words of a text, each with its tokens; those of blanks alone make no word, and belong to a neighbour."""
    tokens = tokenizer.encode_batch([text])[0]
    words = tokenizer.decode(tokens).split()
    ends = [len(tokenizer.decode(tokens[: number + 1]).split()) for number in range(len(tokens))]
    owners = np.clip(np.array(ends, int) - 1, 0, len(words) - 1).tolist() if words else []
    kept = sorted(set(owners))
    return Said([words[number] for number in kept], [tokenizer.bos_id, *tokens], [kept.index(each) for each in owners])


def as_one(tokenizer: Tokenizer, answer: str) -> Said:
    """A written answer, all of whose tokens count together."""
    tokens = tokenizer.encode_batch([answer])[0]
    return Said([answer], [tokenizer.bos_id, *tokens], [0] * len(tokens))


def said_of(
    learner: Learner, tokenizer: Tokenizer, text: str, *, answers: Sequence[str] = (), asked: bool = False
) -> Said:
    """A caption's words, or (`asked`) an answer as one; `answers` are those that a judge tells apart.

    UserError for a text without words, or an answer that is not among them.
    """
    if isinstance(learner, JudgingLearner):
        places = {normalised(answer): place for place, answer in enumerate(answers)}
        place = answers.index(text) if text in answers else places.get(normalised(text))
        if place is None:
            raise UserError(
                f"text={text!r} is not among the {len(places):,} answers that this model can tell apart "
                "(task.answer=classify)"
            )
        return Said([text], label=place)
    said = as_one(tokenizer, text) if asked else spelled(tokenizer, text)
    if not text.split() or not said.word_of:
        raise UserError(f"text={text!r}: it has no words to look for")
    return said


def why_not(learner: Learner, method: str = "auto") -> str | None:
    """One line where nothing can be shown by this method; None where it can."""
    model = learner.model
    if not isinstance(learner, JudgingLearner) and not (isinstance(learner, WritingLearner) and model.generates):
        return "it writes no captions and answers no questions"
    reads = learner.reads if isinstance(learner, JudgingLearner) else True
    if model.vision is None or (reads and not model.fusion.uses):
        return "what it says does not depend on the image (vision=none or fusion=none)"
    if method == "attention" and (not reads or model.one_token or not attends(model)):
        return NO_GRID
    return None


def chosen(learner: Learner, method: str = "auto", *, images: int = 1) -> str:
    """The method that `auto` stands for: occlusion, which passed the check best with every kind of model.

    It encodes an image 49 times, so for many `images` through a large encoder it is gradients.
    """
    if method != "auto":
        return method
    assert learner.model.vision is not None
    weights = sum(parameter.numel() for parameter in learner.model.vision.parameters())
    return "occlusion" if images * weights <= OCCLUDED else "gradient"


def looked(learner: Learner, batch: Batch, said: Sequence[Said], method: str) -> list[np.ndarray]:
    """float32 [W, h, w] of each example: where it looked for each of its words, as `Attention.maps_THW` has it.

    Where examples have several images [W, I, h, w]; what an absent one has is 0. `batch`: with the images' pixels and,
    where the learner reads any, the sources. Ask `why_not` first.
    """
    apart = images_apart(batch)
    assert apart.image_XCHW is not None, "pixels, not features that were kept"
    with _plainly(learner):
        if method == "attention":
            maps_BWIhw = _attention(learner, apart, said)
        else:
            maps = gradient_maps if method == "gradient" else occlusion_maps
            maps_BWIhw = _of_each_image(learner, apart, score_of(learner, apart, said), maps)
    found = maps_BWIhw.detach().float().cpu().numpy()
    if apart.image_of_BI is None:
        found = found[:, :, 0]
    return [each_maps[: len(each.words)] for each_maps, each in zip(found, said, strict=True)]


def images_apart(batch: Batch) -> Batch:
    """The same examples with images of their own: gradients of examples that share one would be added up.

    With one image each there is no `image_of` left. An absent image is some other, which nothing looks at.
    """
    if batch.image_of_BI is None:
        return batch
    assert batch.image_XCHW is not None
    B, images = batch.image_of_BI.shape
    rows_R = batch.image_of_BI.clamp(min=0).flatten()
    own_BI = torch.arange(B * images, device=rows_R.device).view(B, images).where(batch.image_of_BI >= 0, -1)
    return replace(
        batch,
        image_XCHW=batch.image_XCHW.index_select(0, rows_R),
        image_of_BI=None if images == 1 else own_BI,
    )


def _of_each_image(
    learner: Learner, batch: Batch, score: Score, maps: Callable[[VelmModel, Tensor, Score], Tensor]
) -> Tensor:
    """(B, W, I, h, w), shares of 1 over all images of an example: one image after the other, the others as they are."""
    assert batch.image_XCHW is not None
    if batch.image_of_BI is None:
        return shares(maps(learner.model, batch.image_XCHW, score))[:, :, None]
    with torch.no_grad():
        whole = encoded(learner.model, batch.image_XCHW)
    images = batch.image_of_BI.shape[1]

    def of_place(place: int) -> Tensor:
        def at_place(all_RX: Tensor, own_BX: Tensor) -> Tensor:
            rows = list(all_RX.unflatten(0, (-1, images)).unbind(1))
            rows[place] = own_BX
            return torch.stack(rows, dim=1).flatten(0, 1)

        def with_others(features: ImageFeatures) -> Tensor:
            return score(
                ImageFeatures(
                    at_place(whole.tokens_BSD, features.tokens_BSD), at_place(whole.pooled_BD, features.pooled_BD)
                )
            )

        return maps(learner.model, batch.image_XCHW[place::images], with_others)  # type: ignore[index]

    found = [of_place(place) for place in range(images)]
    h, w = (min(each.shape[dim] for each in found) for dim in (-2, -1))
    # Where nothing in the encoder says anything of an image, such as of an absent one, maps are of its pixels.
    maps_BWIhw = torch.stack([_summed(each, h, w) for each in found], dim=2)
    there_BI = (batch.image_of_BI >= 0)[:, None, :, None, None]
    return shares((maps_BWIhw * there_BI).flatten(2, 3)).unflatten(2, (images, -1))


def _summed(maps_BWHW: Tensor, h: int, w: int) -> Tensor:
    """(B, W, h, w): the sums of coarser cells."""
    H, W = maps_BWHW.shape[-2:]
    return maps_BWHW if (h, w) == (H, W) else functional.adaptive_avg_pool2d(maps_BWHW, (h, w)) * (H * W / (h * w))


def score_of(learner: Learner, batch: Batch, said: Sequence[Said]) -> Score:
    """The log probability (B, W) of each word, in nats: the sum over its tokens, each after all before it.

    Of a judge's answer that of its label. Rows with fewer words have 0 there.
    """
    if isinstance(learner, JudgingLearner):
        labels_B = torch.tensor([each.label for each in said], device=batch.image_XCHW.device)  # type: ignore[union-attr]
        sigmoid = learner.label_head.form is LabelLoss.sigmoid
        log: Callable[[Tensor], Tensor] = functional.logsigmoid if sigmoid else _log_softmax
        return lambda features: log(learner.logits(features, batch)).gather(1, labels_B[:, None])
    model, (tokens_BT, of_word_BWT) = learner.model, _tokens(batch, said)

    if isinstance(learner, WritingLearner) and learner.prompts:
        return _behind_prompts(learner, batch, tokens_BT, of_word_BWT)

    def score(features: ImageFeatures) -> Tensor:
        memory = model.memory(model.context(features, batch.image_of_BI, batch.source_BL, batch.source_lengths_B))
        fused_BTD, _ = model.fusion.read(model.text, tokens_BT[:, :-1], memory)
        log_p_BTV = _log_softmax(model.logits(fused_BTD))
        log_p_BT1 = log_p_BTV.gather(2, tokens_BT[:, 1:, None])
        return (of_word_BWT.to(log_p_BT1.dtype) @ log_p_BT1)[:, :, 0]

    return score


def _behind_prompts(learner: WritingLearner, batch: Batch, tokens_BT: Tensor, of_word_BWT: Tensor) -> Score:
    """Of words that go on from the prompts of the batch's examples."""
    model, batch = learner.model, learner.prompted(batch)
    assert batch.lengths is not None
    whole = batch.lengths._replace(targets_BK=np.full((len(tokens_BT), 1), tokens_BT.shape[1]))
    batch = replace(batch, tokens_BKT=tokens_BT[:, None], lengths=whole)

    def score(features: ImageFeatures) -> Tensor:
        branches = branches_of(model, batch, prompts=True)
        states_QD = read_branches(model, prefix_of(model, features, batch), branches, batch.tokens_BKT, batch.source_BL)
        log_p_BTV = _log_softmax(model.logits(states_QD).unflatten(0, (len(tokens_BT), -1)))
        log_p_BT1 = log_p_BTV.gather(2, tokens_BT[:, 1:, None])
        return (of_word_BWT.to(log_p_BT1.dtype) @ log_p_BT1)[:, :, 0]

    return score


def _tokens(batch: Batch, said: Sequence[Said]) -> tuple[Tensor, Tensor]:
    """(B, T + 1) tokens, the first of which is BOS, and (B, W, T): 1 where a token behind it is of a word."""
    longest = max(2, *(len(each.tokens) for each in said), 2)
    words = max(1, *(len(each.words) for each in said), 1)
    tokens_BT = torch.zeros(len(said), longest, dtype=torch.int64)
    of_word_BWT = torch.zeros(len(said), words, longest - 1)
    for row, each in enumerate(said):
        tokens_BT[row, : len(each.tokens)] = torch.tensor(each.tokens, dtype=torch.int64)
        for place, word in enumerate(each.word_of):
            of_word_BWT[row, word, place] = 1
    device = batch.image_XCHW.device  # type: ignore[union-attr]
    return tokens_BT.to(device), of_word_BWT.to(device)


def _attention(learner: Learner, batch: Batch, said: Sequence[Said]) -> Tensor:
    """(B, W, I, h, w): the mean of the tokens that make a word; of a judge's answer as it pools the source."""
    model = learner.model
    with torch.no_grad():
        features = encoded(model, batch.image_XCHW)  # type: ignore[arg-type]
        images = 1 if batch.image_of_BI is None else batch.image_of_BI.shape[1]
        if isinstance(learner, JudgingLearner):
            assert batch.source_BL is not None and batch.source_lengths_B is not None
            seen = model.of_examples(features, batch.image_of_BI)
            weights_BLhw = looks(model, batch.source_BL, seen, batch.source_lengths_B)
            if weights_BLhw is None:
                raise UserError(NO_GRID)
            weights_BX = learner.of_source(weights_BLhw.flatten(2), batch.source_lengths_B)
            return weights_BX.unflatten(1, weights_BLhw.shape[2:])[:, None].unflatten(2, (images, -1))
        tokens_BT, of_word_BWT = _tokens(batch, said)
        context = model.context(features, batch.image_of_BI, batch.source_BL, batch.source_lengths_B)
        assert context is not None
        weights_BThw = looks(model, tokens_BT[:, :-1], context)
        if weights_BThw is None:
            raise UserError(NO_GRID)
        mean_BWT = of_word_BWT / of_word_BWT.sum(2, keepdim=True).clamp(min=1)
        return torch.einsum("bwt,btij->bwij", mean_BWT, weights_BThw).unflatten(2, (images, -1))


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1)


@contextlib.contextmanager
def _plainly(learner: Learner):
    """In float32 and without dropout: gradients in bfloat16 are too coarse to be compared."""
    device = next(learner.parameters()).device
    training = learner.training
    learner.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        learner.train(training)
