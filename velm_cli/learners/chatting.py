"""Learns to reply: conversations with images anywhere in them, of which the assistant's turns are predicted.

All conversations of a batch are one row without padding (`Layout`): each begins at position 0 and sees nothing of the
others. Images are the positions that fusion=prefix makes of them, at their places.

Shapes: B conversations, X distinct images of P positions each, M positions of the row, Y those of the longest
conversation, L predicted tokens, E width of embeddings, D of states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from velm_cli.data.allowed import allowed_tokens, read_allowed
from velm_cli.data.batch import Batch
from velm_cli.data.layout import Layout
from velm_cli.data.talks import TalkRow
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.data.transfer import on_device
from velm_cli.learners.describing import draw_names
from velm_cli.learners.interface import Learner, Moment
from velm_cli.learners.terms import states_words_loss
from velm_cli.models.decoding import decode_stream
from velm_cli.models.search import image_draws
from velm_cli.models.state import without_ends
from velm_cli.models.velm import VelmModel
from velm_cli.objectives.terms import Term
from velm_cli.objectives.weights import Weight
from velm_cli.place import place
from velm_cli.schema import DecodeConfig, LossConfig


class ChatLearner(Learner):
    """Learns to write the assistant's turns (L_text)."""

    def __init__(self, model: VelmModel, loss: LossConfig, *, weights: Mapping[str, Weight], end_id: int) -> None:
        """`end_id`: the token that ends an assistant's turn."""
        super().__init__()
        self.model, self.loss, self.weights, self.end_id = model, loss, weights, end_id
        model.freeze_unused(text="text" in self.active, pooled=False, states=False)
        self.log_variance = nn.ParameterDict()

    def counts(self, batch: Batch) -> dict[str, int]:
        assert batch.talks is not None
        return {"text": batch.talks.num_learned}

    def forward(self, batch: Batch, now: Moment) -> dict[str, Term]:
        if "text" not in now.active:
            return {}
        row, embedded_ME, unseen = self.embedded(batch)
        states_MD = self._states(embedded_ME, row.lengths)
        loss = states_words_loss(
            self.model, self.loss, states_MD.index_select(0, row.before_L), row.target_L, training=self.training
        )
        return {"text": Term(loss + unseen, self.counts(batch)["text"])}

    def embedded(self, batch: Batch) -> tuple[TalkRow, Tensor, Tensor | float]:
        """The row of a batch, its embeddings (M, E), and 0 as a part of the loss.

        That 0 hangs on the image's side of the model where no image is in the batch of a process: the others wait for
        its gradients.
        """
        assert batch.talks is not None
        model, device = self.model, model_device(self.model)
        prefix_XPE: Tensor | None = None
        unseen: Tensor | float = 0.0
        if model.vision is not None and batch.images:
            prefix_XPE = self._prefix(batch.image_XCHW, batch.feature_XSD)
        elif model.vision is not None and self.training and place().world > 1:
            size = model.image_size
            unseen = 0.0 * self._prefix(torch.zeros(1, 3, size, size, device=device), None).sum()
        row = batch.talks.row(0 if prefix_XPE is None else prefix_XPE.shape[1]).to(device)
        embedded_ME = model.text.embed(row.token_M[None])[0]
        if prefix_XPE is not None:
            shown_JE = prefix_XPE.flatten(0, 1).index_select(0, row.from_J).to(embedded_ME.dtype)
            embedded_ME = embedded_ME.index_copy(0, row.image_J, shown_JE)
        return row, embedded_ME, unseen

    def _prefix(self, image_XCHW: Tensor | None, feature_XSD: Tensor | None) -> Tensor:
        """(X, P, E)"""
        prefix_XPE: Tensor = self.model.memory(self.model.encode_image(image_XCHW, feature_XSD))[0]
        return prefix_XPE

    def _states(self, embedded_ME: Tensor, lengths: Sequence[int]) -> Tensor:
        """(M, D)"""
        return self.model.text.run_row(embedded_ME[None], Layout.of(lengths).to(embedded_ME.device))[0]

    def reply(
        self,
        batches: Iterable[Batch],
        tokenizer: Tokenizer,
        decoding: DecodeConfig,
        *,
        device: torch.device,
        seed: int = 0,
    ) -> Iterator[tuple[int | str, str]]:
        """(id, reply) of all examples of the batches, whose conversations end where a reply begins.

        `seed`: of drawn replies. UserError where the list of `decoding.allowed` cannot be used.
        """
        ids: list[int | str] = []
        listed: dict[tuple[int, ...], str] = {}
        if decoding.allowed is not None:
            listed = allowed_tokens(read_allowed(decoding.allowed), tokenizer, longest=decoding.max_length)

        def memories() -> Iterator[tuple[tuple, int]]:
            for batch in on_device(batches, device):
                with torch.no_grad():
                    row, embedded_ME, _ = self.embedded(batch)
                parts = embedded_ME.split(list(row.lengths))
                for group in alike(row.lengths, padded=self.model.text.hides_padding):
                    ids.extend(batch.ids[number] for number in group)
                    lengths = [row.lengths[number] for number in group]
                    prompts_BYE = pad_sequence([parts[number] for number in group], batch_first=True)
                    yield (prompts_BYE, torch.tensor(lengths, device=device)), len(group)

        def draws(numbers: Sequence[int]) -> Tensor:
            names = [name for number in numbers for name in draw_names(ids[number], decoding.samples)]
            rows = image_draws(names, seed=seed, count=decoding.max_length)
            return torch.from_numpy(rows).to(device, torch.float32)

        found = decode_stream(
            _Replies(self.model),
            memories(),
            config=decoding,
            bos_id=self.end_id,  # which is never read: the prompt's last position comes before the first word
            eos_id=self.end_id,
            banned=[token for token in tokenizer.never_written if token != self.end_id],
            device=device,
            draws=draws,
            stops=(tokenizer.eos_id,),
            allowed=list(listed) if decoding.allowed is not None else None,
            vocab_size=len(self.model.output_bias),
        )
        for number, tokens in found:
            yield ids[number], listed.get(tuple(tokens)) or tokenizer.decode(tokens).strip()


class _Replies:
    """What decoding asks of a model: the memory of a text is its embedded prompt, which its first step reads."""

    def __init__(self, model: VelmModel) -> None:
        self.model = model

    def step(self, tokens_NT: Tensor, memory: tuple, state: Any = None) -> tuple[Tensor, tuple]:
        """Logits (N, V) of the next token."""
        text = self.model.text
        if state is not None:
            states_NTD, state = text.run(text.embed(tokens_NT), state)
            return self.model.logits(states_NTD[:, -1]), state
        prompts_BYE, lengths_B = memory
        states_BYD, state = text.run(prompts_BYE)
        rows_B = torch.arange(len(lengths_B), device=lengths_B.device)
        last_BD = states_BYD[rows_B, lengths_B - 1]
        if text.hides_padding:
            state = without_ends(state, prompts_BYE.shape[1] - lengths_B)
        return self.model.logits(last_BD), state


def alike(lengths: Sequence[int], *, padded: bool) -> list[list[int]]:
    """Numbers of prompts that are read together: all, or those of equal length."""
    if padded:
        return [list(range(len(lengths)))]
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        groups.setdefault(length, []).append(number)
    return list(groups.values())


def model_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
