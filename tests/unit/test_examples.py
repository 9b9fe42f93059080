"""Records come back as they went in, in the right order, and take no memory; a spool is a list on disk."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from velm_cli.data.examples import Corpus, Example, Examples, captioned
from velm_cli.data.readers.assemble import id_order
from velm_cli.data.spool import Spool

SPLITS = ("val", "train", "test")


def random_records(count: int) -> list[Example]:
    rng = random.Random()
    numbers = [0, 7, -7, 2**63 - 1, -(2**63), 2**63, 10**40, -(10**40), 10**400, -(10**400), 2**64, 2**64 + 1]
    texts = ["7", "a", "B", "é", "ß", "日本", "\U0001f600", "a\0b", "", "10", "9"]
    ids = list({*numbers, *texts, *(rng.randrange(10**9) for _ in range(count)), *(f"x{n}" for n in range(count // 3))})
    rng.shuffle(ids)
    captions = ["a dog", "", "ein Mädchen\nrennt", "猫"]
    images = [None, Path("a.jpg"), Path("/x/y.png"), Path("/x/\udcff.jpg"), Path("é/ü.jpg")]
    return [
        captioned(image_id, rng.choice(SPLITS), rng.choice(images), tuple(rng.choices(captions, k=rng.randrange(4))))
        for image_id in ids
    ]


def test_records_are_a_sequence():
    wanted = random_records(3000)
    found = Examples(wanted)
    assert len(found) == len(wanted) and list(found) == wanted and found == wanted
    assert list(found.ids()) == [record.id for record in wanted]
    assert list(found.splits()) == [record.split for record in wanted]
    assert list(found.targets()) == [list(record.targets) for record in wanted]
    assert list(found.encoded_targets()) == [[text.encode() for text in record.targets] for record in wanted]
    assert [path and Path(path) for path in found.paths()] == [record.image for record in wanted]
    for i in (0, 1, 999, 1000, len(wanted) - 1, -1, -len(wanted)):
        assert found[i] == wanted[i]
    for part in (slice(10, 20), slice(995, 2005), slice(None), slice(50, 50), slice(2990, 99999)):
        assert found[part] == wanted[part] and len(found[part]) == len(wanted[part])
    assert found[100:200][50:60] == wanted[150:160]
    assert found[100:200][-1] == wanted[199]
    for beyond in (len(wanted), -len(wanted) - 1):
        with pytest.raises(IndexError):
            found[beyond]
    assert not Examples() and list(Examples()) == []
    assert Corpus(wanted).counts() == {s: sum(r.split == s for r in wanted) for s in ("train", "val", "test")}


def test_lone_surrogates_in_captions_become_question_marks():
    assert Examples([captioned(1, "train", None, ("a \ud800",))])[0].targets == ("a ?",)


def test_records_are_selected_and_sorted():
    rng = random.Random()
    wanted, found = random_records(2000), Examples()
    present = [rng.random() < 0.7 for _ in wanted]
    for record, there in zip(wanted, present, strict=True):
        found.append(record, present=there)
    there = [record for record, is_there in zip(wanted, present, strict=True) if is_there]
    assert found.select(present=True) == there
    assert found.select(present=False) == [record for record in wanted if record not in there]
    there.sort(key=lambda record: (SPLITS.index(record.split), id_order(record.id)))
    taken = found.select(present=True, order=SPLITS)
    assert taken == there
    bare = [captioned(r.id, r.split, None, r.targets) for r in there]
    assert found.select(present=True, order=SPLITS, images=False) == bare
    left_out = set(rng.sample(range(len(there)), 100))
    assert taken.without(left_out) == [record for i, record in enumerate(there) if i not in left_out]
    assert taken.without([]) is taken
    assert not Examples().select(present=True, order=SPLITS)


def test_ids_that_read_alike_are_found():
    records = [captioned(image_id, "train", Path(f"{n}.jpg")) for n, image_id in enumerate([5, "a", "5", 6, "a", "a"])]
    found = Examples(records)
    assert list(found.doubles()) == [(records[0], records[2]), (records[1], records[4]), (records[1], records[5])]
    assert list(Examples(records[:2]).doubles()) == []


def test_rows_are_grouped_by_the_first_of_each():
    rng = random.Random()
    for distinct in (1, 50, 10**9):
        rows = [(rng.randrange(distinct), rng.randrange(2), n) for n in range(3000)]
        spool = Spool("a", "b", "c")
        for row in rows:
            spool.add(*row)
        first: dict[tuple[int, int], int] = {}
        for n, (a, b, _) in enumerate(rows):
            first.setdefault((a, b), n)
        ordered = sorted(rows, key=lambda row: (first[row[:2]], row[2]))
        groups = [list(group) for _, group in groupby(ordered, key=lambda row: row[:2])]
        assert [[row[1:] for row in group] for group in spool.groups("a", "b")] == groups
        assert len(spool) == 3000


def test_a_full_disk_costs_one_line(tmp_path):
    code = """
import resource, sys
from velm_cli.data.examples import Examples, captioned
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
found = Examples()
for number in range(200_000):
    found.append(captioned(number, "train", None, ["word " * 40]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("velm_cli.errors.UserError: temporary files cannot be written (")
    assert "TMPDIR" in done.stderr.splitlines()[-1]


def test_a_hundred_times_the_records_take_the_same_memory():
    code = """
import sys
from pathlib import Path
from velm_cli.data.examples import Examples, captioned
def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
found = Examples()
for number in range(int(sys.argv[1])):
    captions = ["a man on a horse on a beach at noon"] * 5
    found.append(captioned(number * 7919 % 1_000_003, "train", Path(f"{number}.jpg"), captions))
ordered = found.select(present=True, order=("train",))
print(sum(map(len, ordered.targets())), sum(ordered.ids()), peak())
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not say how much memory a process has had")
    peaks = {}
    for count in (3000, 300_000):
        done = subprocess.run([sys.executable, "-c", code, str(count)], capture_output=True, text=True, check=True)
        captions, ids, peaks[count] = map(int, done.stdout.split())
        assert (captions, ids) == (5 * count, sum(number * 7919 % 1_000_003 for number in range(count)))
    assert peaks[300_000] < peaks[3000] + 60_000, peaks  # kB, of caches; the texts alone are 51,000
