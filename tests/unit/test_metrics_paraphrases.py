"""METEOR with a part of its paraphrases says what it says with all of them, whatever the captions hold."""

from __future__ import annotations

import gzip
import random

import pytest
from java_support import needs_java, random_captions

from velm_cli.metrics.java import Launcher, cache_home, find_java
from velm_cli.metrics.meteor import Meteor, paraphrases
from velm_cli.metrics.paraphrases import ParaphraseTable, neighbours

TABLE = [
    ("0.5", "a dog", "dogs"),
    ("0.25", "dogs", "a dog"),
    ("0.125", "dog a", "dogs"),
    ("1.0", "man", "red haired man"),
    ("0.1", "cat", "unheard"),
]


def write(path, rows, end=""):
    path.write_bytes(gzip.compress(("".join("\n".join(row) + "\n" for row in rows) + end).encode()))
    return path


def read(data: bytes) -> list[tuple[str, ...]]:
    lines = gzip.decompress(data).decode().splitlines()
    return [tuple(lines[start : start + 3]) for start in range(0, len(lines), 3)]


def test_only_phrases_that_stand_in_captions_are_kept(tmp_path):
    table = ParaphraseTable.parse(write(tmp_path / "t.gz", TABLE))
    assert read(table.of(["a dog runs", "two dogs"])) == TABLE[:2]
    assert read(table.of(["dogs", "a big dog"])) == []  # `a dog` nowhere, though both of its words are
    assert read(table.of(["a red-haired man"])) == [TABLE[3]]
    assert read(table.of([])) == []


def test_the_cache_gives_what_was_read(tmp_path):
    file = write(tmp_path / "t.gz", TABLE)
    assert ParaphraseTable.cached(file, tmp_path / "cache", make=False) is None
    first = ParaphraseTable.cached(file, tmp_path / "cache").of(["a dog", "dogs", "red haired man"])
    assert read(first) == [*TABLE[:2], TABLE[3]]
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing temporary is left
    file.touch()
    assert ParaphraseTable.cached(file, tmp_path / "cache").of(["a dog", "dogs", "red haired man"]) == first
    write(file, TABLE[:1])
    assert read(ParaphraseTable.cached(file, tmp_path / "cache").of(["a dog", "dogs"])) == TABLE[:1]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_damaged_cache_is_made_again_and_one_that_cannot_be_written_does_no_harm(tmp_path):
    file, captions = write(tmp_path / "t.gz", TABLE), ["a dog", "dogs", "red haired man"]
    expected = ParaphraseTable.cached(file, tmp_path / "cache").of(captions)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    for place in range(0, len(whole), 7):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert ParaphraseTable.cached(file, tmp_path / "cache", make=False) is None
        assert ParaphraseTable.cached(file, tmp_path / "cache").of(captions) == expected
        assert kept.read_bytes() == whole
    assert ParaphraseTable.cached(file, file).of(captions) == expected  # a file where the folder should be


@pytest.mark.parametrize(
    ("rows", "end", "message"),
    [
        (TABLE, "0.5\na dog\n", "ends within a pair"),
        ([("0.5", "a  dog", "dogs")], "", "not one space apart"),
        ([("x", "a dog", "dogs")], "", "could not convert"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, rows, end, message):
    file = write(tmp_path / "t.gz", rows, end)
    with pytest.raises(ValueError, match=message):
        ParaphraseTable.cached(file, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_a_damaged_table_is_refused(tmp_path):
    file = write(tmp_path / "t.gz", TABLE)
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(ValueError, match="is damaged"):
        ParaphraseTable.parse(file)


def test_neighbours_are_those_of_every_way_to_write_a_token():
    assert neighbours(["a dog"]) == {("", "a"), ("a", "dog"), ("dog", "")}
    found = neighbours(["the red-haired u.s. man", "a , b", "10,000 caf\xe9s"])
    assert {("the", "red-haired"), ("the", "red"), ("red", "haired"), ("haired", "us"), ("us", "man")} <= found
    assert {("u", "s"), ("redhaired", "u.s."), (".", "man")} <= found
    assert {("a", "b"), ("a", ","), ("10000", "cafes"), ("000", "cafés")} <= found
    assert ("the", "man") not in found


def phrase(table: ParaphraseTable, number: int) -> str:
    start = int(table.lengths_P[:number].sum(dtype="int64"))
    return " ".join(table.vocabulary[word] for word in table.words_W[start : start + int(table.lengths_P[number])])


@pytest.mark.java
def test_scores_are_those_of_the_whole_table(tmp_path):
    needs_java()
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    references, hypotheses = random_captions(rng, 60)
    table = ParaphraseTable.cached(paraphrases(), cache_home())
    # Phrases of the table itself with their paraphrases, some of them with marks in between.
    for image in range(1000, 1400):
        first, second = (phrase(table, 2 * pair + side) for pair in [rng.randrange(5_000_000)] for side in (0, 1))
        mark = rng.choice([" ", "-", ".", "'", ", ", " & ", "/", "_", " é", "-'", "%"])
        references[image] = [f"the {first} is here", f"a {mark.join(second.split())} x"]
        hypotheses[image] = mark.join(rng.choice([first, second, f"two {second}s", second.upper()]).split())
    with Launcher(find_java()) as launcher:
        with Meteor(launcher, timeout=300) as whole:
            wanted = whole.score(references, hypotheses)
        captions = [caption for group in references.values() for caption in group] + list(hypotheses.values())
        part, none = tmp_path / "part.gz", tmp_path / "none.gz"
        part.write_bytes(table.of(captions))
        none.write_bytes(gzip.compress(b""))
        with Meteor(launcher, timeout=300, processes=2, paraphrases=part) as cut:
            got = cut.score(references, hypotheses)
        with Meteor(launcher, timeout=300, paraphrases=none) as without:
            assert without.score(references, hypotheses)[0] != wanted[0]  # so the captions do need paraphrases
    assert got[0] == wanted[0]
    assert got[1] == wanted[1]
    assert (got[2].rows_IS == wanted[2].rows_IS).all()
