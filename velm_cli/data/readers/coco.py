"""COCO captions, 2014 and 2017, in the official folders; the drawn scenes use the same layout.

Captions without annotation files: pycocoevalcap, which velm needs anyway, carries the complete official
2014 captions inside the jar of SPICE, so the images alone are enough to start.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from velm_cli import schema
from velm_cli.data.examples import Corpus, Examples
from velm_cli.data.readers.assemble import Entry, Listing, Question, assemble, first_few, labelled
from velm_cli.data.readers.captions_json import Captioned, parse_captions
from velm_cli.data.readers.chat import read_chat
from velm_cli.data.readers.class_folders import read_class_folders
from velm_cli.data.readers.documents import read_documents
from velm_cli.data.readers.instances import read_instances
from velm_cli.data.readers.manifest import read_manifest
from velm_cli.data.readers.multi30k import read_multi30k
from velm_cli.data.readers.nlvr import read_nlvr
from velm_cli.data.readers.splits import Split, read_split
from velm_cli.data.readers.vqa import read_vqa
from velm_cli.data.shapes import BOXES, write_shapes
from velm_cli.data.shapes_chat import write_shapes_chat
from velm_cli.data.shapes_classes import write_shapes_classes
from velm_cli.data.shapes_labels import write_shapes_labels
from velm_cli.data.shapes_motion import write_motion
from velm_cli.data.shapes_reasoning import CAPTIONS, write_boxes, write_statements
from velm_cli.data.shapes_summaries import write_shapes_summaries
from velm_cli.data.shapes_translations import write_shapes_translations
from velm_cli.data.shapes_vqa import write_shapes_questions
from velm_cli.errors import UserError
from velm_cli.lines import Refused, load_json, parse_json

IMAGE_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
JAR = Path("spice") / "spice-1.0.jar"
JAR_FOLDER = "coco/annotations"

SPLIT_NAMES = ("dataset_coco.json", "karpathy_split.json", "karpathy_split.json.gz")
SPLIT_FOLDERS = (".", "annotations", "karpathy")
KARPATHY_IMAGES = 123_287
KARPATHY_COUNTS = {"train": 113_287, "val": 5_000, "test": 5_000}  # train with restval


def read_coco(config: schema.CocoConfig, root: Path | None) -> Corpus:
    """Examples of COCO under `root` (None only without images); see `CocoSplit` for the parts."""
    corpus = Corpus(Examples())
    split = None
    if config.split is schema.CocoSplit.karpathy:
        split = read_split(_find_split(config, root), key="cocoid")
        corpus.notes.append(_check_karpathy(split))
    files = _find_annotations(config.split, root, "instances" if config.labels else "captions")
    missing = config.missing
    if config.labels and files is None:
        raise UserError(
            f"dataset.labels=true: the labels are in instances_train2014.json and its like, and {root} has none: put "
            "them into its annotations/ (annotations_trainval2014.zip)"
        )
    if files is None:
        corpus.notes.append(
            "captions: the complete official COCO 2014 set inside pycocoevalcap's jar"
            + (f" (no annotation files in {root})" if root else "")
        )
        if missing is schema.Missing.auto:
            missing = schema.Missing.skip
    return _read(corpus, root, files, split, images=config.images, missing=missing, labels=config.labels)


def read_shapes(config: schema.ShapesConfig, root: Path) -> Corpus:
    """Draw the scenes that are not there yet, and read them: their captions, the questions about them, their labels."""
    if config.drawn in (schema.Drawn.motion, schema.Drawn.motion_questions):
        home = write_motion(config, root)
        table = home / ("captions.jsonl" if config.drawn is schema.Drawn.motion else "questions.jsonl")
        clips = schema.FramesConfig(file=str(table), frames=config.frames, min_frames=1, images=config.images)
        return read_manifest(replace(clips, missing=config.missing), home, table)
    if config.drawn in (schema.Drawn.boxes, schema.Drawn.box_captions):
        sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
        said = write_boxes(root, sizes, config.draw_seed)
        return _statements(config, said) if config.drawn is schema.Drawn.boxes else _captioned_boxes(config, root)
    write_shapes(config, root)
    if config.drawn is schema.Drawn.statements:
        return _statements(config, write_statements(root, config.draw_seed))
    if config.drawn is schema.Drawn.questions:
        questions, annotations = write_shapes_questions(root, config.draw_seed)
        asked = schema.VqaConfig(questions=questions, annotations=annotations, images_root=str(root))
        return read_vqa(replace(asked, images=config.images, missing=config.missing), None)
    if config.drawn is schema.Drawn.chat:
        talks = schema.ChatConfig(file=write_shapes_chat(root, config.draw_seed), root=str(root))
        return read_chat(replace(talks, images=config.images, missing=config.missing), root)
    if config.drawn is schema.Drawn.translations:
        pairs = write_shapes_translations(root, config.draw_seed)
        given = schema.Multi30kConfig(root=str(pairs), images_root=str(root), source_lang="en", target_lang="toy")
        return read_multi30k(replace(given, images=config.images, missing=config.missing), pairs)
    if config.drawn is schema.Drawn.summaries:
        documents = write_shapes_summaries(root, config.draw_seed)
        described = schema.DocumentsConfig(root=str(documents), images_root=str(root))
        return read_documents(replace(described, images=config.images, missing=config.missing), documents)
    if config.drawn is schema.Drawn.classes:
        folders = schema.FolderConfig(labels=True, images=config.images, missing=config.missing)
        return read_class_folders(folders, write_shapes_classes(config, root))
    labels = config.drawn is schema.Drawn.labels
    if labels:
        write_shapes_labels(root, config.draw_seed)
    split = read_split(root / "shapes_split.json", key="cocoid")
    files = _find_annotations(schema.CocoSplit.official2014, root, "instances" if labels else "captions")
    return _read(Corpus(Examples()), root, files, split, images=config.images, missing=config.missing, labels=labels)


def _statements(config: schema.ShapesConfig, files: dict[str, str]) -> Corpus:
    said = schema.NlvrConfig(files=files)
    return read_nlvr(replace(said, images=config.images, missing=config.missing), None)


def _captioned_boxes(config: schema.ShapesConfig, root: Path) -> Corpus:
    table = schema.ManifestConfig(images=config.images, missing=config.missing)
    return read_manifest(table, root / BOXES, root / BOXES / CAPTIONS)


def _read(
    corpus: Corpus,
    root: Path | None,
    files: dict[str, Path] | None,
    split: Split | None,
    *,
    images: bool,
    missing: schema.Missing,
    labels: bool = False,
) -> Corpus:
    """`files`: "train2014" -> captions file (with `labels` instances file), ...; None = the jar. `split` None = the
    parts are the files."""
    base = root or Path()
    annotated: dict[int | str, tuple[Path, Captioned]] = {}
    for folder, captioned in _load(files, corpus.refused, labels):
        if twice := annotated.keys() & captioned.keys():
            raise UserError(f"{len(twice):,} image ids are in two annotation files ({first_few(twice)})")
        home = base / folder
        annotated.update((image_id, (home, image)) for image_id, image in captioned.items())
    if split is not None:
        corpus.notes += split.describe_gaps(set(annotated))

    listing = Listing() if images else None
    folder_of = {} if listing is None else _index_images(base, listing)

    def entries() -> Iterator[Entry | Question]:
        for image_id, (home, image) in annotated.items():
            part = home.name.rstrip("0123456789") if split is None else split.part_of.get(image_id)
            if part is not None:
                path = _locate(image_id, image.file_name, folder_of, home)
                entry = labelled if labels else Entry
                yield entry(image_id, part, path, image.captions)

    return assemble(corpus, entries(), listing, missing, where=f"dataset.root={root}" if root else "COCO")


def _index_images(root: Path, listing: Listing) -> dict[str, Path]:
    """File name -> its folder. The 2017 release put most of val2014 into train2017, so all are searched."""
    folder_of: dict[str, Path] = {}
    for parent in (root, root / "images"):
        for folder in IMAGE_FOLDERS:
            for name in listing.names(parent / folder):
                folder_of.setdefault(name, parent / folder)
    return folder_of


def _locate(image_id: int | str, file_name: str, folder_of: dict[str, Path], home: Path) -> Path:
    """Where the image is, under any of the names that the releases gave it; where it should be if absent."""
    names = [file_name.rpartition("/")[2]]
    if folder_of and isinstance(image_id, int):
        number = f"{image_id:012d}.jpg"
        names += [f"COCO_train2014_{number}", f"COCO_val2014_{number}", number]
    for name in names:
        if name in folder_of:
            return folder_of[name] / name
    return home / names[0]


def _load(
    files: dict[str, Path] | None, refused: Refused, labels: bool
) -> Iterator[tuple[str, dict[int | str, Captioned]]]:
    """One file at a time: the parsed JSON of one (about 300 MB) is freed before the next is read."""
    if files is not None:
        for folder, path in files.items():
            if labels:
                yield folder, read_instances(path, refused)
            else:
                yield folder, parse_captions(load_json(path), str(path), refused)
        return
    # find_spec does not import pycocoevalcap, and so starts no Java
    package = importlib.util.find_spec("pycocoevalcap")
    folders = package.submodule_search_locations if package else None
    jar = Path(folders[0]) / JAR if folders else None
    if jar is None or not jar.is_file():
        raise UserError(
            "no COCO annotation files, and no pycocoevalcap to take the official captions from; "
            "put captions_train2014.json and captions_val2014.json into ROOT/annotations"
        )
    with zipfile.ZipFile(jar) as archive:
        for folder in ("train2014", "val2014"):
            member = f"{JAR_FOLDER}/captions_{folder}.json"
            yield folder, parse_captions(parse_json(archive.read(member), member), member, refused)


def _find_annotations(split: schema.CocoSplit, root: Path | None, kind: str = "captions") -> dict[str, Path] | None:
    """ "train2014" and "val2014" (or 2017) -> captions file, or that of another `kind`; None when there are none."""
    years = {
        schema.CocoSplit.karpathy: ("2014", "2017"),  # the same captions, divided otherwise
        schema.CocoSplit.official2014: ("2014",),
        schema.CocoSplit.official2017: ("2017",),
    }[split]
    for year in years:
        wanted = [f"{kind}_{part}{year}.json" for part in ("train", "val")]
        found: dict[str, Path] = {}
        for parent in (root / "annotations", root) if root else ():
            for name in wanted:
                if (parent / name).is_file():
                    found.setdefault(name, parent / name)
        if len(found) == len(wanted):
            return {name[len(kind) + 1 : -len(".json")]: found[name] for name in wanted}
        if found:
            (absent,) = set(wanted) - found.keys()
            (present,) = found.values()
            raise UserError(f"{present} is there but {absent} is not; put it into the same folder")
    if split is schema.CocoSplit.official2017 and kind == "captions":
        raise UserError(
            "dataset.split=official2017 needs captions_train2017.json and captions_val2017.json in "
            f"{root / 'annotations' if root else 'dataset.root'}: only they say which images are val2017; "
            "get annotations_trainval2017.zip (scripts/download_coco.sh), or take dataset.split=official2014"
        )
    return None


def _find_split(config: schema.CocoConfig, root: Path | None) -> Path:
    if config.split_file:
        given = Path(config.split_file)
        candidates = [given, *([root / given] if root else [])]
    else:
        candidates = [root / folder / name for folder in SPLIT_FOLDERS for name in SPLIT_NAMES] if root else []
    for path in candidates:
        if path.is_file():
            return path
    if config.split_file:
        raise UserError(f"dataset.split_file: {config.split_file} does not exist")
    raise UserError(
        "dataset.split=karpathy needs Karpathy's list: put his dataset_coco.json (from caption_datasets.zip) "
        f"into {root or 'dataset.root'}, or give dataset.split_file; "
        "dataset.split=official2014 and official2017 need no list"
    )


def _check_karpathy(split: Split) -> str:
    """A note on the split; raises UserError if it is complete but divided otherwise than Karpathy's."""
    counts = dict.fromkeys(KARPATHY_COUNTS, 0)
    for part in split.part_of.values():
        counts[part] += 1
    shown = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    if len(split.part_of) != KARPATHY_IMAGES:
        return f"split: {split.path} names {len(split.part_of):,} of {KARPATHY_IMAGES:,} images ({shown})"
    if counts != KARPATHY_COUNTS:
        wanted = ", ".join(f"{part} {count:,}" for part, count in KARPATHY_COUNTS.items())
        raise UserError(f"{split.path} is not Karpathy's split: it has {shown}; his has {wanted}")
    return f"split: Karpathy, from {split.path} ({shown})"
