"""The memory that a dry run names is about what two steps of the same training take."""

import json
import subprocess
import sys

import pytest
from velm import TINY, call

# Runs alone: what a process has at most cannot be told apart from what other tests had before.
MEASURE = """
import json, sys, warnings
from pathlib import Path
import torch
from hydra import compose as hydra_compose, initialize_config_dir
from velm_cli import compose
from velm_cli.data.loader import TrainLoader
from velm_cli.data.opening import open_store
from velm_cli.engine.device import autocast
from velm_cli.engine.optim import build_optimizer
from velm_cli.learners.interface import Moment
from velm_cli.stages import estimate, starting
from velm_cli.stages.task_data import TaskData

warnings.simplefilter("ignore")
torch.set_num_threads(1)
compose.register("train")
with initialize_config_dir(str(compose.conf_dir()), version_base="1.3"):
    config = compose.to_dataclass(hydra_compose("train", sys.argv[1:]))
store = open_store(Path("stores/shapes"))
data = TaskData.of(config, store, None)
with torch.device("meta"):
    meta = starting.new_learner(config, data.spaces, data.tokenizer).train()
memory = estimate.memory_of_step(meta, config, data, config.run.precision)[0]

def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

(torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()  # libraries that backward loads
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = status("VmRSS")
learner = starting.new_learner(config, data.spaces, data.tokenizer).train()
optimizer = build_optimizer(learner, config.optim)
columns = data.to_learn(config.data.captions_per_image, 0)
loader = TrainLoader(store, columns, config.data, batch_size=config.run.batch_size, pixels=learner.pixels, seed=0)
batches = loader.batches()
for _ in range(2):
    with autocast(torch.device("cpu"), config.run.precision):
        terms = learner(next(batches), Moment(learner.active)).values()
        loss = sum(term.sum / term.count for term in terms)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(json.dumps({"estimate": memory.peak, "measured": status("VmHWM") - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_about_what_is_measured(precision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("preprocess", "dataset=shapes", *TINY) == 0
    model = [
        "vision=vit",
        "vision.width=256",
        "text.width=256",
        "fusion=prefix",
        "fusion.mapper=tokens",
        "text.heads=8",
    ]
    options = ["dataset=shapes", *TINY, *model, "run.batch_size=8", f"run.precision={precision}", "data.workers=0"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Seen: 0.96 to 1.3 times what is measured; allocators and what is computed in between differ by machine.
    assert found["measured"] > 100 * 2**20
    assert 0.65 < found["estimate"] / found["measured"] < 1.6, found
