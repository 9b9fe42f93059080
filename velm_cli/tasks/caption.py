"""Captioning: the model and its three objectives in one object, so that the loop knows neither.

Shapes: B images, K captions an image, N = B * K, T positions, M predicted tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velm_cli.data.loader import Batch
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.models.decoding import decode
from velm_cli.models.text.interface import mean_of_text
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.image import ConceptLoss
from velm_cli.objectives.joint import ContrastiveLoss, MatchingLoss, SigmoidLoss, hard_negatives
from velm_cli.objectives.terms import Term
from velm_cli.objectives.text import chunked_next_token_loss
from velm_cli.schema import DecodeConfig, JointLoss, LossConfig

TERMS = ("text", "image", "joint")  # weighted by alpha, beta, gamma


class CaptionTask(nn.Module):
    """`forward(batch, active)` computes the active objectives and nothing that they do not need."""

    def __init__(
        self,
        model: VelmModel,
        loss: LossConfig,
        *,
        concepts: int,
        active: frozenset[str],
        learned: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.concepts = min(loss.num_concepts, concepts)
        matching = "joint" in active and loss.joint is JointLoss.matching
        # Matching reads fused states, as the text's loss does, but predicts no words.
        model.freeze_unused(
            text="text" in active, fused=matching, pooled=bool(active & {"image", "joint"}), states="joint" in active
        )
        self.image_loss: ConceptLoss | None = None
        self.joint_loss: ContrastiveLoss | SigmoidLoss | None = None
        self.matching_loss: MatchingLoss | None = None
        if active & {"image", "joint"}:
            assert model.vision is not None, "validate refuses L_image and L_joint without vision"
            width = model.vision.width
            if "image" in active:
                self.image_loss = ConceptLoss(width, self.concepts)
            if "joint" in active:
                spaces = (width, model.text.width, loss.joint_width)
                if loss.joint is JointLoss.sigmoid:
                    self.joint_loss = SigmoidLoss(*spaces)
                else:
                    self.joint_loss = ContrastiveLoss(*spaces, loss.temperature)
                if matching:
                    self.matching_loss = MatchingLoss(model.text.width)
        # s of each term whose weight exp(-s) is learned
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in sorted(learned & active)})

    @property
    def image_mean(self) -> tuple[float, ...]:
        return self.model.vision.mean if self.model.vision else (0.0, 0.0, 0.0)

    @property
    def image_std(self) -> tuple[float, ...]:
        return self.model.vision.std if self.model.vision else (1.0, 1.0, 1.0)

    def counts(self, batch: Batch) -> dict[str, int]:
        """By objective, the number of items its sum runs over; known before any computing."""
        return {"text": batch.num_tokens, "image": len(batch.image_ids), "joint": batch.num_captions}

    def forward(self, batch: Batch, active: frozenset[str]) -> dict[str, Term]:
        counts = self.counts(batch)
        terms = {}
        sees_image = active - {"text"} or self.model.fusion.uses
        features = self.model.encode_image(batch.image_BCHW, batch.feature_BSD) if sees_image else None
        if "image" in active:
            assert features is not None and self.image_loss is not None
            terms["image"] = Term(self.image_loss(features.pooled_BD, batch.concepts_BC), counts["image"])
        if "text" in active or "joint" in active:
            B, K, T = batch.tokens_BKT.shape
            tokens_NT = batch.tokens_BKT.view(B * K, T)
            text_NTD = None  # the text alone, needed by L_joint and by fusions that come after it
            if "joint" in active or self.model.fusion.after_text:
                text_NTD, _ = self.model.text(tokens_NT[:, :-1])
            if "text" in active:
                loss = self._text_loss(tokens_NT[:, :-1], text_NTD, features, batch)
                terms["text"] = Term(loss, counts["text"])
            if "joint" in active:
                assert features is not None and text_NTD is not None
                terms["joint"] = Term(self._joint_loss(text_NTD, features, batch), counts["joint"])
        return terms

    def _text_loss(
        self, tokens_NT: Tensor, text_NTD: Tensor | None, features: ImageFeatures | None, batch: Batch
    ) -> Tensor:
        fusion, memory = self.model.fusion, self.model.memory(features)
        if fusion.after_text and text_NTD is not None:
            fused_NTD, _ = fusion(text_NTD, memory)
        else:
            fused_NTD, _ = fusion.read(self.model.text, tokens_NT, memory)
        # The vocabulary is only computed at the M positions where something is predicted.
        fused_MD = fused_NTD.flatten(0, 1).index_select(0, batch.positions_M)
        targets_M = batch.tokens_BKT[:, :, 1:].flatten().index_select(0, batch.positions_M)
        return chunked_next_token_loss(
            self.model.logits, fused_MD, targets_M, chunk=self.loss.chunk, label_smoothing=self.loss.label_smoothing
        )

    def _joint_loss(self, text_NTD: Tensor, features: ImageFeatures, batch: Batch) -> Tensor:
        assert self.joint_loss is not None
        B, K, _ = batch.tokens_BKT.shape
        text_BKD = mean_of_text(text_NTD, batch.lengths_BK.view(-1) - 1).view(B, K, -1)
        loss = self.joint_loss(features.pooled_BD, text_BKD, batch.lengths_BK > 0)
        if self.matching_loss is not None:
            similarity_BC = self.joint_loss.cosines(features.pooled_BD, text_BKD[:, :1])[0]
            loss = loss + self._matching_loss(similarity_BC, features, batch)
        return loss

    def _matching_loss(self, similarity_BC: Tensor, features: ImageFeatures, batch: Batch) -> Tensor:
        """First captions only: each with its own image, and with the hard negatives both ways.

        Scaled to K captions an image, since the loop divides L_joint by the number of captions.
        """
        assert self.matching_loss is not None and self.joint_loss is not None
        present_B = batch.lengths_BK[:, 0] > 0
        own = present_B.nonzero()[:, 0]
        scale = self.joint_loss.log_scale.exp().detach()
        images, captions = hard_negatives(scale * similarity_BC, present_B[None].expand(len(present_B), -1))
        image_X, caption_X = torch.cat([own, images]), torch.cat([own, captions])
        memory = self.model.memory(features.select(image_X))
        fused_XTD, _ = self.model.fusion.read(self.model.text, batch.tokens_BKT[caption_X, 0], memory)
        ends_X = (batch.lengths_BK[caption_X, 0] - 1).clamp(min=0)
        states_XD = fused_XTD[torch.arange(len(ends_X), device=ends_X.device), ends_X]
        match_X = (torch.arange(len(ends_X), device=ends_X.device) < len(own)).to(states_XD.dtype)
        captions_per_pair = batch.num_captions / max(1, len(ends_X))
        return captions_per_pair * self.matching_loss(states_XD, match_X)

    def describe(
        self,
        batch: Batch,
        tokenizer: Tokenizer,
        decoding: DecodeConfig,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """A caption for each image of the batch."""
        specials = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id)
        never = [i for i in specials if i is not None and i != tokenizer.eos_id]
        with torch.inference_mode():
            memory = self.model.memory(self.model.encode_image(batch.image_BCHW, batch.feature_BSD))
        sequences = decode(
            self.model,
            memory,
            images=len(batch.image_ids),
            config=decoding,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            banned=never,
            device=batch.lengths_BK.device,
            generator=generator,
        )
        return [tokenizer.decode(sequence) for sequence in sequences]
