# Two commands from a fresh machine with Python and git:
#   make train   environment, embedded data, a real pre-training run with probes and its report
#   make test    the whole test suite
# and one that fetches torch and transformers into an environment of their own:
#   make test-peers   live comparisons with them
# PYTHON chooses the interpreter, VENV where the environment goes.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
RUN ?= runs/demo
BIN = $(VENV)/bin

# glibc: large pages for large arrays. A step of the demo touches 60,000 fresh small ones, a third of its time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: train test test-peers lint clean

train: $(VENV)/.installed
	$(BIN)/vjepa data world --preset demo --out $(RUN)/world --num pretrain=4000 train=2000 test=1000
	$(BIN)/vjepa train --config experiments/demo.py --config.data.path=$(RUN)/world/manifest.csv \
	  --config.eval.path=$(RUN)/world/manifest.csv --workdir $(RUN)

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=25

test-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest -q tests/peers

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

$(PEERS)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev,peers]"
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) runs build *.egg-info .pytest_cache .ruff_cache
