PYTHON ?= python3
BIN := .venv/bin
# One thread on purpose: on a busy machine a small model runs many times slower with more.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test check format bench results clean

help:            ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 12

setup: .venv/.installed  ## make .venv with everything in it

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# Eight samples a prompt: the prompt is encoded once for all of them, and each is measured against the others.
DEMO = --env textgen_env/NewsSummary-v0 --algo ppo --warm-start-epochs 2 --total-tokens 250000 \
	--samples-per-prompt 8 --epochs 2 --learning-rate 3e-4 --num-envs 64

demo: setup      ## train a small model to write headlines: warm start, PPO, report (about 6 minutes)
	$(BIN)/textgen train $(DEMO) --output runs/demo-$$(date +%Y%m%d-%H%M%S) $(DEMO_FLAGS)

test: setup      ## run the tests, two files at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: setup     ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup    ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

LADDER = benchmarks/results/ladder.jsonl.gz

bench: setup     ## speed and learning figures, written to benchmarks/results (hours; goes on where it stopped)
	$(BIN)/python -m benchmarks throughput --json benchmarks/results/throughput.json
	$(BIN)/python -m benchmarks.learning news_summary --json benchmarks/results/news_summary.json
	$(BIN)/python -m benchmarks run --output runs/ladder.jsonl
	$(BIN)/python -m benchmarks report runs/ladder.jsonl --compact $(LADDER) --readme README.md

results: setup   ## renew the README's table of results from the runs of record
	$(BIN)/python -m benchmarks report $(LADDER) --readme README.md

clean:           ## remove the environment and what tools left behind
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
