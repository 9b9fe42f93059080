"""Tokenizers: the same ids in every process, lossless where promised, safe on any caption."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from velm_cli.data.tokenizer import SPECIAL, Tokenizer
from velm_cli.errors import UserError
from velm_cli.files import write_json
from velm_cli.schema import TokenizerConfig, TokenizerKind

STRANGE = [
    "",
    " \n\t ",
    "👍🏽 🤷‍♀️",
    "!!! ... ???",
    "zyzzyva qoph xylyl",
    "רכבת ישנה על המסילה",
    "می‌خواهم یک قطار قدیمی",
    "一个男人在冲浪",
    "<pad> <bos> <eos> <unk> [SEP] </s> <|endoftext|>",
    "word " * 10_000,
    "x" * 10_000,
    "e\u0301\u0000\u200d\ufeff\u202e",
]


def captions(seed: int, count: int = 400) -> list[str]:
    """Captions of invented words, with many ties in every count."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnoprstuéß", k=draw.randint(1, 7))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=draw.randint(3, 12))).capitalize() + "." for _ in range(count)]


def config(kind: str, **options) -> TokenizerConfig:
    return TokenizerConfig(kind=TokenizerKind[kind], **{"min_count": 2, "vocab_size": 600, **options})


@pytest.fixture(params=["word", "bpe", "wordpiece"])
def kind(request) -> str:
    return request.param


def test_other_processes_give_the_same_vocabulary(kind):
    program = (
        "import json, sys\n"
        "from velm_cli.data.tokenizer import Tokenizer\n"
        "from velm_cli.schema import TokenizerConfig, TokenizerKind\n"
        "texts = json.load(sys.stdin)\n"
        "config = TokenizerConfig(kind=TokenizerKind[sys.argv[1]], min_count=2, vocab_size=600)\n"
        "tokenizer = Tokenizer.build(config, iter(texts))\n"
        "print(json.dumps([tokenizer.digest, tokenizer.encode_batch(texts), 'torch' in sys.modules]))\n"
    )
    texts = captions(seed=1)
    here = Tokenizer.build(config(kind), texts)
    for _ in range(3):
        command = [sys.executable, "-c", program, kind]
        process = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
        digest, ids, imported_torch = json.loads(process.stdout)
        assert digest == here.digest
        assert ids == here.encode_batch(texts)
        assert not imported_torch


def test_other_captions_give_another_digest(kind):
    digests = {Tokenizer.build(config(kind), captions(seed)).digest for seed in (1, 2, 1)}
    assert len(digests) == 2


def test_save_and_load(kind, tmp_path):
    texts = captions(seed=2)
    built = Tokenizer.build(config(kind), texts)
    built.save(tmp_path / "tokenizer")
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        "tokenizer.json",
        "velm_tokenizer.json",
    ]
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    for name in ("digest", "vocab_size", "pad_id", "bos_id", "eos_id", "unk_id"):
        assert getattr(loaded, name) == getattr(built, name)
    ids = built.encode_batch(texts + STRANGE)
    assert loaded.encode_batch(texts + STRANGE) == ids
    assert [loaded.decode(each) for each in ids] == [built.decode(each) for each in ids]


@pytest.mark.parametrize(
    "wrong", [{"eos": 100_000}, {"bos": -1}, {"pad": 4.5}, {"unk": True}, {"bos": "1"}, {"pad": None}]
)
def test_special_ids_outside_the_vocabulary_are_refused(tmp_path, wrong):
    Tokenizer.build(config("word"), captions(seed=3)).save(tmp_path)
    write_json(tmp_path / "velm_tokenizer.json", {"pad": 0, "bos": 1, "eos": 2, "unk": 3, **wrong})
    with pytest.raises(UserError, match="is damaged"):
        Tokenizer.load(tmp_path)


def test_special_ids_are_looked_at_where_asserts_are_off(tmp_path):
    Tokenizer.build(config("word"), captions(seed=3)).save(tmp_path)
    write_json(tmp_path / "velm_tokenizer.json", {"pad": 0, "bos": 1, "eos": 100_000, "unk": 3})
    program = f"from velm_cli.data.tokenizer import Tokenizer\nTokenizer.load({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-OO", "-c", program], capture_output=True, text=True)
    assert "UserError: the tokenizer in" in done.stderr.splitlines()[-1]


def test_a_tokenizer_whose_words_cannot_be_searched_for_is_refused(tmp_path):
    """The library panics, which is no Exception."""
    model = tokenizers.Tokenizer.from_str(Tokenizer.build(config("word"), captions(seed=3))._json)
    slow = tokenizers.Regex("(?:[a-z ]|[a-z])+[^a-z ]")
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split(slow, behavior="isolated")
    (tmp_path / "tokenizer.json").write_text(model.to_str())
    write_json(tmp_path / "velm_tokenizer.json", {"pad": 0, "bos": 1, "eos": 2, "unk": 3})
    with pytest.raises(UserError, match=r"the tokenizer cannot read these captions: .*retry-limit"):
        Tokenizer.load(tmp_path).encode_batch(["a man rides a wave on top of a board in the sea " * 4])


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"velm_tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    Tokenizer.build(config("word"), captions(seed=3)).save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.load(tmp_path)


def test_strange_captions_do_no_harm(kind):
    tokenizer = Tokenizer.build(config(kind), captions(seed=4) + STRANGE)
    for text, ids in zip(STRANGE, tokenizer.encode_batch(STRANGE), strict=True):
        assert all(0 <= token < tokenizer.vocab_size for token in ids)
        assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(ids), text
        assert isinstance(tokenizer.decode(ids), str)
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode_batch([""]) == [[]]
    assert tokenizer.decode([]) == ""


def test_decode_starts_after_bos_and_stops_at_eos(kind):
    tokenizer = Tokenizer.build(config(kind), captions(seed=5))
    text = captions(seed=5)[0]
    (ids,) = tokenizer.encode_batch([text])
    noise = tokenizer.encode_batch([captions(seed=5)[1]])[0]
    padded = [tokenizer.bos_id, *ids, tokenizer.eos_id, *noise, tokenizer.pad_id]
    assert tokenizer.decode(padded) == tokenizer.decode(ids) != ""


def test_word_vocabulary_is_that_of_a_plain_count():
    texts = captions(seed=6)
    tokenizer = Tokenizer.build(config("word", min_count=3), texts)
    counts = Counter(word for text in texts for word in text.lower().rstrip(".").split())
    kept = sorted((word for word in counts if counts[word] >= 3), key=lambda word: (-counts[word], word))
    assert 0 < len(kept) < len(counts)
    assert tokenizer.vocab_size == len(SPECIAL) + len(kept)
    ids = {word: number for number, word in enumerate(kept, start=len(SPECIAL))}
    for text, encoded in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert encoded == [ids.get(word, tokenizer.unk_id) for word in text.lower().rstrip(".").split()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's T-shirt, 'quoted'.", "a man's t-shirt quoted"),
        ("A man’s dog -- and the dogs' bowl", "a man's dog and the dogs bowl"),
        ("black/white (3.5 cats)\n", "black white 3 5 cats"),
        ("CAFE\u0301 \u00c9t\u00e9", "caf\u00e9 \u00e9t\u00e9"),
        ("<eos> e-mail", "eos e-mail"),
        ("می‌خواهم", "می‌خواهم"),
    ],
)
def test_words(text, words):
    tokenizer = Tokenizer.build(config("word", min_count=1), [text])
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == words


def test_unknown_words_become_unk_and_vanish_from_the_text():
    tokenizer = Tokenizer.build(config("word"), ["a dog", "a dog runs"])
    (ids,) = tokenizer.encode_batch(["A zebra dog runs"])
    assert ids.count(tokenizer.unk_id) == 2
    assert tokenizer.decode(ids) == "a dog"


def test_bpe_loses_nothing():
    tokenizer = Tokenizer.build(config("bpe"), captions(seed=7))
    draw = random.Random(8)
    texts = STRANGE + ["".join(chr(draw.randint(1, 0xD7FF)) for _ in range(30)) for _ in range(100)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_wordpiece_reads_words_it_has_not_seen_and_tidies_its_spaces():
    tokenizer = Tokenizer.build(config("wordpiece"), [*captions(seed=9), "a - ' , . (1) : s ? t w"])
    assert tokenizer.vocab_size == 600
    text = "a man's t-shirt (abc), it's 1.1: no?"
    assert tokenizer.decode(tokenizer.encode_batch([text.upper()])[0]) == text


def test_impossible_wishes_are_explained():
    with pytest.raises(UserError, match=r"lower tokenizer\.min_count"):
        Tokenizer.build(config("word", min_count=1000), captions(seed=10))
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=100 is too small"):
        Tokenizer.build(config("bpe", vocab_size=100), captions(seed=10))
    with pytest.raises(UserError, match="no words"):
        Tokenizer.build(config("wordpiece", vocab_size=4), captions(seed=10))
    for each in ("word", "bpe", "wordpiece"):
        with pytest.raises(UserError, match="no captions"):
            Tokenizer.build(config(each), iter([]))


# ---------------------------------------------------------------------------------------- pretrained


def gpt2_like() -> tokenizers.Tokenizer:
    """Byte-level BPE whose only special token is the end, as GPT-2's."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, "an", "Ġm", "<|endoftext|>"])}
    model = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "n"), ("Ġ", "m")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return model


def bert_like() -> tokenizers.Tokenizer:
    """WordPiece with the padding, truncation and template that such a tokenizer.json often has."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "##s", "riding", "wave", "do", "not"]
    words += [".", "-", "t", "shirt", "on", "top", "of"]
    model = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer()
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    model.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model.enable_padding(length=16)
    model.enable_truncation(4)
    return model


def save_folder(path, model: tokenizers.Tokenizer, **special: str) -> str:
    path.mkdir()
    model.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(path)


def test_pretrained_gpt2_gets_padding_of_its_own(tmp_path):
    end = "<|endoftext|>"
    name = save_folder(tmp_path / "gpt2", gpt2_like(), bos_token=end, eos_token=end, unk_token=end)
    tokenizer = Tokenizer.build(config("pretrained", name=name), [])
    assert tokenizer.bos_id == tokenizer.eos_id == 258
    assert (tokenizer.pad_id, tokenizer.vocab_size, tokenizer.unk_id) == (259, 260, None)
    (ids,) = tokenizer.encode_batch([text := "a man says <|endoftext|> twice"])
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id, *ids]) == text
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode_batch([text]) == [ids]


def test_pretrained_bert_reads_whole_captions(tmp_path):
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    special = {f"{role}_token": token for role, token in special.items()}
    name = save_folder(tmp_path / "bert", bert_like(), **special)
    tokenizer = Tokenizer.build(config("pretrained", name=name), [])
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    (ids,) = tokenizer.encode_batch(["A mans T-shirt. [SEP] do not"])
    assert ids[:7] == [5, 6, 7, 14, 13, 15, 12]
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode([*ids[:7], 10, 11]) == "a mans t-shirt. do not"


def test_pretrained_that_cannot_be_used_is_refused(tmp_path):
    hollow = tokenizers.Tokenizer(models.BPE({"<|endoftext|>": 0}, []))
    name = save_folder(tmp_path / "hollow", hollow, eos_token="<|endoftext|>")
    with pytest.raises(UserError, match="cannot read English"):
        Tokenizer.build(config("pretrained", name=name), [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"from the folder .*empty: it has no tokenizer\.json"):
        Tokenizer.build(config("pretrained", name=str(tmp_path / "empty")), [])
    with pytest.raises(UserError, match=r"needs tokenizer\.name"):
        Tokenizer.build(config("pretrained"), [])


def test_pretrained_name_without_a_hub_asks_for_a_folder():
    program = (
        "from velm_cli.data.tokenizer import Tokenizer, UserError\n"
        "from velm_cli.schema import TokenizerConfig, TokenizerKind\n"
        "try:\n"
        "    name = 'velm-tests/there-is-no-such-tokenizer'\n"
        "    Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name=name), [])\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "give a local folder that holds tokenizer.json" in process.stdout
    assert process.stdout.count("\n") == 1


def test_a_vocabulary_grows_behind_its_own_words():
    config = TokenizerConfig(min_count=2)
    own = Tokenizer.build(config, ["a red ball", "a red ball", "two dogs", "two dogs"])
    grown = own.grown(["is the ball red", "is the dog red", "What is it"], config)
    assert {word: grown.word_ids[word] for word in own.word_ids} == own.word_ids
    assert sorted(grown.word_ids.keys() - own.word_ids.keys()) == ["is", "the"]
    assert sorted(grown.word_ids.values()) == [*range(own.vocab_size + 2)]
    assert grown.encode_batch(["a red ball"]) == own.encode_batch(["a red ball"])
    assert grown.decode(grown.encode_batch(["is the red ball"])[0]) == "is the red ball"
    assert grown.grown(["is the ball"] * 2, config) is grown
    assert (
        Tokenizer.build(TokenizerConfig(kind=TokenizerKind.bpe, vocab_size=300), ["a"]).grown(["ß"], config).unk_id == 3
    )
