"""COCO's document frequencies are the known ones, whatever the cache holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from java_support import needs_java

from velm_cli.metrics import frequencies
from velm_cli.metrics.document_frequency import DocumentFrequency
from velm_cli.metrics.frequencies import COCO_DIGEST, COCO_TABLE, document_frequencies
from velm_cli.metrics.java import Launcher, find_java
from velm_cli.metrics.tokenize import PtbTokenizer

TABLE = DocumentFrequency.of([["a dog runs", "the dog"], ["a dog"], ["a cat"]], "COCO val2014")


@pytest.fixture
def counted(monkeypatch):
    """How often the table was counted; TABLE stands for COCO's."""
    times = []
    monkeypatch.setattr(frequencies, "_of_coco", lambda tokenize: times.append(1) or TABLE)
    monkeypatch.setattr(frequencies, "COCO_DIGEST", TABLE.digest)
    return times


def coco(folder) -> DocumentFrequency:
    return document_frequencies("coco", folder, lambda captions: [])


def test_it_is_counted_once(tmp_path, counted):
    assert coco(tmp_path / "new").digest == coco(tmp_path / "new").digest == TABLE.digest
    assert len(counted) == 1


def test_another_table_under_its_name_is_not_used(tmp_path, counted):
    """A valid one with other counts, as another user of the cache can put there."""
    other = dataclasses.replace(TABLE, counts=[np.full_like(counts, 2) for counts in TABLE.counts])
    assert other.digest != TABLE.digest
    other.save(tmp_path / COCO_TABLE)
    assert coco(tmp_path).digest == TABLE.digest
    assert DocumentFrequency.load(tmp_path / COCO_TABLE).digest == TABLE.digest


def test_damage_and_a_full_disk_cost_time_only(tmp_path, counted):
    TABLE.save(tmp_path / COCO_TABLE)
    data = bytearray((tmp_path / COCO_TABLE).read_bytes())
    data[len(data) // 2] ^= 16
    (tmp_path / COCO_TABLE).write_bytes(data)
    assert coco(tmp_path).digest == TABLE.digest
    (tmp_path / "file").write_text("where the cache folder should be")
    assert coco(tmp_path / "file").digest == TABLE.digest


def test_a_table_that_is_not_the_known_one_is_not_kept(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(frequencies, "COCO_DIGEST", COCO_DIGEST)
    assert coco(tmp_path).digest == TABLE.digest
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.java
def test_the_known_digest_is_that_of_cocos_captions(tmp_path):
    needs_java()
    with Launcher(find_java()) as launcher:
        found = document_frequencies("coco", tmp_path, PtbTokenizer(launcher, timeout=300))
    assert found.digest == COCO_DIGEST
