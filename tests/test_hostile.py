"""Files from strangers: none of them runs code, leaves its folder or takes the machine's memory; each gets one clear line.

Every payload makes the file `canary`, so a test that ran it would see that.
"""

import ast
import html.parser
import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import save_file
from velm import call, velm

import velm_cli
from velm_cli import configs
from velm_cli.data.features import FeatureCache
from velm_cli.data.images import ImageRefused, normalise_image
from velm_cli.data.opening import open_store
from velm_cli.data.store import Store
from velm_cli.data.tokenizer import Tokenizer
from velm_cli.engine import folder
from velm_cli.engine.checkpoint import Checkpoints
from velm_cli.engine.folder import open_run
from velm_cli.engine.progress import Progress
from velm_cli.engine.ranks import Ranks
from velm_cli.errors import UserError
from velm_cli.files import crc32, read_sealed, sealed
from velm_cli.metrics.result_files import read_predictions
from velm_cli.models.hub import load_config, load_pretrained
from velm_cli.models.weights import load_state
from velm_cli.place import Place
from velm_cli.schema import FeatureCaching, FolderConfig, PreprocessConfig, TokenizerConfig, TokenizerKind, TrainRoot


class Payload:
    """Unpickled, it makes the canary."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """The working folder, in which no canary may appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("canary*")), "a payload ran"


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text.strip() and "\n" not in text.strip(), text
    return text


def test_the_payload_is_one(tmp_path):
    pickle.loads(pickle.dumps(Payload()))
    assert Path("canary").is_dir()
    Path("canary").rmdir()


# ------------------------------------------------------------------------------------ the working folder

LOOKALIKE = """
import os, sys, sysconfig
os.makedirs("canary", exist_ok=True)
del sys.modules[__name__]
sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
sys.modules[__name__] = __import__(__name__)
"""


@pytest.fixture
def lookalikes(tmp_path):
    """Modules in the working folder that any of velm's processes would import, if it looked there."""
    for name in ("signal", "pickle", "omegaconf", "hydra", "tqdm"):
        (tmp_path / f"{name}.py").write_text(LOOKALIKE)
    done = subprocess.run([sys.executable, "-c", "import signal, tqdm"], capture_output=True, text=True)
    assert done.returncode == 0 and Path("canary").is_dir(), done.stderr
    Path("canary").rmdir()


def test_modules_in_a_folder_of_photos_are_not_imported(tmp_path, lookalikes):
    for number in range(3):
        Image.new("RGB", (16, 16), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a red square\n")
    words = ["dataset.val_fraction=0", "dataset.test_fraction=0", "preprocess.workers=2", "tokenizer.min_count=1"]
    assert call("preprocess", "dataset=folder", "dataset.root=.", "dataset.store=made", *words) == 0
    with tarfile.open("0.tar", "w") as tar:
        for name in ("0.png", "0.txt"):
            tar.add(name)
    assert call("preprocess", "dataset=webdataset", "dataset.urls=0.tar", "tokenizer.min_count=1") == 0


def test_modules_in_the_working_folder_are_not_imported_by_sweeps_and_ranks(lookalikes, capsys):
    assert call("train", "-m", "seed=0,1", "--jobs=2", "name=sweep") == 1
    (log, _) = Path("runs/sweeps").iterdir()
    assert "the store stores/shapes does not exist" in log.read_text()
    done = velm("train", "--cfg", "job", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr


def test_no_documented_command_puts_the_working_folder_on_the_path():
    root = Path(__file__).parents[1]
    texts = {
        path: path.read_text() for path in [root / "README.md", *root.glob("docs/*.md"), *root.glob("scripts/*.s*")]
    }
    assert len(texts) > 15
    found = [path for path, text in texts.items() if re.search(r"-m velm_cli\b(?!\.)", text)]
    assert not found


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("name", ["evil.safetensors", "evil.pth", "evil.pt", "evil.bin"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_weights_that_are_a_pickle_are_refused(tmp_path, name, how):
    if how == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps({"weight": Payload()}))
    else:
        torch.save({"weight": Payload()}, tmp_path / name)
    with pytest.raises(UserError, match=r"weights: .*evil") as error:
        load_state(tmp_path / name)
    one_line(error)


def test_a_model_folder_with_a_pickle_for_weights_is_refused(tmp_path):
    shutil.copytree(tiny_models.folder("vit"), tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({"encoder.weight": Payload()}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(UserError, match="model") as error:
        load_pretrained("vision", str(tmp_path / "model"), "pretrained", "AutoModel")
    one_line(error)


def test_a_checkpoint_that_is_a_pickle_is_refused_even_with_the_right_checksum(tmp_path, capsys):
    task = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(task.parameters())
    kept = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, Ranks(Place(), torch.device("cpu")), keep=2)
    for step in (1, 2):
        checkpoints.save(task, optimizer, None, Progress(step=step))
    for name in ("task", "optimizer", "random"):
        shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000003")
        evil = tmp_path / "step-00000003"
        torch.save({"weight": Payload()}, evil / f"{name}.safetensors")
        state = read_sealed(evil / "state.json")
        state["sha256"] = {f.name: hashlib_of(f) for f in evil.glob("*.safetensors")}
        (evil / "state.json").write_text(json.dumps(sealed(state)))
        with torch.no_grad():
            task.weight.zero_()
        progress, notes = checkpoints.load_newest(task, optimizer, None)
        assert progress.step == 2 and "step-00000003 is damaged" in notes[0]
        assert all(torch.equal(kept[key], tensor) for key, tensor in task.state_dict().items())
        assert not evil.exists()  # it was moved aside


def hashlib_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------ configs


CONFIGS = {
    "target": "stage: train\nvision: {_target_: os.mkdir, _args_: [canary], kind: vit}\n",
    "tag": "stage: train\nvision: !!python/object/apply:os.mkdir [canary]\n",
    "new": "stage: !!python/object/new:os.mkdir [canary]\n",
    "module": "stage: !!python/module:canary\n",
    "environment": "stage: train\nname: ${oc.env:HOME}\n",
    "resolver": "stage: train\nname: ${oc.decode:'!!python/object/apply:os.mkdir [canary]'}\n",
    "deep": "stage: " + "[" * 100_000,
    "bomb": "stage: [x]\n"
    + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12)),
    "list": "- train\n",
    "binary": "\0\1\2",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_of_a_strangers_run_runs_nothing(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(CONFIGS[name])
    for read in (configs.load_run_config, lambda folder: configs.load_dataset(Path(folder))):
        with pytest.raises(UserError, match=r"config\.yaml|is a run of") as error:
            read(tmp_path / "run")
        one_line(error)


def test_a_whole_config_with_one_target_more_is_refused(tmp_path):
    good = TrainRoot()
    (tmp_path / "run").mkdir()
    text = configs.to_yaml(good).replace("optim:\n", "optim:\n  _target_: os.mkdir\n  _args_: [canary]\n")
    assert "_target_" in text
    (tmp_path / "run/config.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        configs.load_run_config(tmp_path / "run")
    one_line(error)


def test_the_command_line_runs_nothing_either(tmp_path, capsys):
    """`_target_` and resolvers as values and keys, and an environment that asks for Python code."""
    for words in (["+_target_=os.mkdir"], ["+vision._target_=os.mkdir", "+vision._args_=[canary]"],
                  ["name=${oc.env:HOME}/../canary.${nothing:1}"]):  # fmt: skip
        assert call("train", "dataset=shapes", "dry_run=true", *words) == 2
        assert capsys.readouterr().err.count("\n") == 1


EXPERIMENTS = {
    "callback": ("hydra: {callbacks: {x: {_target_: os.mkdir, path: canary}}}", "hydra.callbacks"),
    "environment": ("hydra: {job: {env_set: {JAVA_HOME: evil}}}", "hydra.job.env_set"),
    "launcher": ("hydra: {launcher: {_target_: os.mkdir}}", "hydra.launcher._target_"),
    "logger": ("hydra: {job_logging: {handlers: {x: {class: os.mkdir, path: canary}}}}", "hydra.job_logging"),
    "secret": ("name: x-${oc.env:HOME}", "name=x-"),
    "hidden": ("name: x-${oc.${task.kind}:${oc.env:HOME}}", "name=x-"),
    "pipes": (
        "defaults: [override /dataset: webdataset]\ndataset: {pipes: true, urls: 'pipe:mkdir canary'}",
        "dataset.pipes",
    ),
    "circle": ("defaults: [circle]", "circle"),
    "bomb": ("\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'x'] * 9)}]" for n in range(12)), "10,000"),
    "deep": ("name: " + "[" * 100_000, "16 levels"),
    "broken": ("name: [", "cannot be read"),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("folder", ["--config-dir=theirs", "hydra.searchpath=[file://theirs]"])
def test_a_strangers_experiment_only_chooses_options(tmp_path, name, folder, capsys):
    content, said = EXPERIMENTS[name]
    file = tmp_path / "theirs/experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{content}\n")
    assert call("train", folder, f"experiment={name}", "dry_run=true") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


def test_what_the_command_itself_says_is_allowed(tmp_path, capsys):
    file = tmp_path / "theirs/experiment/good.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ndefaults: [override /fusion: add]\noptim: {lr: 0.5}\nname: n-${optim.lr}\n")
    words = ["+hydra.job.env_set.VELM_TEST=1", "seed=${oc.decode:'7'}"]
    assert call("train", "--config-dir=theirs", "experiment=good", *words, "--cfg", "job", "--resolve") == 0
    said = capsys.readouterr().out
    assert "name: n-0.5" in said and "seed: 7" in said and "kind: add" in said


# ------------------------------------------------------------------------------------ hub folders


def code_folder(path: Path, config: dict) -> Path:
    path.mkdir()
    (path / "evil.py").write_text("import os\nos.mkdir('canary')\nclass Evil: pass\n")
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_model_folder_with_code_of_its_own_is_refused(tmp_path):
    auto = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    folder = code_folder(tmp_path / "model", {"model_type": "evil", "auto_map": auto})
    with pytest.raises(UserError, match=r"text.name") as error:
        load_config("text", str(folder))
    one_line(error)


def test_a_known_model_type_does_not_bring_code_along(tmp_path):
    shutil.copytree(tiny_models.folder("vit"), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    config["trust_remote_code"] = True
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/evil.py").write_text("import os\nos.mkdir('canary')\nclass Evil: pass\n")
    model = load_pretrained("vision", str(tmp_path / "model"), "pretrained", "AutoModel")
    assert type(model).__name__ == "ViTModel"  # transformers' own


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("part", [None, "vision_config"])
def test_attention_from_the_hub_is_refused_or_not_taken(tmp_path, key, part):
    """transformers would fetch it, and run it; of a part's config it takes none."""
    shutil.copytree(tiny_models.folder("clip"), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (config[part] if part else config)[key] = "evil/kernel@main:fn"
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    if part:
        assert (
            load_config("vision", str(tmp_path / "model")).vision_config._attn_implementation != "evil/kernel@main:fn"
        )
        return
    with pytest.raises(UserError, match=r"vision.name=.*kernel") as error:
        load_config("vision", str(tmp_path / "model"))
    one_line(error)


def test_a_tokenizer_with_code_of_its_own_is_refused_and_nobody_is_asked(tmp_path, monkeypatch):
    folder = code_folder(tmp_path / "words", {"model_type": "evil"})
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(auto))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError, match="tokenizer") as error:
        Tokenizer.build(TokenizerConfig(kind=TokenizerKind.pretrained, name=str(folder)), [])
    one_line(error)


# ------------------------------------------------------------------------------------ stores


@pytest.fixture
def store(tmp_path):
    """A store of six photos with captions."""
    from velm_cli.data.making import build_store
    from velm_cli.data.readers import read

    (tmp_path / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
        (tmp_path / f"photos/{number}.txt").write_text("a photo of noise\n")
    config = FolderConfig(root=str(tmp_path / "photos"), val_fraction=0, test_fraction=0, store=str(tmp_path / "store"))
    return build_store(read(config), config, PreprocessConfig(workers=1), tmp_path / "store", progress=False)


def object_array(path: Path) -> None:
    np.save(path, np.array([Payload(), Payload()], dtype=object), allow_pickle=True)


def vouch(store: Store) -> None:
    """Checksums that fit, as whoever makes the store can write them."""
    manifest = read_sealed(store.path / "manifest.json")
    manifest["crc32_of"] = {name: crc32(store.path / name) for name in manifest["crc32_of"]}
    for shard in manifest["shards"]:
        shard["index"] = hashlib_of((store.path / "images" / shard["file"]).with_suffix(".idx.npy"))
    (store.path / "manifest.json").write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize("name", ["caption_offsets", "record_splits", "image_locations", "concept_ids"])
def test_arrays_of_pickled_objects_are_refused(store, name):
    object_array(store.path / f"{name}.npy")
    vouch(store)
    with pytest.raises(UserError, match="is damaged") as error:
        open_store(store.path)
    one_line(error)


def test_indexes_tokens_and_features_of_pickled_objects_are_refused(store, tmp_path):
    object_array(store.path / "images/shard-00000.idx.npy")
    vouch(store)
    with pytest.raises(UserError, match="cannot be read") as error:
        open_store(store.path).image_bytes(0)
    one_line(error)

    words = TokenizerConfig(min_count=1)
    place = store.tokens(words).folder
    object_array(place / "ids.npy")
    (place / "crc32.json").write_text(json.dumps(sealed({"ids.npy": crc32(place / "ids.npy")})))
    with pytest.raises(UserError, match="are damaged") as error:
        store.tokens(words)
    one_line(error)

    cache = FeatureCache(store.path, len(store), FeatureCaching.fp32, {})
    with cache.missing(np.arange(len(store))) as parts:
        cache.write(parts, lambda records: iter([torch.zeros(len(records), 2, 3)]))
    for part in ("part-00000.npy", "part-00000.crc32.npy"):
        kept = (cache.folder / part).read_bytes()
        object_array(cache.folder / part)
        with pytest.raises(UserError, match="cannot be read") as error:
            FeatureCache(store.path, len(store), FeatureCaching.fp32, {}).read_into(0, torch.zeros(2, 3))
        one_line(error)
        (cache.folder / part).write_bytes(kept)


def test_members_of_a_tar_cannot_leave_it(store, tmp_path):
    """Absolute names, `..` and links in a shard: images are slices of the file, and nothing is ever extracted."""
    tar_path = store.path / "images/shard-00000.tar"
    index = np.load(tar_path.with_suffix(".idx.npy"))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("000000000.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for row, name in enumerate(["../canary1", str(tmp_path / "canary2"), "a/../../canary3", "ok.jpg", "b", "c"]):
            jpeg = store.image_bytes(row)
            member = tarfile.TarInfo(name)
            member.size = len(jpeg)
            index["offset"][row] = out.tell() + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(jpeg))
    expected = [store.image_bytes(i) for i in range(6)]
    tar_path.write_bytes(out.getvalue())
    np.save(tar_path.with_suffix(".idx.npy"), index)
    manifest = read_sealed(store.path / "manifest.json")
    manifest["shards"][0]["bytes"] = len(out.getvalue())
    (store.path / "manifest.json").write_text(json.dumps(sealed(manifest)))
    vouch(store)
    assert [open_store(store.path).image_bytes(i) for i in range(6)] == expected

    index["offset"][0], index["length"][1] = 1 << 40, 1 << 40  # beyond the file
    np.save(tar_path.with_suffix(".idx.npy"), index)
    vouch(store)
    for row in (0, 1):
        with pytest.raises(UserError, match="cannot be read"):
            open_store(store.path).image_bytes(row)


@pytest.mark.parametrize("name", ["tokens", "tokens/.writing", "features", "features/.writing", "notes"])
def test_nothing_is_written_through_links_of_a_strangers_store(store, tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    target = tmp_path / "mine" / ("" if name in ("tokens", "features") else "thesis.tex")
    (store.path / name).parent.mkdir(exist_ok=True)
    (store.path / name).symlink_to(target)
    with pytest.raises(UserError, match="velm does not write through links") as error:
        store.tokens(TokenizerConfig(min_count=1))
    one_line(error)
    cache = FeatureCache(store.path, len(store), FeatureCaching.fp32, {})
    with pytest.raises(UserError, match="velm does not write through links"), cache.missing(np.arange(len(store))):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert (tmp_path / "mine/thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    "name", [".lock", "command.txt", "metrics.jsonl", "tokenizer", "samples", "checkpoints", "a/b/c"]
)
@pytest.mark.parametrize("target", ["thesis.tex", "", "absent"])
def test_nothing_is_written_through_links_of_a_strangers_run(tmp_path, name, target):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    (tmp_path / "run" / name).parent.mkdir(parents=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine" / target)
    with (
        pytest.raises(UserError, match="velm does not write through links") as error,
        open_run(tmp_path / "run", TrainRoot()),
    ):
        pytest.fail("opened")
    one_line(error)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert (tmp_path / "mine/thesis.tex").read_text() == "precious"


def test_a_hard_link_in_a_run_folder_is_not_written_through(tmp_path, capsys):
    """tar makes them, to files that were there before."""
    run = tmp_path / "runs/train/theirs"
    run.mkdir(parents=True)
    (tmp_path / "bashrc").write_text("mine\n")
    (run / "config.yaml").write_text("")
    os.link(tmp_path / "bashrc", run / "command.txt")
    folder._note_command(run / "command.txt")
    assert (tmp_path / "bashrc").read_text() == "mine\n"
    assert (run / "command.txt").read_text().startswith("mine\n")


def test_links_within_a_run_folder_are_ones_own_affair(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/latest").symlink_to("checkpoints")
    with open_run(tmp_path / "run", TrainRoot()):
        pass


# ------------------------------------------------------------------------------------ predictions


def test_predictions_of_any_shape_are_refused_in_one_line(tmp_path):
    file = tmp_path / "p.json"
    for text in (
        "[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000, "NaN", "[NaN]", '[{"image_id": NaN, "caption": "a"}]',
        '[{"image_id": 1, "caption": Infinity}]', '[{"image_id": 1, "caption": {"__reduce__": 1}}]', "null", '"x"', "",
        '[{"image_id": [[]], "caption": "a"}]', '[{"image_id": 1e999, "caption": "a"}]', "\0", "[1, 2]",
        '{"image_id": 1, "caption": "a"}\n' + "[" * 200_000,
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UserError, match=r"p.json") as error:
            read_predictions(file)
        assert len(one_line(error)) < 500
    file.write_bytes(b"\xff\xfe[]")
    with pytest.raises(UserError, match="is broken JSON"):
        read_predictions(file)


class Tags(html.parser.HTMLParser):
    """Every element with its attributes, and the text of those that are not scripts or styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(name for name, _ in attrs)))


MARKUP = (
    '</script><script>document.title="canary"</script><img src=x onerror="x()"><!-- <b a="\' onload=\'x()">&lt;\u2028'
)


def test_markup_in_captions_stays_text_in_the_report(tmp_path):
    pages = []
    for text in ("a plain caption", MARKUP):
        ours = [{"image_id": text + "1", "caption": text}, {"image_id": "2", "caption": text + " two"}]
        theirs = [{"image_id": item["image_id"], "caption": item["caption"]} for item in ours]
        (tmp_path / "p.json").write_text(json.dumps(ours))
        (tmp_path / "r.json").write_text(json.dumps({"annotations": theirs}))
        code = call("score", "predictions=p.json", "references=r.json", f"out=out{len(pages)}", "metrics.names=[cider]")
        assert code == 0
        pages.append((tmp_path / f"out{len(pages)}/report.html").read_text("utf-8"))
    plain, marked = map(Tags, pages)
    assert len(plain.found) > 20
    assert marked.found == plain.found, "markup of a caption became elements of the page"
    assert "<img src=x" not in pages[1] and "<!-- <b" not in pages[1]


# ------------------------------------------------------------------------------------ images


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
        + chunk(b"IEND", b"")
    )


def jpeg_that_says(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    start = data.index(b"\xff\xc0")  # SOF0: length, precision, height, width
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS = {
    "a.png": (png_header(60_000, 60_000), "too many pixels"),
    "b.jpg": (jpeg_that_says(65_500, 65_500), "too many pixels"),
    "d.png": (png_header(13_000, 13_000), "truncated|undecodable"),
    "e.gif": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0;", "too many pixels|undecodable|not an image"),
    "f.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\n", "unsupported: PostScript"),
    "g.jpg": (b"push graphic-context\nimage over 0,0 0,0 'https://x/`mkdir canary`'\n", "not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bombs_are_refused_with_a_reason(tmp_path, name):
    data, reason = BOMBS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageRefused, match=reason) as error:
        normalise_image(tmp_path / name, image_size=64, quality=90, max_pixels=178_956_970)
    one_line(error)


def test_a_jpeg_that_lies_within_the_limit_costs_no_memory(tmp_path):
    """libjpeg makes up what is missing, in grey; 13,000 x 13,000 pixels of it would be half a GB if not drawn small."""
    (tmp_path / "c.jpg").write_bytes(jpeg_that_says(13_000, 13_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = normalise_image(tmp_path / "c.jpg", image_size=64, quality=90, max_pixels=178_956_970)
    assert (image.width, image.height) == (64, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


# ------------------------------------------------------------------------------------ names


NAMES = [
    "a; mkdir canary.png",
    "$(mkdir canary).png",
    "`mkdir canary`.png",
    "new\nline.png",
    "-rf.png",
    "'\".png",
    "% s{x}.png",
]


def test_names_of_images_and_runs_reach_no_shell(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
        (tmp_path / "photos" / name).with_suffix(".txt").write_text("a photo; mkdir canary; $(mkdir canary)\n")
    words = ["dataset.root=photos", "dataset.val_fraction=0", "dataset.test_fraction=0", "tokenizer.min_count=1"]
    assert call("preprocess", "dataset=folder", "preprocess.workers=1", *words) == 0
    store = open_store(tmp_path / "stores/folder")
    assert set(store.ids) == set(NAMES)
    assert all(Image.open(io.BytesIO(store.image_bytes(i))).size == (16, 16) for i in range(len(store)))

    config = TrainRoot()
    for name in ["x; mkdir canary", "$(mkdir canary)", "`mkdir canary`", "new\nline", "-m"]:
        with open_run(tmp_path / "runs" / name, config):  # asks git for its version, writes command.txt
            pass
        assert configs.read_config(tmp_path / "runs" / name / "config.yaml")


@pytest.mark.parametrize("evil", ["\x1b[2J", "\x1b]0;title\x07", "\x9b1A", "\u202e", "\r"])
def test_names_reach_the_terminal_as_text(tmp_path, capsys, evil):
    """What a terminal would obey: clearing it, its title, moving up, writing from right to left."""
    for words in (["report", f"x{evil}y"], ["score", f"predictions='x{evil}y.json'", "references=r.json"]):
        (tmp_path / "r.json").write_text('[{"image_id": 1, "caption": "a"}]')
        assert call(*words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.isprintable() and line.startswith("velm: ") and "does not exist" in line


def test_captions_reach_java_as_text(tmp_path):
    """A Java program is a list of arguments, captions go through its standard input."""
    from velm_cli.metrics.java import Java, Launcher

    script = "import sys; print(repr(sys.argv[-1])); print(repr(sys.stdin.readline()))"
    with Launcher(Java(sys.executable, "17", 17)) as launcher:
        launcher.java  # noqa: B018
        process = subprocess_of(launcher, ["-c", script, "; mkdir canary"])
        process.send("$(mkdir canary) `mkdir canary`; mkdir canary\n")
        process.close_input()
        lines = [process.read_line(30), process.read_line(30)]
    assert lines == [repr("; mkdir canary"), repr("$(mkdir canary) `mkdir canary`; mkdir canary\n")]


def subprocess_of(launcher, arguments):
    from velm_cli.metrics import java

    flags, java.COMMON_FLAGS = java.COMMON_FLAGS, ()  # python knows no -Dfile.encoding
    try:
        return launcher.start(arguments)
    finally:
        java.COMMON_FLAGS = flags


# ------------------------------------------------------------------------------------ the source itself

FORBIDDEN = {"pickle.load", "pickle.loads", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "eval", "exec",
             "hydra.utils.instantiate", "joblib.load", "marshal.loads", "shelve.open", "subprocess.getoutput"}  # fmt: skip


def test_the_source_calls_nothing_that_runs_code_from_files():
    seen = 0
    for file in Path(velm_cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            seen += 1
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            where = f"{file}:{node.lineno}: {ast.unparse(node)[:100]}"
            assert name not in FORBIDDEN, where
            assert keywords.get("shell", "False") == "False", where
            assert keywords.get("allow_pickle", "False") == "False", where
            assert keywords.get("trust_remote_code", "False") == "False", where
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", where
            assert not name.endswith((".extractall", ".extract")), where
            if name.endswith(".from_pretrained") and "Auto" in name:
                assert "trust_remote_code" in keywords or "**LOCAL" in ast.unparse(node), where
    assert seen > 2000


def test_other_weights_without_a_checksum_are_read_as_they_are(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    assert torch.equal(load_state(tmp_path / "w.safetensors")["a"], torch.ones(2))
