"""Writing: images in, a text out; the model and its three objectives in one object.

Shapes: B images, K texts an image, N = B * K, T positions, M predicted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from velm_cli.data.batch import CONCEPTS, Batch
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.written import Written
from velm_cli.learners.branching import branch_log_probs, branches_of, prefix_of, read_branches, reads_branches
from velm_cli.learners.describing import described
from velm_cli.learners.interface import Learner, Moment
from velm_cli.learners.terms import hidden_words_loss, image_loss, masked_patch_loss, states_words_loss
from velm_cli.models.layers import without_gradients
from velm_cli.models.ranking import Answers, answer_log_probs
from velm_cli.models.text.remembered import Remembered
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures
from velm_cli.objectives.image import ConceptLoss, MaskedPatchLoss
from velm_cli.objectives.joint import ContrastiveLoss, MatchingLoss, SigmoidLoss, hard_negatives
from velm_cli.objectives.self_critical import SelfCritical
from velm_cli.objectives.terms import Term
from velm_cli.objectives.text import own_words
from velm_cli.objectives.weights import Weight, parse_weight
from velm_cli.schema import DecodeConfig, ImageLoss, JointLoss, LossConfig, TextLoss


class WritingLearner(Learner):
    """Learns to write the targets (L_text), to name what is in the images (L_image), to match the two (L_joint)."""

    prompts: bool  # whether targets go on from their sources, which are then no memory

    def __init__(
        self,
        model: VelmModel,
        loss: LossConfig,
        *,
        weights: Mapping[str, Weight],
        concepts: int,
        mask_id: int = 0,
        never_written: Sequence[int] = (),
        remember_texts: bool = False,
        prompts: bool = False,
        prompt: Sequence[int] | None = None,
    ) -> None:
        """`weights`: alpha, beta, gamma by the term that they weigh; of a term that has none nothing is made.

        `mask_id`: the token that stands where a word is hidden. `never_written`: tokens that no caption holds.
        `remember_texts`: L_joint's, which a frozen text encoder then reads once. `prompts`: the source stands before
        the text that is written from it, in the language model's own words; `prompt`: one for all, with BOS and EOS.
        """
        super().__init__()
        self.model = model
        self.loss = loss
        self.weights = weights
        active = frozenset(name for name, weight in weights.items() if not weight.always_zero)
        learned = frozenset(name for name, weight in weights.items() if weight.learned)
        self.own_words = parse_weight("loss.scheduled_sampling", loss.scheduled_sampling)
        self.concepts = min(loss.num_concepts, concepts)
        self.prompts, self.prompt = prompts or prompt is not None, prompt
        plain = loss.text is not TextLoss.masked and model.source is None
        self.branches = self.prompts or (plain and reads_branches(model))
        self.generates = "text" in active and loss.text is not TextLoss.masked and model.generates
        matching = "joint" in active and loss.joint is JointLoss.matching
        patches = "image" in active and loss.image is ImageLoss.masked_patches
        self.mask_id, self.never_written = mask_id, list(never_written)
        self.remembered = Remembered(model.text) if remember_texts else None
        self.critic: SelfCritical | None = None  # set it, and training learns from rewards instead of captions
        # Matching reads fused states, as the text's loss does, but predicts no words.
        model.freeze_unused(
            text="text" in active,
            fused=matching,
            pooled="joint" in active or ("image" in active and not patches),
            states="joint" in active,
            tokens="joint" in active and loss.joint_queries > 0,
            patches=patches,
        )
        self.image_loss: ConceptLoss | MaskedPatchLoss | None = None
        self.joint_loss: ContrastiveLoss | SigmoidLoss | None = None
        self.matching_loss: MatchingLoss | None = None
        if active & {"image", "joint"}:
            assert model.vision is not None, "validate refuses L_image and L_joint without vision"
            width = model.vision.width
            if patches:
                self.image_loss = masked_patch_loss(model, loss)
            elif "image" in active:
                self.image_loss = ConceptLoss(width, self.concepts, loss.image_reduction)
            if "joint" in active:
                spaces = (width, model.text.width, loss.joint_width)
                queries, dropout = loss.joint_queries, loss.joint_dropout
                if loss.joint is JointLoss.sigmoid:
                    self.joint_loss = SigmoidLoss(*spaces, queries=queries, dropout=dropout)
                else:
                    self.joint_loss = ContrastiveLoss(*spaces, loss.temperature, queries=queries, dropout=dropout)
                if matching:
                    self.matching_loss = MatchingLoss(model.text.width)
        # s of each term whose weight exp(-s) is learned
        self.log_variance = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in sorted(learned & active)})

    def settled(self, steps_per_epoch: float) -> float:
        return max(super().settled(steps_per_epoch), self.own_words.settled(steps_per_epoch))

    def after_step(self) -> None:
        if isinstance(self.joint_loss, ContrastiveLoss):
            self.joint_loss.limit_scale()

    def counts(self, batch: Batch) -> dict[str, int]:
        text = batch.num_tokens if self._learns_from_text else len(batch.ids) * self.loss.samples
        images = len(batch.images) if self._paints else len(batch.ids)  # concepts are those of an example
        return {"text": text, "image": images, "joint": batch.num_targets}

    @property
    def _paints(self) -> bool:
        """Whether L_image looks at images of its own."""
        return isinstance(self.image_loss, MaskedPatchLoss)

    @property
    def _learns_from_text(self) -> bool:
        """Whether L_text is of the batch's captions: always in validation."""
        return self.critic is None or not self.training

    def forward(self, batch: Batch, now: Moment) -> dict[str, Term]:
        active, batch = now.active, self.prompted(batch)
        # the probability of scheduled sampling
        own_words_share = self.own_words.at(now.step, now.steps_per_epoch) if self.training else 0.0
        counts = self.counts(batch)
        terms = {}
        looking = active - {"image"} if self._paints else active
        sees_image = looking - {"text"} or ("text" in looking and self.model.fusion.uses)
        features = self.model.encode_image(batch.image_XCHW, batch.feature_XSD) if sees_image else None
        own = features  # of each example's own images
        if features is not None and looking - {"text"}:
            own = self.model.of_examples(features, batch.image_of_BI)
        if "image" in active:
            terms["image"] = Term(
                image_loss(self.image_loss, self.model, own, batch.image_XCHW, batch.labels.get(CONCEPTS)),
                counts["image"],
            )
        if "text" in active or "joint" in active:
            B, K, T = batch.tokens_BKT.shape
            tokens_NT = batch.tokens_BKT.view(B * K, T)
            masked = self.loss.text is TextLoss.masked
            text_NTD = None  # the text alone, needed by L_joint and by fusions that come after it
            reads = self._learns_from_text and not masked and not own_words_share
            if "joint" in active or (self.model.fusion.after_text and reads):
                read_N = batch.lengths_BK.view(-1) - 1
                if self.remembered is not None and not tokens_NT.is_meta:  # a dry run's have no values
                    text_NTD = self.remembered(tokens_NT[:, :-1], read_N.clamp(min=0))
                else:
                    packing = batch.packing if self.model.text.causal else None
                    text_NTD, _ = self.model.text(tokens_NT[:, :-1], lengths_N=read_N, packing=packing)
            if "text" in active:
                branches = self._learns_from_text and self.branches and batch.lengths is not None
                memory = () if branches else self._memory(features, batch)
                figures: dict[str, Tensor] = {}
                if branches:
                    loss = self._branches_loss(features, batch, own_words_share)
                elif masked:
                    loss = hidden_words_loss(
                        self.model,
                        self.loss,
                        tokens_NT,
                        batch.lengths_BK.view(-1),
                        memory,
                        words=batch.num_tokens - batch.num_targets,
                        predicted=batch.num_tokens,
                        mask_id=self.mask_id,
                        training=self.training,
                    )
                elif self._learns_from_text:
                    loss = self._next_word_loss(tokens_NT[:, :-1], text_NTD, memory, batch, own_words_share)
                else:
                    assert self.critic is not None
                    loss, figures["reward"] = self.critic(self.model, memory, batch.examples)
                terms["text"] = Term(loss, counts["text"], figures)
            if "joint" in active:
                assert own is not None and text_NTD is not None
                loss, figures = self._joint_loss(text_NTD, own, batch)
                terms["joint"] = Term(loss, counts["joint"], figures)
        return terms

    def _branches_loss(self, features: ImageFeatures | None, batch: Batch, own_words_share: float) -> Tensor:
        """As `_next_word_loss`: each image is read once, and its texts as branches of it."""
        model, tokens_BKT = self.model, batch.tokens_BKT
        source_BL = batch.source_BL if self.prompts else None
        branches, prefix_RPD = branches_of(model, batch, prompts=self.prompts), prefix_of(model, features, batch)
        if own_words_share:
            with without_gradients():
                logits_MV = model.logits(read_branches(model, prefix_RPD, branches, tokens_BKT, source_BL))
            mixed_NT = own_words(
                tokens_BKT[:, :, :-1].flatten(0, 1),
                logits_MV,
                batch.predicted_M,
                probability=own_words_share,
                banned=self.never_written,
            )
            tokens_BKT = torch.cat([mixed_NT.unflatten(0, tokens_BKT.shape[:2]), tokens_BKT[:, :, -1:]], dim=2)
        fused_MD = read_branches(model, prefix_RPD, branches, tokens_BKT, source_BL)
        targets_M = batch.tokens_BKT[:, :, 1:].flatten().index_select(0, batch.predicted_M)
        return states_words_loss(model, self.loss, fused_MD, targets_M, training=self.training)

    def prompted(self, batch: Batch) -> Batch:
        """The batch, each of whose examples has the one prompt for its source, if there is one for all."""
        if self.prompt is None or batch.lengths is None:
            return batch
        B = len(batch.ids)
        return replace(
            batch,
            source_BL=torch.tensor([self.prompt], device=batch.tokens_BKT.device).expand(B, -1),
            source_lengths_B=torch.full((B,), len(self.prompt), device=batch.tokens_BKT.device),
            lengths=batch.lengths._replace(source_B=np.full(B, len(self.prompt))),
        )

    def _memory(self, features: ImageFeatures | None, batch: Batch) -> tuple:
        """What the targets of each example are written from: its images, and its source where the model reads one."""
        model = self.model
        if model.source is None or batch.source_BL is None:
            return model.memory(features, batch.image_of_BI)
        return model.memory(model.context(features, batch.image_of_BI, batch.source_BL, batch.source_lengths_B))

    def memory(self, batch: Batch) -> tuple:
        """The memory of a batch's examples, for whoever asks the model about texts of its own."""
        return self._memory(self.model.encode_image(batch.image_XCHW, batch.feature_XSD), batch)

    def ranked(self, batch: Batch, answers: Answers, candidates: int) -> Tensor:
        """(B, C): log p of each answer, of the `candidates` likeliest by their first token."""
        if not self.prompts:
            memory = self.memory(batch)
            return answer_log_probs(self.model, memory, answers, examples=len(batch.ids), candidates=candidates)
        features = self.model.encode_image(batch.image_XCHW, batch.feature_XSD)
        return branch_log_probs(self.model, self.prompted(batch), features, answers, candidates=candidates)

    def _next_word_loss(
        self, tokens_NT: Tensor, text_NTD: Tensor | None, memory: tuple, batch: Batch, own_words_share: float
    ) -> Tensor:
        fusion = self.model.fusion
        packed: dict[str, Any] = {"packing": batch.packing} if fusion.packs else {}
        if own_words_share:
            with without_gradients():
                fused_NTD, _ = fusion.read(self.model.text, tokens_NT, memory, **packed)
                logits_MV = self.model.logits(fused_NTD.flatten(0, 1).index_select(0, batch.predicted_M))
            tokens_NT = own_words(
                tokens_NT, logits_MV, batch.predicted_M, probability=own_words_share, banned=self.never_written
            )
            fused_NTD, _ = fusion.read(self.model.text, tokens_NT, memory, **packed)
        elif fusion.after_text and text_NTD is not None:
            fused_NTD, _ = fusion(text_NTD, memory, **packed)
        else:
            fused_NTD, _ = fusion.read(self.model.text, tokens_NT, memory, **packed)
        # The vocabulary is only computed at the M positions where something is predicted.
        fused_MD = fused_NTD.flatten(0, 1).index_select(0, batch.predicted_M)
        targets_M = batch.tokens_BKT[:, :, 1:].flatten().index_select(0, batch.predicted_M)
        return states_words_loss(self.model, self.loss, fused_MD, targets_M, training=self.training)

    def _joint_loss(self, text_NTD: Tensor, features: ImageFeatures, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over captions, and what of it the judge of pairs has for each pair, if there is one."""
        assert self.joint_loss is not None
        B, K, _ = batch.tokens_BKT.shape
        image_BD = self.joint_loss.pool_images(features)
        text_BKD = self.joint_loss.pool_texts(text_NTD, batch.lengths_BK.view(-1) - 1).view(B, K, -1)
        loss = self.joint_loss(image_BD, text_BKD, batch.lengths_BK > 0)
        if self.matching_loss is None:
            return loss, {}
        similarity_BC = self.joint_loss.cosines(image_BD, text_BKD[:, :1])[0]
        matching, pairs = self._matching_loss(similarity_BC, features, batch)
        # The loop divides L_joint by the number of captions.
        return loss + batch.num_targets / pairs * matching, {"matching": matching.detach() / pairs}

    def _matching_loss(self, similarity_BC: Tensor, features: ImageFeatures, batch: Batch) -> tuple[Tensor, Tensor]:
        """Nats, and of how many pairs: the first captions with their own images, and with hard negatives both ways."""
        assert self.matching_loss is not None and self.joint_loss is not None
        present_B = batch.lengths_BK[:, 0] > 0
        own_B = torch.arange(len(present_B), device=present_B.device)
        scale = self.joint_loss.log_scale.exp().detach()
        image, caption, counts = hard_negatives(scale * similarity_BC, present_B)
        image_X, caption_X = torch.cat([own_B, image]), torch.cat([own_B, caption])
        counts_X = torch.cat([present_B, counts])
        memory = self.model.memory(features.select(image_X))
        lengths_X = batch.lengths_BK[caption_X, 0]
        if self.remembered is not None and self.model.fusion.after_text and not image_X.is_meta:
            states_BTD = self.remembered(batch.tokens_BKT[:, 0], batch.lengths_BK[:, 0])
            fused_XTD, _ = self.model.fusion(states_BTD[caption_X], memory, lengths_N=lengths_X)
        else:
            fused_XTD, _ = self.model.fusion.read(
                self.model.text, batch.tokens_BKT[caption_X, 0], memory, lengths_N=lengths_X
            )
        at_X = torch.arange(len(image_X), device=image_X.device)
        states_XD = fused_XTD[at_X, (lengths_X - 1).clamp(min=0)]
        match_X = (at_X < len(own_B)).to(states_XD.dtype)
        return self.matching_loss(states_XD, match_X, counts_X), counts_X.sum().clamp(min=1)

    def describe(
        self,
        batches: Iterable[Batch],
        tokenizer: Tokenizer,
        decoding: DecodeConfig,
        *,
        device: torch.device,
        seed: int = 0,
        prompt: str = "",
        stops: Sequence[int] = (),
        allowed: Sequence[str] | None = None,
    ) -> Iterator[tuple[int | str, str]]:
        """(id, text) of all examples of the batches, as texts end; `Written` where several are asked for.

        Each text begins with `prompt`, as the tokenizer writes it. See `described` for `seed`, `stops` and `allowed`.
        """
        found = described(
            self.model,
            map(self.prompted, batches),
            tokenizer,
            decoding,
            device=device,
            seed=seed,
            prompt=prompt,
            source_is_prompt=self.prompts,
            stops=stops,
            allowed=allowed,
        )
        for example, texts in found:
            yield example, texts[0] if decoding.samples == 1 else Written.of(texts)
