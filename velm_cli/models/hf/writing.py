"""Captions and answers of a transformers model by its own `generate`, with velm's decoding options.

The words are those of `generate` for each example by itself: prompts of several lengths are padded at the left and
masked, and stand in different calls where a family cannot take that.

Suffixes: B examples of a call, L tokens of the prompts, T tokens that come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from velm_cli.errors import UserError
from velm_cli.models.hf.opening import Found, Pair
from velm_cli.models.hf.prompts import Asking, answer_of, caption_of
from velm_cli.models.hub import first_line
from velm_cli.schema import DecodeConfig, DecodeMethod

# Options of generation_config.json that say how to search, which velm's decode options say: as if they were not there.
# What stays are the special tokens, and words that the model never or always writes.
OF_SEARCH = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "max_time", "stop_strings",
    "do_sample", "num_beams", "num_beam_groups", "diversity_penalty", "penalty_alpha", "temperature", "top_k", "top_p",
    "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
    "num_return_sequences", "guidance_scale", "watermarking_config", "dola_layers", "prompt_lookup_num_tokens",
    "return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states",
)  # fmt: skip
LIMITS = {
    "min_length": "min_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
}  # of DecodeConfig -> of `generate`
CHANGES_WORDS = ("repetition_penalty", "no_repeat_ngram_size", "min_length", "num_beams", "do_sample")
TURN_ENDS = ("<|im_end|>", "<end_of_utterance>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<turn|>")
NOT_GIVEN = ("labels",)  # of a processor's result: what `generate` does not take


@dataclass(frozen=True, slots=True)
class Shown:
    """One example: its pictures, and the question about them (captions have none).

    `talk`: instead, what was said before, as messages of a chat template whose image parts are numbers of pictures.
    """

    pictures: Sequence[Image.Image]
    source: str | None = None
    talk: Sequence[Mapping[str, Any]] | None = None

    def messages(self, text: str | None, plain: Callable[[str], str]) -> list[dict[str, Any]]:
        """The conversation that the model goes on; `text`: of one that is no talk, what the user asks. `plain`: takes
        out of the texts of a talk what would be taken for an image."""
        if self.talk is None:
            parts = [{"type": "image", "image": picture} for picture in self.pictures]
            return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        return [
            {"role": turn["role"], "content": [self._part(part, plain) for part in turn["content"]]}
            for turn in self.talk
        ]

    def _part(self, part: Mapping[str, Any], plain: Callable[[str], str]) -> dict[str, Any]:
        if part["type"] != "image":
            return {"type": "text", "text": plain(part["text"])}
        return {"type": "image", "image": self.pictures[part["image"] % len(self.pictures)]}


@dataclass(frozen=True, slots=True)
class Refused:
    """In the place of a text: why the processor could not take the example."""

    reason: str


class Writer:
    """A loaded model that captions or answers; `notes` are lines about what is done otherwise than it asks for."""

    def __init__(self, found: Found, model: Any, asking: Asking, how: DecodeConfig) -> None:
        self._found, self._model, self._asking = found, model, asking
        self._processor, self._tokenizer = found.processor, found.processor.tokenizer
        if not model.config.is_encoder_decoder:
            self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.notes = list(_without_search(model, found))
        self._options = _options(how) | self._ends()

    def write(self, shown: Sequence[Shown]) -> list[str | Refused]:
        """The text of each, in their order. Drawn ones come from torch's generator as it is."""
        texts: list[str | Refused] = [""] * len(shown)
        for rows, inputs in self._calls(shown):
            if isinstance(inputs, Refused):
                for row in rows:
                    texts[row] = inputs
                continue
            for row, text in zip(rows, self._written(inputs), strict=True):
                one = shown[row]
                texts[row] = text.strip() if one.talk else caption_of(text) if one.source is None else answer_of(text)
        return texts

    # -------------------------------------------------------------------------------- what goes in

    def _calls(self, shown: Sequence[Shown]) -> Iterator[tuple[list[int], Any]]:
        """(rows, inputs of `generate`): all together, else those of one length; Refused where there are none."""
        rows = list(range(len(shown)))
        try:
            groups = [rows] if self._asking.family.pads else list(self._of_one_length(shown))
            yield from [(group, self._inputs([shown[row] for row in group])) for group in groups]
            return
        except Exception as error:  # a processor says in its own way what it cannot take
            if len(rows) == 1:
                yield rows, Refused(first_line(error))
                return
        for row in rows:
            try:
                yield [row], self._inputs([shown[row]])
            except Exception as error:
                yield [row], Refused(first_line(error))

    def _of_one_length(self, shown: Sequence[Shown]) -> Iterator[list[int]]:
        groups: dict[int, list[int]] = {}
        for row, one in enumerate(shown):
            text = self._asking.given(one.source, len(one.pictures))
            length = 0 if text is None else len(self._tokenizer(text).input_ids)
            groups.setdefault(length, []).append(row)
        yield from groups.values()

    def _inputs(self, shown: Sequence[Shown]) -> Any:
        """What `generate` takes, on the model's device and in its dtype."""
        texts = [self._asking.given(one.source, len(one.pictures)) for one in shown]
        if self._asking.template:
            inputs = self._from_template(shown, texts)
        elif isinstance(self._processor, Pair):
            inputs = self._processor.image_processor([one.pictures[0] for one in shown], return_tensors="pt")
        else:
            inputs = self._plainly(shown, texts)
        for name in NOT_GIVEN:
            inputs.pop(name, None)
        return inputs.to(self._model.device, self._model.dtype)

    def _from_template(self, shown: Sequence[Shown], texts: Sequence[str | None]) -> Any:
        conversations = [one.messages(text, self._asking.plain) for one, text in zip(shown, texts, strict=True)]
        return self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _plainly(self, shown: Sequence[Shown], texts: Sequence[str | None]) -> Any:
        pictures = [list(one.pictures) if self._asking.family.several else one.pictures[0] for one in shown]
        if texts[0] is None:
            return self._processor(images=pictures, return_tensors="pt")
        inputs = self._processor(images=pictures, text=list(texts), padding=True, return_tensors="pt")
        if self._found.kind == "idefics3" and inputs["pixel_values"].ndim == 4:  # velm export: a processor of LLaVA
            inputs["pixel_values"] = inputs["pixel_values"][:, None]
        if self._found.kind == "git":  # its processor ends a text, which is to go on
            ends = inputs["input_ids"][:, -1:] == self._tokenizer.sep_token_id
            assert ends.all(), "a call has prompts of one length"
            for name in ("input_ids", "attention_mask"):
                inputs[name] = inputs[name][:, :-1]
        return inputs

    # -------------------------------------------------------------------------------- what comes out

    @torch.inference_mode()
    def _written(self, inputs: Any) -> list[str]:
        prompt_BL = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        try:
            tokens_BT = self._model.generate(**inputs, **self._options)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(f"{self._found.refers} writes nothing: {first_line(error)}") from error
        words_BT = tokens_BT[:, self._echoed(tokens_BT, prompt_BL) :]
        texts: list[str] = self._tokenizer.batch_decode(words_BT, skip_special_tokens=True)
        return texts

    def _echoed(self, tokens_BT: Tensor, prompt_BL: Tensor | None) -> int:
        """How many tokens of the prompt `generate` returns before its own."""
        if prompt_BL is None:
            return 0
        length = prompt_BL.shape[1]
        if self._found.maker.__name__ == "BlipForConditionalGeneration":  # it drops the prompt's last one, [SEP]
            return length - 1
        for start in (0, 1):  # a decoder may put its own start before a prompt that has none
            returned_BL = tokens_BT[:, start : start + length]
            if torch.equal(returned_BL, prompt_BL.to(tokens_BT.device)):
                return start + length
        return 0

    def _ends(self) -> dict[str, Any]:
        """Of a model that chats, also the tokens that end a turn: its config may name the end of the text alone."""
        if not self._asking.template:
            return {}
        known = self._model.generation_config.eos_token_id
        ends = set(known if isinstance(known, list) else [known]) | {self._tokenizer.eos_token_id}
        ends |= {self._tokenizer.get_added_vocab().get(name) for name in TURN_ENDS if name in str(self._template)}
        return {"eos_token_id": sorted(ends - {None})}

    @property
    def _template(self) -> Any:
        return self._processor.chat_template


def not_theirs(how: DecodeConfig) -> Iterator[str]:
    """A line for each option that velm's own decoding has, and `generate` has not."""
    usual = DecodeConfig()
    for name in ("samples", "allowed"):
        if (value := getattr(how, name)) != getattr(usual, name):
            yield f"decode.{name}={value} is of velm's own decoding: models that velm did not train write by generate"


def _options(how: DecodeConfig) -> dict[str, Any]:
    """velm's decoding in the names of `generate`."""
    options: dict[str, Any] = {"max_new_tokens": how.max_length, "num_beams": how.beams, "do_sample": False}
    for name, theirs in LIMITS.items():
        if (value := getattr(how, name)) != getattr(DecodeConfig(), name):
            options[theirs] = value
    if how.method is DecodeMethod.nucleus:
        options |= {"do_sample": True, "top_p": how.top_p, "temperature": how.temperature, "top_k": how.top_k}
    elif how.beams > 1:
        options["length_penalty"] = how.length_penalty
    return options


def _without_search(model: Any, found: Found) -> Iterator[str]:
    """Take from the model what its generation_config.json says of searching; a line where that would change words."""
    import transformers

    usual = transformers.GenerationConfig()
    said: dict[str, Any] = {}
    for part in model.modules():
        config = getattr(part, "generation_config", None)
        for name in OF_SEARCH if config is not None else ():
            now, then = getattr(config, name, None), getattr(usual, name, None)
            if now != then:
                said.setdefault(name, now)
                setattr(config, name, then)
    changes = ", ".join(f"{name}={said[name]}" for name in CHANGES_WORDS if said.get(name))
    if changes:
        yield f"note: generation_config.json of hf:{found.name} has {changes}: decode.* is what counts here"
