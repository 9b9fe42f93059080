"""Captions as the evaluation servers take them: COCO's captioning server and nocaps on EvalAI.

The test captions of both are kept private, so a server gives the only test scores there are, on few uploads a user;
a wrong upload is found out hours later. All that a server would refuse is therefore refused here, before anything
is written. COCO's server takes `results.zip` with the captions of val2014 and of test2014 (its upload page and
Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server"); nocaps takes one JSON file.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Collection, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from velm_cli.errors import UserError, did_you_mean
from velm_cli.files import write_bytes, write_json
from velm_cli.metrics.matching import listing
from velm_cli.metrics.tokenize import one_line

# Images of each split that a server scores, all of which need a caption (nocaps: Agrawal et al. 2019).
SPLITS = {"val2014": 40_504, "test2014": 40_775, "nocaps_val": 4_500, "nocaps_test": 10_600}
COCO_SPLITS = ("val2014", "test2014")
ALGORITHM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")  # no "_": it parts the words of the file's name


def write_submission(
    folder: Path, split: str, algorithm: str, captions: Mapping[Any, str], expected: Collection[int] | None
) -> Path:
    """Writes `captions` (one an image) of a whole split as a results file in `folder`, and returns its path.

    `expected` are the ids of the split's images; without them only their number is checked. Whitespace and
    control characters become single spaces, since a line break in a caption shifts or hangs a server's tokenizer.
    Raises UserError, which lists all that is wrong, and then writes nothing.
    """
    path = submission_file(folder, split, algorithm)
    clean = {image: " ".join(one_line(text).split()) for image, text in captions.items() if isinstance(text, str)}
    if problems := _problems(split, captions, clean, expected):
        raise UserError(f"no submission of {split} was written: {'; '.join(problems)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, [{"image_id": int(image), "caption": clean[image]} for image in sorted(clean)], indent=None)
    return path


def pack_submission(folder: Path, algorithm: str) -> Path:
    """Writes `results.zip` for COCO's server from the results files of both splits in `folder`; returns its path.

    Raises UserError when one of them is missing: the server scores only both together.
    """
    paths = [submission_file(folder, split, algorithm) for split in COCO_SPLITS]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing: COCO's server takes val2014 and test2014 together, so caption both")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, arcname=path.name)  # at the top level, where the server looks
    write_bytes(folder / "results.zip", [packed.getvalue()])
    return folder / "results.zip"


def split_of(server: str, images: int) -> str:
    """The split of `server` (coco | nocaps) that has so many images. Raises UserError when none has."""
    splits = {name: count for name, count in SPLITS.items() if (name in COCO_SPLITS) == (server == "coco")}
    for name, count in splits.items():
        if count == images:
            return name
    sizes = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    raise UserError(
        f"eval.submit={server}: these are {images:,} images, and the server takes whole splits only: {sizes}"
    )


def submission_file(folder: Path, split: str, algorithm: str) -> Path:
    """Where the captions of `split` by the system `algorithm` are written. Raises UserError for other names."""
    if split not in SPLITS:
        raise UserError(f"there is no submission of {split!r}{did_you_mean(split, SPLITS)} ({', '.join(SPLITS)})")
    if not ALGORITHM.fullmatch(algorithm):
        raise UserError(
            f"the name {algorithm!r} cannot stand in a submission's file name: use letters, digits, '-' and '.'"
        )
    return folder / f"captions_{split}_{algorithm}_results.json"


def _problems(
    split: str, captions: Mapping[Any, Any], clean: Mapping[Any, str], expected: Collection[int] | None
) -> list[str]:
    problems = []
    odd = [repr(image) for image in captions if isinstance(image, bool) or not isinstance(image, Integral)]
    if odd:
        problems.append(f"ids that are not whole numbers: {listing(odd)}")
    if wrong := [image for image in captions if image not in clean]:
        problems.append(f"captions that are not text: {listing(wrong)}")
    if empty := [image for image, text in clean.items() if not text]:
        problems.append(f"empty captions: {listing(empty)}")
    if expected is not None and not odd:
        wanted = set(expected)
        if missing := sorted(wanted - captions.keys()):
            problems.append(f"no caption for {listing(missing)}")
        if unknown := sorted(captions.keys() - wanted):
            problems.append(f"captions of images that are not of this split: {listing(unknown)}")
    if len(captions) != SPLITS[split]:
        problems.append(f"it has {len(captions):,} captions where the server wants all {SPLITS[split]:,}")
    return problems
