# make help lists the targets. Everything happens in .venv inside this checkout.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OLDEST := .venv-oldest
OLDEST_TESTS ?= tests/unit
GPU_IMAGE  := .venv-gpu-image
GPU_PYTHON ?= python3.12

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest test-gpu-image test-container lint check golden bench gpu-check docs wheel clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## install velm and its development tools into .venv

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar=off --quiet -e '.[dev]'
	@touch $@

demo: $(READY)  ## preprocess, train, finetune and evaluate on the embedded data set
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow' --durations 10 tests

test-all: $(READY)  ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

test-oldest: $(OLDEST)/.ready  ## unit tests (or OLDEST_TESTS) with the lowest versions that pyproject.toml allows
	$(OLDEST)/bin/uv pip list --python $(OLDEST)/bin/python
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal $(OLDEST_TESTS)

$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --progress-bar=off --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@

test-gpu-image: $(READY) $(GPU_IMAGE)/.ready  ## scripts/gpu_session.sh on the CPU, with the versions of a GPU image
	VELM_GPU_IMAGE=$(CURDIR)/$(GPU_IMAGE) $(BIN)/python -m pytest -m slow --durations 1 tests/test_gpu_check.py

# Without velm, Hydra and pycocoevalcap: what such an image lacks comes as wheels, as on a machine without a network.
$(GPU_IMAGE)/.ready: Makefile
	rm -rf $(GPU_IMAGE)
	$(PYTHON) -m venv $(GPU_IMAGE)/uv
	$(GPU_IMAGE)/uv/bin/python -m pip install --progress-bar=off --quiet uv
	$(GPU_IMAGE)/uv/bin/uv venv --quiet --allow-existing --python $(GPU_PYTHON) $(GPU_IMAGE)
	$(GPU_IMAGE)/uv/bin/uv pip install --quiet --python $(GPU_IMAGE)/bin/python torch==2.11.0 torchvision==0.26.0 \
		transformers==5.17.0 'numpy==2.5.*; python_version >= "3.12"' tokenizers safetensors pillow tqdm
	$(GPU_IMAGE)/uv/bin/python -m pip wheel --progress-bar=off --quiet --no-deps --wheel-dir $(GPU_IMAGE)/wheels \
		hydra-core==1.3.8 omegaconf==2.3.1 antlr4-python3-runtime==4.9.3
	@touch $@

test-container: $(READY)  ## the steps of scripts/Containerfile in a new Debian root: needs root, debootstrap, 10 GB
	$(BIN)/python -m pytest -m slow --durations 1 tests/test_container.py

lint: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## the same, configs and imports: a minute
	$(BIN)/python -m pytest -n 2 tests/unit/test_configs.py tests/unit/test_architecture.py

golden: $(READY)  ## do 14 short runs give the same bits as the last commit, or as BASE=REVISION?
	$(BIN)/python scripts/golden.py $(if $(BASE),--base $(BASE)) $(if $(ONLY),--only $(ONLY))

bench: $(READY)  ## speed on this machine, compared with other tools: over an hour; writes docs/bench and docs/performance.md
	$(BIN)/python scripts/bench_metrics.py
	$(BIN)/python scripts/bench_train.py --out docs/bench/train.json
	$(BIN)/python scripts/bench_decode.py --out docs/bench/decode.json
	$(BIN)/python scripts/bench_images.py --out docs/bench/images.json
	$(BIN)/python scripts/bench_cache.py --out docs/bench/cache.json
	$(BIN)/python scripts/bench_start.py --out docs/bench/start.json
	$(BIN)/python scripts/bench_store.py --out docs/bench/store.json
	$(BIN)/python scripts/bench_questions.py --out docs/bench/questions.json
	$(BIN)/python scripts/bench_llm.py --out docs/bench/llm.json
	$(BIN)/python scripts/bench_caption.py --out docs/bench/caption.json
	$(BIN)/python scripts/bench_serve.py --out docs/bench/serve.json
	$(BIN)/python scripts/bench_page.py

gpu-check: $(READY)  ## right and fast on this machine's GPUs? 8 minutes, and gpu_check/gpu.json (docs/gpu.md)
	$(BIN)/python scripts/gpu_check.py

docs: $(READY)  ## write what the code says of itself: docs/config.md, docs/matrix.md
	$(BIN)/python scripts/make_docs.py

wheel: $(READY)  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## remove what make made (not your data, stores or runs)
	rm -rf $(VENV) $(OLDEST) $(GPU_IMAGE) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
