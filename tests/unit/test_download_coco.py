"""scripts/download_coco.sh, run wholly against a folder of tiny archives."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from velm_cli import schema
from velm_cli.data.readers import read

SCRIPT = Path(__file__).parents[2] / "scripts" / "download_coco.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
full = pytest.mark.skipif(
    not all(map(shutil.which, ("curl", "unzip", "python3"))), reason="needs curl, unzip and python3"
)


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def name_of(folder: str, image_id: int) -> str:
    return f"COCO_{folder}_{image_id:012d}.jpg" if folder.endswith("2014") else f"{image_id:012d}.jpg"


@pytest.fixture(params=["2014", "2017"])
def mirror(tmp_path, request) -> tuple[Path, str]:
    """A stand-in for the official site with three images, and its year."""
    site, year = tmp_path / "site", request.param
    for folder in ("annotations", "zips"):
        (site / folder).mkdir(parents=True)
    with zipfile.ZipFile(site / "annotations" / f"annotations_trainval{year}.zip", "w") as archive:
        for part, ids in (("train", (1, 2)), ("val", (3,))):
            content = {
                "images": [{"id": i, "file_name": name_of(f"{part}{year}", i)} for i in ids],
                "annotations": [{"id": i, "image_id": i, "caption": f"image {i}"} for i in ids],
            }
            archive.writestr(f"annotations/captions_{part}{year}.json", json.dumps(content))
            write_images(site, f"{part}{year}", ids)
    return site, year


def write_images(site: Path, folder: str, ids: tuple[int, ...]) -> None:
    with zipfile.ZipFile(site / "zips" / f"{folder}.zip", "w") as archive:
        for image_id in ids:
            archive.writestr(f"{folder}/{name_of(folder, image_id)}", b"pixels")


def options(mirror: tuple[Path, str]) -> list[str]:
    return ["--source", mirror[0].as_uri(), "--year", mirror[1]]


def test_it_parses_and_explains_itself():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    shown = run("--help")
    assert shown.returncode == 0
    assert "--year 2014|2017" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the folder to download into"),
        (("--yaer", "2014", "x"), "unknown option --yaer"),
        (("--year", "2015", "x"), "--year is 2014 or 2017, not 2015"),
        (("--year",), "--year needs a value"),
        (("a", "b"), "two folders given: a and b"),
        (("--no-md5", "x"), "--no-md5 is for mirrors"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@full
def test_what_it_downloads_is_what_the_reader_reads(tmp_path, mirror):
    folder, year = tmp_path / "my coco", mirror[1]
    result = run(*options(mirror), "--no-md5", folder)
    assert result.returncode == 0, result.stderr
    assert f"dataset.root={folder} dataset.split=official{year}" in result.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", f"train{year}", f"val{year}"]
    corpus = read(schema.CocoConfig(root=str(folder), split=schema.CocoSplit[f"official{year}"]))
    assert [(r.id, r.split, r.targets) for r in corpus.examples] == [
        (1, "train", ("image 1",)),
        (2, "train", ("image 2",)),
        (3, "val", ("image 3",)),
    ]
    again = run("--source", "file:///nowhere", "--year", year, "--no-md5", folder)  # nothing left to download
    assert again.returncode == 0
    assert f"train{year} is there already" in again.stdout


@full
def test_a_wrong_checksum_stops_it(tmp_path, mirror):
    result = run(*options(mirror), tmp_path / "coco")
    assert result.returncode == 1
    assert f"annotations_trainval{mirror[1]}.zip has the MD5 sum" in result.stderr
    assert not (tmp_path / "coco" / "annotations").exists()


@full
def test_missing_images_and_damage_are_noticed(tmp_path, mirror):
    (site, year), folder = mirror, tmp_path / "coco"
    write_images(site, f"train{year}", (1,))
    result = run(*options(mirror), "--no-md5", folder)
    assert result.returncode == 1
    assert f"1 of 2 images of captions_train{year}.json are there" in result.stdout
    assert not (folder / f"train{year}").exists()

    archive = folder / f"train{year}.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    result = run(*options(mirror), "--no-md5", folder)
    assert result.returncode == 1
    assert f"{archive} is damaged; delete it and run again" in result.stderr

    archive.unlink()
    write_images(site, f"train{year}", (1, 2))
    assert run(*options(mirror), "--no-md5", folder).returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["annotations", f"train{year}", f"val{year}"]


@full
def test_an_interrupted_download_continues(tmp_path, mirror):
    (site, year), folder = mirror, tmp_path / "coco"
    folder.mkdir()
    whole = (site / "annotations" / f"annotations_trainval{year}.zip").read_bytes()
    (folder / f"annotations_trainval{year}.zip.part").write_bytes(whole[: len(whole) // 2])
    (folder / f"train{year}.zip.part").write_bytes((site / "zips" / f"train{year}.zip").read_bytes())
    result = run(*options(mirror), "--no-md5", "--keep-zips", folder)
    assert result.returncode == 0, result.stderr
    assert (folder / f"annotations_trainval{year}.zip").read_bytes() == whole
    assert f"downloading {site.as_uri()}/zips/train{year}.zip" not in result.stdout


@full
def test_captions_only(tmp_path, mirror):
    result = run(*options(mirror), "--no-md5", "--captions-only", tmp_path / "coco")
    assert result.returncode == 0, result.stderr
    assert "dataset.images=false" in result.stdout
    assert [path.name for path in (tmp_path / "coco").iterdir()] == ["annotations"]
