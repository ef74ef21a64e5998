# Two commands do everything: `make` (set up, bundle, rehearse, report) and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
DEMO := out/demo
OWNER ?= your-kaggle-name
SLUG ?= hourglass-default
OUT ?= out
# What an upload is called: only what was given, not the defaults above.
GIVEN = $(if $(filter-out file,$(origin OWNER)),--owner '$(OWNER)') \
	$(if $(filter-out file,$(origin SLUG)),--slug '$(SLUG)') $(if $(COMPETITION),--competition '$(COMPETITION)')

.PHONY: all rehearse bundle test faults whole chaos fuzz mutants image formats pythons gpu lint types upload clean

all: rehearse

# If your pip would fetch the CUDA build of torch and you want the CPU one, run this first:
# python3 -m venv .venv && .venv/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
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

# The slower tests of the fault matrix; what this machine does not allow is skipped and counted.
faults: $(READY)
	$(PY) -m pytest tests -m faults --timeout 600

# Every published solution at full size: minutes to an hour each.
whole: $(READY)
	$(PY) -m pytest tests/runs/test_ensembles.py -m whole

# Ten random faults in one run, thirty times.
chaos: $(READY)
	$(PY) -m tests.helpers.chaos --seeds 30

# Ten thousand damaged audio files through the decoder.
fuzz: $(READY)
	$(PY) -m tests.helpers.fuzz_audio --count 10000 --seed 0

# Sixty changes of one operator, constant or condition in each pure module: do its tests notice? MODULE=kernel/limits.py for one.
mutants: $(READY)
	$(PY) -m tests.helpers.mutants $(MODULE) --count 60

# A bundle under the package versions of the Kaggle image, as far as pip can have them here.
image: $(READY)
	$(PY) -m tests.helpers.image

# Checkpoints written by the packages that people train with, each in an environment of its own: an hour, 10 GB.
formats: $(READY)
	$(PY) -m tests.helpers.formats --write

# `make test` and a rehearsal under each Python that README promises and this machine has: ONLY=3.12 for one.
pythons:
	$(PYTHON) -m tests.helpers.pythons $(ONLY)

# The GPU's tests and figures, in whatever Python has torch with CUDA: PART=tests, PART=argus, ... for one part.
# Without a GPU: the same tests on a stand-in, and how fast the host would feed one.
GPU_PYTHON ?= $(if $(wildcard $(PY)),$(PY),python3)
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu $(PART) --out out/gpu.json

lint: $(READY)
	$(PY) -m ruff check .

types: $(READY)
	$(PY) -m mypy

# What lies in OUT, under OWNER, SLUG and COMPETITION if they are given; ENSEMBLE= (and WEIGHTS=) is built first,
# with SPLIT=1 as two datasets; what of it is uploaded, the build itself says.
upload: $(READY)
	$(if $(ENSEMBLE),,$(if $(WEIGHTS),$(error WEIGHTS= needs ENSEMBLE=, the TOML that they belong to)))
	$(PY) build_dataset.py $(if $(ENSEMBLE),'$(ENSEMBLE)' --out '$(OUT)') $(if $(SPLIT),--split) $(if $(WEIGHTS),--weights '$(WEIGHTS)') \
		--upload '$(OUT)' $(GIVEN)

clean:
	rm -rf out
