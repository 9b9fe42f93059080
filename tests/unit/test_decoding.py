"""Greedy and beam search against a slow reference without cache, brute force and transformers; nucleus sampling."""

import functools
import itertools
import math
import random

import pytest
import torch
import transformers
from causal_families import family_folder
from one_batch import decode
from tiny_models import VOCAB as SIZE_OF_GPT2
from tiny_models import folder
from torch.utils._python_dispatch import TorchDispatchMode

from velm_cli import schema
from velm_cli.models import decoding, search
from velm_cli.models.decoding import _places, converted_once, decode_stream, laid_out_for_steps
from velm_cli.models.search import continuations, image_draws, nucleus_probabilities
from velm_cli.models.state import BLOCK, KeyValue, Past, Rows, select
from velm_cli.models.text import build_text
from velm_cli.models.velm import VelmModel
from velm_cli.models.vision import ImageFeatures

BOS, EOS, PAD, VOCAB = 1, 2, 0, 9

TEXTS = {
    "transformer": lambda: schema.TransformerConfig(width=16, layers=1, heads=2),
    "no layers": lambda: schema.TransformerConfig(width=16, layers=0, heads=2),
    "lstm": lambda: schema.LSTMConfig(width=16, layers=2),
    "gru": lambda: schema.GRUConfig(width=16),
    "bert": lambda: schema.BertConfig(name=folder("bert")),
    "gpt2": lambda: schema.CausalLMConfig(name=folder("gpt2")),
    "llama": lambda: schema.CausalLMConfig(name=folder("llama")),
    "bloom": lambda: schema.CausalLMConfig(name=folder("bloom")),
    "mistral": lambda: schema.CausalLMConfig(name=family_folder("mistral-window")),  # windows of four positions
    "gemma2": lambda: schema.CausalLMConfig(name=family_folder("gemma2-window")),  # in one of two layers
}
OWN_VOCAB = ("bert", "gpt2", "llama", "bloom", "mistral", "gemma2")
FUSIONS = {
    "cross_modal": schema.CrossModalConfig(layers=1, heads=2),
    "prefix": schema.PrefixConfig(length=3),
    "image as prefix": schema.PrefixConfig(mapper=schema.PrefixMapper.tokens),
    "gated": schema.GatedConfig(heads=2),
    "attention": schema.AttentionConfig(width=16),
    "look": schema.AttentionConfig(score=schema.AttentionScore.dot, heads=2),
    "concat": schema.ConcatConfig(),
}
CELLS = [
    ("transformer", "cross_modal"), ("transformer", "prefix"), ("transformer", "image as prefix"),
    ("transformer", "gated"), ("no layers", "cross_modal"), ("lstm", "concat"), ("lstm", "cross_modal"),
    ("gru", "attention"), ("gru", "cross_modal"), ("bert", "cross_modal"), ("bert", "prefix"), ("bert", "concat"),
    ("gpt2", "prefix"), ("gpt2", "gated"), ("llama", "gated"), ("llama", "cross_modal"), ("bloom", "prefix"),
    ("mistral", "prefix"), ("mistral", "gated"), ("gemma2", "gated"), ("gemma2", "concat"),
]  # fmt: skip


def model_and_memory(
    seed: int, images: int = 5, *, text: str = "transformer", fusion: str = "cross_modal", vocab: int = VOCAB
):
    """A random model whose distributions are peaked enough for EOS to come early for some images."""
    torch.manual_seed(seed)
    model = VelmModel(
        vision=schema.ViTConfig(image_size=8, patch_size=4, width=16, layers=1, heads=2),
        text=TEXTS[text](),
        fusion=FUSIONS[fusion],
        vocab_size=vocab,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.35 * torch.randn_like(parameter))
    model = model.double().eval()
    with torch.no_grad():
        features = model.encode_image(torch.randn(images, 3, 8, 8).double())
        return model, features, model.memory(features)


def model_with_varied_captions(text: str, fusion: str, images: int = 6, beams: int = 2):
    """The first of many random models by which the images get at least three captions, not all of one length."""
    vocab = SIZE_OF_GPT2 if text in OWN_VOCAB else VOCAB
    for seed in range(200):
        model, features, memory = model_and_memory(seed, images, text=text, fusion=fusion, vocab=vocab)
        captions = {tuple(tokens) for tokens in run(model, memory, images, beams=beams, max_length=8)}
        if len(captions) > 2 and len(set(map(len, captions))) > 1:
            return model, features, memory
    raise AssertionError("no such model")


def log_probs(model, features, image: int, prefix: list[int]) -> torch.Tensor:
    """log p(next | image, BOS + prefix) by a full forward pass without any cache."""
    one = model.memory(features.select(torch.tensor([image])))
    with torch.no_grad():
        logits, _ = model.step(torch.tensor([[BOS, *prefix]]), one)
    logits[:, [PAD, BOS]] = float("-inf")
    return logits[0].float().log_softmax(-1)


def slow_beam(model, features, image: int, beams: int, max_length: int, penalty: float, log_probs=log_probs):
    """The definition of `_beam`, one prefix at a time: the best score and its tokens."""
    live, best = [(0.0, [])], (float("-inf"), [])
    penalty = penalty if beams > 1 else 0.0
    for length in range(1, max_length + 1):
        candidates = []
        for score, prefix in live:
            for token, value in enumerate(log_probs(model, features, image, prefix).tolist()):
                if value > float("-inf"):
                    candidates.append((score + value, [*prefix, token]))
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beams]
        for score, tokens in candidates[:beams]:
            if (tokens[-1] == EOS or length == max_length) and score / length**penalty > best[0]:
                best = (score / length**penalty, tokens)
        live = [c for c in candidates if c[1][-1] != EOS][:beams]
        if not live or live[0][0] / max_length**penalty <= best[0]:
            break
    return best


def tensors(nested) -> list[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        return [nested]
    return [] if nested is None else [each for part in nested for each in tensors(part)]


def run(model, memory, images, **options) -> list[list[int]]:
    config = schema.DecodeConfig(**options)
    return decode(
        model, memory, images=images, config=config, bos_id=BOS, eos_id=EOS, banned=[PAD, BOS], draws=draws(config)
    )


def draws(config: schema.DecodeConfig, seed: int = 0):
    def of(numbers: range) -> torch.Tensor:
        return torch.from_numpy(image_draws(numbers, seed=seed, count=config.max_length))

    return of


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beam_search_equals_its_slow_definition(seed, beams, penalty):
    model, features, memory = model_and_memory(seed)
    fast = run(model, memory, 5, beams=beams, max_length=7, length_penalty=penalty)
    for image in range(5):
        _, tokens = slow_beam(model, features, image, beams, 7, penalty)
        assert fast[image] == [t for t in tokens if t != EOS]


@pytest.mark.parametrize(("text", "fusion"), CELLS)
def test_every_text_and_fusion_decodes_as_the_slow_definition_does(text, fusion):
    """Greedy and 2 to 5 beams; the definition reads every prefix anew."""
    model, features, memory = model_with_varied_captions(text, fusion)
    known = functools.cache(lambda image, prefix: log_probs(model, features, image, list(prefix)))

    def remembered(_model, _features, image: int, prefix: list[int]) -> torch.Tensor:
        return known(image, tuple(prefix))

    for beams in (1, 2, 3, 4, 5):
        fast = run(model, memory, 6, beams=beams, max_length=8, length_penalty=0.6)
        for image in range(6):
            _, tokens = slow_beam(model, features, image, beams, 8, 0.6, remembered)
            assert fast[image] == [t for t in tokens if t != EOS]


@pytest.mark.parametrize(("text", "fusion"), [("transformer", "cross_modal"), ("gpt2", "gated"), ("lstm", "look")])
def test_few_words_look_at_the_image_itself(text, fusion):
    """And say the same as with keys and values."""
    model, features, memory = model_with_varied_captions(text, fusion)
    for beams in (1, 2, 3):
        options = {"beams": beams, "max_length": 8, "length_penalty": 0.6}
        config = schema.DecodeConfig(**options)
        by_image = model.memory_for(features, config)
        assert sum(part.numel() for part in tensors(by_image)) < sum(part.numel() for part in tensors(memory))
        assert run(model, by_image, 6, **options) == run(model, memory, 6, **options)
    many = model.memory_for(features, schema.DecodeConfig(beams=5, max_length=300))
    assert all(map(torch.equal, tensors(many), tensors(memory)))


@pytest.mark.parametrize(("text", "fusion"), [("transformer", "gated"), ("bert", "cross_modal"), ("llama", "concat")])
def test_matrices_laid_out_for_steps_say_the_same_and_come_back(text, fusion):
    model, features, _ = model_with_varied_captions(text, fusion)
    with torch.no_grad():
        memory = model.float().memory(ImageFeatures(features.tokens_BSD.float(), features.pooled_BD.float()))
    weights = {name: (weight, weight.data_ptr(), weight.clone()) for name, weight in model.named_parameters()}
    found = [run(model, memory, 6, beams=beams, max_length=8) for beams in (1, 3)]
    with laid_out_for_steps(model):
        inner = model.fusion.get_submodule("out.2" if fusion == "concat" else "blocks.0.mlp.2").weight
        assert not inner.is_contiguous()
        assert not model.text.output_weight.is_contiguous()
        assert all(torch.equal(weight, value) for weight, _, value in weights.values())
        assert [run(model, memory, 6, beams=beams, max_length=8) for beams in (1, 3)] == found
    for name, weight in model.named_parameters():
        kept, place, _ = weights[name]
        assert weight is kept
        assert weight.data_ptr() == place
        assert weight.is_contiguous()


class Casts(TorchDispatchMode):
    """Counts the conversions to bfloat16 of the tensors that lie at some addresses."""

    def __init__(self, addresses: set[int]) -> None:
        super().__init__()
        self.of = dict.fromkeys(addresses, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy) and result.dtype is torch.bfloat16:
            self.of = {at: count + (at == args[0].data_ptr()) for at, count in self.of.items()}
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("text", "fusion"), [("transformer", "cross_modal"), ("gpt2", "gated")])
def test_half_precision_converts_weights_once_and_not_for_each_word(text, fusion, frozen):
    model, features, _ = model_and_memory(0, text=text, fusion=fusion, vocab=SIZE_OF_GPT2 if text == "gpt2" else VOCAB)
    model, features = model.float(), ImageFeatures(features.tokens_BSD.float(), features.pooled_BD.float())
    linear = (each.weight for part in (model.text, model.fusion) for each in part.modules() if hasattr(each, "weight"))
    model.text.requires_grad_(not frozen)
    casts = Casts({weight.data_ptr() for weight in linear if weight.ndim == 2})
    with converted_once(model), torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            memory = model.memory(features)
        with casts:
            captions = decode(
                model, memory, images=5, config=schema.DecodeConfig(max_length=9), bos_id=BOS, eos_id=-1, banned=[EOS]
            )
    assert set(map(len, captions)) == {9}  # nine steps
    assert frozen is not any(each.requires_grad for each in model.text.parameters())
    assert set(casts.of.values()) <= {0, 1} and sum(casts.of.values()) >= 4, casts.of


def test_long_texts_outgrow_the_room_made_for_them():
    model, features, memory = model_and_memory(0, images=2)
    model.output_bias.data[EOS] = -1e9
    length = 2 * BLOCK + 6
    found = run(model, memory, 2, beams=3, max_length=length, length_penalty=0.0)
    for image in range(2):
        assert found[image] == slow_beam(model, features, image, 3, length, 0.0)[1]
        assert len(found[image]) == length


@pytest.mark.parametrize("beams", [1, 3])
def test_a_large_vocabulary(beams):
    """Which is searched in chunks."""
    model, features, memory = model_and_memory(1, vocab=1511)
    fast = run(model, memory, 5, beams=beams, max_length=5, length_penalty=1.0)
    for image in range(5):
        assert fast[image] == [t for t in slow_beam(model, features, image, beams, 5, 1.0)[1] if t != EOS]


@pytest.mark.parametrize("words", [64 * 30, 64 * 30 + 1, 64 * 31 - 1])
def test_continuations_are_the_best_of_all(words):
    draw = torch.Generator().manual_seed(words)
    log_p_NV = torch.randn(4 * 3, words, generator=draw)
    score_BK = torch.randn(4, 3, generator=draw)
    score, beam, token = continuations(log_p_NV, score_BK, 6)
    total_BX = (score_BK[:, :, None] + log_p_NV.view(4, 3, words)).flatten(1)
    wanted, place = total_BX.topk(6)
    assert torch.equal(score, wanted)
    assert torch.equal(beam * words + token, place)


def test_the_last_images_take_the_places_of_those_that_leave():
    draw = random.Random(0)
    for _ in range(50):
        goes_on = [draw.random() < 0.6 for _ in range(draw.randint(1, 9))]
        if not any(goes_on):
            continue
        kept_B, holes, movers = _places(goes_on, torch.device("cpu"))
        assert sorted(kept_B.tolist()) == [image for image, on in enumerate(goes_on) if on]
        assert len(holes) == sum(place >= len(kept_B) for place in kept_B.tolist())
        part_BX = torch.arange(len(goes_on))[:, None].repeat(1, 3)
        Rows(kept_B[:, None], holes, movers).move(part_BX)
        assert torch.equal(part_BX[: len(kept_B), 0], kept_B)


@pytest.mark.parametrize("text", ["gpt2", "llama", "bert"])
def test_pretrained_texts_share_the_slots_of_their_past(text):
    """Nothing of it is copied when beams are reordered; Bloom, whose positions are its own, does without."""
    model, _, memory = model_with_varied_captions(text, "cross_modal")
    with torch.no_grad():
        _, state = model.step(torch.full((6, 1), BOS), memory)
        (past, behind_N), _ = state
        assert isinstance(past, Past)
        assert behind_N.tolist() == [1] * 6
        state = select(state, Rows(torch.arange(6)[:, None].expand(6, 3)))
        _, state = model.step(torch.full((18, 1), 3), memory, state)
        places = [part.data_ptr() for room in state[0][0].rooms for part in room]
        for _ in range(3):
            state = select(state, Rows(torch.arange(18).view(6, 3).flip(1)))
            _, state = model.step(torch.full((18, 1), 4), memory, state)
            assert [part.data_ptr() for room in state[0][0].rooms for part in room] == places
    bloom = build_text(TEXTS["bloom"](), SIZE_OF_GPT2)
    assert not bloom.shares_slots


def test_beams_are_reordered_without_moving_what_they_see():
    def gone_on(past: Past) -> Past:
        past = past.grown(texts=2)
        for layer in past.layers():
            layer.attend(*torch.randn(3, 2, 4, 1, 3))
        return past

    past = Past.of([KeyValue(*torch.randn(2, 1, 4, 7, 3)) for _ in range(2)])  # one image, 4 heads, 7 positions
    past = gone_on(past.select(Rows(torch.tensor([[0, 0]]))))
    places = [part.data_ptr() for room in past.rooms for part in room]
    for source in ([1, 0], [1, 1], [0, 0]):
        past = gone_on(past.select(Rows(torch.tensor([source]))))
        assert [part.data_ptr() for room in past.rooms for part in room] == places
    assert past.slots == 7 + 2 * 4  # the first seven are there once


def test_the_memory_given_stays_as_it_was():
    model, _, memory = model_and_memory(1, images=8)
    before = [part.clone() for part in tensors(memory)]
    first = run(model, memory, 8, beams=3, max_length=9, length_penalty=0.0)
    assert all(map(torch.equal, before, tensors(memory)))
    assert run(model, memory, 8, beams=3, max_length=9, length_penalty=0.0) == first


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_beam_is_the_likeliest_token_each_time(seed):
    model, features, memory = model_and_memory(seed)
    for image, found in enumerate(run(model, memory, 5, beams=1, max_length=7, length_penalty=1.0)):
        prefix: list[int] = []
        while len(prefix) < 7 and prefix[-1:] != [EOS]:
            prefix.append(int(log_probs(model, features, image, prefix).argmax()))
        assert found == [token for token in prefix if token != EOS]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_sequences(penalty):
    model, features, memory = model_and_memory(7, images=2)
    words = [token for token in range(VOCAB) if token not in (PAD, BOS, EOS)]
    found = run(model, memory, 2, beams=len(words) ** 2, max_length=3, length_penalty=penalty)
    for image in range(2):
        best = (float("-inf"), [])
        for length in (1, 2, 3):
            for body in itertools.product(words, repeat=length - 1):
                for last in [EOS] if length < 3 else [EOS, *words]:
                    tokens = [*body, last]
                    total = sum(log_probs(model, features, image, tokens[:t])[tokens[t]].item() for t in range(length))
                    if total / length**penalty > best[0]:
                        best = (total / length**penalty, tokens)
        assert found[image] == [t for t in best[1] if t != EOS]


def test_images_do_not_influence_each_other():
    """Finished images leave the batch; the others must not notice."""
    model, features, memory = model_and_memory(1, images=8)
    together = run(model, memory, 8, beams=3, max_length=9, length_penalty=0.0)
    assert len({len(tokens) for tokens in together}) > 1, "the test needs captions of different lengths"
    for image in range(8):
        alone = model.memory(features.select(torch.tensor([image])))
        assert run(model, alone, 1, beams=3, max_length=9, length_penalty=0.0) == [together[image]]


class Watched:
    """A model that remembers how many texts each step had."""

    def __init__(self, model) -> None:
        self.model, self.texts = model, []

    def step(self, tokens_NT, memory, state=None):
        self.texts.append(len(tokens_NT))
        return self.model.step(tokens_NT, memory, state)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("text", "fusion"), CELLS)
def test_images_that_enter_get_the_captions_that_they_get_alone(text, fusion, beams, monkeypatch):
    """Batches of different sizes, through six places, for far more steps than a caption has; with beams as on GPUs."""
    monkeypatch.setattr(decoding, "_open", lambda live, places: live.images < places)
    sizes = [6, 1, 5, 6, 6, 3, 6, 6, 2, 6]
    model, features, _ = model_with_varied_captions(text, fusion, sum(sizes), beams)
    starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    rows = list(itertools.pairwise(starts))
    config = schema.DecodeConfig(beams=beams, max_length=8)
    with torch.no_grad():
        memories = [(model.memory_for(features.select(torch.arange(*row)), config), row[1] - row[0]) for row in rows]
    ids = {"bos_id": BOS, "eos_id": EOS, "banned": [PAD, BOS]}

    together, apart = Watched(model), Watched(model)
    found = dict(decode_stream(together, memories, config=config, **ids))
    assert sorted(found) == list(range(sum(sizes)))
    alone = [decode(apart, memory, images=images, config=config, **ids) for memory, images in memories]
    assert [found[image] for image in range(sum(sizes))] == list(itertools.chain(*alone))
    assert text == "bloom" or len(together.texts) < 0.9 * len(apart.texts), "the others entered"
    assert sum(together.texts) == sum(apart.texts)


def test_images_of_other_sizes_wait_until_the_places_are_free():
    """Memories that cannot lie side by side: nothing joins, and nothing is lost."""
    model, _, _ = model_with_varied_captions("transformer", "cross_modal")
    config = schema.DecodeConfig(beams=2, max_length=8)
    ids = {"bos_id": BOS, "eos_id": EOS, "banned": [PAD, BOS]}
    memories = []
    with torch.no_grad():
        for positions in (4, 9, 4, 1):
            tokens_BSD = torch.randn(5, positions, 16).double()
            memories.append((model.memory_for(ImageFeatures(tokens_BSD, tokens_BSD.amax(1)), config), 5))
    found = dict(decode_stream(model, memories, config=config, **ids))
    alone = [decode(model, memory, images=images, config=config, **ids) for memory, images in memories]
    assert [found[image] for image in range(20)] == list(itertools.chain(*alone))


def test_nobody_is_asked_for_images_before_there_are_places():
    model, features, _ = model_with_varied_captions("lstm", "concat")
    config, asked = schema.DecodeConfig(max_length=8), []

    def memories():
        for number in range(3):
            asked.append(number)
            with torch.no_grad():
                yield model.memory_for(features, config), 6

    assert dict(decode_stream(model, [], config=config, bos_id=BOS, eos_id=EOS)) == {}
    finished = 0
    for _ in decode_stream(model, memories(), config=config, bos_id=BOS, eos_id=EOS):
        assert 6 * len(asked) <= finished + 12, "no more than the live ones and a batch that waits"
        finished += 1
    assert finished == 18


def test_no_more_tokens_than_max_length_and_none_that_is_banned():
    model, _, memory = model_and_memory(4)
    for options in ({"beams": 1}, {"beams": 4}, {"method": schema.DecodeMethod.nucleus, "top_p": 1.0}):
        for tokens in run(model, memory, 5, max_length=4, **options):
            assert len(tokens) <= 4
            assert not {PAD, BOS, EOS} & set(tokens)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p():
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]])
    torch.testing.assert_close(
        nucleus_probabilities(p, top_p=0.7), torch.tensor([[0.0, 0.5, 0.0, 0.25], [0.97, 0.0, 0.0, 0.0]])
    )
    torch.testing.assert_close(nucleus_probabilities(p, top_p=1.0), p)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_nucleus_samples_follow_the_model(temperature):
    """First tokens of many images match the model's probabilities (5 sigma)."""
    model, features, _ = model_and_memory(5, images=1)
    many = 4000
    memory = model.memory(features.select(torch.zeros(many, dtype=torch.long)))
    options = {"method": schema.DecodeMethod.nucleus, "top_p": 1.0, "max_length": 1, "temperature": temperature}
    samples = run(model, memory, many, **options)
    p = (log_probs(model, features, 0, []) / temperature).softmax(0)
    for token in range(3, VOCAB):
        share = sum(sample == [token] for sample in samples) / many
        sigma = math.sqrt(p[token] * (1 - p[token]) / many) + 1e-9
        assert abs(share - p[token]) < 5 * sigma


def test_the_drawn_token_is_the_one_whose_share_the_draw_falls_into():
    """Over a fine grid of draws each token comes up in proportion, and never one of probability 0."""
    p_V = torch.tensor([0.0, 0.2, 0.0, 0.1, 0.3, 0.0])
    grid_N1 = (torch.arange(6000)[:, None] + 0.5) / 6000
    counts = search.drawn(p_V.expand(6000, -1), grid_N1).flatten().bincount(minlength=6)
    assert counts.tolist() == pytest.approx([0, 2000, 0, 1000, 3000, 0], abs=1)
    for edge, token in ((0.0, 1), (1.0, 4)):  # 1 - 2^-60 is 1 in float32
        assert search.drawn(p_V[None], torch.tensor([[edge]])).item() == token


@pytest.mark.parametrize("together", [1, 2, 5])
def test_a_nucleus_sample_depends_on_its_image_and_the_seed_only(together):
    model, features, memory = model_with_varied_captions("transformer", "cross_modal")
    config = schema.DecodeConfig(method=schema.DecodeMethod.nucleus, max_length=8)

    def memories():
        for start in range(0, 6, together):
            rows = torch.arange(start, min(start + together, 6))
            yield model.memory(features.select(rows)), len(rows)

    written = dict(decode_stream(model, memories(), config=config, bos_id=BOS, eos_id=EOS, draws=draws(config)))
    everything = {"config": config, "bos_id": BOS, "eos_id": EOS}
    assert written == dict(decode_stream(model, [(memory, 6)], **everything, draws=draws(config)))
    assert written != dict(decode_stream(model, [(memory, 6)], **everything, draws=draws(config, seed=1)))


def test_temperature_is_applied_to_logits_in_float32():
    """bfloat16 holds 8 bits: 20.125 / 0.8 would be rounded to 25.125, by 0.03."""
    logits_BV = torch.tensor([[20.125, 20.0, 3.0]], dtype=torch.bfloat16)
    config = schema.DecodeConfig(method=schema.DecodeMethod.nucleus, temperature=0.8, top_p=1.0, max_length=1)
    p_V = (logits_BV.double() / 0.8).softmax(-1)[0]
    for draw in (float(p_V[0]) - 1e-4, float(p_V[0]) + 1e-4):
        found = search.search_of(config, EOS, torch.tensor([], dtype=torch.long), lambda _, u=draw: torch.tensor([[u]]))
        texts, _, _ = found.advance(found.begin(range(1), BOS, "cpu"), logits_BV)
        assert texts.token_BK.item() == (draw > p_V[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beams", [1, 4])
def test_captions_are_those_of_transformers_generate(beams, penalty):
    """GPT-2 behind a prefix, the same weights in both: every image's caption, token by token."""
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    model = VelmModel(
        vision=schema.ViTConfig(image_size=16, patch_size=8, width=24, layers=1, heads=2),
        text=schema.CausalLMConfig(name=folder("gpt2")),
        fusion=schema.PrefixConfig(length=3, dropout=0.0),
        vocab_size=SIZE_OF_GPT2,
    )
    with torch.no_grad():
        for parameter in model.text.parameters():
            parameter.mul_(3)  # some words much likelier than others
        model = model.double().eval()
        memory = model.memory(model.encode_image(torch.randn(6, 3, 16, 16).double()))
        found = decode(
            model, memory, images=6, config=schema.DecodeConfig(beams=beams, max_length=12, length_penalty=penalty),
            bos_id=BOS, eos_id=EOS, banned=[], device=torch.device("cpu"),
        )  # fmt: skip
        language_model = transformers.GPT2LMHeadModel.from_pretrained(folder("gpt2")).double().eval()
        language_model.transformer.load_state_dict(model.text.net.state_dict())
        embedded = torch.cat([memory[0], model.text.embed(torch.full((6, 1), BOS))], dim=1)
        wanted = language_model.generate(
            inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2]), num_beams=beams, max_new_tokens=12,
            do_sample=False, eos_token_id=EOS, pad_token_id=EOS, length_penalty=penalty, early_stopping="never",
        )  # fmt: skip
    assert found == [row[: row.index(EOS)] if EOS in row else row for row in wanted.tolist()]
    assert len(set(map(tuple, found))) > 1  # the image tells
