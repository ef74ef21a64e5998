# Two commands do everything: `make` (set up, bundle, rehearse, report) and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO := out/demo
OWNER ?= your-kaggle-name
SLUG ?= hourglass-default

.PHONY: all rehearse bundle test faults whole chaos fuzz image lint types upload clean

all: rehearse

# CPU torch: `pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu` before `make`, if your pip would take CUDA wheels.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev,export]'
	touch $(READY)

$(DEMO)/.ready: $(READY) training/demo_clips.py
	$(PY) -m training.demo_clips --out $(DEMO)
	touch $@

bundle: $(READY)
	$(PY) build_dataset.py ensembles/default.toml --out out --owner $(OWNER) --slug $(SLUG)

rehearse: bundle $(DEMO)/.ready
	$(PY) out/push/infer_kernel.py --rehearse --bundle out/bundle --clips $(DEMO) --working out/rehearsal --limits fat2019

test: $(READY)
	$(PY) -m pytest tests

faults: $(READY)
	$(PY) -m pytest tests -m faults --timeout 600

whole: $(READY)
	$(PY) -m pytest tests/runs/test_ensembles.py -m whole

chaos: $(READY)
	$(PY) -m tests.helpers.chaos --seeds 30

fuzz: $(READY)
	$(PY) -m tests.helpers.fuzz_audio --count 10000 --seed 0

image: $(READY)
	$(PY) -m tests.helpers.image

lint: $(READY)
	$(PY) -m ruff check .

types: $(READY)
	$(PY) -m mypy

upload: bundle
	$(PY) build_dataset.py --upload out

clean:
	rm -rf out
