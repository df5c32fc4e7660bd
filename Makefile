# synfundus: every target sets itself up; only Python 3.11+, make and git are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# what is installed: chosen once by `make install-gpu`, else torch as the package index has it
LOCK := $(or $(file <$(VENV)/lock),requirements.lock)
REFERENCES := $(VENV)/references
DEMO_OUT ?= demo-out
STOCK := .venv-stock
STAND_IN := .venv-gpu-stand-in$(if $(filter xformers,$(ATTENTION)),-xformers)

.PHONY: help install install-gpu gpu-check gpu-stand-in stock-check demo demo-long test quick check lint bench soak mutants golden starting-weights clean

help:
	@echo "make demo       set up and walk the whole chain on phantoms: $(DEMO_OUT)/demo.png"
	@echo "make demo-long  the same with about an hour of training"
	@echo "make test       set up and run the tests"
	@echo "make quick      the unit tests of changed files and of what imports them, for less than a minute"
	@echo "make check      everything CI runs: format, lint, types, contracts, tests"
	@echo "make bench      the performance claims, each as a ratio in one JSON line"
	@echo "make soak       the long campaigns"
	@echo "make mutants [ONLY='word ...'] [JOBS=2]  puts known faults into a copy, one by one: a test must fail each time"
	@echo "make starting-weights [DENOISER=1]  draws eyes, trains what --init-from drawn starts from: hours on two cores, resumable"
	@echo "make install-gpu [ATTENTION=xformers]  the CUDA build of torch; with xformers torch 2.10 for CUDA 12"
	@echo "make gpu-check [ONLY=2,4]  after that, on a machine with a GPU: checks and measures it in about ten minutes"
	@echo "make stock-check        the stock pipeline of an export, opened without synfundus: 5 minutes, and an environment of its own"
	@echo "make gpu-stand-in [ATTENTION=xformers]  the CUDA build on a GPU that computes nothing: about 5 GB, 25 minutes"

# torch first: with it in place nothing else pulls another build of it
$(STAMP): $(LOCK) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $$(grep '^torch==' $(LOCK))
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(LOCK)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

install: $(STAMP)

install-gpu:
	@case "$(ATTENTION)" in ""|sdpa|xformers) ;; *) echo "ATTENTION=$(ATTENTION): sdpa or xformers"; exit 2;; esac
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo requirements-gpu$(if $(filter xformers,$(ATTENTION)),-xformers).lock > $(VENV)/lock
	rm -f $(STAMP)
	$(MAKE) --no-print-directory install

# in an environment of its own; what runs there, and what it proves: tests/stand_in_gpu/README.md
gpu-stand-in:
	$(MAKE) --no-print-directory install-gpu VENV=$(STAND_IN) ATTENTION=$(ATTENTION)
	$(STAND_IN)/bin/python -m pytest -m slow -n 0 -s --durations=0 tests/integration/test_stand_in_gpu.py

# in an environment without synfundus: what it draws there is compared with what synfundus draws
stock-check: $(STAMP)
	test -x $(STOCK)/bin/python || $(PYTHON) -m venv $(STOCK)
	$(STOCK)/bin/python -m pip install -q --disable-pip-version-check $$(grep -E '^(torch|diffusers|safetensors)==' $(LOCK)) transformers
	SYNFUNDUS_STOCK_PYTHON=$(abspath $(STOCK))/bin/python $(BIN)/python -m pytest -m slow -n 0 tests/integration/test_stock_environment.py

gpu-check:
	@test -x $(BIN)/python || { echo "gpu-check needs the CUDA build of torch. Run: make install-gpu && make gpu-check"; exit 2; }
	$(BIN)/python -m benchmarks.gpu_check $(if $(ONLY),--only $(ONLY))

demo: $(STAMP)
	$(BIN)/synfundus demo --preset demo-cpu --out $(DEMO_OUT)

demo-long: $(STAMP)
	$(BIN)/synfundus demo --preset demo-cpu --out demo-long-out --minutes 60

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

quick: $(STAMP)
	$(BIN)/python tests/quick.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint test

# what benchmarks compare with, apart from what we run with
$(REFERENCES): $(STAMP) benchmarks/requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(REFERENCES) \
	  -r benchmarks/requirements.lock
	touch $(REFERENCES)

bench: $(STAMP) $(REFERENCES)
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.step_options
	PYTHONPATH=$(REFERENCES) $(BIN)/python -m benchmarks.end_to_end --accelerate
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.ema_cost
	$(BIN)/python -m benchmarks.checkpoint_stall
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.prepare
	PYTHONPATH=$(REFERENCES) $(BIN)/python -m benchmarks.loader --litdata
	$(BIN)/python -m benchmarks.loader_s3
	$(BIN)/python -m benchmarks.first_batch
	$(BIN)/python -m benchmarks.zero2_memory
	$(BIN)/python -m benchmarks.gallery
	$(if $(MODEL),$(BIN)/python -m benchmarks.sample --model $(MODEL) --images $(IMAGES))

soak: $(STAMP)
	$(BIN)/python -m pytest -m slow tests
	$(MAKE) --no-print-directory mutants

mutants: $(STAMP)
	$(BIN)/python tests/mutate.py --jobs $(or $(JOBS),1) $(ONLY)

golden: $(STAMP)
	SYNFUNDUS_REGENERATE_GOLDEN=1 $(BIN)/python -m pytest -q tests/golden

starting-weights: $(STAMP)
	$(BIN)/python -m benchmarks.starting_weights $(if $(WORK),--work $(WORK)) $(if $(DENOISER),--denoiser)

clean:
	rm -rf demo-out demo-long-out .pytest_cache .mypy_cache .ruff_cache
