# `make demo` films a clip again, `make test` runs the tests; each makes its own environment in .venv first.
#   make demo TORCH_INDEX=URL   takes torch from another index (a laptop without a GPU wants the CPU build)
#   make demo PYTHON=python3.12 OUT=somewhere

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
OUT ?= demo-out
BIN := .venv/bin
PYTHONS := Python 3.11 to 3.14
DEMO := .venv/.demo
READY := .venv/.ready

.PHONY: demo test test-all ci check lint types layers docs full-size manifests options client lock licenses setup clean

setup: $(READY)

# What a purpose installs is its lock, without what tells machines apart: torch comes by the Makefile's word.
define install
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else '$(PYTHONS) is needed: make PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# DeepSpeed compiles what it needs at its first start, not here.
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(1)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@
endef

$(DEMO): pyproject.toml locks/demo.txt
	$(call install,locks/demo.txt)

$(READY): pyproject.toml locks/dev.txt
	$(call install,locks/dev.txt)
	touch $(DEMO) # it has all that the demo needs

# One second of a street: a van in front, a cyclist behind it. The clip ships inside a PyPI package.
demo: $(DEMO)
	$(BIN)/recapture run "$$($(BIN)/python examples/demo_clip.py)" --first-frame 108 --frames 24 \
		--camera "dolly_zoom(0.2)" --relative-to source --quality draft --out $(OUT)

test: $(READY)
	$(BIN)/pytest -q

test-all: $(READY)
	$(BIN)/pytest -q -m "not gpu"

# The tests that CI runs: the fast ones, and the slow ones that guard the main path. `make ci COVERAGE=` measures nothing.
COVERAGE ?= --cov
ci: $(READY)
	$(BIN)/pytest -q $(COVERAGE) -m "not gpu and (not slow or ci)"

check: lint layers types licenses

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: $(READY)
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/basedpyright

# Fails on a broken link, anchor or code block, and on a page that no other page leads to.
docs: $(READY)
	$(BIN)/mkdocs build --quiet

# The manifests beside the chart, after a change of the chart.
manifests: $(READY)
	$(BIN)/python -m tests.cluster.chart

# Stable Video Diffusion at full size on this machine's processor: half an hour, 14 GB of memory, 4.5 GB of disk.
full-size: $(READY)
	$(BIN)/recapture bench full-size --memory 14 --out benchmarks/results/full_size.jsonl

# The options of requests, as the client has them, after a change of engine/config.py.
options: $(READY)
	$(BIN)/python -m recapture.serve.request_options

# The waiting client, after a change of the awaited one.
client: $(READY)
	$(BIN)/python -m tests.client.unasync_client

# The list of licenses is in pyproject.toml.
licenses: $(READY)
	$(BIN)/pip-licenses

# A lock for each purpose, all of the same versions: what the demo runs, what the image runs, what the tests run.
# torch and what only its CUDA build brings stay out: they differ from machine to machine. Triton is the version that this
# torch's CUDA build brings.
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	$(foreach name,torch cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
	nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx,--no-emit-package $(name))
RUNTIME := --extra engine --extra cluster --extra serve

lock:
	$(LOCK) --upgrade $(RUNTIME) --extra demo --extra evaluate --extra exr --extra dev --extra docs -o locks/dev.txt
	$(LOCK) --constraint locks/dev.txt $(RUNTIME) --no-emit-package triton -o locks/runtime.txt
	$(LOCK) --constraint locks/dev.txt --extra engine --extra demo --no-emit-package triton -o locks/demo.txt

clean:
	rm -rf .venv demo-out build site *.egg-info
