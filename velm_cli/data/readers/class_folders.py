"""A folder for each class: ROOT/train/ants/a.jpg, or ROOT/ants/a.jpg; the form of ImageNet and of most own data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples
from velm_cli.data.readers.assemble import Listing, Question, assemble, labelled
from velm_cli.data.readers.finding import key_of
from velm_cli.data.readers.folder import look
from velm_cli.data.readers.levels import Level, find_level
from velm_cli.data.readers.parting import check_fractions, hash_part, shares_without_effect
from velm_cli.errors import UserError


def read_class_folders(config: schema.FolderConfig, root: Path) -> Corpus:
    """Examples of every image below `root`, whose id is its path relative to `root`; its label is a folder's name.

    That is the folder below train/, val/ or test/ (and however deep the image lies in it), or the one above these
    (ants/train/a.jpg). Without such folders it is the first one of which there are several, and a hash of the path
    says the part. Tables and text files are left aside.
    """
    check_fractions(config.val_fraction, config.test_fraction)
    corpus = Corpus(Examples())
    found = look(root, corpus.refused)
    images = list(found.images)
    level = find_level(images)
    if level.found and any(level.part_of(image) is None for image in images if "/" in image):
        level = Level()  # a class that is called `train`, among others
    depth = _first_choice(images)
    entries: list[Question] = []
    classes: Counter[str] = Counter()
    for image, path in found.images.items():
        label = _label(image.split("/")[:-1], level.depth, depth)
        if label is None:
            corpus.refused.append((image, "it lies in no folder of a class"))
            continue
        part = level.part_of(image) or hash_part(image, config.val_fraction, config.test_fraction)
        classes[label] += 1
        entries.append(labelled(image, part, path, [label]))
    if len(classes) < 2:
        one = f"{next(iter(classes))!r} is the only one" if classes else "no image lies in one"
        raise UserError(
            f"dataset.labels=true: the folders below {root} are the labels, and {one}: give the folder that holds one "
            "folder for each class, or one of train/, val/ and test/ that do"
        )
    assemble(corpus, entries, Listing() if config.images else None, config.missing, f"dataset.root={root}")
    fewest, most = classes.most_common()[-1], classes.most_common(1)[0]
    corpus.notes.append(
        f"{len(classes):,} labels are the names of folders ({fewest[0]} {fewest[1]:,} to {most[0]} {most[1]:,} images)"
    )
    if level.found:
        corpus.notes.append(f"parts are the folders {level.names}")
        _note_unknown(corpus)
    else:
        shown = ", ".join(f"{part} {count:,}" for part, count in corpus.counts().items())
        corpus.notes.append(
            f"split by a hash of the path ({shown}); folders train/, val/ and test/ would decide instead"
        )
    corpus.notes += shares_without_effect(config, not level.found)
    if left := [*found.tables, *found.other_tables]:
        first = key_of(left[0], root)
        corpus.notes.append(
            f"left aside {len(left):,} tables (first {first}): dataset.label_column= takes labels from them"
        )
    return corpus


def _label(folders: Sequence[str], parts: int | None, depth: int) -> str | None:
    """The class of an image in these folders; `parts`: the depth at which they are parts, `depth`: that of classes."""
    if parts is None:
        return folders[depth] if len(folders) > depth else None
    if len(folders) > parts + 1:
        return folders[parts + 1]
    return folders[parts - 1] if parts and len(folders) > parts else None


def _first_choice(images: Sequence[str]) -> int:
    """The depth at which the images' folders first differ; below it they share one."""
    paths = [image.split("/")[:-1] for image in images]
    paths = [path for path in paths if path]
    depth = 0
    while (
        paths
        and len({path[depth] for path in paths if len(path) > depth}) == 1
        and all(len(path) > depth + 1 for path in paths)
    ):
        depth += 1
    return depth


def _note_unknown(corpus: Corpus) -> None:
    """A note on labels of which there is nothing to learn."""
    known: set[str] = set()
    others: Counter[str] = Counter()
    for part, labels in zip(corpus.examples.splits(), corpus.examples.targets(), strict=True):
        known.update(labels) if part == "train" else others.update(labels)
    if known and (strange := [label for label in others if label not in known]):
        corpus.notes.append(
            f"{len(strange):,} labels are of val or test alone (first {strange[0]}): nothing teaches them"
        )
