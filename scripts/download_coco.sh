#!/usr/bin/env bash
# Downloads the official COCO images and captions and lays them out as `dataset=coco` reads them.
# COCO's site offers no working https, so every archive is checked against its known MD5 sum.
set -euo pipefail

readonly OFFICIAL=http://images.cocodataset.org

usage() {
    cat <<'EOF'
Usage: scripts/download_coco.sh [options] FOLDER

Downloads COCO captions and images from the official site into FOLDER, which becomes
dataset.root: train2014/ val2014/ annotations/. Run it again after an interruption: what is
there is kept, a half-done download continues, nothing is ever left half-unpacked.

  --year 2014|2017  which division of the same 123,287 images (default 2014)
  --captions-only   the annotations, no images
  --keep-zips       keep the archives after they are unpacked
  --source URL      take the archives from this mirror (http://, https://, file:///)
  --no-md5          the mirror has archives of its own: check them only for damage and against
                    their own list of images
  --help            this text

Sizes: 2014 needs 0.3 + 13.5 + 6.6 GB, 2017 0.3 + 19.3 + 0.8 GB; as much again while unpacking.
Needs unzip, python3 and either curl or wget.
EOF
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'download_coco: %s\n' "$*" >&2
    exit 1
}

# "path on the site, MD5 sum" of an archive
archive() {
    case $1 in
        annotations_trainval2014) echo "annotations 0a379cfc70b0e71301e0f377548639bd" ;;
        annotations_trainval2017) echo "annotations f4bbac642086de4f52a3fdda2de5fa2c" ;;
        train2014) echo "zips 0da8c0bd3d6becc4dcb32757491aca88" ;;
        val2014) echo "zips a3d79f5ed8d289b7a7554ce06a5782b3" ;;
        train2017) echo "zips cced6f7f71b7629ddf16f17bbcfab6b2" ;;
        val2017) echo "zips 442b8da7639aecaf257c1dceb8ba8c80" ;;
    esac
}

md5_of() {
    if command -v md5sum > /dev/null; then md5sum < "$1" | cut -d' ' -f1; else md5 -q "$1"; fi
}

# fetch URL FILE: continue FILE.part, then rename it
fetch() {
    local url=$1 file=$2
    # a run that was stopped just before the rename has the whole archive already
    if ! { [[ -f $file.part ]] && unzip -tqq "$file.part" > /dev/null 2>&1; }; then
        say "downloading $url"
        if command -v curl > /dev/null; then
            curl --fail --location --retry 5 --continue-at - --output "$file.part" "$url" ||
                die "download of $url stopped; run the same command again to continue it"
        else
            wget --tries=5 --continue --output-document="$file.part" "$url" ||
                die "download of $url stopped; run the same command again to continue it"
        fi
    fi
    mv "$file.part" "$file"
}

# check_zip FILE MD5
check_zip() {
    say "checking $1"
    if [[ $check_md5 == yes ]]; then
        local sum
        sum=$(md5_of "$1")
        [[ $sum == "$2" ]] || die "$1 has the MD5 sum $sum, not $2; delete it and run again"
    else
        unzip -tqq "$1" || die "$1 is damaged; delete it and run again"
    fi
}

# check_images PART FOLDER: FOLDER holds exactly the images that the captions file of PART lists
check_images() {
    python3 - "$folder/annotations/captions_$1.json" "$2" <<'EOF' || die "$2 is not complete; run again"
import json, os, sys

captions, folder = sys.argv[1:]
with open(captions, encoding="utf-8") as file:
    wanted = {image["file_name"] for image in json.load(file)["images"]}
found = {item.name for item in os.scandir(folder) if item.is_file() and item.stat().st_size}
print(f"{len(wanted & found):,} of {len(wanted):,} images of {os.path.basename(captions)} are there")
sys.exit(wanted != found)
EOF
}

# provide NAME: download, check, unpack beside the goal and move into place in one step
provide() {
    local name=$1 where md5
    read -r where md5 <<< "$(archive "$name")"
    local zip=$folder/$name.zip staged=$folder/.$name.unpacking
    if is_installed "$name"; then
        say "$name is there already"
        return
    fi
    [[ -f $zip ]] || fetch "$source/$where/$name.zip" "$zip"
    check_zip "$zip" "$md5"
    say "unpacking $zip"
    rm -rf "$staged"
    unzip -q "$zip" -d "$staged"
    if [[ $where == annotations ]]; then
        mkdir -p "$folder/annotations"
        mv "$staged"/annotations/*.json "$folder/annotations/"
    else
        check_images "$name" "$staged/$name"
        mv "$staged/$name" "$folder/$name"
    fi
    rm -rf "$staged"
    [[ $keep_zips == yes ]] || rm "$zip"
}

is_installed() {
    if [[ $1 == annotations_* ]]; then
        [[ -f $folder/annotations/captions_train$year.json && -f $folder/annotations/captions_val$year.json ]]
    else
        [[ -d $folder/$1 ]]
    fi
}

year=2014 source=$OFFICIAL check_md5=yes keep_zips=no images=yes folder=
while (($#)); do
    case $1 in
        --year | --source)
            (($# > 1)) || die "$1 needs a value; see --help"
            if [[ $1 == --year ]]; then year=$2; else source=${2%/}; fi
            shift
            ;;
        --captions-only) images=no ;;
        --keep-zips) keep_zips=yes ;;
        --no-md5) check_md5=no ;;
        --help | -h)
            usage
            exit 0
            ;;
        -*) die "unknown option $1; see --help" ;;
        *)
            [[ -z $folder ]] || die "two folders given: $folder and $1"
            folder=$1
            ;;
    esac
    shift
done
[[ -n $folder ]] || die "give the folder to download into; see --help"
[[ $year == 2014 || $year == 2017 ]] || die "--year is 2014 or 2017, not $year"
[[ $check_md5 == yes || $source != "$OFFICIAL" ]] || die "--no-md5 is for mirrors given with --source"
for program in unzip python3; do
    command -v "$program" > /dev/null || die "$program is needed and not installed"
done
command -v curl > /dev/null || command -v wget > /dev/null || die "curl or wget is needed"

mkdir -p "$folder"
provide "annotations_trainval$year"
if [[ $images == yes ]]; then
    provide "train$year"
    provide "val$year"
fi

say ""
say "COCO $year is in $folder. Next:"
if [[ $images == yes ]]; then
    say "  velm preprocess dataset=coco dataset.root=$folder dataset.split=official$year"
else
    say "  velm preprocess dataset=coco dataset.root=$folder dataset.split=official$year dataset.images=false"
fi
say "For the Karpathy split put dataset_coco.json into $folder and leave dataset.split out."
