"""Options of decoding against transformers' `generate`, prompts of different lengths, several texts, lists of texts."""

import functools
import itertools
import math

import pytest
import torch
import transformers
from causal_families import family_folder
from test_decoding import BOS, CELLS, EOS, OWN_VOCAB, PAD, SIZE_OF_GPT2, VOCAB, draws, log_probs, model_and_memory
from tiny_models import folder

from velm_cli import schema
from velm_cli.models import decoding, search
from velm_cli.models.constraints import penalised, without_repeated
from velm_cli.models.decoding import decode_several, decode_stream
from velm_cli.models.state import BLOCK, KeyValue, Past
from velm_cli.models.velm import VelmModel

LENGTH, STOP = 10, 5
UNPADDED = {"bloom", "gemma2"}  # which `generate` runs one by one: padding that sees nothing makes NaN in it
FAMILIES = {
    "gpt2": lambda: folder("gpt2"),
    "llama": lambda: folder("llama"),
    "bloom": lambda: folder("bloom"),  # whose cache velm leaves to transformers
    "qwen2": lambda: family_folder("qwen2"),
    "mistral": lambda: family_folder("mistral-window"),
    "gemma2": lambda: family_folder("gemma2-window"),
}
OPTIONS = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.4},
    "reward": {"repetition_penalty": 0.8},
    "each once": {"no_repeat_ngram": 1},
    "pairs": {"no_repeat_ngram": 2},
    "triples": {"no_repeat_ngram": 3},
    "long": {"min_length": 7},
    "all": {"repetition_penalty": 1.2, "no_repeat_ngram": 2, "min_length": 4},
}
THEIRS = {"no_repeat_ngram": "no_repeat_ngram_size", "min_length": "min_new_tokens"}


@functools.cache
def own_and_velm(name: str, fusion: str = "none"):
    """transformers' model, which never says PAD or BOS, and velm's with the same weights."""
    torch.manual_seed(3)
    text = schema.CausalLMConfig(name=FAMILIES[name]())
    pictures = schema.ViTConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2)
    model = VelmModel(
        vision=pictures if fusion == "prefix" else schema.NoVisionConfig(),
        text=text,
        fusion=schema.PrefixConfig(length=3, dropout=0.0) if fusion == "prefix" else schema.NoFusionConfig(),
        vocab_size=SIZE_OF_GPT2,
    )
    own = transformers.AutoModelForCausalLM.from_pretrained(text.name, dtype=torch.float32)
    with torch.no_grad():
        for mine, its in zip(model.text.net.parameters(), own.base_model.parameters(), strict=True):
            mine.mul_(2)  # some words much likelier than others
            its.copy_(mine)
        if model.text.head is not None:
            model.text.head.weight.mul_(3)
            own.get_output_embeddings().weight.copy_(model.text.head.weight)

    def hide(_module, _inputs, output):
        output.logits[..., [PAD, BOS]] = -1e9
        return output

    own.register_forward_hook(hide)
    return own.double().eval(), model.double().eval()


def prompts_of(seed: int, images: int = 6) -> list[list[int]]:
    """Of 0 to 9 tokens, which hold each other's pairs now and then."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 10, (images,), generator=draw).tolist()
    return [torch.randint(3, 9, (length,), generator=draw).tolist() for length in lengths]


def generated(own, prompts, *, beams: int, samples: int = 1, stops=(), **options) -> list[list[list[int]]]:
    """Texts by transformers' `generate`, left padded; of each prompt so many."""
    longest = max(map(len, prompts)) + 1
    rows = [[BOS, *each] for each in prompts]
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    options = {THEIRS.get(name, name): value for name, value in options.items()}
    found = own.generate(
        ids, attention_mask=mask, num_beams=beams, num_return_sequences=samples, max_new_tokens=LENGTH,
        do_sample=False, eos_token_id=[EOS, *stops], pad_token_id=PAD, length_penalty=0.7,
        early_stopping="never" if beams > 1 else False, **options,
    )  # fmt: skip
    texts = [cut(row[longest:], {EOS, *stops}) for row in found.tolist()]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def cut(tokens: list[int], ends: set[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in ends, tokens))


def written(model, parts, **options) -> list[list[list[int]]]:
    """Texts by velm of (memory, images, prompts)."""
    more = {name: options.pop(name) for name in ("stops", "allowed") if name in options}
    config = schema.DecodeConfig(**({"max_length": LENGTH} | options))
    found = dict(
        decode_several(
            model,
            parts,
            config=config,
            bos_id=BOS,
            eos_id=EOS,
            banned=[PAD, BOS],
            draws=lambda numbers: torch.cat([_draws_of(number, config) for number in numbers]),
            vocab_size=SIZE_OF_GPT2,
            **more,
        )
    )
    return [found[number] for number in range(len(found))]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_those_of_generate(name, options, beams):
    """For every option, behind prompts of different lengths that stand in one batch."""
    own, model = own_and_velm(name)
    different = set()
    for seed in range(3):
        prompts = prompts_of(seed)
        together = [[each] for each in prompts] if name in UNPADDED else [prompts]
        wanted = [each for some in together for each in generated(own, some, beams=beams, **OPTIONS[options])]
        parts = [((), 6, prompts)]
        assert written(model, parts, beams=beams, length_penalty=0.7, **OPTIONS[options]) == wanted
        different |= {tuple(texts[0]) for texts in wanted}
    assert len(different) > 2, "the prompts tell"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_best_few_of_the_beams_are_those_of_generate(name):
    own, model = own_and_velm(name)
    for seed, (beams, samples) in enumerate([(2, 2), (4, 3), (5, 5)]):
        prompts = prompts_of(seed)
        wanted = generated(own, prompts, beams=beams, samples=samples)
        assert written(model, [((), 6, prompts)], beams=beams, samples=samples, length_penalty=0.7) == wanted
        assert any(len(set(map(tuple, texts))) == samples for texts in wanted)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_several_tokens_end_a_text(name, beams):
    """As the end of a turn does beside EOS."""
    own, model = own_and_velm(name)
    ended = 0
    for seed, stops in enumerate([(STOP,), (STOP, 7), (STOP, 7, 8, 11)]):
        prompts = prompts_of(seed)
        wanted = generated(own, prompts, beams=beams, stops=stops, min_length=1)
        parts = [((), 6, prompts)]
        assert written(model, parts, beams=beams, stops=stops, length_penalty=0.7, min_length=1) == wanted
        ended += sum(len(texts[0]) < LENGTH for texts in wanted)
    assert ended > 6


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_images_and_prompts_are_those_of_generate(name, beams, monkeypatch):
    """[padding; image; BOS; prompt] to `generate`; batches whose images join others that are under way."""
    monkeypatch.setattr(decoding, "_open", lambda live, places: live.images < places)
    own, model = own_and_velm(name, "prefix")
    torch.manual_seed(beams)
    sizes = [4, 3, 4]
    prompts = prompts_of(beams, sum(sizes))
    with torch.no_grad():
        prefix = 4 * model.text.embedding_scale * torch.randn(sum(sizes), 3, model.text.embedding_width).double()
        rows = [torch.cat([prefix[n], model.text.embed(torch.tensor([BOS, *each]))]) for n, each in enumerate(prompts)]
        together = [[row] for row in rows] if name in UNPADDED else [rows]
        wanted = [text for some in together for text in _by_embedded(own, some, beams)]
    starts = [0, 4, 7, 11]
    parts = [((prefix[a:b],), b - a, prompts[a:b]) for a, b in itertools.pairwise(starts)]
    ours = written(model, parts, beams=beams, length_penalty=0.7, min_length=2)
    assert [texts[0] for texts in ours] == wanted
    assert len({tuple(texts[0]) for texts in ours}) > 2


def _by_embedded(own, rows, beams: int) -> list[list[int]]:
    longest = max(map(len, rows))
    embedded = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    found = own.generate(
        inputs_embeds=embedded, attention_mask=mask, num_beams=beams, max_new_tokens=LENGTH, do_sample=False,
        eos_token_id=EOS, pad_token_id=PAD, length_penalty=0.7, early_stopping="never" if beams > 1 else False,
        min_new_tokens=2,
    )  # fmt: skip
    return [cut(row, {EOS}) for row in found.tolist()]


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3}, {"method": schema.DecodeMethod.nucleus, "samples": 2}])
@pytest.mark.parametrize(("text", "fusion"), CELLS)
def test_a_prompt_is_read_together_with_others_as_alone(text, fusion, options):
    vocab = SIZE_OF_GPT2 if text in OWN_VOCAB else VOCAB
    model, features, memory = model_and_memory(1, 6, text=text, fusion=fusion, vocab=vocab)
    prompts = [[3, 4, 5, 6, 7], [], [4], [8, 3, 3], [5, 6, 7, 8, 3, 4, 5, 6, 7, 8], [4]]
    options = {"no_repeat_ngram": 2, "repetition_penalty": 1.1, "max_length": 7} | options
    together = written(model, [(memory, 6, prompts)], **options)
    for image, prompt in enumerate(prompts):
        one = model.memory(features.select(torch.tensor([image])))
        config = schema.DecodeConfig(**options)
        alone = decode_several(
            model, [(one, 1)], config=config, bos_id=BOS, eos_id=EOS, banned=[PAD, BOS], prompt=prompt,
            draws=lambda _, image=image, config=config: _draws_of(image, config),
        )  # fmt: skip
        assert dict(alone) == {0: together[image]}
    assert len({tuple(map(tuple, texts)) for texts in together}) > 1


def _draws_of(image: int, config):
    return draws(config)([*range(image * config.samples, (image + 1) * config.samples)])


@pytest.mark.parametrize("text", ["transformer", "llama", "lstm", "bloom"])
def test_samples_of_an_image_are_those_of_as_many_images(text):
    """What is read of the image is read once; the words are those that it would get several times, by the draws."""
    vocab = SIZE_OF_GPT2 if text in OWN_VOCAB else VOCAB
    fusion = "prefix" if text in ("transformer", "bloom") else "cross_modal"
    model, features, memory = model_and_memory(2, 5, text=text, fusion=fusion, vocab=vocab)
    options = {"method": schema.DecodeMethod.nucleus, "max_length": 8}
    several = written(model, [(memory, 5, [[3], [4, 5], [], [3], [3]])], samples=3, **options)
    config = schema.DecodeConfig(**options)
    by_copies = model.memory(features.select(torch.arange(5).repeat_interleave(3)))
    prompts = [each for each in ([3], [4, 5], [], [3], [3]) for _ in range(3)]
    ids = {"bos_id": BOS, "eos_id": EOS, "banned": [PAD, BOS]}
    singly = dict(decode_stream(model, [(by_copies, 15, prompts)], config=config, draws=draws(config), **ids))
    assert [text for texts in several for text in texts] == [singly[number] for number in range(15)]
    assert len(set(map(len, singly.values()))) > 1, "some end before others"
    assert any(len(set(map(tuple, texts))) > 1 for texts in several)


class Watched:
    """A model that remembers the positions of each step, over all rows."""

    def __init__(self, model) -> None:
        self.model, self.positions, self.hides_padding = model, [], model.hides_padding

    def step(self, tokens_NT, memory, state=None, *last):
        self.positions.append(tokens_NT.numel())
        return self.model.step(tokens_NT, memory, state, *last)


@pytest.mark.parametrize("options", [{"beams": 3}, {"method": schema.DecodeMethod.nucleus, "samples": 3}])
def test_a_prompt_is_read_once_for_all_texts_of_an_image(options):
    model, _, memory = model_and_memory(1, 2, text="llama", fusion="prefix", vocab=SIZE_OF_GPT2)
    watched = Watched(model)
    written(watched, [(memory, 2, [[3] * 8, [4] * 8])], max_length=4, min_length=3, **options)
    assert watched.positions == [2 * 9, 6, 6, 6][: len(watched.positions)]
    assert len(watched.positions) > 1


def test_the_distribution_that_is_drawn_from_is_that_of_generate():
    """Temperature, the likeliest k, then the nucleus of these, after what the text so far forbids."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, SIZE_OF_GPT2)
    logits[:, 7] = logits[:, 8]  # equals of the last of k stay
    ids = torch.randint(3, 9, (40, 6))
    for top_k, top_p, temperature in itertools.product((0, 1, 4, 100), (0.3, 0.9, 1.0), (0.7, 1.0)):
        config = schema.DecodeConfig(
            method=schema.DecodeMethod.nucleus, top_k=top_k, top_p=top_p, temperature=temperature, max_length=9,
            repetition_penalty=1.3, no_repeat_ngram=2, min_length=7,
        )  # fmt: skip
        theirs = transformers.LogitsProcessorList([
            transformers.RepetitionPenaltyLogitsProcessor(1.3), transformers.NoRepeatNGramLogitsProcessor(2),
            transformers.MinNewTokensLengthLogitsProcessor(2, 7, EOS),
            transformers.SuppressTokensLogitsProcessor([PAD, BOS]), transformers.TemperatureLogitsWarper(temperature),
            *([transformers.TopKLogitsWarper(top_k)] if top_k else []), transformers.TopPLogitsWarper(top_p),
        ])  # fmt: skip
        wanted = theirs(ids, logits.clone()).softmax(-1)
        found = search.search_of(config, EOS, torch.tensor([PAD, BOS]), lambda numbers: torch.zeros(len(numbers), 9))
        texts = found.begin(range(40), BOS, "cpu", ids[:, :2])
        texts = texts._replace(text_BKT=texts.text_BKT.clone(), length_B=texts.length_B + 4)
        texts.text_BKT[:, 0, :4] = ids[:, 2:]
        p = found._probabilities(logits, texts)
        torch.testing.assert_close(p / p.sum(-1, keepdim=True), wanted)


def test_penalties_are_those_of_transformers():
    torch.manual_seed(1)
    scores = torch.randn(30, 11)
    scores[::3] = -scores[::3].abs()
    for n, length in itertools.product((1, 2, 3, 4), (1, 2, 3, 9)):
        ids = torch.randint(0, 4, (30, length))
        before = torch.cat([torch.full((30, 2), -1), ids, torch.full((30, 3), -1)], dim=1)
        end = torch.full((30,), length + 2)
        wanted = transformers.NoRepeatNGramLogitsProcessor(n)(ids, scores.clone())
        torch.testing.assert_close(without_repeated(scores, before, end, n), wanted)
        for penalty in (0.5, 1.7):
            wanted = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
            torch.testing.assert_close(penalised(scores, before, penalty), wanted)


LISTED = [(3,), (3, 4), (4, 5, 6), (5,), (6, 6, 6), (7, 3, 4, 5), (5, 5)]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("text", ["transformer", "gpt2", "lstm"])
def test_beams_find_the_likeliest_of_a_list(text, penalty):
    """As wide as the list; by the model's own log p of whole texts, ends included."""
    vocab = SIZE_OF_GPT2 if text in OWN_VOCAB else VOCAB
    model, features, memory = model_and_memory(3, 4, text=text, fusion="cross_modal", vocab=vocab)
    found = written(
        model, [(memory, 4)], beams=7, samples=7, length_penalty=penalty, max_length=6, allowed=LISTED,
    )  # fmt: skip
    for image in range(4):
        scores = {}
        for each in LISTED:
            path = [*each, EOS]
            total = sum(float(log_probs(model, features, image, path[:t])[path[t]]) for t in range(len(path)))
            scores[each] = total / len(path) ** penalty
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        assert [tuple(each) for each in found[image]] == ranked


@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 2}, {"beams": 3, "no_repeat_ngram": 1}])
def test_lists_are_those_of_generate(options):
    """`prefix_allowed_tokens_fn`, behind prompts."""
    own, model = own_and_velm("llama")

    def following(prompt, ids: list[int]) -> list[int]:
        so_far = ids[ids.index(BOS) + 1 + len(prompt) :]
        left = [[*each, EOS] for each in LISTED if list(each[: len(so_far)]) == so_far[: len(each)]]
        return sorted({each[len(so_far)] for each in left if len(each) > len(so_far)}) or [EOS]

    for prompt in ([8, 3, 9], [], [12, 11]):
        wanted = generated(
            own, [prompt], prefix_allowed_tokens_fn=lambda _, ids, prompt=prompt: following(prompt, ids.tolist()),
            **options,
        )  # fmt: skip
        ours = written(model, [((), 1, [prompt])], allowed=LISTED, length_penalty=0.7, **options)
        assert ours == wanted
        assert tuple(ours[0][0]) in LISTED


@pytest.mark.parametrize("text", ["transformer", "gru", "gpt2"])
def test_what_is_drawn_is_of_the_list(text):
    vocab = SIZE_OF_GPT2 if text in OWN_VOCAB else VOCAB
    model, _, memory = model_and_memory(3, 4, text=text, fusion="cross_modal", vocab=vocab)
    options = {"method": schema.DecodeMethod.nucleus, "samples": 6, "max_length": 6, "top_p": 1.0}
    for more in ({}, {"top_k": 2}, {"no_repeat_ngram": 1}):
        found = [
            tuple(each) for texts in written(model, [(memory, 4)], allowed=LISTED, **options, **more) for each in texts
        ]
        assert len(found) == 24
        assert "no_repeat_ngram" in more or set(found) <= set(LISTED)
        assert len(set(found)) > 1


@pytest.mark.parametrize("texts", [1, 5])
def test_room_is_made_few_times_and_never_for_more_than_there_can_be(texts):
    """Of 600 positions a text; a step needs one slot a text."""
    past = Past.of([KeyValue(*torch.randn(2, 2, 1, 7, 4))])
    past = decoding.bounded(past, 600)
    if texts > 1:
        past = past.select(search_rows(texts))
    places, sizes = set(), []
    for _ in range(600):
        past = past.grown(2 * texts)
        room = past.rooms[0].keys
        places.add(room.data_ptr())
        sizes.append(room.shape[2])
    assert past.slots == sizes[-1] == 7 + 600 * texts
    assert len(set(sizes)) <= 2 + math.ceil(math.log2(600 / BLOCK))


def search_rows(texts: int):
    return decoding.Rows(torch.arange(2)[:, None].expand(2, texts))
