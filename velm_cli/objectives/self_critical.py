"""L_text by reward: captions that the model draws, and that score above their siblings, become more probable.

Shapes: B images, K samples an image, N = B * K, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from velm_cli.metrics.reward import CiderReward
from velm_cli.models.decoding import sample
from velm_cli.models.layers import without_gradients
from velm_cli.models.search import log_probs
from velm_cli.models.velm import VelmModel


class SelfCritical:
    """loss = -sum_k (r_k - mean of the others' r) log p(sample_k | image), with r CIDEr-D.

    Self-critical sequence training (Rennie et al. 2017); the baseline of a sample is the mean reward of the image's
    other samples (Luo 2020, "A Better Variant of Self-Critical Sequence Training"), so nothing is decoded twice.
    """

    def __init__(
        self,
        references: Mapping[int, Sequence[str]],
        words: Sequence[str],
        *,
        bos_id: int,
        eos_id: int,
        banned: Sequence[int],
        samples: int,
        max_length: int,
        device: torch.device,
    ) -> None:
        """`references`: by record, captions as words separated by spaces. `words` spells each token.

        The end counts as a word of references and samples alike: else stopping at "with a" would cost nothing.
        """
        assert samples > 1, "a sample is compared with the others"
        ended = {record: [f"{caption} {words[eos_id]}" for caption in group] for record, group in references.items()}
        self.reward = CiderReward(ended, words, device=device)
        self.samples, self.max_length = samples, max_length
        self.bos_id, self.eos_id, self.banned = bos_id, eos_id, list(banned)

    def __call__(self, model: VelmModel, memory: tuple, records: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The loss, summed over the images' samples, and the mean reward."""
        tokens_NT, lengths_N = self._draw(model, memory, len(records))
        row_B = torch.tensor([self.reward.row[record] for record in records], device=tokens_NT.device)
        B, K = len(records), self.samples
        reward_BK = self.reward(row_B, tokens_NT.view(B, K, -1), lengths_N.view(B, K)).float()
        others_BK = (reward_BK.sum(dim=1, keepdim=True) - reward_BK) / (K - 1)
        advantage_N = (reward_BK - others_BK).flatten()
        start_N1 = torch.full((B * K, 1), self.bos_id, device=tokens_NT.device)
        inputs_NT = torch.cat([start_N1, tokens_NT[:, :-1]], dim=1)
        fused_NTD, _ = model.fusion.read(model.text, inputs_NT, memory)
        drawn_NT = torch.arange(tokens_NT.shape[1], device=tokens_NT.device) < lengths_N[:, None]
        # Of the words that could have been drawn: else probability would flee to those that never are, unrewarded.
        log_p_XV = log_probs(model.logits(fused_NTD).flatten(0, 1), torch.tensor(self.banned, device=tokens_NT.device))
        log_p_NT = log_p_XV.gather(1, tokens_NT.reshape(-1, 1)).view_as(tokens_NT)
        return -(advantage_N[:, None] * log_p_NT * drawn_NT).sum(), reward_BK.mean()

    def _draw(self, model: VelmModel, memory: tuple, images: int) -> tuple[Tensor, Tensor]:
        """Samples without dropout, which would draw from models that nobody uses."""
        training = model.training
        model.eval()
        with without_gradients():
            drawn = sample(
                model,
                memory,
                images=images,
                samples=self.samples,
                max_length=self.max_length,
                bos_id=self.bos_id,
                eos_id=self.eos_id,
                banned=self.banned,
            )
        model.train(training)
        return drawn
