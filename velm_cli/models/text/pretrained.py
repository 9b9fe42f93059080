"""Text encoders from transformers: any causal language model (GPT-2, Llama, SmolLM2, Qwen ...) and BERT.

The weights come from a local folder or a hub name; a machine without the hub gets one clear line. BERT is
run as a causal decoder, or with `causal=False` as the bidirectional encoder that it was made as. With
`lora_rank` the model itself stays frozen and low-rank updates are trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from velm_cli.errors import UserError
from velm_cli.models.attention import added_to_scores
from velm_cli.models.hub import load_pretrained
from velm_cli.models.layers import within
from velm_cli.models.state import KeyValue, Past
from velm_cli.models.text.interface import BeforeLayer, TextEncoder
from velm_cli.schema import BertConfig, CausalLMConfig

LAYER_LISTS = ("layers", "h", "encoder.layer", "decoder.layers")  # where the blocks are, by family


class PretrainedText(TextEncoder):
    """States of a transformers model; its own output matrix makes the logits.

    The vocabulary is its tokenizer's (`vocab_size`); a tokenizer that gained special tokens enlarges the
    embedding by as many rows.
    """

    def __init__(self, config: CausalLMConfig | BertConfig, vocab_size: int, *, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        kind = "AutoModel" if isinstance(config, BertConfig) else "AutoModelForCausalLM"
        if isinstance(config, BertConfig):
            changes, options = {"is_decoder": causal}, {"add_pooling_layer": False}
        else:
            changes, options = {}, {}
        model = load_pretrained("text", config.name, config.weights, kind, changes=changes, **options)
        if model.get_input_embeddings().num_embeddings < vocab_size:
            model.resize_token_embeddings(vocab_size, mean_resizing=False)
        head = model.get_output_embeddings() if kind == "AutoModelForCausalLM" else None
        self.net: Any = model.base_model
        embedding = self.net.get_input_embeddings()
        tied = head is None or head.weight is embedding.weight
        self.head: nn.Linear | None = None if tied else head
        self.net.config.use_cache = True
        # Families whose attention goes by the mask that it is given, and by nothing else.
        self.shares_slots = (
            self.net._supports_attention_backend and "position_ids" in signature(self.net.forward).parameters
        )
        self.name, self.positions = config.name, getattr(self.net.config, "max_position_embeddings", None)
        self.width = self.net.config.hidden_size
        self.embedding_width = embedding.embedding_dim
        self.layers = _layers(self.net, config.name)
        self.num_layers = len(self.layers)
        if config.lora_rank:
            _add_lora(self.net, config.lora_rank)

    @property
    def embedding_scale(self) -> float:
        weight = self.net.get_input_embeddings().weight
        return 0.02 if weight.is_meta else float(weight[:4096].detach().float().square().mean().sqrt())

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
    ) -> tuple[Tensor, tuple]:
        N, T, _ = embedded_NTE.shape
        if not self.causal:
            visible_NT = within(lengths_N, T)
            mask = None if visible_NT is None else visible_NT.long()
            with self._entering(before_layer):
                return self.net(inputs_embeds=embedded_NTE, attention_mask=mask).last_hidden_state, ()
        if state is not None and self.shares_slots:
            past, behind_N = state
            return self._go_on(embedded_NTE, past, behind_N, before_layer)

        from transformers import DynamicCache

        self._check_positions(T if state is None else T + state[0][0].shape[2])
        cache = DynamicCache() if state is None else DynamicCache(state)
        with self._entering(before_layer):
            out = self.net(inputs_embeds=embedded_NTE, past_key_values=cache, use_cache=True)
        layers = tuple(KeyValue(keys, values) for keys, values, *_ in out.past_key_values)
        if not self.shares_slots:
            return out.last_hidden_state, layers
        behind_N = torch.full((N,), T, device=embedded_NTE.device)
        return out.last_hidden_state, (Past.of(layers), behind_N)

    def _go_on(
        self, embedded_NTE: Tensor, past: Past, behind_N: Tensor, before_layer: BeforeLayer | None
    ) -> tuple[Tensor, tuple]:
        """The K texts of an image are K positions of one row to the net, whose mask says what each sees."""
        from velm_cli.models.text.slots import as_cache

        (N, T, E), B = embedded_NTE.shape, past.images
        past = past.grown(N, T)
        self._check_positions(past.longest(N // B))
        visible = past.visible(T)
        enter = before_layer
        if before_layer is not None:

            def enter(number: int, x_BXD: Tensor) -> Tensor:
                return before_layer(number, x_BXD.reshape(N, T, -1)).reshape(x_BXD.shape)

        position_BX = (behind_N[:, None] + torch.arange(T, device=behind_N.device)).view(B, -1)
        with self._entering(enter):
            out = self.net(
                inputs_embeds=embedded_NTE.reshape(B, -1, E),
                position_ids=position_BX,
                attention_mask=None if visible is None else added_to_scores(visible, embedded_NTE.dtype),
                past_key_values=as_cache(past, N // B * T),
                use_cache=True,
            )
        return out.last_hidden_state.reshape(N, T, -1), (past, behind_N + T)

    def _check_positions(self, needed: int) -> None:
        if self.positions is not None and needed > self.positions:
            raise UserError(
                f"text.name={self.name} has {self.positions} positions, and image and caption take {needed}: lower "
                "fusion.length, tokenizer.max_tokens or decode.max_length"
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


def _layers(net: nn.Module, name: str) -> list[nn.Module]:
    for path in LAYER_LISTS:
        try:
            layers = net.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(layers, nn.ModuleList):
            return list(layers)
    raise UserError(f"text.name={name}: velm does not know where {type(net).__name__} keeps its layers")


def _add_lora(net: nn.Module, rank: int) -> None:
    """Freeze `net` and give its linear layers trainable updates of rank `rank` (Hu et al. 2022)."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("text.lora_rank needs peft: pip install peft") from None
    net.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), net)
