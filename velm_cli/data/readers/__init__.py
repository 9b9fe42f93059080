"""One module an annotation format: files in, Examples out, nothing else.

`read` picks the reader by the type of the config; `check_root` is the part of it that a run does before
anything else, so that a wrong path costs no time.
"""

from __future__ import annotations

from pathlib import Path

from velm_cli import schema
from velm_cli.data.examples import Corpus
from velm_cli.data.readers.chat import chat_files, read_chat
from velm_cli.data.readers.class_folders import read_class_folders
from velm_cli.data.readers.coco import read_coco, read_shapes
from velm_cli.data.readers.documents import read_documents
from velm_cli.data.readers.flickr import read_flickr
from velm_cli.data.readers.folder import read_folder
from velm_cli.data.readers.manifest import manifest_files, read_manifest
from velm_cli.data.readers.multi30k import read_multi30k
from velm_cli.data.readers.nlvr import read_nlvr
from velm_cli.data.readers.summaries import captions_into_one
from velm_cli.data.readers.vg import read_vg
from velm_cli.data.readers.vqa import read_vqa
from velm_cli.errors import UserError


def read(config: schema.DatasetConfig) -> Corpus:
    """All Examples that `config` describes. Raises UserError for whatever the user can mend."""
    check_root(config)
    corpus = _read(config, _path(config.root))
    return captions_into_one(corpus) if config.summarise else corpus


def _read(config: schema.DatasetConfig, root: Path) -> Corpus:
    match config:
        case schema.ShapesConfig():
            return read_shapes(config, root)
        case schema.CocoConfig():
            return read_coco(config, root if config.root else None)
        case schema.VqaConfig():
            return read_vqa(config, root if config.root else None)
        case schema.Multi30kConfig():
            return read_multi30k(config, root)
        case schema.DocumentsConfig():
            return read_documents(config, root)
        case schema.NlvrConfig():
            return read_nlvr(config, root if config.root else None)
        case schema.FlickrConfig():
            return read_flickr(config, root)
        case schema.ManifestConfig():
            return read_manifest(config, root if config.root else None, _path(config.file))
        case schema.ChatConfig():
            return read_chat(config, root if config.root else None)
        case schema.VgConfig():
            return read_vg(config, root)
        case schema.FolderConfig():
            by_folder = config.labels and config.label_column is None
            return read_class_folders(config, root) if by_folder else read_folder(config, root)
    raise AssertionError(f"no reader for {type(config).__name__}")


def check_root(config: schema.DatasetConfig) -> None:
    """Raise UserError if a folder or file that `config` needs is not given or not there. Reads nothing."""
    match config:
        case schema.ShapesConfig():
            if not config.root:
                raise UserError("dataset.root is not set: give the folder to draw the scenes into")
            if _path(config.root).is_file():
                raise UserError(f"dataset.root: {config.root} is not a folder; give one to draw the scenes into")
        case schema.CocoConfig():
            # without images the captions inside pycocoevalcap's jar suffice
            _check_folder(config.root, "train2014/, val2014/ and annotations/", required=config.images)
        case schema.VqaConfig():
            _check_folder(config.root, "the questions, annotations and images", required=config.questions is None)
            needed = config.images and not config.root
            _check_folder(config.images_root, "the images", required=needed, option="images_root")
        case schema.Multi30kConfig():
            _check_folder(config.root, "train.jsonl or train.en, train.de and the like", required=True)
            _check_folder(config.images_root, "the images", required=False, option="images_root")
        case schema.DocumentsConfig():
            _check_folder(config.root, "train.jsonl, val.jsonl and the like", required=True)
            _check_folder(config.images_root, "the images", required=False, option="images_root")
        case schema.NlvrConfig():
            _check_folder(config.root, "the records and pictures of NLVR", required=config.files is None)
            _check_folder(config.images_root, "the pictures", required=False, option="images_root")
        case schema.FlickrConfig():
            _check_folder(config.root, "the images and captions of Flickr8k or Flickr30k", required=True)
        case schema.ManifestConfig():
            if not config.file:
                raise UserError('dataset.file is not set: give JSON lines such as {"image": path, "captions": [...]}')
            manifest_files(_path(config.file))
            _check_folder(config.root, "the images of the manifest", required=False)
        case schema.ChatConfig():
            if not config.file:
                raise UserError("dataset.file is not set: give conversations, such as LLaVA's JSON or parquet")
            chat_files(config.file, _path(config.root) if config.root else None)
            _check_folder(config.root, "the images of the conversations", required=False)
        case schema.VgConfig():
            _check_folder(config.root, "VG_100K/, VG_100K_2/ and the JSON files of Visual Genome", required=True)
        case schema.FolderConfig():
            _check_folder(config.root, "your images and their captions", required=True)


def _check_folder(root: str | None, content: str, *, required: bool, option: str = "root") -> None:
    if not root:
        if required:
            raise UserError(f"dataset.{option} is not set: give the folder that holds {content}")
    elif not _path(root).is_dir():
        what = "does not exist"
        if _path(root).exists():
            packed = _path(root).suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
            what = "is an archive: unpack it" if packed else "is not a folder"
        raise UserError(f"dataset.{option}: {root} {what}; give the folder that holds {content}")


def _path(text: str | None) -> Path:
    return Path(text or "").expanduser()
