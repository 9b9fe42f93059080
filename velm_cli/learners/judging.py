"""Judging: a source (a question) and images in, one of C labels out; the model and its objectives in one object.

The text encoder reads the source, the fusion joins it with the image, and the fused state at the end of the source,
which has seen all of it, is judged, or the mean of its states. Without a source it is the pooled image that is.

Shapes: X images, B examples, L positions of a source, M predicted tokens, D width, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from velm_cli.data.batch import CONCEPTS, Batch
from velm_cli.learners.interface import Learner, Moment
from velm_cli.learners.terms import hidden_words_loss, image_loss, masked_patch_loss, states_words_loss
from velm_cli.models.text.interface import mean_of_text
from velm_cli.models.text.remembered import Remembered
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.image import ConceptLoss, MaskedPatchLoss
from velm_cli.objectives.label import LabelHead
from velm_cli.objectives.terms import Term
from velm_cli.objectives.weights import Weight
from velm_cli.schema import ImageLoss, LossConfig, TextLoss
from velm_cli.schema.tasks import LabelLoss, Pool, SourcePool

ANSWERS = "answers"  # the labels that are judged


class Judgement(NamedTuple):
    """What is predicted of examples."""

    logits_BC: Tensor
    probabilities_BC: Tensor


class JudgingLearner(Learner):
    """Learns the label (L_joint), the words of the source (L_text) and what is in the images (L_image).

    L_text predicts the source's next words from fused states, or its hidden ones (`loss.text`).
    """

    def __init__(
        self,
        model: VelmModel,
        loss: LossConfig,
        *,
        weights: Mapping[str, Weight],
        labels: int,
        concepts: int = 0,
        label_loss: LabelLoss = LabelLoss.softmax,
        dropout: float = 0.1,
        linear: bool = False,
        pool: Pool = Pool.own,
        source_pool: SourcePool = SourcePool.end,
        mask_id: int = 0,
        reads: bool = True,
        space: str = ANSWERS,
        remember_texts: bool = False,
    ) -> None:
        """`weights`: alpha, beta, gamma by the term that they weigh; of a term that has none nothing is learned.

        `labels`: C; `linear`: by a head of one layer. `reads`: whether examples have a source; `pool`: what is judged
        of images without one, `source_pool` of sources. `space`: the batch's labels that are judged. `mask_id`: the
        token that stands where a word is hidden. `remember_texts`: sources, which a frozen text encoder then reads
        once; the fusion comes after it.
        """
        super().__init__()
        self.model, self.loss, self.weights = model, loss, weights
        self.reads, self.space, self.mask_id, self.pool, self.source_pool = reads, space, mask_id, pool, source_pool
        self.remembered = Remembered(model.text) if remember_texts else None
        active = frozenset(name for name, weight in weights.items() if not weight.always_zero)
        learned = frozenset(name for name, weight in weights.items() if weight.learned)
        patches = "image" in active and loss.image is ImageLoss.masked_patches
        model.freeze_unused(
            text="text" in active,
            fused="joint" in active and reads,
            pooled=("image" in active and not patches) or ("joint" in active and not reads and pool is not Pool.mean),
            states=False,
            tokens="joint" in active and not reads and pool is not Pool.own,
            patches=patches,
        )
        self.concepts = min(loss.num_concepts, concepts)
        self.image_loss: ConceptLoss | MaskedPatchLoss | None = None
        if "image" in active:
            assert model.vision is not None, "validate refuses L_image without vision"
            self.image_loss = (
                masked_patch_loss(model, loss)
                if patches
                else ConceptLoss(model.vision.width, self.concepts, loss.image_reduction)
            )
        assert reads or model.vision is not None, "there is nothing to judge"
        width = model.text.width if reads or model.vision is None else model.vision.width * (1 + (pool is Pool.both))
        self.label_head = LabelHead(width, labels, form=label_loss, dropout=dropout, linear=linear)
        if "joint" not in active:
            self.label_head.requires_grad_(False)
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in sorted(learned & active)})

    def counts(self, batch: Batch) -> dict[str, int]:
        """L_image counts examples, whose concepts are their own; where it paints, images."""
        paints = isinstance(self.image_loss, MaskedPatchLoss)
        return {
            "text": batch.num_source_tokens,
            "image": len(batch.images) if paints else len(batch.ids),
            "joint": self.label_head.counted(len(batch.ids), batch.labelled.get(self.space, 0)),
        }

    def forward(self, batch: Batch, now: Moment) -> dict[str, Term]:
        active, counts, terms = now.active, self.counts(batch), {}
        features = self._features(batch, active)
        if "image" in active:
            seen = None if features is None else self.model.of_examples(features, batch.image_of_BI)
            concepts_BC = batch.labels.get(CONCEPTS)
            found = image_loss(self.image_loss, self.model, seen, batch.image_XCHW, concepts_BC)
            terms["image"] = Term(found, counts["image"])
        memory = self.model.memory(features, batch.image_of_BI) if self.reads and active & {"text", "joint"} else ()
        hides = self.loss.text is TextLoss.masked
        fused_BLD = None
        if self.reads and ("joint" in active or ("text" in active and not hides)):
            fused_BLD = self._read(memory, batch)
        if "text" in active:
            terms["text"] = Term(self._words_loss(fused_BLD, memory, batch), counts["text"])
        if "joint" in active:
            logits_BC = self.label_head(self._judged(fused_BLD, features, batch))
            terms["joint"] = Term(self.label_head.loss(logits_BC, batch.labels[self.space]), counts["joint"])
        return terms

    @torch.no_grad()
    def predict(self, batch: Batch) -> Judgement:
        """Logits and probabilities (B, C) of a batch's labels, in float32 at least."""
        logits_BC = self.logits(self._features(batch, frozenset({"joint"})), batch)
        return Judgement(logits_BC, self.label_head.probabilities(logits_BC))

    def logits(self, features: ImageFeatures | None, batch: Batch) -> Tensor:
        """(B, C) of a batch's labels, in float32 at least, from the `features` of its X images."""
        fused_BLD = self._read(self.model.memory(features, batch.image_of_BI), batch) if self.reads else None
        logits_BC: Tensor = self.label_head(self._judged(fused_BLD, features, batch))
        return logits_BC

    def _features(self, batch: Batch, active: frozenset[str]) -> ImageFeatures | None:
        """Of the X images, where anything looks at them."""
        paints = isinstance(self.image_loss, MaskedPatchLoss)  # which looks at images of its own
        fuses = active & {"text", "joint"} and (self.model.fusion.uses or not self.reads)
        sees_image = fuses or ("image" in active and not paints)
        return self.model.encode_image(batch.image_XCHW, batch.feature_XSD) if sees_image else None

    def _read(self, memory: tuple, batch: Batch) -> Tensor:
        """Fused states (B, L, D) of the sources."""
        assert batch.source_BL is not None and batch.source_lengths_B is not None, "examples have a source"
        model = self.model
        if self.remembered is not None and not batch.source_BL.is_meta:  # a dry run's have no values
            states_BLD = self.remembered(batch.source_BL, batch.source_lengths_B)
            return model.fusion(states_BLD, memory, lengths_N=batch.source_lengths_B)[0]
        fused_BLD, _ = model.fusion.read(model.text, batch.source_BL, memory, lengths_N=batch.source_lengths_B)
        return fused_BLD

    def _judged(self, fused_BLD: Tensor | None, features: ImageFeatures | None, batch: Batch) -> Tensor:
        """(B, D): the fused state at the last token of the source, its EOS, or the mean of all; or the pooled image."""
        if fused_BLD is None:
            assert features is not None
            return _pooled(self.model.of_examples(features, batch.image_of_BI), self.pool)
        assert batch.source_lengths_B is not None
        return self.of_source(fused_BLD, batch.source_lengths_B)

    def of_source(self, x_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """(B, D): of what there is of each token of the sources, what is judged."""
        if self.source_pool is SourcePool.mean:
            return mean_of_text(x_BLD, lengths_B)
        at_B = torch.arange(len(x_BLD), device=x_BLD.device)
        return x_BLD[at_B, (lengths_B - 1).clamp(min=0)]

    def _words_loss(self, fused_BLD: Tensor | None, memory: tuple, batch: Batch) -> Tensor:
        source_BL, lengths_B, model = batch.source_BL, batch.source_lengths_B, self.model
        assert source_BL is not None and lengths_B is not None
        if self.loss.text is TextLoss.masked:
            return hidden_words_loss(
                model,
                self.loss,
                source_BL,
                lengths_B,
                memory,
                words=batch.num_source_tokens - batch.num_sources,
                predicted=batch.num_source_tokens,
                mask_id=self.mask_id,
                training=self.training,
            )
        assert fused_BLD is not None
        # How many positions predict something is known, so that a device need not be waited for.
        padded_BL = torch.arange(1, source_BL.shape[1], device=source_BL.device) >= lengths_B[:, None]
        predicted_M = padded_BL.flatten().to(torch.uint8).argsort(stable=True)[: batch.num_source_tokens]
        fused_MD = fused_BLD[:, :-1].flatten(0, 1).index_select(0, predicted_M)
        targets_M = source_BL[:, 1:].flatten().index_select(0, predicted_M)
        return states_words_loss(model, self.loss, fused_MD, targets_M, training=self.training)


def _pooled(features: ImageFeatures, pool: Pool) -> Tensor:
    """(B, D), or (B, 2 D) of both."""
    if pool is Pool.own:
        return features.pooled_BD
    mean_BD = features.tokens_BSD.mean(dim=1)
    if features.visible_BS is not None:
        seen_BS1 = features.visible_BS[:, :, None].to(features.tokens_BSD.dtype)
        mean_BD = (features.tokens_BSD * seen_BS1).sum(dim=1) / seen_BS1.sum(dim=1).clamp(min=1)
    return (
        mean_BD if pool is Pool.mean else torch.cat([features.pooled_BD, mean_BD.to(features.pooled_BD.dtype)], dim=1)
    )
