"""Captions to token ids and back: word, BPE, WordPiece and pretrained vocabularies behind one class.

The `tokenizers` library does the work; this file makes it safe for captions. The same captions give the
same ids in every process (the WordPiece trainer alone does not: see `_wordpiece`). A caption that spells
out "<eos>" stays text. A pretrained tokenizer loses its own padding and truncation and gains the special
tokens it lacks. Imports no torch: preprocessing needs none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from velm_cli.errors import UserError
from velm_cli.files import read_sealed, sealed, write_json, write_text
from velm_cli.hub import hub_has
from velm_cli.schema import TokenizerConfig, TokenizerKind

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]  # ids 0 to 3 of every vocabulary that is built here
MODEL_FILE = "tokenizer.json"  # in the format of the `tokenizers` library
IDS_FILE = "velm_tokenizer.json"  # the special ids, which that format does not name; written last


class SpecialIds(NamedTuple):
    """Ids of the tokens that stand for no text."""

    pad: int
    bos: int
    eos: int
    unk: int | None


class Tokenizer:
    """A vocabulary with its special ids.

    `pad_id` differs from `bos_id` and `eos_id`; those two may be equal (GPT-2). `unk_id` is None where the
    vocabulary has no token that only stands for unknown words. `vocab_size` is the largest id plus one.
    Two tokenizers with the same `digest` (sha256, hexadecimal) give the same ids to every caption.
    """

    def __init__(self, model_json: str, special_ids: SpecialIds, chat_template: str | None = None):
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = special_ids
        self._json = model_json
        self._model = tokenizers.Tokenizer.from_str(model_json)
        self._model.encode_special_tokens = True  # "<eos>" within a caption is text, not the end of it
        self._tidies = isinstance(self._model.decoder, decoders.WordPiece)
        self.vocab_size: int = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        if not all(0 <= token < self.vocab_size for token in special_ids if token is not None):
            raise ValueError(f"the vocabulary of {self.vocab_size} has no ids {special_ids}")
        self.chat_template = chat_template  # of conversations, in Jinja, as its model was trained with; None without
        self.digest: str = hashlib.sha256(f"{list(special_ids)}\n{model_json}".encode()).hexdigest()

    @classmethod
    def build(cls, config: TokenizerConfig, captions: Iterable[str]) -> Tokenizer:
        """A tokenizer as `config` says, with a vocabulary learned from `captions` (read once, in a stream).

        `pretrained` reads no captions. Raises UserError when no vocabulary can be had: no captions, a
        `min_count` that leaves no word, a `vocab_size` too small, a `name` that cannot be loaded.
        """
        template = None
        if config.kind is TokenizerKind.pretrained:
            model, special_ids, template = _pretrained(config.name)
        else:
            captions = iter(captions)
            first = next(captions, None)
            if first is None:
                raise UserError("no captions to build the vocabulary from: the train split is empty")
            captions = chain([first], captions)
            learn = {
                TokenizerKind.word: _word,
                TokenizerKind.bpe: _bpe,
                TokenizerKind.wordpiece: _wordpiece,
            }[config.kind]
            model, special_ids = learn(config, captions), SpecialIds(pad=0, bos=1, eos=2, unk=3)
        return cls(model.to_str(), special_ids, template)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer that `save` wrote to `folder`. Raises UserError when it is absent or damaged."""
        folder = Path(folder)
        try:
            saved = read_sealed(folder / IDS_FILE)
            digest = saved.pop("digest", None)  # None: an older velm's
            template = saved.pop("chat_template", None)
            if not isinstance(template, str | None):
                raise ValueError("its chat template is no text")
            special_ids = SpecialIds(**saved)
            if not all(type(token) is int or (name == "unk" and token is None) for name, token in saved.items()):
                raise ValueError(f"its special ids are {special_ids}")
            with _panics_said("its vocabulary"):
                tokenizer = cls((folder / MODEL_FILE).read_text("utf-8"), special_ids, template)
            if digest not in (None, tokenizer.digest):
                raise ValueError(f"{MODEL_FILE} has changed since it was written")
            return tokenizer
        except FileNotFoundError as error:
            raise UserError(f"no tokenizer in {folder}: {Path(error.filename).name} is missing") from None
        except Exception as error:  # `tokenizers` raises bare Exceptions
            raise UserError(f"the tokenizer in {folder} is damaged: {error}") from error

    def grown(self, texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
        """This vocabulary of words with those that `texts` have `config.min_count` times, behind its own.

        Itself where nothing is new, or where its tokens are parts of words and spell every text already.
        """
        model = json.loads(self._json)
        if model["model"]["type"] != "WordLevel":
            return self
        known: dict[str, int] = model["model"]["vocab"]
        found = _word(config, texts, refuse_none=False).get_vocab()
        new = [word for word in sorted(found, key=found.__getitem__) if word not in known]
        if not new:
            return self
        known |= {word: self.vocab_size + number for number, word in enumerate(new)}
        special_ids = SpecialIds(self.pad_id, self.bos_id, self.eos_id, self.unk_id)
        return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(model)).to_str(), special_ids, self.chat_template)

    def with_template(self, template: str | None) -> Tokenizer:
        """The same vocabulary with another chat template."""
        special_ids = SpecialIds(self.pad_id, self.bos_id, self.eos_id, self.unk_id)
        return self if template == self.chat_template else Tokenizer(self._json, special_ids, template)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both files to `folder` (made when absent); each appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MODEL_FILE, self._json)
        special_ids = SpecialIds(self.pad_id, self.bos_id, self.eos_id, self.unk_id)
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        write_json(folder / IDS_FILE, sealed({**special_ids._asdict(), "digest": self.digest, **template}))

    @property
    def word_ids(self) -> dict[str, int]:
        """The ids of all tokens, special ones included, as the vocabulary spells them."""
        return self._model.get_vocab(with_added_tokens=True)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the tokens that stand for no text, by how templates spell them."""
        added = self._model.get_added_tokens_decoder()
        return {token.content: number for number, token in added.items() if token.special}

    def spelling(self, token: int) -> str:
        """How the vocabulary spells a token."""
        return str(self._model.id_to_token(token))

    @property
    def spelled(self) -> dict[str, str]:
        """How templates spell its special tokens: `bos_token`, `eos_token`, `pad_token`, `unk_token`."""
        named = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id, "unk_token": self.unk_id}
        return {name: self.spelling(token) for name, token in named.items() if token is not None}

    @property
    def never_written(self) -> list[int]:
        """Tokens that no caption holds: padding, BOS, unknown; not EOS, where it is one of these."""
        specials = (self.pad_id, self.bos_id, self.unk_id)
        return [token for token in specials if token is not None and token != self.eos_id]

    @property
    def mask_id(self) -> int:
        """What stands where a word is hidden: the vocabulary's own mask, else PAD, which no text holds."""
        return next((self.word_ids[name] for name in ("[MASK]", "<mask>") if name in self.word_ids), self.pad_id)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without BOS and EOS; empty for a text of no words.

        Runs on all cores. Feed chunks of some 10,000 texts to bound the memory.
        """
        with _panics_said("these captions"):
            encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first EOS, without special tokens (`<unk>` is one)."""
        kept = [int(token) for token in ids]
        if kept[:1] == [self.bos_id]:
            del kept[0]  # first, for BOS may be EOS
        if self.eos_id in kept:
            del kept[kept.index(self.eos_id) :]
        with _panics_said("its own words"):
            text = self._model.decode(kept, skip_special_tokens=True)
        return _tidy(text) if self._tidies else text


@contextmanager
def _panics_said(what: str) -> Iterator[None]:
    """What the `tokenizers` library cannot do with a stranger's tokenizer, as UserError: it raises BaseExceptions."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"the tokenizer cannot read {what}: {' '.join(str(error).split())[:200]}") from None


def _word(config: TokenizerConfig, captions: Iterable[str], *, refuse_none: bool = True) -> tokenizers.Tokenizer:
    """Lower-case words: runs of letters and digits, with apostrophes and hyphens between them."""
    model = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    model.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.NFC(), normalizers.Replace(Regex("[‘’ʼ]"), "'")]
    )
    letter = r"[\p{L}\p{M}\p{N}]"
    joiner = r"['\-\x{200C}\x{200D}]"  # Persian and Indic words hold zero-width joiners
    model.pre_tokenizer = pre_tokenizers.Split(
        Regex(f"{letter}+(?:{joiner}{letter}+)*"), behavior="removed", invert=True
    )
    trainer = trainers.WordLevelTrainer(  # sorts by count, then alphabetically
        vocab_size=2**31, min_frequency=config.min_count, special_tokens=SPECIAL, show_progress=False
    )
    model.train_from_iterator(captions, trainer)
    if refuse_none and model.get_vocab_size() == len(SPECIAL):
        raise UserError(
            f"no word is seen tokenizer.min_count={config.min_count} times in the training texts, so all "
            "would become <unk>: lower tokenizer.min_count (1 keeps every word)"
        )
    return model


def _bpe(config: TokenizerConfig, captions: Iterable[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2's: `decode` gives back every byte of the caption."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if config.vocab_size < len(SPECIAL) + len(alphabet):
        raise UserError(
            f"tokenizer.vocab_size={config.vocab_size} is too small for kind=bpe: "
            f"{len(alphabet)} bytes and {len(SPECIAL)} special tokens need {len(alphabet) + len(SPECIAL)}"
        )
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # the whole alphabet in advance: ids and ties depend on no hash order
        vocab_size=config.vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(captions, trainer)
    return model


def _wordpiece(config: TokenizerConfig, captions: Iterable[str]) -> tokenizers.Tokenizer:
    """WordPiece as BERT's lower-case one, but accents stay (other languages' scores need them).

    The library's trainer numbers the pieces "##x" in the order of a hash map, and breaks ties by these
    numbers, so every run gives another vocabulary. Here it finds them numbered: they are handed to it as
    special tokens of a throw-away tokenizer. That takes a first look at all words, hence the counting.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.BertNormalizer(strip_accents=False)])
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    spaced: Counter[str] = Counter()
    captions = iter(captions)
    while chunk := list(islice(captions, 1000)):
        spaced.update(normalizer.normalize_str("\n".join(chunk)).split())
    counts: Counter[str] = Counter()
    for text, count in spaced.items():  # each once: splitting at punctuation is slow
        for word, _ in pre_tokenizer.pre_tokenize_str(text):
            counts[word] += count

    letters: Counter[str] = Counter()
    for word, count in counts.items():
        for letter in word:
            letters[letter] += count
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))
    alphabet = set(ranked[: (config.vocab_size - len(SPECIAL)) // 2])  # each may come as "x" and as "##x"
    words = {word: count for word, count in counts.items() if alphabet.issuperset(word)}
    if not words:
        raise UserError(
            f"no words to learn from with tokenizer.vocab_size={config.vocab_size}: "
            "raise it, or look at the training captions"
        )
    tails = sorted({f"##{letter}" for word in words for letter in word[1:]})

    learner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=SPECIAL + tails,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(_repeated(words), trainer)

    model = tokenizers.Tokenizer(models.WordPiece(learner.get_vocab(), unk_token="<unk>"))
    model.add_special_tokens(SPECIAL)
    model.normalizer, model.pre_tokenizer = normalizer, pre_tokenizer
    model.decoder = decoders.WordPiece(cleanup=False)
    return model


def _repeated(counts: dict[str, int]) -> Iterator[str]:
    """Each word as often as it was counted, in lines of at most 1000 words."""
    for word, count in counts.items():
        yield from repeat(" ".join([word] * 1000), count // 1000)
        yield " ".join([word] * (count % 1000))


def _pretrained(name: str | None) -> tuple[tokenizers.Tokenizer, SpecialIds, str | None]:
    """The tokenizer of a local folder or of the model hub, its special ids, and its chat template if it has one."""
    if not name:
        raise UserError("tokenizer.kind=pretrained needs tokenizer.name: a local folder or a hub name")
    loaded = _load_transformers(name)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"tokenizer.name={name} has no tokenizer.json, which velm reads; choose one that has")
    model = tokenizers.Tokenizer.from_str(backend.to_str())
    model.no_padding()
    model.no_truncation()
    if isinstance(model.decoder, decoders.WordPiece):  # its own clean-up turns " do not" into " don't"
        model.decoder = decoders.WordPiece(cleanup=False)

    # Wrong keywords or missing files make transformers 5 return a vocabulary of one token, silently.
    probe = model.encode("a man riding a wave on top of a surfboard", add_special_tokens=False).ids
    if len(set(probe)) < 2:
        raise UserError(
            f"tokenizer.name={name} loads as a tokenizer of {model.get_vocab_size()} tokens that cannot read "
            "English: its vocabulary files are missing or damaged; a good folder holds tokenizer.json"
        )

    special: dict[str, Any] = dict(loaded.special_tokens_map)
    eos = special.get("eos_token") or special.get("sep_token") or "<eos>"
    bos = special.get("bos_token") or special.get("cls_token") or eos
    pad, unk = special.get("pad_token"), special.get("unk_token")
    if pad is None or pad in (bos, eos):  # padding must not look like an end
        pad = "<pad>"
    if unk in (bos, eos, pad):  # GPT-2 names its end token here
        unk = None
    model.add_special_tokens([str(bos), str(eos), str(pad)])  # new ids only for those it lacks
    ids = model.get_vocab()
    unk_id = None if unk is None else ids[str(unk)]
    template = getattr(loaded, "chat_template", None)
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    return model, SpecialIds(ids[str(pad)], ids[str(bos)], ids[str(eos)], unk_id), template


def _load_transformers(name: str) -> Any:
    """transformers' tokenizer of `name`: the folder, else the hub's cache, else the hub."""
    from transformers import AutoTokenizer  # imports torch; only this kind pays for it

    is_folder = Path(name).is_dir()
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError and more, by version
        if is_folder:
            has_file = (Path(name) / MODEL_FILE).exists()
            reason = f"transformers cannot read its {MODEL_FILE}" if has_file else f"it has no {MODEL_FILE}"
            raise UserError(f"no tokenizer can be loaded from the folder {name}: {reason}") from error
    try:
        if hub_has(name):
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        problem: Exception | None = None
    except Exception as error:
        problem = error
    raise UserError(
        f"tokenizer.name={name} is not a folder here and the model hub has no such tokenizer or cannot "
        "be reached: give a local folder that holds tokenizer.json"
    ) from problem


def _tidy(text: str) -> str:
    """Undo the spaces that BERT's splitting puts around punctuation: "t - shirt ." -> "t-shirt."."""
    text = re.sub(r"(?<=\w) - (?=\w)", "-", text)
    text = re.sub(r"(?<=\w) ' (?=(?:s|t|re|ve|ll|m|d|clock)\b)", "'", text)
    text = re.sub(r"(?<=\d) ([.,:]) (?=\d)", r"\1", text)
    text = re.sub(r" ([.,!?;:%)\]}])", r"\1", text)
    return re.sub(r"([(\[{$#]) ", r"\1", text)
