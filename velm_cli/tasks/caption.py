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
from velm_cli.objectives.joint import ContrastiveLoss
from velm_cli.objectives.terms import Term
from velm_cli.objectives.text import next_token_loss
from velm_cli.schema import DecodeConfig, LossConfig

TERMS = ("text", "image", "joint")  # weighted by alpha, beta, gamma


class CaptionTask(nn.Module):
    """`forward(batch, active)` computes the active objectives and nothing that they do not need."""

    def __init__(self, model: VelmModel, loss: LossConfig, *, concepts: int, active: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = loss.label_smoothing
        self.concepts = min(loss.num_concepts, concepts)
        model.freeze_unused(text="text" in active, pooled=bool(active & {"image", "joint"}), states="joint" in active)
        self.image_loss: ConceptLoss | None = None
        self.joint_loss: ContrastiveLoss | None = None
        if active & {"image", "joint"}:
            assert model.vision is not None, "validate refuses L_image and L_joint without vision"
            width = model.vision.width
            if "image" in active:
                self.image_loss = ConceptLoss(width, self.concepts)
            if "joint" in active:
                self.joint_loss = ContrastiveLoss(width, model.text.width, loss.joint_width, loss.temperature)

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
        features = self.model.encode_image(batch.image_BCHW) if sees_image else None
        if "image" in active:
            assert features is not None and self.image_loss is not None
            terms["image"] = Term(self.image_loss(features.pooled_BD, batch.concepts_BC), counts["image"])
        if "text" in active or "joint" in active:
            B, K, T = batch.tokens_BKT.shape
            tokens_NT, lengths_N = batch.tokens_BKT.view(B * K, T), batch.lengths_BK.view(B * K)
            text_NTD = None  # the text alone, needed by L_joint and by fusions that come after it
            if "joint" in active or self.model.fusion.after_text:
                text_NTD, _ = self.model.text(tokens_NT[:, :-1])
            if "text" in active:
                loss = self._text_loss(tokens_NT[:, :-1], text_NTD, features, batch)
                terms["text"] = Term(loss, counts["text"])
            if "joint" in active:
                assert features is not None and self.joint_loss is not None and text_NTD is not None
                text_BKD = mean_of_text(text_NTD, lengths_N - 1).view(B, K, -1)
                loss = self.joint_loss(features.pooled_BD, text_BKD, batch.lengths_BK > 0)
                terms["joint"] = Term(loss, counts["joint"])
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
        return next_token_loss(self.model.logits(fused_MD), targets_M, label_smoothing=self.label_smoothing)

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
            memory = self.model.memory(self.model.encode_image(batch.image_BCHW))
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
