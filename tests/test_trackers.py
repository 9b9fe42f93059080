"""TensorBoard, Weights & Biases and MLflow get what metrics.jsonl has, each figure once; none of them stops training."""

import json
import re
import shutil
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from velm import TINY, TINY_MODEL, call

from velm_cli import tracker_kinds, trackers
from velm_cli.errors import UserError
from velm_cli.files import read_log
from velm_cli.schema import RunConfig
from velm_cli.trackers import Trackers, without_secrets

TRAIN = [
    "train", "dataset=shapes", *TINY, *TINY_MODEL, "run.device=cpu", "metrics=fast", "run.checkpoint_every=2",
    "run.validate_every=2",
]  # fmt: skip
ALL = ["run.tensorboard=true", "run.wandb=true", "run.mlflow=true"]
Figures = list[tuple[str, int, float]]


@pytest.fixture(scope="module", autouse=True)
def no_login():
    """Nothing of the tester's own: neither a server nor a login."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


def of_tensorboard(run: Path) -> Figures:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(key, one.step, one.value) for key in events.Tags()["scalars"] for one in events.Scalars(key)]


def records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format behind seven bytes of its own."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # no room for a head in this block
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        assert zlib.crc32(bytes([kind]) + part) == checksum
        at, whole = at + 7 + length, whole + part
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def of_wandb(run: Path) -> tuple[Figures, dict, set[str]]:
    """Figures, config and ids of the offline folders."""
    from wandb.proto import wandb_internal_pb2

    figures, config, ids = [], {}, set()
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            line = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            figures += [(key, line["step"], value) for key, value in line.items() if "/" in key]
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return figures, config, ids


def of_mlflow(run: Path) -> tuple[Figures, "object"]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "velm"]
    (found,) = client.search_runs([experiment.experiment_id])
    keys = found.data.metrics
    history = [one for key in keys for one in client.get_metric_history(found.info.run_id, key)]
    return [(one.key, one.step, one.value) for one in history], found


def of_log(run: Path) -> Figures:
    """What trackers should have, of metrics.jsonl and scores.json."""
    lines = read_log(run)
    figures = [
        (f"{line['kind']}/{key}", line["step"], value)
        for line in lines
        for key, value in line.items()
        if key not in ("kind", "step")
    ]
    scores = json.loads((run / "scores.json").read_text())
    last = lines[-1]["step"]
    return figures + [
        (f"scores/{key}", last, value) for key, value in scores.items() if isinstance(value, float) and key != "images"
    ]


def once(figures: Figures) -> dict[tuple[str, int], float]:
    repeated = [key for key, count in Counter((key, step) for key, step, _ in figures).items() if count > 1]
    assert not repeated
    return {(key, step): value for key, step, value in figures}


def same(found: Figures, expected: Figures, but: tuple[str, ...] = ()) -> None:
    """The same steps and names, and the same values but of what times a machine."""
    found, expected = once(found), once(expected)
    assert found.keys() == expected.keys()
    timed = ("per_s", "data_wait", "utilisation", *but)
    assert {k: v for k, v in found.items() if not k[0].endswith(timed)} == pytest.approx(
        {k: v for k, v in expected.items() if not k[0].endswith(timed)}, rel=1e-6
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a store; two runs of it, one with all trackers and one without any."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("preprocess", "dataset=shapes", *TINY) == 0
        assert call(*TRAIN, "run.max_steps=4", "name=plain") == 0
        assert call(*TRAIN, "run.max_steps=4", "name=tracked", *ALL) == 0
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_all_three_have_the_figures_of_the_log_and_the_scores(here):
    run = here / "runs/train/tracked"
    expected = of_log(run)
    assert {key.partition("/")[0] for key, _, _ in expected} == {"start", "train", "validation", "scores"}
    same(of_tensorboard(run), expected)
    same(of_wandb(run)[0], expected)
    same(of_mlflow(run)[0], expected)
    assert not (here / "mlruns").exists() and not (here / "wandb").exists()


def test_the_config_goes_along_and_the_run_has_its_name(here):
    run = here / "runs/train/tracked"
    _, config, _ = of_wandb(run)
    assert config["run.max_steps"] == 4 and config["fusion.kind"] == "cross_modal" and config["optim.lr"] == 1e-3
    _, found = of_mlflow(run)
    assert found.data.params["run.max_steps"] == "4" and found.data.params["fusion.kind"] == "cross_modal"
    assert found.info.run_name == "tracked" and found.info.status == "FINISHED"


def test_training_is_the_same_to_the_bit(here):
    plain, tracked = (here / "runs/train" / name / "model.safetensors" for name in ("plain", "tracked"))
    assert plain.read_bytes() == tracked.read_bytes()


def test_a_resumed_run_goes_on_in_the_same_run_and_repeats_no_step(here):
    shutil.copytree(here / "runs/train/tracked", here / "runs/train/again")
    run = here / "runs/train/again"
    for gone in ("DONE", "scores.json", "predictions.json"):  # as if killed behind the last step
        (run / gone).unlink()
    shutil.rmtree(run / "checkpoints/step-00000004")
    before = {name: json.loads((run / name / "velm.json").read_text())["run"] for name in trackers.TRACKERS}
    assert call(*TRAIN, "run.max_steps=6", "name=again", *ALL) == 0
    after = {name: json.loads((run / name / "velm.json").read_text())["run"] for name in trackers.TRACKERS}
    assert after == before
    expected = {(key, step) for key, step, _ in of_log(run)} | {
        (key, 4) for key, _, _ in of_log(here / "runs/train/tracked") if key.startswith("scores/")
    }
    figures, config, ids = of_wandb(run)
    assert once(of_tensorboard(run)).keys() == once(figures).keys() == expected
    assert len(ids) == 1 and len(list((run / "wandb").glob("offline-run-*"))) == 2 and config["run.max_steps"] == 6
    figures, found = of_mlflow(run)
    assert once(figures).keys() == expected
    assert found.data.params["run.max_steps"] == "4" and found.data.tags["run.max_steps"] == "6"


def test_a_tracker_that_is_switched_on_late_gets_what_was_before(here):
    shutil.copytree(here / "runs/train/plain", here / "runs/train/late")
    assert call(*TRAIN, "run.max_steps=6", "name=late", "run.wandb=true") == 0
    same(of_wandb(here / "runs/train/late")[0], of_log(here / "runs/train/late"))


def test_the_commands_of_the_page(here):
    page = (Path(__file__).resolve().parents[1] / "docs/trackers.md").read_text("utf-8")
    commands = re.search(r"```bash\n(.*?)```", page, re.S)[1].splitlines()
    assert len(commands) == 3
    for command in commands:
        words = [word for word in command.split()[1:] if not word.startswith("run.max_steps")]
        assert call(*words, *TRAIN[2:], "run.max_steps=2") == 0
    for name, tracker in (("board", "tensorboard"), ("biases", "wandb"), ("flow", "mlflow")):
        state = json.loads((here / "runs/train" / name / tracker / "velm.json").read_text())
        assert state["sent"].keys() == {"start", "train", "validation", "scores"}


class Server(BaseHTTPRequestHandler):
    """As much of an MLflow server as velm talks to; it goes away after `Server.answers` batches of figures."""

    answers = 2

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        if self.path.endswith("log-batch"):
            Server.answers -= 1
            if Server.answers < 0:
                self.connection.close()
                return
        experiment = {"experiment_id": "1", "name": "velm", "artifact_location": "x", "lifecycle_stage": "active"}
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING", "artifact_uri": "x"}
        body = json.dumps({"experiment": experiment, "run": {"info": info, "data": {}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def notes(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("note: mlflow: ")]


def test_a_server_that_goes_away_ends_no_training(here, server, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setattr(Server, "answers", 4)
    assert call(*TRAIN, "run.max_steps=4", "name=gone", "run.mlflow=true") == 0
    said = capsys.readouterr().out
    assert f"tracking    mlflow: run r1 in {server}" in said
    assert len(notes(said)) == 1 and "training goes on without it" in notes(said)[0]
    assert (here / "runs/train/gone/DONE").exists() and not list((here / "runs/train/gone").rglob("*.db"))


def test_a_server_that_is_not_there_ends_no_training(here, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert call(*TRAIN, "run.max_steps=2", "name=nowhere", "run.mlflow=true") == 0
    assert len(notes(capsys.readouterr().out)) == 1 and (here / "runs/train/nowhere/DONE").exists()


class Fake:
    """A tracker that does what the test says."""

    def __init__(self, log):
        self.log = log

    def begin(self, folder, run, config):
        return run or "x1", "here"

    def finish(self, outcome):
        self.outcome = outcome


def follow(tmp_path, monkeypatch, fake, *, steps=3, fault=None):
    said = []
    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": lambda: fake})
    with Trackers() as following:
        following.begin(tmp_path, RunConfig(wandb=True), {}, said.append)
        for step in range(steps):
            following.log("train", step, {"loss": 1.0, "name": "text"})
        if fault:
            raise fault
        following.outcome = "done"
    return said


def test_a_full_disk_is_one_note(tmp_path, monkeypatch):
    def log(step, figures):
        raise OSError(28, "No space left on device")

    said = follow(tmp_path, monkeypatch, Fake(log), steps=100)
    assert said[0] == "tracking    here" and len(said) == 2
    assert said[1].startswith("note: wandb: [Errno 28] No space left on device; training goes on without it")


def test_a_tracker_that_hangs_is_left_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    began = time.monotonic()
    said = follow(tmp_path, monkeypatch, Fake(lambda step, figures: time.sleep(30)))
    assert time.monotonic() - began < 10
    assert said[1].startswith("note: wandb: it did not take the last figures in time")


def test_a_fault_of_the_run_is_told_and_stays(tmp_path, monkeypatch):
    fake = Fake(lambda step, figures: None)
    with pytest.raises(UserError):
        follow(tmp_path, monkeypatch, fake, fault=UserError("no"))
    assert fake.outcome == "failed"


@pytest.mark.parametrize("state", ["", "{}", '{"run": "../x", "sent": {}}', '{"run": "x1", "sent": 3}', "[1"])
def test_a_damaged_or_strange_note_begins_anew(tmp_path, monkeypatch, state):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/velm.json").write_text(state)
    seen = []
    assert len(follow(tmp_path, monkeypatch, Fake(lambda step, figures: seen.append((step, figures))))) == 1
    assert seen == [(step, {"train/loss": 1.0}) for step in range(3)]
    assert json.loads((tmp_path / "wandb/velm.json").read_text())["sent"] == {"train": 2}


@pytest.mark.parametrize("option", list(tracker_kinds.PACKAGES))
def test_what_is_not_installed_is_a_line_before_training(option, here, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    title, packages = tracker_kinds.PACKAGES[option]
    line = f"velm: run.{option}=true needs {title}: pip install {' '.join(packages.values())}"
    for more in ([], ["dry_run=true"]):
        assert call("train", "dataset=shapes", *more, f"run.{option}=true") == 2
        said = capsys.readouterr()
        assert said.err.strip() == line and not said.out


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("https://me:secret@host/a.tar", "https://host/a.tar"),
        ("https://host/a.tar?sig=secret&x=1", "https://host/a.tar"),
        ("s3://bucket/{00..99}.tar", "s3://bucket/{00..99}.tar"),
        ("pipe:curl -H 'Authorization: secret' https://host", "pipe:..."),
        (["https://a:b@c/d", 3], ["https://c/d", 3]),
        ("photos/what?.jpg", "photos/what?.jpg"),
        (None, None),
        (0.5, 0.5),
    ],
)
def test_secrets_stay_here(value, told):
    assert without_secrets(value) == told
