"""Text encoders: tokens so far -> states. `build_text` makes the one that a config describes."""

from __future__ import annotations

from velm_cli.errors import UserError
from velm_cli.models.freezing import count_frozen
from velm_cli.models.text.interface import TextEncoder
from velm_cli.models.text.none import NoText
from velm_cli.models.text.pretrained import PretrainedText
from velm_cli.models.text.scratch import RecurrentText, TransformerText
from velm_cli.schema import (
    BertConfig,
    CausalLMConfig,
    GRUConfig,
    LSTMConfig,
    NoTextConfig,
    TextConfig,
    TransformerConfig,
)


def build_text(config: TextConfig, vocab_size: int, *, causal: bool = True) -> TextEncoder:
    """The encoder that `config` describes for a vocabulary of `vocab_size`, with its frozen parts."""
    encoder: TextEncoder
    match config:
        case NoTextConfig():
            encoder = NoText()
        case TransformerConfig():
            encoder = TransformerText(config, vocab_size, causal=causal)
        case LSTMConfig() | GRUConfig():
            assert causal, "validate refuses it: a recurrent net reads in one direction"
            encoder = RecurrentText(config, vocab_size)
        case CausalLMConfig() | BertConfig():
            encoder = PretrainedText(config, vocab_size, causal=causal)
        case _:
            raise AssertionError(f"no text encoder for {type(config).__name__}")
    if config.freeze == "all":
        encoder.requires_grad_(False)
    elif count := count_frozen(config.freeze):
        assert isinstance(encoder, PretrainedText), "validate refuses it"
        if count > encoder.num_layers:
            raise UserError(f"text.freeze={config.freeze}: this encoder has only {encoder.num_layers} layers")
        for parameter in encoder.first(count):
            parameter.requires_grad_(False)
    return encoder
