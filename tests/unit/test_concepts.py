"""Concept words against a plain reference, and what does not count as one."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np

from velm_cli.data.concepts import STOP_WORDS, concept_words, labels_of


def reference(captions, train, n):
    """The same by the definition, one record at a time."""
    contents = []
    for texts in captions:
        words = {word for text in texts for word in re.split(r"[^a-z]+", text.lower())}
        contents.append({word for word in words if len(word) > 1 and word not in STOP_WORDS})
    count = Counter(word for content, is_train in zip(contents, train, strict=True) if is_train for word in content)
    names = sorted((word for word in count if count[word] >= 5), key=lambda word: (-count[word], word))[:n]
    return names, [[names.index(word) for word in names if word in content] for content in contents]


def test_random_captions_equal_the_reference():
    draw = random.Random()
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 3))) for _ in range(300)]
    words += ["The", "with", "Dog", "dog's", "t-shirt", "42", "a"]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    captions = [
        tuple(" ".join(draw.choices(words, weights, k=draw.randint(0, 12))) + "." for _ in range(draw.randint(0, 5)))
        for _ in range(400)
    ]
    train = np.array([draw.random() < 0.8 for _ in captions])
    for n in (0, 10, 1000):
        names, labels = reference(captions, train, n)
        assert concept_words(captions, train, n) == names
        numbers = {name: number for number, name in enumerate(names)}
        found = [labels_of(texts, numbers) for texts in captions]
        assert [ids.tolist() for ids in found] == labels
        assert {ids.dtype for ids in found} == {np.dtype(np.uint16)}


def test_words_count_once_an_image_and_only_in_training():
    captions = [("a dog, a dog", "DOG!")] * 4 + [("dog and cat",)] * 4
    train = [True] * 4 + [False] * 4
    assert concept_words(captions, train, 9) == []  # 4 training images: below 5
    train[4] = True
    assert concept_words(captions, train, 9) == ["dog"]


def test_function_words_name_nothing():
    captions = [("This is a picture of the two of them doing something with their kites",)] * 5
    assert concept_words(captions, [True] * 5, 99) == ["kites", "two"]


def test_other_alphabets_have_words_too():
    captions = [("Ein Mädchen im Café", "кошка спит")] * 5
    assert {"mädchen", "café", "кошка"} <= set(concept_words(captions, [True] * 5, 99))


def test_nothing_gives_nothing():
    assert concept_words([], [], 5) == concept_words([(), ("",)], [True] * 2, 5) == []
    assert labels_of((), {"dog": 0}).tolist() == labels_of(("a cat",), {"dog": 0}).tolist() == []
