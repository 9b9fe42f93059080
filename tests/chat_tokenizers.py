"""A small byte-level tokenizer with the special tokens of several chat templates, and these templates."""

from __future__ import annotations

import functools

import tokenizers as tk

from velm_cli.data.tokenizer import SpecialIds, Tokenizer

SPECIALS = (
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SAID = [
    "user\n", "assistant\n", "system\n", "what is this", "a cat on a mat", "and that", "a dog", "You are a helpful assistant",
    "which of them is larger", "the dog is larger than the cat", "thanks", "<image>",
]  # fmt: skip
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are "
    "a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PARTS = (  # takes the content of a message as a list, as multimodal templates do
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
)


@functools.cache
def model_json() -> str:
    """The vocabulary, learned from SAID."""
    model = tk.Tokenizer(tk.models.BPE())
    model.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tk.decoders.ByteLevel()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(SPECIALS), initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet()
    )
    model.train_from_iterator(SAID * 5, trainer)
    return model.to_str()


def talking(template: str | None, *, bos: str = "<|begin_of_text|>", eos: str = "<|im_end|>") -> Tokenizer:
    """The tokenizer with a chat template."""
    ids = tk.Tokenizer.from_str(model_json()).get_vocab()
    return Tokenizer(model_json(), SpecialIds(ids["<pad>"], ids[bos], ids[eos], None), template)


def in_transformers(tokenizer: Tokenizer):
    """transformers' tokenizer of the same vocabulary and template."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tk.Tokenizer.from_str(model_json()), chat_template=tokenizer.chat_template, **tokenizer.spelled
    )
