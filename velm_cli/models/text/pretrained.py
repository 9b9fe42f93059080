"""Text encoders from transformers: any causal language model (GPT-2, Llama, SmolLM2, Qwen ...) and BERT.

The weights come from a local folder or a hub name; a machine without the hub gets one clear line. BERT is
run as a causal decoder, or with `causal=False` as the bidirectional encoder that it was made as. With
`lora_rank` the model itself stays frozen and low-rank updates are trained. Families that are known to be right:
docs/language-models.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.data.layout import Layout
from velm_cli.errors import UserError
from velm_cli.models import transformers_internals as internals
from velm_cli.models.attention import added_to_scores
from velm_cli.models.hub import load_pretrained
from velm_cli.models.layers import within
from velm_cli.models.lora import add_lora
from velm_cli.models.rows import Rows, visible_in
from velm_cli.models.state import Past
from velm_cli.models.text.interface import BeforeLayer, TextEncoder
from velm_cli.models.text.own_logits import refuse_other_logits
from velm_cli.models.weights import unfilled
from velm_cli.schema import BertConfig, CausalLMConfig


class PretrainedText(TextEncoder):
    """States of a transformers model; its own output matrix, scale, cap and bias make the logits.

    The vocabulary is its tokenizer's (`vocab_size`); a tokenizer that gained special tokens enlarges the
    embedding by as many rows.
    """

    def __init__(self, config: CausalLMConfig | BertConfig, vocab_size: int, *, causal: bool = True) -> None:
        super().__init__()
        self.causal, self.name = causal, config.name
        if isinstance(config, BertConfig):
            changes, options = {"is_decoder": causal}, {"add_pooling_layer": False}
            model = load_pretrained("text", config.name, config.weights, "AutoModel", changes=changes, **options)
            self.net: Any = model
        else:
            model = load_pretrained("text", config.name, config.weights, "AutoModelForCausalLM")
            self.net = internals.body_of(model)
        layers = internals.layers_of(self.net)
        if layers is None or (causal and not internals.keeps_keys_and_values(self.net)):
            raise UserError(
                f"text.name={config.name} is of the family {internals.family_of(model)}, which does not keep keys and "
                "values of all layers for the words so far; those that do: docs/language-models.md"
            )
        self.layers = layers
        self.num_layers = len(layers)
        if model.get_input_embeddings().num_embeddings < vocab_size:
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        self.head: nn.Linear | None = None
        if model is not self.net:
            self._take_head(model)
        self.net.config.use_cache = True
        self.shares_slots = self.hides_padding = internals.shares_slots(self.net)
        self.windows = internals.windows_of(self.net.config)
        self.takes_layouts = self.branches = causal and self.shares_slots
        self._attends_rows = self.takes_layouts and internals.attends_rows(self.net)
        self.positions = getattr(self.net.config, "max_position_embeddings", None)
        self.width = self.output_weight.shape[1]
        self.embedding_width = self.net.get_input_embeddings().embedding_dim
        if model is not self.net:
            if not unfilled("text"):
                refuse_other_logits(self, model)
            model.get_output_embeddings().bias = None  # velm's own, which starts from it, takes its place
        add_lora(self.net, config, "text")
        if config.lora_rank and self.head is not None:
            self.head.requires_grad_(False)
        # Tables next to that of the words: of positions (GPT-2, BERT, OPT ...), of the types of text (BERT).
        self.no_decay = tuple(
            f"net.{path}"
            for path, part in self.net.named_modules()
            if isinstance(part, nn.Embedding) and part is not self.net.get_input_embeddings()
        )

    def _take_head(self, model: Any) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"text.name={self.name}: the output layer of the family {internals.family_of(model)} is no matrix; "
                "families that velm can run: docs/language-models.md"
            )
        if head.weight is not self.net.get_input_embeddings().weight:
            self.head = head
        self.head_bias = None if head.bias is None else head.bias.detach()
        config = self.net.config
        try:
            self.output_scale, self.output_cap = internals.output_scale(config), internals.output_cap(config)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"text.name={self.name}: the scale of logits in config.json is unusable: {error}"
            ) from error
        # Checkpoints have both, since those that were written before velm knew of them were trained without.
        if (self.output_scale, self.output_cap) != (1.0, 0.0):
            self.register_buffer("scale_and_cap", torch.tensor([self.output_scale, self.output_cap]))
        self.register_load_state_dict_pre_hook(_output_layer_of_checkpoint)

    def first(self, layers: int) -> Iterator[nn.Parameter]:
        """Of the embeddings and the first layers: what is registered before the other layers."""
        later = {id(parameter) for layer in list(self.layers)[layers:] for parameter in layer.parameters()}
        return takewhile(lambda parameter: id(parameter) not in later, self.net.parameters())

    @property
    def layer_width(self) -> int:
        width: int = self.net.config.hidden_size
        return width

    @property
    def embedding_scale(self) -> float:
        weight = self.net.get_input_embeddings().weight
        if weight.is_meta:
            return 0.02
        with torch.no_grad():  # some families scale what they look up
            embedded = self.embed(torch.arange(min(4096, len(weight)), device=weight.device))
            return float(embedded.float().square().mean().sqrt())

    @property
    def output_weight(self) -> Tensor:
        return self.net.get_input_embeddings().weight if self.head is None else self.head.weight

    def embed(self, tokens_NT: Tensor) -> Tensor:
        return self.net.get_input_embeddings()(tokens_NT)

    def run(
        self,
        embedded_NTE: Tensor,
        state=None,
        *,
        before_layer: BeforeLayer | None = None,
        lengths_N: Tensor | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, tuple]:
        N, T, _ = embedded_NTE.shape
        if layout is not None:
            assert self.takes_layouts and state is None
            with self._entering(before_layer):
                return self._run_row(embedded_NTE, layout), ()
        if not self.causal:
            visible_NT = within(lengths_N, T)
            # On the meta device transformers would look at the mask's values.
            mask = None if visible_NT is None or visible_NT.is_meta else visible_NT.long()
            with self._entering(before_layer):
                return self.net(inputs_embeds=embedded_NTE, attention_mask=mask).last_hidden_state, ()
        if state is not None and self.shares_slots:
            past, behind_N = state
            return self._go_on(embedded_NTE, past, behind_N, before_layer)

        self._check_positions(T if state is None else T + state[0][0].shape[2])
        if state is None and not self.keeps_state and torch.is_grad_enabled():
            # A block that is run again in backward would write into the cache again.
            with self._entering(before_layer):
                return self.net(inputs_embeds=embedded_NTE, use_cache=False).last_hidden_state, ()
        cache = internals.cache_of(state or ())
        with self._entering(before_layer):
            states_NTD, layers = internals.run_with_cache(self.net, cache, inputs_embeds=embedded_NTE)
        if not self.shares_slots:
            return states_NTD, layers
        behind_N = torch.full((N,), T, device=embedded_NTE.device)
        return states_NTD, (Past.of(layers), behind_N)

    def _run_row(self, embedded_1ME: Tensor, layout: Layout) -> Tensor:
        """(1, M, D). Where the family's attention knows no rows, its layers run on padded trees."""
        self._check_positions(layout.longest)
        rows, windows = Rows.of(layout), self.windows or {"": 0}
        visible = {kind: visible_in(layout, rows, window) for kind, window in windows.items()}
        if self._attends_rows:
            position_1M = layout.position_M[None]
            return internals.run_rows(self.net, rows, visible, inputs_embeds=embedded_1ME, position_ids=position_1M)
        embedded, position = rows.spread(embedded_1ME[0]), rows.spread(layout.position_M)
        states = [
            internals.run_masked(
                self.net,
                {kind: group.of(visible_Z) for kind, visible_Z in visible.items()},
                inputs_embeds=embedded_GYE,
                position_ids=position_GY,
            ).flatten(0, 1)
            for group, embedded_GYE, position_GY in zip(
                rows.groups, rows.groups_of(embedded), rows.groups_of(position), strict=True
            )
        ]
        return rows.collect(torch.cat(states))[None]

    def _go_on(
        self, embedded_NTE: Tensor, past: Past, behind_N: Tensor, before_layer: BeforeLayer | None
    ) -> tuple[Tensor, tuple]:
        """The K texts of an image are K positions of one row to the net, whose mask says what each sees."""
        (N, T, E), B = embedded_NTE.shape, past.images
        past = past.grown(N, T)
        longest = past.longest(N // B)
        self._check_positions(longest)
        enter = before_layer
        if before_layer is not None:

            def enter(number: int, x_BXD: Tensor) -> Tensor:
                return before_layer(number, x_BXD.reshape(N, T, -1)).reshape(x_BXD.shape)

        position_BX = (behind_N[:, None] + torch.arange(T, device=behind_N.device)).view(B, -1)
        with self._entering(enter):
            states_BXD = internals.run_with_slots(
                self.net,
                past,
                N // B * T,
                inputs_embeds=embedded_NTE.reshape(B, -1, E),
                position_ids=position_BX,
                attention_mask=self._mask(past, behind_N, T, longest, embedded_NTE.dtype),
            )
        return states_BXD.reshape(N, T, -1), (past, behind_N + T)

    def _mask(self, past: Past, behind_N: Tensor, T: int, longest: int, dtype: torch.dtype) -> Any:
        """What the last T positions of each text see, in the model's own form; by type of layer if windows differ."""
        if all(longest <= window for window in self.windows.values() if window):
            visible = past.visible(T)
            return None if visible is None else added_to_scores(visible, dtype)
        return internals.mask_of(
            {
                kind: added_to_scores(past.visible_within(window or longest, behind_N, T), dtype)
                for kind, window in self.windows.items()
            }
        )

    def _check_positions(self, needed: int) -> None:
        if self.positions is not None and needed > self.positions:
            raise UserError(
                f"text.name={self.name} has {self.positions} positions, and a text with its images takes {needed}: "
                "make it shorter (tokenizer.max_tokens, task.max_tokens, decode.max_length), or its images "
                "(fusion.length, fusion.shuffle)"
            )

    @contextmanager
    def _entering(self, before_layer: BeforeLayer | None) -> Iterator[None]:
        """Within it, `before_layer` sees the input of every layer and may change it."""
        if before_layer is None:
            yield
            return

        def make(number: int):
            def change(_module, args, kwargs):
                if args:
                    return (before_layer(number, args[0]), *args[1:]), kwargs
                return args, kwargs | {"hidden_states": before_layer(number, kwargs["hidden_states"])}

            return change

        hooks = [
            layer.register_forward_pre_hook(make(number), with_kwargs=True) for number, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _output_layer_of_checkpoint(text: PretrainedText, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The scale and cap that its weights were trained with; a head's bias was written before, but never added."""
    if not any(name.startswith(f"{prefix}net.") for name in state):
        return
    state.pop(f"{prefix}head.bias", None)
    if hasattr(text, "scale_and_cap"):
        scalars = state.setdefault(f"{prefix}scale_and_cap", torch.tensor([1.0, 0.0]))
        text.output_scale, text.output_cap = scalars.tolist()
